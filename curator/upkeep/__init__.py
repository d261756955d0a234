"""The store looked after: whether it is whole, and what nothing needs any more."""
