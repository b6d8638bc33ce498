"""Aggregates gradients by a rule of one's own: any function of rows [n, d].

python docs/examples/custom_rule.py
"""

import keras
import numpy as np
import tensorflow as tf

import robust_tf


def clipped_mean(updates: tf.Tensor) -> tf.Tensor:
  """Returns the mean of rows [n, d], none longer than the median row."""
  norms = tf.norm(updates, axis=1)
  limit = tf.sort(norms)[(updates.shape[0] - 1) // 2]
  scale = tf.minimum(1.0, limit / tf.maximum(norms, 1e-12))
  return tf.reduce_mean(updates * scale[:, None], axis=0)


rows = tf.constant([[3.0, 4.0], [0.0, 5.0], [3000.0, 4000.0]])
print("mean", robust_tf.aggregators.mean(rows).numpy().tolist())
print("clipped mean", clipped_mean(rows).numpy().round(3).tolist())

x = np.random.default_rng(0).normal(size=(160, 8)).astype("float32")
y = x.sum(axis=1, keepdims=True)
keras.utils.set_random_seed(0)
model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
workers = robust_tf.VectorizedWorkers(model, num_workers=4)
workers.compile(
  robust_tf.RobustOptimizer(
    keras.optimizers.SGD(0.1), clipped_mean, workers_per_replica=4
  ),
  loss="mse",
)
losses = workers.fit(x, y, batch_size=32, epochs=5, verbose=0).history["loss"]
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
