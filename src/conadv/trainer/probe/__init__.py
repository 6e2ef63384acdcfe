"""What a run would need, measured before it starts: a trial step, memory, micro-batch."""
