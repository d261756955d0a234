"""Selection and manifests: from soft labels to a training list."""
