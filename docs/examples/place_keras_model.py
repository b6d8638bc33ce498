"""Trains a Keras model on devices that are too small for it alone.

python docs/examples/place_keras_model.py
"""

import keras
import numpy as np
import tensorflow as tf

import baechi_tf

# Four devices of one processor, made before TensorFlow runs anything.
tf.config.set_logical_device_configuration(
  tf.config.list_physical_devices("CPU")[0],
  [tf.config.LogicalDeviceConfiguration()] * 4,
)
x = np.random.default_rng(0).normal(size=(256, 64)).astype("float32")
y = (x.sum(axis=1) > 0).astype("int32")

keras.utils.set_random_seed(0)
model = keras.Sequential(
  [keras.Input((64,))]
  + [keras.layers.Dense(256, "relu") for _ in range(3)]
  + [keras.layers.Dense(2)]
)
model.compile(
  "adam",
  keras.losses.SparseCategoricalCrossentropy(from_logits=True),
)
cluster = baechi_tf.read_cluster("configs/clusters/4_cpus.toml")
cluster = cluster.with_memory_fraction(0.0006)  # 2.5 MiB each
plan = baechi_tf.place_keras(
  model,
  cluster,
  (x[:64], y[:64]),
  estimate=True,
  budget=baechi_tf.Budget(evaluations=200),
)
peaks = plan.simulation.peak_memory_bytes
for device, peak in zip(cluster.devices, peaks, strict=True):
  print(device.name, f"{peak / 2**20:.2f} MiB")
losses = model.fit(x, y, batch_size=64, epochs=3, verbose=0).history["loss"]
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
