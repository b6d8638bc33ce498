"""Random coordinates, the same on every worker.

Stich, Cordonnier and Jaggi, Sparsified SGD with Memory, NeurIPS 2018 (arXiv
1809.07599), Definition 2.1; the coordinates are drawn without replacement and
here by all workers alike.
"""

import dataclasses

import tensorflow as tf

from robust_tf.compressors import draws
from robust_tf.compressors.arguments import check_ratio
from robust_tf.compressors.arguments import check_seed
from robust_tf.compressors.arguments import check_size
from robust_tf.compressors.shared_support import SharedSupport


@dataclasses.dataclass(frozen=True)
class RandomK(SharedSupport):
  """Keeps round(d / ratio) coordinates, at least 1.

  Drawing them takes time that grows with d; `GRBS` is for long vectors.

  Attributes:
    ratio: the compression ratio R, from 1.
    seed: of the draws.

  Raises:
    TypeError: an argument is no number, or no integer.
    ValueError: `ratio` is below 1 or not finite, or `seed` does not fit 64
      bits.
  """

  ratio: float
  seed: int = 0

  def __post_init__(self):
    check_ratio(self.ratio)
    check_seed(self.seed)

  def support(self, size: int, step: int | tf.Tensor) -> tf.Tensor:
    """Returns the step's coordinates, int32 `[k]`, ascending."""
    seed = draws.step_seed(self.seed, step)
    return draws.sample(size, self._kept(size), seed)

  def delta(self, size: int) -> float:
    """Returns the share of the coordinates that is kept, k / d."""
    return self._kept(size) / size

  def _kept(self, size: int) -> int:
    check_size(size)
    return max(1, round(size / self.ratio))
