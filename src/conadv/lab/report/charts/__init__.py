"""Charts and pictures of a report."""
