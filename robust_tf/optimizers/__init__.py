"""Keras optimizers for workers that lie, or are slow to talk to."""
