"""What the app and ad hoc SQL stand on."""
