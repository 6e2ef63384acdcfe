"""A study as tables, sentences and charts."""
