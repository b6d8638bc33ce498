"""Searches for placements that take less time than any list policy's."""
