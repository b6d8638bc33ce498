"""A perceptron with one hidden layer, written out in NumPy."""

import numpy as np


def gradient(weights, x, y):
  """The gradient of the mean cross-entropy of a perceptron, in float64."""
  (w1, b1, w2, b2), x = weights, x.reshape(len(x), -1).astype(np.float64)
  before = x @ w1 + b1
  hidden = np.maximum(before, 0)
  logits = hidden @ w2 + b2
  exps = np.exp(logits - logits.max(axis=1, keepdims=True))
  delta = exps / exps.sum(axis=1, keepdims=True)
  delta[np.arange(len(y)), y] -= 1
  delta /= len(y)
  back = (delta @ w2.T) * (before > 0)
  return [x.T @ back, back.sum(axis=0), hidden.T @ delta, delta.sum(axis=0)]
