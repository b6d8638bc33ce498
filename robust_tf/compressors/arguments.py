"""What compressors ask of their arguments.

The functions return the argument in the form that compressors work with, or
raise an error that says the value and the bound.
"""

import math
import numbers
import operator

import tensorflow as tf

# The coordinates of a vector are counted with 32 bits.
MAX_SIZE = 2**31 - 1


def check_integer(name: str, value: int, least: int | None = None) -> None:
  """Checks a whole number.

  Raises:
    TypeError: it is no integer.
    ValueError: it is below `least`.
  """
  try:
    operator.index(value)
  except TypeError:
    raise TypeError(f"{name} must be an integer, got {value!r}") from None
  if isinstance(value, bool):
    raise TypeError(f"{name} must be an integer, got {value!r}")
  if least is not None and value < least:
    raise ValueError(f"{name} must be at least {least}, got {value}")


def check_seed(seed: int) -> None:
  """Checks the seed of a compressor's draws.

  Raises:
    TypeError: it is no integer.
    ValueError: it does not fit 64 bits.
  """
  check_integer("seed", seed)
  if not -(2**63) <= seed < 2**63:
    raise ValueError(f"seed must be from -2^63 and below 2^63, got {seed}")


def check_ratio(ratio: float) -> None:
  """Checks a compression ratio: a finite number from 1.

  Raises:
    TypeError: it is no real number.
    ValueError: it is below 1 or not finite.
  """
  if isinstance(ratio, bool) or not isinstance(ratio, numbers.Real):
    raise TypeError(f"ratio must be a number, got {ratio!r}")
  if not (math.isfinite(ratio) and ratio >= 1):
    raise ValueError(
      f"ratio must be finite and at least 1 (1 keeps everything), got {ratio}"
    )


def check_size(size: int) -> None:
  """Checks how many coordinates a vector has.

  Raises:
    TypeError: `size` is no integer.
    ValueError: it is below 1 or above `MAX_SIZE`.
  """
  check_integer("size", size, 1)
  if size > MAX_SIZE:
    raise ValueError(f"size must be at most {MAX_SIZE}, got {size}")


def as_vector(vector: tf.Tensor) -> tf.Tensor:
  """Returns the vector as a tensor `[d]` of known size.

  Raises:
    TypeError: its dtype is not floating.
    ValueError: it is no vector, its size is unknown, or see `check_size`.
  """
  vector = tf.convert_to_tensor(vector)
  if not vector.dtype.is_floating:
    raise TypeError(f"a vector must be floating, got {vector.dtype.name}")
  if vector.shape.rank != 1 or vector.shape[0] is None:
    raise ValueError(
      "a compressor needs a vector [d] of known size, got shape"
      f" {vector.shape}; flatten it, or set its shape"
    )
  check_size(vector.shape[0])
  return vector
