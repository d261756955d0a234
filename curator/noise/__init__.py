"""What is done to pictures: augmentation for students, corruptions for tests."""
