"""What surrounds a run: its folder, machine, progress, logs, signals."""
