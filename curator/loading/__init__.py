"""The loader: rows of a manifest become batches."""
