"""The pages of `curator app`: they ask the store through SQL, and write nothing but reviews."""
