"""A model as a teacher: soft labels and embeddings of every image."""
