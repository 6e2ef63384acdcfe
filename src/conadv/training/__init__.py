"""The trainer: recipe, loop, checkpoints, evaluation, run folder."""
