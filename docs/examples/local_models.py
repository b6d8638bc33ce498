"""Trains two replicas that send a part of what a gradient would take.

python docs/examples/local_models.py
"""

import keras
import tensorflow as tf
from sklearn.datasets import load_digits

import robust_tf
from robust_tf.compressors import GRBS

tf.config.set_logical_device_configuration(
  tf.config.list_physical_devices("CPU")[0],
  [tf.config.LogicalDeviceConfiguration()] * 4,
)
x, y = load_digits(return_X_y=True)
x, y = (x / 16).astype("float32")[:1792], y.astype("int32")[:1792]

keras.utils.set_random_seed(0)
devices = [f"CPU:{i}" for i in range(2)]
with tf.distribute.MirroredStrategy(devices).scope():
  model = keras.Sequential(
    [
      keras.Input((64,)),
      keras.layers.Dense(32, "relu"),
      keras.layers.Dense(10),
    ]
  )
  optimizer = robust_tf.CSER(
    0.1,
    sync_period=4,
    reset_compressor=GRBS(4, seed=1),
    gradient_compressor=GRBS(16),
  )
  model.compile(
    optimizer,
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
  )
model.fit(x, y, batch_size=64, epochs=3, verbose=0)
whole = 4 * model.count_params() * 28 * 3  # a float32 gradient at every step
print(f"{whole / float(optimizer.bytes_sent):.1f} times fewer bytes")
print(f"accuracy {model.evaluate(x, y, verbose=0)[1]:.2f}")
