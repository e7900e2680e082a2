"""`slm tokenizer` and its commands."""
