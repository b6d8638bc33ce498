"""A compressor as plain data, and back: what Keras files hold."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from robust_tf.compressors import COMPRESSORS


def to_config(compressor) -> dict[str, Any]:
  """Returns a compressor's name and arguments."""
  (name,) = (n for n, kind in COMPRESSORS.items() if type(compressor) is kind)
  return {"compressor": name, **dataclasses.asdict(compressor)}


def from_config(config: Mapping[str, Any] | Any):
  """Returns the compressor that `to_config` wrote; one as it is.

  Raises:
    ValueError: the name is unknown.
  """
  if not isinstance(config, Mapping):
    return config
  arguments = dict(config)
  name = arguments.pop("compressor", None)
  if name not in COMPRESSORS:
    raise ValueError(
      f"compressor {name!r} is not known; known are {', '.join(COMPRESSORS)}"
    )
  return COMPRESSORS[name](**arguments)


def check_compressor(argument: str, compressor) -> None:
  """Checks that an argument is a compressor.

  Raises:
    TypeError: it is none.
  """
  if type(compressor) not in COMPRESSORS.values():
    raise TypeError(
      f"{argument}={compressor!r} is no compressor of robust_tf.compressors:"
      " give one, as robust_tf.compressors.GRBS(32)"
    )
