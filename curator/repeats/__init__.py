"""Images that repeat each other."""
