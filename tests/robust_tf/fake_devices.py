"""Devices that push arrays of random numbers, over a network of whims."""

import numpy as np

from robust_tf.federated.tasks import DeviceTasks
from robust_tf.federated.tasks import Push

SHAPES = ((3, 4), (5,), ())
# |x| stays below that in every test: normal numbers, and means of them.
LARGEST = 8.0


def device_tasks(num_devices=10, **arguments):
  parts = [np.arange(4) + 4 * i for i in range(num_devices)]
  defaults = {"batch_size": 2, "local_steps": 3, "seed": 0}
  return DeviceTasks(parts, **{**defaults, **arguments})


def values(seed, dtype=np.float32):
  """Returns an array of each shape, of normal numbers, a function of a seed."""
  rng = np.random.default_rng(seed)
  return [rng.normal(size=shape).astype(dtype) for shape in SHAPES]


def push_of(task, version=None, content=None):
  """Returns what a device sends, a function of its task's serial."""
  return Push(
    task,
    task.version if version is None else version,
    values([7, task.serial]) if content is None else content,
  )


def deliveries(server, rng, count, delay=True):
  """Yields `count` pushes: late, out of order, and some of them twice.

  The server's tasks are asked for before each, and each is to be received
  before the next. At times a task is given up; its push may come later.
  """
  out, sent = [], []
  for _ in range(count):
    for task in server.assign():
      out.append(push_of(task, server.version))
    if sent and rng.random() < 0.2:
      yield sent[rng.integers(len(sent))]
      continue
    if len(out) > 1 and rng.random() < 0.05:
      server.give_up(out[rng.integers(len(out))].task)
      continue
    push = out.pop(rng.integers(len(out)) if delay else 0)
    sent.append(push)
    yield push


def tolerance(num_updates):
  """Returns how far float32 may be from float64 after so many updates.

  Each rounds four times at most: a difference, a product, a sum, and that of
  the weights with which they are mixed.
  """
  return 4 * num_updates * np.finfo(np.float32).eps * LARGEST


def assert_close(weights, expected, num_updates):
  for x, y in zip(weights, expected, strict=True):
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, y, rtol=0, atol=tolerance(num_updates))
