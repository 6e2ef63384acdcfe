"""The images of a step and of an evaluation, from memory or from files."""
