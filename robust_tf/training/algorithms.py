"""Which algorithm trains, and which flags are its arguments.

`synchronous` is n workers that all take part in every step. With the others
few devices take part at a time: see `robust_tf.federated`, whose classes are
not imported here, because that imports TensorFlow.
"""

import inspect
from collections.abc import Mapping

from robust_tf.federated.staleness import STALENESS

SYNCHRONOUS = "synchronous"
ASYNCHRONOUS = ("fed_async", "zeno_plus_plus")
ROUNDS = ("slsgd", "fed_avg")
REQUIRED = object()

# What sets flags that are arguments of a staleness function apart.
STALENESS_PREFIX = "staleness_"

_DEVICES = {
  "local_steps": 10,
  "proximal_weight": 0.0,
  "sampling": "permutation",
  "deadline_s": None,
}
_CONCURRENT = {
  "concurrency": None,
  "max_staleness": None,
  "simulated_staleness": 0,
}
_MIXING = {"mixing_decay_steps": (), "mixing_decay_factor": 0.5}
_ROUND = {"devices_per_round": REQUIRED, "arrivals_per_round": None}

# By algorithm, the default of each of its arguments.
ALGORITHMS: Mapping[str, Mapping[str, object]] = {
  SYNCHRONOUS: {},
  "fed_async": {
    "mixing_weight": 0.6,
    **_MIXING,
    "staleness": "constant",
    **_CONCURRENT,
    **_DEVICES,
  },
  "slsgd": {**_ROUND, "mixing_weight": 1.0, **_MIXING, **_DEVICES},
  "fed_avg": {**_ROUND, **_DEVICES},
  "zeno_plus_plus": {
    "refresh_every": 10,
    "rho": 0.001,
    "zeno_epsilon": 0.0,
    **_CONCURRENT,
    **_DEVICES,
    # What a device pushes is taken for a gradient.
    "local_steps": 1,
  },
}


def algorithm_signatures() -> dict[str, dict[str, str | None]]:
  """Returns the arguments of each algorithm, see `choices.Signatures`."""
  return {
    name: {
      flag: None if default is REQUIRED else _text(default)
      for flag, default in arguments.items()
    }
    for name, arguments in ALGORITHMS.items()
  }


def staleness_signatures() -> dict[str, dict[str, str | None]]:
  """Returns the flags of each staleness function, and their defaults."""
  return {
    name: {
      STALENESS_PREFIX + parameter.name: repr(parameter.default)
      for parameter in inspect.signature(function).parameters.values()
    }
    for name, function in STALENESS.items()
  }


def _text(default: object) -> str:
  if isinstance(default, str):
    return default
  return "none" if default in (None, ()) else repr(default)
