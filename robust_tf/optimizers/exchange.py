"""What compressed vectors of all workers make of each worker's own.

Each worker has a vector v_i, in the form of one tensor a variable, sends C(v_i)
and gets the mean of what all sent. What it did not send, its residual
r_i = v_i - C(v_i), it may keep in mind or add to the mean: the latter is the
partial synchronisation (PSync) of Xie et al., CSER: Communication-efficient
SGD with Error Reset, NeurIPS 2020 (arXiv 2007.13221), Section 3.
"""

import dataclasses
from collections.abc import Callable
from collections.abc import Sequence

import tensorflow as tf

from robust_tf.communication import Workers
from robust_tf.compressors import Identity
from robust_tf.compressors import Zero
from robust_tf.distribute.hooks import xla
from robust_tf.distribute.packing import pack
from robust_tf.distribute.packing import put
from robust_tf.distribute.packing import split_coordinates
from robust_tf.distribute.packing import take
from robust_tf.distribute.packing import unpack
from robust_tf.ordered_sum import ordered_sum

# Of each worker of this process, one tensor a variable.
Values = Sequence[Sequence[tf.Tensor]]


@dataclasses.dataclass(frozen=True)
class Exchange:
  """What became of the vectors; each is made when it is asked for.

  Attributes:
    mean: returns the mean of what all workers sent, sum_k C(v_k) / n.
    residual: returns what each worker did not send, v_i - C(v_i).
    synced: returns the sum of both, PSync(v_i).
  """

  mean: Callable[[], Values]
  residual: Callable[[], Values]
  synced: Callable[[], Values]


def exchange(
  workers: Workers, vectors: Values, compressor, step: tf.Tensor
) -> Exchange:
  """Returns what the workers know after they sent their vectors compressed.

  Args:
    workers: all of them.
    vectors: v_i, of each worker of this process.
    compressor: C, one of `robust_tf.compressors`.
    step: what the compressor's draws depend on.
  """
  if isinstance(compressor, Zero):
    return _nothing(vectors)
  if isinstance(compressor, Identity):
    return _everything(workers, vectors)
  if compressor.all_reduce:
    return _shared_support(workers, vectors, compressor, step)
  return _gathered(workers, vectors, compressor, step)


def _zeros(values: Values) -> Values:
  return [[tf.zeros_like(value) for value in own] for own in values]


def _nothing(vectors: Values) -> Exchange:
  return Exchange(
    mean=lambda: _zeros(vectors),
    residual=lambda: vectors,
    synced=lambda: vectors,
  )


def _everything(workers: Workers, vectors: Values) -> Exchange:
  mean = workers.mean(vectors)
  return Exchange(
    mean=lambda: mean, residual=lambda: _zeros(vectors), synced=lambda: mean
  )


def _shared_support(
  workers: Workers, vectors: Values, compressor, step: tf.Tensor
) -> Exchange:
  """All keep the same coordinates: these alone are taken, sent and put."""
  if xla.in_xla():
    raise ValueError(
      f"XLA cannot compile {compressor}, of which each variable has another"
      " number of coordinates at each step: compile the model with"
      " jit_compile=False"
    )
  sizes = [value.shape.num_elements() for value in vectors[0]]
  with tf.device(workers.devices[0]):
    support = compressor.support(sum(sizes), step)
    coordinates = split_coordinates(support, sizes)
  sent = workers.map(lambda own: [take(own, coordinates)], vectors)
  received = workers.mean(sent)

  def mean() -> Values:
    return workers.map(
      lambda own, elements: put(own, coordinates, elements[0]),
      _zeros(vectors),
      received,
    )

  def residual() -> Values:
    return workers.map(
      lambda own, elements: put(own, coordinates, tf.zeros_like(elements[0])),
      vectors,
      received,
    )

  def synced() -> Values:
    return workers.map(
      lambda own, elements: put(own, coordinates, elements[0]),
      vectors,
      received,
    )

  return Exchange(mean, residual, synced)


def _gathered(
  workers: Workers, vectors: Values, compressor, step: tf.Tensor
) -> Exchange:
  """Payloads differ from worker to worker: each decodes those of all."""
  like = [tf.TensorSpec(value.shape, value.dtype) for value in vectors[0]]
  rows = workers.map(lambda own: pack(own, 1)[0], vectors)
  size, dtype = rows[0].shape[0], rows[0].dtype
  payloads = workers.map(
    lambda row, index: list(compressor.encode(row, step, index)),
    rows,
    workers.indices,
  )

  def decode(payload) -> tf.Tensor:
    return compressor.decode(tuple(payload), size, dtype)

  everyones = workers.gather(payloads)
  means = {}
  for device in workers.devices:
    if device not in means:
      with tf.device(device):
        decoded = [decode(payload) for payload in everyones]
        means[device] = ordered_sum(decoded) / workers.num_workers
  residuals = workers.map(
    lambda row, payload: row - decode(payload), rows, payloads
  )
  means = [means[device] for device in workers.devices]

  def unpacked(values) -> Values:
    return workers.map(lambda row: unpack(row, like), values)

  return Exchange(
    mean=lambda: unpacked(means),
    residual=lambda: unpacked(residuals),
    synced=lambda: unpacked(workers.map(tf.add, means, residuals)),
  )
