"""A model with its costs, and where these costs come from.

Importing this loads no TensorFlow: cost graphs do without, and wrong arguments
are found before TensorFlow is loaded.
"""

import dataclasses
import os
from collections.abc import Mapping
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from baechi_tf.cluster import Cluster
from baechi_tf.op_graph import OpGraph

if TYPE_CHECKING:  # they import TensorFlow
  from baechi_tf.costs.profile import Coverage
  from baechi_tf.costs.profile import Profile
  from baechi_tf.graph_item import GraphItem

# What `costs.measured` can measure here. A "GPU" that the cluster describes
# need not be here.
_CPU = "CPU"
_GPU = "GPU"
# An argument, another one beside which it is of no use, and why.
_CONFLICTS = (
  ("profile", "estimate", "give one of them"),
  (
    "inputs",
    "estimate",
    "estimates take shapes: give batch_size= or input_shapes=",
  ),
  ("inputs", "profile", "the profile has the costs"),
  ("inputs", "batch_size", "the arrays have their shapes"),
  ("inputs", "input_shapes", "the arrays have their shapes"),
)


@dataclasses.dataclass(frozen=True, eq=False)
class CostedModel:
  """A model with its costs.

  Attributes:
    graph: what is planned.
    item: the TensorFlow model, None for a cost graph.
    coverage: where the costs come from; empty for a cost graph.
    notes: what a reader of the costs should know, in words.
  """

  graph: OpGraph
  item: "GraphItem | None" = None
  coverage: "tuple[Coverage, ...]" = ()
  notes: tuple[str, ...] = ()

  @property
  def num_rewritten(self) -> Mapping[str, int]:
    """How many nodes each of the `REWRITES` replaced."""
    return self.item.num_rewritten if self.item else {}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class CostSource:
  """Where the ops' costs come from, and how large the step's inputs are.

  With neither a profile nor `estimate`, ops are measured on this machine for
  devices of type "CPU", and of type "GPU" if the cluster does not describe it;
  for others they are estimated.

  Attributes:
    profile: measured costs by device type, or the path of a profile file; ops
      that it lacks are estimated.
    estimate: whether all ops are estimated from the cluster's device types.
    batch_size: the first dimension of inputs whose first dimension is unknown.
    input_shapes: the whole shape of an input, by its name.
    inputs: an array for every input, by its name, or the path of a NumPy
      archive of them: what the step is measured with in place of made-up
      values.

  Raises:
    ValueError: one argument leaves another without use.
  """

  profile: "Profile | str | os.PathLike | None" = None
  estimate: bool = False
  batch_size: int | None = None
  input_shapes: Mapping[str, tuple[int, ...]] | None = None
  inputs: Mapping[str, np.ndarray] | str | os.PathLike | None = None

  def __post_init__(self) -> None:
    for name, other, reason in _CONFLICTS:
      given = (getattr(self, x) for x in (name, other))
      if all(x is not None and x is not False for x in given):
        raise ValueError(f"{name}= is of no use with {other}=: {reason}")

  def for_values(self, values: Mapping[str, np.ndarray]) -> "CostSource":
    """Returns the same costs for inputs of the shapes of some values."""
    return dataclasses.replace(
      self,
      batch_size=None,
      input_shapes={name: value.shape for name, value in values.items()},
      inputs=None,
    )

  def measured_types(self, cluster: Cluster) -> Sequence[str]:
    """Returns the cluster's device types that are measured on this machine."""
    if self.estimate or self.profile is not None:
      return ()
    here = (_CPU,) if _GPU in cluster.device_types else (_CPU, _GPU)
    return [x for x in dict.fromkeys(cluster.types) if x in here]

  def check_types(self, cluster: Cluster) -> None:
    """Finds out before any work that a device type's costs cannot be had.

    Args:
      cluster: whose device types costs are needed for.

    Raises:
      ValueError: a type is neither measured here nor described.
    """
    if self.profile is not None:
      return  # it may have them all
    known = {*cluster.device_types, *self.measured_types(cluster)}
    for name in cluster.types:
      if name not in known:
        raise ValueError(
          f"there is no [device_type.{name}] table to estimate ops on device"
          f" type {name!r} from; add one, or give a profile that was measured"
          " on such a device with profile="
        )
