"""Places machine-learning graphs on devices that are too small for them."""
