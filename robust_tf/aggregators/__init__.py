"""Rules that make one update of the updates of many workers."""
