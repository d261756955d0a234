"""Decisions of people on images."""
