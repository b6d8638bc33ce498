"""Writes a Keras model's training step, places it, and runs what was written.

    python docs/examples/export_and_place.py

At the command line the second step is `baechi place MODEL PLACED --signature
train --batch-size 16 --cluster FILE --estimate`.
"""

import pathlib
import tempfile

import keras
import numpy as np
import tensorflow as tf

import baechi_tf

tf.config.set_logical_device_configuration(
  tf.config.list_physical_devices("CPU")[0],
  [tf.config.LogicalDeviceConfiguration()] * 4,
)
x = np.random.default_rng(0).normal(size=(16, 8)).astype("float32")
y = x.sum(axis=1, keepdims=True)
keras.utils.set_random_seed(0)
model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")

with tempfile.TemporaryDirectory() as folder:
  exported = pathlib.Path(folder, "model")
  placed = pathlib.Path(folder, "placed")
  baechi_tf.export_keras(model, exported, (x, y))
  baechi_tf.place(
    exported,
    placed,
    baechi_tf.read_cluster("configs/clusters/4_cpus.toml"),
    signature="train",
    batch_size=16,
    estimate=True,
    budget=baechi_tf.Budget(evaluations=200),
  )
  loaded = baechi_tf.load(placed)
  train = loaded.signatures["train"]
  for step in range(3):
    loss = train(x=tf.constant(x), y=tf.constant(y))["loss"]
    print(f"step {step}: loss {float(loss):.4f}")
print(f"unplaced step 0: loss {model.train_on_batch(x, y):.4f}")
