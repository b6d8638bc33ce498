"""Rules that make one update of the updates of many workers."""

from collections.abc import Callable

from robust_tf.aggregators.mean import mean

AGGREGATORS: dict[str, Callable] = {
  "mean": mean,
}

# Of the rules that are weighted sums of the updates: what gives the weights.
WEIGHTS: dict[Callable, Callable] = {}

__all__ = [
  "AGGREGATORS",
  "WEIGHTS",
  "mean",
]
