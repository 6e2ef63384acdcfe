"""Analyses of a run folder."""
