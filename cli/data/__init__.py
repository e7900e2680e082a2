"""`slm data` and its commands."""
