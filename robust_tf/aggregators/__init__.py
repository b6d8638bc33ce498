"""Rules that make one update of the updates of many workers."""

from collections.abc import Callable

from robust_tf.aggregators.geometric_median import geometric_median
from robust_tf.aggregators.geometric_median import geometric_median_weights
from robust_tf.aggregators.krum import krum
from robust_tf.aggregators.krum import krum_weights
from robust_tf.aggregators.krum import multi_krum
from robust_tf.aggregators.krum import multi_krum_weights
from robust_tf.aggregators.mean import mean
from robust_tf.aggregators.mean_around import meamed
from robust_tf.aggregators.mean_around import phocas
from robust_tf.aggregators.median import median
from robust_tf.aggregators.trimmed_mean import trimmed_mean
from robust_tf.aggregators.zeno import zeno
from robust_tf.aggregators.zeno import zeno_weights

AGGREGATORS: dict[str, Callable] = {
  "geometric_median": geometric_median,
  "krum": krum,
  "mean": mean,
  "meamed": meamed,
  "median": median,
  "multi_krum": multi_krum,
  "phocas": phocas,
  "trimmed_mean": trimmed_mean,
  "zeno": zeno,
}

# Of the rules that are weighted sums of the updates: what gives the weights.
WEIGHTS: dict[Callable, Callable] = {
  geometric_median: geometric_median_weights,
  krum: krum_weights,
  multi_krum: multi_krum_weights,
  zeno: zeno_weights,
}

__all__ = [
  "AGGREGATORS",
  "WEIGHTS",
  "geometric_median",
  "geometric_median_weights",
  "krum",
  "krum_weights",
  "meamed",
  "mean",
  "median",
  "multi_krum",
  "multi_krum_weights",
  "phocas",
  "trimmed_mean",
  "zeno",
  "zeno_weights",
]
