"""The pass for programmers: an item in, its graph with devices out.

As Grappler's passes: the input stays as it is, what the pass needs is checked
before any work, and what it promises before it returns.
"""

import dataclasses
import os

import tensorflow as tf

from baechi_tf.cluster import Cluster
from baechi_tf.costs.analytical import estimate_missing
from baechi_tf.costs.carried import carried_over
from baechi_tf.costs.profile import complete
from baechi_tf.costs.profile import Profile
from baechi_tf.device_rewrite import rewrite_devices
from baechi_tf.graph_import import op_graph_from_item
from baechi_tf.graph_item import GraphItem
from baechi_tf.graph_item import read_item
from baechi_tf.order_edges import order_edges
from baechi_tf.planner import BEST
from baechi_tf.planner import check_placer
from baechi_tf.planner import Plan
from baechi_tf.planner import plan
from baechi_tf.saved_model import write_saved_model

GraphDef = tf.compat.v1.GraphDef


@dataclasses.dataclass(frozen=True)
class PlacementPass:
  """Places the ops of an item on the devices of a cluster.

  Attributes:
    placer: a name in `PLACERS`, or "best", which tries all.
    coplacement: whether ops may be co-placed before they are placed.
    fusion: whether co-placed ops may be contracted to one.
    profile: the ops' costs by device type. What it lacks is estimated from
      the cluster's description of the device type.
    batch_size: for estimates, what an input's first dimension is if the item
      does not say.
    order: whether control edges keep the planned order of ops that take long.
  """

  placer: str = BEST
  coplacement: bool = True
  fusion: bool = True
  profile: Profile | None = None
  batch_size: int | None = None
  order: bool = False

  def optimize(self, cluster: Cluster, item: GraphItem) -> GraphDef:
    """Returns the item's flat graph with every planned op's device set.

    Args:
      cluster: the devices, by the names that TensorFlow knows them under.
      item: what is placed; it is not changed.

    Raises:
      ValueError: the placer is unknown, a device's name is none of
        TensorFlow's, or an op has no cost.
      InfeasiblePlacementError: no plan was found that fits the memory.
    """
    planned = self.plan(cluster, item)
    device_of = planned.placement.as_dict()
    paths = {name: (name,) for name in item.op_names}
    edges = order_edges(
      item.graph_def, paths, device_of, self.ordered_ops(planned)
    )
    placed, _ = rewrite_devices(item.graph_def, paths, device_of, edges.after)
    return placed

  def plan(self, cluster: Cluster, item: GraphItem) -> Plan:
    """Returns the plan that `optimize` writes into the graph.

    Args:
      cluster: as for `optimize`.
      item: as for `optimize`.

    Raises:
      ValueError: as `optimize`.
      InfeasiblePlacementError: as `optimize`.
    """
    self._check(cluster)
    costs = self._costs(cluster, item)
    return plan(
      op_graph_from_item(item, costs, cluster.types),
      cluster,
      placer=self.placer,
      coplacement=self.coplacement,
      fusion=self.fusion,
      enforce_order=self.order,
    )

  def ordered_ops(self, planned: Plan) -> tuple[str, ...]:
    """Returns the ops that control edges are to keep in the planned order."""
    return planned.ops_worth_ordering if self.order else ()

  def _check(self, cluster: Cluster) -> None:
    check_placer(self.placer)
    for name in cluster.device_names:
      try:
        spec = tf.DeviceSpec.from_string(name)
      except ValueError:
        spec = tf.DeviceSpec()
      if spec.device_type is None or spec.device_index is None:
        raise ValueError(
          f"device {name!r} is no name of TensorFlow's; write one such as"
          " '/job:localhost/replica:0/task:0/device:CPU:0'"
        )

  def _costs(self, cluster: Cluster, item: GraphItem) -> Profile:
    known = carried_over(self.profile or {}, item)
    estimates, _ = estimate_missing(item, cluster, known, self.batch_size)
    costs, _ = complete(known, item, cluster.types, estimates)
    return costs


def place(
  model: str | os.PathLike,
  output: str | os.PathLike,
  cluster: Cluster,
  *,
  signature: str | None = None,
  placement_pass: PlacementPass | None = None,
  overwrite: bool = False,
) -> Plan:
  """Plans a SavedModel and writes it with the planned devices.

  Args:
    model: the SavedModel's directory; it is not changed.
    output: the new SavedModel's directory, written whole or not at all.
    cluster: the devices, by the names that TensorFlow knows them under.
    signature: the step to plan; default the only one, else serving_default.
    placement_pass: how to plan, and what is known of the ops' costs; default
      the best of all placers, on estimates.
    overwrite: replace a SavedModel in `output`.

  Returns:
    the plan, with the predicted step and the lower bound.

  Raises:
    ValueError: the model, the signature, the output or the cluster is not
      right, or an op has no cost.
    OSError: a file cannot be read or written.
    InfeasiblePlacementError: no plan was found that fits the memory.
  """
  item = read_item(model, signature=signature)
  placement_pass = placement_pass or PlacementPass()
  planned = placement_pass.plan(cluster, item)
  write_saved_model(
    model,
    output,
    item,
    planned.placement.as_dict(),
    order=placement_pass.ordered_ops(planned),
    overwrite=overwrite,
  )
  return planned
