"""Images: found in a source, read, decoded, added to the store."""
