"""`slm bench` and its commands."""
