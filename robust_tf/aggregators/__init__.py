"""Rules that make one update of the updates of many workers."""

from collections.abc import Callable

from robust_tf.aggregators.mean import mean
from robust_tf.aggregators.mean_around import meamed
from robust_tf.aggregators.mean_around import phocas
from robust_tf.aggregators.median import median
from robust_tf.aggregators.trimmed_mean import trimmed_mean

AGGREGATORS: dict[str, Callable] = {
  "mean": mean,
  "meamed": meamed,
  "median": median,
  "phocas": phocas,
  "trimmed_mean": trimmed_mean,
}

# Of the rules that are weighted sums of the updates: what gives the weights.
WEIGHTS: dict[Callable, Callable] = {}

__all__ = [
  "AGGREGATORS",
  "WEIGHTS",
  "meamed",
  "mean",
  "median",
  "phocas",
  "trimmed_mean",
]
