"""Cuts a training step into micro-batches, on which devices work at a time.

python docs/examples/pipeline_micro_batches.py
"""

import keras
import numpy as np
import tensorflow as tf

import baechi_tf

tf.config.set_logical_device_configuration(
  tf.config.list_physical_devices("CPU")[0],
  [tf.config.LogicalDeviceConfiguration()] * 4,
)
x = np.random.default_rng(0).normal(size=(64, 32)).astype("float32")
y = x.sum(axis=1, keepdims=True)


def compiled_model() -> keras.Model:
  """Returns the same model, with the same weights, each time."""
  keras.utils.set_random_seed(0)
  model = keras.Sequential(
    [keras.Input((32,))]
    + [keras.layers.Dense(64, "relu") for _ in range(3)]
    + [keras.layers.Dense(1)]
  )
  model.compile("sgd", "mse")
  return model


cluster = baechi_tf.read_cluster("configs/clusters/4_cpus.toml")
model = compiled_model()
plan = baechi_tf.place_keras(
  model,
  cluster,
  (x, y),
  micro_batches=4,
  estimate=True,
  budget=baechi_tf.Budget(evaluations=200),
)
print(f"predicted step {plan.simulation.makespan_us:.0f} us")
whole = compiled_model().train_on_batch(x, y)
sliced = model.train_on_batch(x, y)
print(f"loss of the whole batch {whole:.4f}, of four slices {sliced:.4f}")
