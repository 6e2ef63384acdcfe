"""The laboratory: does it work, where, and why."""
