"""Runs models over several processes, and measures their steps."""
