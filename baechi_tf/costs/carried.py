"""Costs of ops that a rewrite made, or unmade, from those of the ops before it.

So a profile serves the model as it was and as it was rewritten, whichever of
them it was taken of.
"""

import itertools
import re
from collections.abc import Mapping

from baechi_tf.costs.profile import OpCost
from baechi_tf.costs.profile import Profile
from baechi_tf.graph_item import GraphItem
from baechi_tf.rewrites.body import Body
from baechi_tf.rewrites.share_equal import equal_ops

_PART = re.compile(r"(?P<op>.+)/output_(?P<output>\d+)")
_COPY = re.compile(r"(?P<op>.+)/copy_\d+")


def carried_over(
  profile: Profile, item: GraphItem
) -> dict[str, dict[str, OpCost]]:
  """Returns the profile with costs for the parts and copies of its ops.

  A part of an op that was split gets its own output's bytes and an equal share
  of the time and of the temporary bytes. A copy of a constant costs the same.
  An op that was split before it was measured gets what its parts take, and one
  that an equal op took the place of gets what that op takes.

  Args:
    profile: the op costs by device type; not changed.
    item: the rewritten model, or any other.
  """
  op_types = {node.name: node.op for node in item.graph_def.node}
  parts, copies = {}, {}
  for name in item.op_names if item.num_rewritten else ():
    part, copy = _PART.fullmatch(name), _COPY.fullmatch(name)
    if part and part["op"] not in op_types:
      parts[name] = (part["op"], int(part["output"]))
    elif copy and op_types[name] == op_types.get(copy["op"]) == "Const":
      copies[name] = copy["op"]
  result = {}
  for device_type, costs in profile.items():
    result[device_type] = dict(costs)
    for name, op in copies.items():
      if op in costs:
        result[device_type].setdefault(name, costs[op])
    for name, (op, output) in parts.items():
      cost = costs.get(op)
      count = len(cost.output_bytes) if cost else 0
      if name not in costs and output < count:
        result[device_type][name] = OpCost(
          op_type=op_types[name],
          compute_time_us=cost.compute_time_us / count,
          temporary_bytes=cost.temporary_bytes // count,
          output_bytes=(cost.output_bytes[output],),
        )
    for name in item.op_names:
      if name not in costs and f"{name}/output_0" in costs:
        result[device_type][name] = _whole(name, op_types[name], costs)
  _add_equal(result, item)
  return result


def _add_equal(profile: Profile, item: GraphItem) -> None:
  """Adds the costs of ops without any of which an equal op has one."""
  planned = set(item.op_names)
  if all(planned <= costs.keys() for costs in profile.values()):
    return
  outside = frozenset(x.name for x in item.graph_def.node) - planned
  equal = equal_ops(Body.of_graph(item.graph_def, frozenset(), outside))
  for costs in profile.values():
    for name, one in equal.items():
      if name not in costs and one in costs:
        costs[name] = costs[one]


def _whole(name: str, op_type: str, costs: Mapping[str, OpCost]) -> OpCost:
  """Returns what an op costs of which the parts were measured."""
  names = (f"{name}/output_{i}" for i in itertools.count())
  parts = [costs[x] for x in itertools.takewhile(costs.__contains__, names)]
  return OpCost(
    op_type=op_type,
    compute_time_us=sum(x.compute_time_us for x in parts),
    temporary_bytes=sum(x.temporary_bytes for x in parts),
    output_bytes=tuple(size for x in parts for size in x.output_bytes),
  )
