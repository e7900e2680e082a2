"""`slm runs` and its commands."""
