"""From a fine OpGraph to a coarse one that is quicker and safer to place."""
