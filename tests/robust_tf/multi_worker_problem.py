"""What the processes of the multi-worker tests train, also without TensorFlow.

Four classes of points in six dimensions, and a network of one hidden layer
whose gradient is written out, so that a training run of several processes can
be replayed in float64.
"""

import numpy as np

NUM_WORKERS = 3
LIAR = 1
LIE = -10.0  # what the liar multiplies its loss with
NUM_STEPS = 30
STEPS_PER_EPOCH = 15
BATCH = 16
LEARNING_RATE = 0.2
NUM_CLASSES = 4
SHAPES = ((6, 8), (8,), (8, NUM_CLASSES), (NUM_CLASSES,))


def initial_variables() -> list[np.ndarray]:
  """Returns the variables of step 0, float32."""
  random = np.random.default_rng(1)
  return [
    (0.5 * random.standard_normal(shape)).astype(np.float32) for shape in SHAPES
  ]


def draw(seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns points [size, 6], float32, and their labels [size], int32."""
  random = np.random.default_rng(seed)
  labels = random.integers(NUM_CLASSES, size=size)
  centers = 2.0 * np.eye(6)[:NUM_CLASSES]
  points = centers[labels] + 0.5 * random.standard_normal((size, 6))
  return points.astype(np.float32), labels.astype(np.int32)


def worker_data(worker: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns all batches of a worker, `[NUM_STEPS, BATCH, ...]`."""
  points, labels = draw(10 + worker, NUM_STEPS * BATCH)
  return (
    points.reshape(NUM_STEPS, BATCH, 6),
    labels.reshape(NUM_STEPS, BATCH),
  )


def probabilities(variables, points) -> np.ndarray:
  """Returns what the network thinks of points, [size, NUM_CLASSES]."""
  return _forward(variables, points)[1]


def _forward(variables, points):
  first, first_bias, second, second_bias = variables
  hidden = np.tanh(points @ first + first_bias)
  logits = hidden @ second + second_bias
  exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
  return hidden, exponentials / exponentials.sum(axis=1, keepdims=True)


def gradient(variables, points, labels) -> np.ndarray:
  """Returns the gradient [d] of the mean cross entropy, in float64."""
  hidden, errors = _forward(variables, points.astype(np.float64))
  errors[np.arange(len(labels)), labels] -= 1.0
  errors /= len(labels)
  inner = (errors @ variables[2].T) * (1.0 - hidden**2)
  parts = (points.T @ inner, inner.sum(0), hidden.T @ errors, errors.sum(0))
  return np.concatenate([part.ravel() for part in parts])


def accuracy(variables) -> float:
  """Returns the share of new points that the network labels rightly."""
  points, labels = draw(2, 1000)
  found = probabilities(variables, points).argmax(axis=1)
  return float(np.mean(found == labels))


def unflatten(flat: np.ndarray) -> list[np.ndarray]:
  """Returns a vector [d] as variables."""
  ends = np.cumsum([np.prod(shape) for shape in SHAPES])
  return [
    piece.reshape(shape)
    for piece, shape in zip(np.split(flat, ends[:-1]), SHAPES, strict=True)
  ]


def replay(rule) -> np.ndarray:
  """Returns the variables after every step, [NUM_STEPS, d], in float64.

  Args:
    rule: the oracle of the aggregation rule, [n, d] -> [d].
  """
  flat = np.concatenate([x.ravel() for x in initial_variables()])
  flat = flat.astype(np.float64)
  data = [worker_data(worker) for worker in range(NUM_WORKERS)]
  trajectory = []
  for step in range(NUM_STEPS):
    updates = np.stack(
      [
        gradient(unflatten(flat), points[step], labels[step])
        for points, labels in data
      ]
    )
    updates[LIAR] *= LIE
    flat = flat - LEARNING_RATE * rule(updates)
    trajectory.append(flat)
  return np.stack(trajectory)
