"""What a study sets out to decide, kept from before its final runs, and judged by them."""
