"""The state of training on disk: written, read, dealt out anew."""
