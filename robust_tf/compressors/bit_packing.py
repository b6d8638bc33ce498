"""Small numbers, several to a byte."""

import tensorflow as tf

WIDTHS = (1, 2, 4, 8)


def pack(codes: tf.Tensor, width: int) -> tf.Tensor:
  """Returns the numbers in as few bytes as they need.

  Args:
    codes: uint8 `[d]`, each below 2^width.
    width: bits a number, one of `WIDTHS`.

  Returns:
    uint8 `[packed_size(d, width)]`; the first number is in the lowest bits.
  """
  per_byte = 8 // width
  padding = -codes.shape[0] % per_byte
  columns = tf.reshape(tf.pad(codes, [[0, padding]]), [-1, per_byte])
  packed = columns[:, 0]
  for i in range(1, per_byte):
    shift = tf.constant(i * width, tf.uint8)
    packed |= tf.bitwise.left_shift(columns[:, i], shift)
  return packed


def unpack(packed: tf.Tensor, width: int, size: int) -> tf.Tensor:
  """Returns the `size` numbers that `pack` packed, uint8 `[size]`."""
  shifts = tf.constant(list(range(0, 8, width)), tf.uint8)
  columns = tf.bitwise.right_shift(packed[:, tf.newaxis], shifts)
  mask = tf.constant(2**width - 1, tf.uint8)
  return tf.reshape(columns & mask, [-1])[:size]


def packed_size(size: int, width: int) -> int:
  """Returns how many bytes `size` numbers take."""
  return -(-size * width // 8)
