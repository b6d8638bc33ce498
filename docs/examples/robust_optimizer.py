"""Trains with ten workers of which three send flipped gradients.

python docs/examples/robust_optimizer.py
"""

import functools

import keras
from sklearn.datasets import load_digits

import robust_tf

x, y = load_digits(return_X_y=True)
x, y = (x / 16).astype("float32")[:1700], y.astype("int32")[:1700]


def accuracy(rule) -> float:
  """Returns what the model learns with a rule among liars."""
  keras.utils.set_random_seed(0)
  model = keras.Sequential(
    [keras.Input((64,)), keras.layers.Dense(10, "softmax")]
  )
  workers = robust_tf.VectorizedWorkers(model, num_workers=10)
  workers.compile(
    robust_tf.RobustOptimizer(
      keras.optimizers.SGD(0.5),
      rule,
      byzantine=robust_tf.Byzantine(
        workers=(0, 1, 2),
        attack=functools.partial(robust_tf.attacks.sign_flip, scale=10.0),
      ),
      workers_per_replica=10,
    ),
    loss="sparse_categorical_crossentropy",
  )
  workers.fit(x, y, batch_size=100, epochs=5, verbose=0)
  return float((model.predict(x, verbose=0).argmax(axis=1) == y).mean())


trimmed = functools.partial(robust_tf.aggregators.trimmed_mean, trim=3)
print(f"mean         {accuracy(robust_tf.aggregators.mean):.2f}")
print(f"trimmed mean {accuracy(trimmed):.2f}")
