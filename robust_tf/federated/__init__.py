"""Training on many devices that each hold their own part of the data."""
