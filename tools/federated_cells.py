"""What the federated tables are made of: experiments, and cells to train.

Sizes and settings are those of Xie, Koyejo and Gupta: Asynchronous Federated
Optimization (OPT 2020) and SLSGD (ECML-PKDD 2019), section 6 of each, for a
small model: many devices of few labels each, ten local steps, and a learning
rate of 0.1.
"""

import dataclasses
from collections.abc import Callable

from robust_tf.federated.staleness import constant
from robust_tf.federated.staleness import hinge
from robust_tf.federated.staleness import polynomial
from robust_tf.federated.staleness import Staleness

DEVICES_PER_ROUND = 10
NUM_POINTS = 100  # of a curve, at least

# By the name in a table.
STALENESS: dict[str, Callable[[], Staleness]] = {
  "constant": constant,
  "polynomial(0.5)": polynomial,
  "polynomial(1)": lambda: polynomial(1.0),
  "hinge(10, 4)": hinge,
}


@dataclasses.dataclass(frozen=True)
class Experiment:
  """Who learns what.

  Attributes:
    num_devices: n; each holds two shards of the examples sorted by label.
    examples_per_device: None shares all examples out.
    batch_size: B, examples that a local step sees.
    pushes: updates of the model in FedAsync; and in FedAvg beside it what
      devices push in all its rounds.
    rounds: of SLSGD.
  """

  num_devices: int
  examples_per_device: int | None
  batch_size: int
  pushes: int
  rounds: int


DIGITS = Experiment(50, None, 10, 1000, 120)
IMAGES = Experiment(100, 500, 50, 1000, 120)


@dataclasses.dataclass(frozen=True)
class FedAsyncCell:
  """FedAsync with stale models.

  Attributes:
    max_staleness: K.
    mixing_weight: alpha; half of it from 40 % of all updates on.
    staleness: s, a key of `STALENESS`.
  """

  max_staleness: int
  mixing_weight: float
  staleness: str

  table = "fed_async"

  @property
  def title(self) -> str:
    """The method, for people."""
    return f"FedAsync, α={self.mixing_weight:g}, {self.staleness}"


@dataclasses.dataclass(frozen=True)
class FedAvgCell:
  """FedAvg on as many pushes, what FedAsync is compared with."""

  table = "fed_async"
  title = "FedAvg"
  max_staleness = 0


@dataclasses.dataclass(frozen=True)
class SLSGDCell:
  """SLSGD with malicious devices.

  Attributes:
    num_malicious: q of the devices of each round, which ones is drawn anew.
    trim: b; 0 is the mean.
    mixing_weight: alpha.
    late_mixing_weight: alpha in the second half.
  """

  num_malicious: int
  trim: int
  mixing_weight: float = 1.0
  late_mixing_weight: float = 1.0

  table = "slsgd"

  @property
  def rule(self) -> str:
    """The rule, for people."""
    return f"trimmed mean, b={self.trim}" if self.trim else "mean"

  @property
  def mixing(self) -> str:
    """The mixing weight, for people."""
    if self.late_mixing_weight == self.mixing_weight:
      return f"{self.mixing_weight:g}"
    return f"{self.mixing_weight:g}, then {self.late_mixing_weight:g}"


Cell = FedAsyncCell | FedAvgCell | SLSGDCell

_METHODS = (
  (0.9, "constant"),
  (0.9, "polynomial(0.5)"),
  (0.9, "polynomial(1)"),
  (0.9, "hinge(10, 4)"),
  (0.6, "constant"),
  (0.6, "polynomial(0.5)"),
)
_MIXING = ((1.0, 1.0), (1.0, 0.6), (0.6, 0.6), (0.2, 0.2))


def digits_cells() -> tuple[Cell, ...]:
  """Returns all cells, for data that train in seconds."""
  return (
    FedAvgCell(),
    *(FedAsyncCell(K, *x) for K in (0, 4, 16, 64) for x in _METHODS),
    *(
      SLSGDCell(q, trim, *mixing)
      for q in (0, 2, 4)
      for trim in (0, 2, 4)
      for mixing in _MIXING
    ),
  )


def image_cells() -> tuple[Cell, ...]:
  """Returns the cells that the papers' claims are about."""
  return (
    FedAvgCell(),
    *(
      FedAsyncCell(K, 0.9, name)
      for K in (4, 16, 64)
      for name in ("constant", "polynomial(0.5)", "hinge(10, 4)")
    ),
    *(
      SLSGDCell(q, trim, *mixing)
      for q in (0, 2, 4)
      for trim in (0, 2, 4)
      for mixing in _MIXING[:2]
    ),
  )
