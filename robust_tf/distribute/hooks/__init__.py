"""Private hooks into TensorFlow and Keras, one a file."""
