"""Training on workers that are slow to talk to, late, few at a time or lying.

The algorithms of this package are listed in the README as they arrive.
"""
