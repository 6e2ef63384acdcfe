"""How good a trained network is, and how it leaves the project: evaluation, test sets, export."""
