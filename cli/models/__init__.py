"""The commands that use a model folder: sample, chat, serve, eval, quantize, keys."""
