"""The whole loop over generations."""
