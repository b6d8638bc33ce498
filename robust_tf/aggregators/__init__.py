"""Rules that make one update of the updates of many workers."""

from collections.abc import Callable

from robust_tf.aggregators.bulyan import bulyan
from robust_tf.aggregators.bulyan import bulyan_weights
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
from robust_tf.aggregators.zeno import zeno_plus_plus
from robust_tf.aggregators.zeno import zeno_weights

AGGREGATORS: dict[str, Callable] = {
  "bulyan": bulyan,
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

# What gives the weights that a rule's updates have in its result: those of a
# sum, but for Bulyan, which takes the middle of the updates that it selects.
WEIGHTS: dict[Callable, Callable] = {
  bulyan: bulyan_weights,
  geometric_median: geometric_median_weights,
  krum: krum_weights,
  multi_krum: multi_krum_weights,
  zeno: zeno_weights,
}

__all__ = [
  "AGGREGATORS",
  "WEIGHTS",
  "bulyan",
  "bulyan_weights",
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
  "zeno_plus_plus",
  "zeno_weights",
]
