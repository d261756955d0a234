"""The store: Delta Lake tables in a folder or a bucket."""
