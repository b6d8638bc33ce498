"""What the ops of a step cost: measured here, or estimated for elsewhere.

`profile` holds costs and their file, `measured` and `analytical` make them,
`communication` measures links.
"""
