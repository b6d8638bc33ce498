"""What tf.distribute and Keras ask of code that runs on several workers."""
