"""The globally-randomised blockwise sparsifier.

A vector is cut into blocks, and at each step all workers keep the same few
blocks, drawn from a seed and the step. What is kept is a few runs of
coordinates, which costs little to draw, to gather and to all-reduce.

Xie, Zheng, Koyejo, Gupta, Li and Lin, CSER: Communication-efficient SGD with
Error Reset, NeurIPS 2020 (arXiv 2007.13221).
"""

import dataclasses

import tensorflow as tf

from robust_tf.compressors import draws
from robust_tf.compressors.arguments import check_integer
from robust_tf.compressors.arguments import check_ratio
from robust_tf.compressors.arguments import check_seed
from robust_tf.compressors.arguments import check_size
from robust_tf.compressors.shared_support import SharedSupport


@dataclasses.dataclass(frozen=True)
class GRBS(SharedSupport):
  """Keeps round(num_blocks / ratio) of num_blocks blocks.

  Block b of B blocks holds the coordinates from (b d) // B up to, and without,
  ((b + 1) d) // B, so every coordinate is in one block. A vector with fewer
  coordinates than `num_blocks` has a block for each coordinate.

  Equal ones keep the same blocks at a step, wherever they are; give two that
  work together, as those of CSER, different seeds where their ratios are equal.

  Attributes:
    ratio: the compression ratio R, from 1.
    num_blocks: B, at least R. The ratio in effect is 1 / `delta(size)`.
    seed: of the draws.

  Raises:
    TypeError: an argument is no number, or no integer.
    ValueError: `ratio` is below 1 or not finite, or `num_blocks` below 1 or
      below `ratio`, or `seed` does not fit 64 bits. Methods raise it for a
      size below `ratio`.
  """

  ratio: float
  num_blocks: int = 1024
  seed: int = 0

  def __post_init__(self):
    check_ratio(self.ratio)
    check_integer("num_blocks", self.num_blocks, 1)
    check_seed(self.seed)
    if self.num_blocks < self.ratio:
      raise ValueError(
        f"num_blocks={self.num_blocks} blocks allow a ratio of at most"
        f" {self.num_blocks}, got ratio={self.ratio}; raise num_blocks to at"
        f" least {self.ratio}, or lower the ratio"
      )

  def support(self, size: int, step: int | tf.Tensor) -> tf.Tensor:
    """Returns the coordinates of the step's blocks, int32 `[k]`, ascending.

    The time is that of num_blocks + k. k is between kept * (size // B) and
    kept * ceil(size / B); it is known ahead where B divides the size.
    """
    num_blocks, kept = self._blocks(size)
    seed = draws.step_seed(self.seed, step)
    blocks = tf.cast(draws.sample(num_blocks, kept, seed), tf.int64)
    start = tf.cast(blocks * size // num_blocks, tf.int32)
    longest = -(-size // num_blocks)
    columns = tf.range(longest)
    coordinates = tf.reshape(start[:, tf.newaxis] + columns, [-1])
    if size % num_blocks == 0:
      return coordinates
    end = tf.cast((blocks + 1) * size // num_blocks, tf.int32)
    inside = columns < (end - start)[:, tf.newaxis]
    return tf.boolean_mask(coordinates, tf.reshape(inside, [-1]))

  def delta(self, size: int) -> float:
    """Returns the share of the blocks that is kept."""
    num_blocks, kept = self._blocks(size)
    return kept / num_blocks

  def _blocks(self, size: int) -> tuple[int, int]:
    """Returns how many blocks the vector has, and how many are kept."""
    check_size(size)
    num_blocks = min(self.num_blocks, size)
    if num_blocks < self.ratio:
      raise ValueError(
        f"ratio={self.ratio} needs a vector of at least as many coordinates,"
        f" got {size}; lower the ratio to at most {size}"
      )
    return num_blocks, round(num_blocks / self.ratio)
