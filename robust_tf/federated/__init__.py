"""Training on many devices that each hold their own part of the data.

The names below are the public ones. They are imported when they are first
used: the servers need no TensorFlow of their own, the devices do.
"""

import importlib

_PUBLIC = {
  "DeviceData": "local_training",
  "DeviceTasks": "tasks",
  "FedAsync": "fed_async",
  "FederatedReport": "events",
  "LocalTraining": "local_training",
  "RemoteDevices": "remote_devices",
  "SLSGD": "slsgd",
  "STALENESS": "staleness",
  "ServerExamples": "zeno_server",
  "SimulatedDevices": "simulated_devices",
  "ZenoPlusPlus": "zeno_plus_plus",
  "by_label": "partition",
  "connect": ".distribute.parameter_server",
  "constant": "staleness",
  "dirichlet": "partition",
  "exchanged_variables": "local_training",
  "exponential": "staleness",
  "fed_avg": "slsgd",
  "hinge": "staleness",
  "iid": "partition",
  "permutation": "sampling",
  "polynomial": "staleness",
  "run": "training_loop",
  "serve": ".distribute.parameter_server",
  "sigmoid": "staleness",
  "uniform": "sampling",
  "validation_gradient": "zeno_server",
  "zeno_on_server": "zeno_server",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
  if name not in _PUBLIC:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  module = importlib.import_module(f".{_PUBLIC[name]}", __name__)
  return getattr(module, name)


def __dir__() -> list[str]:
  return sorted([*globals(), *__all__])
