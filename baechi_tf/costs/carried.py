"""The costs of ops that a rewrite made, from those of the op before it.

A profile that was taken of the model as it was, or with `--no-rewrite`, serves
the rewritten model too. The other way round it does not: what the profile lacks
is estimated then.
"""

import re

from baechi_tf.costs.profile import OpCost
from baechi_tf.costs.profile import Profile
from baechi_tf.graph_item import GraphItem

_PART = re.compile(r"(?P<op>.+)/output_(?P<output>\d+)")


def carried_over(
  profile: Profile, item: GraphItem
) -> dict[str, dict[str, OpCost]]:
  """Returns the profile with costs for the parts of ops that were split.

  A part gets its own output's bytes and an equal share of the time and of the
  temporary bytes.

  Args:
    profile: it is not changed.
    item: the rewritten model, or any other.
  """
  op_types = {node.name: node.op for node in item.graph_def.node}
  parts = {}
  for name in item.op_names if item.num_rewritten else ():
    match = _PART.fullmatch(name)
    if match and match["op"] not in op_types:
      parts[name] = (match["op"], int(match["output"]))
  result = {}
  for device_type, costs in profile.items():
    result[device_type] = dict(costs)
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
  return result
