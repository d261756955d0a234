"""Manifests handed on: exports, and packs of pictures."""
