"""Training on workers that are slow to talk to, late, few at a time or lying.

The names below are the public ones. They are imported when they are first
used.
"""

import importlib

from robust_tf import saved_classes

_PUBLIC = {
  "AdaAlter": "optimizers.local_adaalter",
  "AggregationReport": "aggregation_report",
  "Byzantine": "attacks.byzantine",
  "CSEA": "optimizers.cser",
  "CSER": "optimizers.cser",
  "CSER_PL": "optimizers.cser",
  "CommunicationReport": "communication_report",
  "ErrorFeedbackSGD": "optimizers.error_feedback",
  "LocalAdaAlter": "optimizers.local_adaalter",
  "LocalSGD": "optimizers.cser",
  "QSparseLocalSGD": "optimizers.qsparse_local_sgd",
  "RobustCrossDeviceOps": "distribute.cross_device_ops",
  "RobustOptimizer": "optimizers.robust",
  "ValidationLoss": "distribute.validation_loss",
  "VectorizedWorkers": "distribute.vectorized_workers",
  "bear_with_slow_links": "distribute.hooks.heartbeat",
  "mean_model": "shown_model",
}
# These are in files that Keras saves, which it loads without importing them.
_SAVED = (
  "AdaAlter",
  "CSEA",
  "CSER",
  "CSER_PL",
  "ErrorFeedbackSGD",
  "LocalAdaAlter",
  "LocalSGD",
  "QSparseLocalSGD",
  "RobustOptimizer",
  "VectorizedWorkers",
)
_ROOMS = ("aggregators", "attacks", "compressors", "federated")

__all__ = sorted([*_PUBLIC, *_ROOMS])

saved_classes.register(_SAVED)


def __getattr__(name: str):
  if name in _ROOMS:
    return importlib.import_module(f"{__name__}.{name}")
  if name not in _PUBLIC:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  module = importlib.import_module(f"{__name__}.{_PUBLIC[name]}")
  return getattr(module, name)


def __dir__() -> list[str]:
  return sorted([*globals(), *__all__])
