"""Soft labels, generation by generation, and the tables that follow from them."""
