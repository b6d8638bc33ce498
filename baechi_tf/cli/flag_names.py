"""Names flags in messages of the library, which name arguments.

A message writes an argument as `batch_size=`, or `overwrite=True` for a switch.
"""

import re

_FLAGS = {
  "batch_size": "--batch-size",
  "estimate": "--estimate",
  "exclude": "--exclude",
  "evaluations": "--search-evaluations",
  "fetches": "--fetch",
  "follow_links": "--follow-links",
  "index": "--task",
  "input_shapes": "--input-shape",
  "inputs": "--inputs",
  "keep_devices": "--keep-devices",
  "limit_memory": "--limit-memory",
  "num_steps": "--num-steps",
  "only_devices": "--only-devices",
  "overwrite": "--overwrite",
  "plan": "--plan",
  "private": "--listen-on-network",
  "profile": "--profile",
  "seconds": "--search-seconds",
  "seed": "--search-seed",
  "signature": "--signature",
  "tags": "--tags",
  "warmup": "--warmup",
}
# No value may follow: messages of TensorFlow that we quote have some.
_ARGUMENT = re.compile(rf"\b({'|'.join(_FLAGS)})=(?:True|False)?(?![^\s:;,.)])")
_SHAPE = re.compile(r"\binput_shapes=\{(['\"])(.*?)\1: \(([-\d, ]*)\)\}")


def with_flags(message: str) -> str:
  """Returns a message with the flags in place of the arguments.

  >>> with_flags("pass batch_size=, or input_shapes={'x': (32, 784)}")
  'pass --batch-size, or --input-shape x=32,784'
  """
  message = _SHAPE.sub(_shape_flag, message)
  return _ARGUMENT.sub(lambda found: _FLAGS[found[1]], message)


def _shape_flag(found: re.Match) -> str:
  dims = found[3].replace(" ", "").rstrip(",")
  return f"{_FLAGS['input_shapes']} {found[2]}={dims}"
