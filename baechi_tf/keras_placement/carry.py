"""Carries a plan to another graph of the same model.

A step on another batch shape, an evaluation and a prediction have mostly the
ops of the training step that was planned, under the same names. They take the
devices of these; an op that the plan does not know goes to the device of an op
that it takes from, or else that takes from it. What uses a variable stays with
the variable.
"""

from collections.abc import Mapping

import numpy as np

from baechi_tf.op_graph import OpGraph

_UNKNOWN = -1


def carried_devices(
  graph: OpGraph, variables: Mapping[str, int], planned: Mapping[str, int]
) -> np.ndarray:
  """Returns a device for each op: int64 `[num_ops]`.

  Args:
    graph: the ops to place; a group shares a device.
    variables: the devices of the variables, by their op's name.
    planned: the devices of ops in the plan, by name; others may be there too.

  Raises:
    ValueError: ops of one group use variables on several devices.
  """
  device = np.full(graph.num_groups, _UNKNOWN, np.int64)  # of each group
  _pin_variables(device, graph, variables)
  for op in graph.order.tolist():
    group = graph.group[op]
    if device[group] == _UNKNOWN:
      device[group] = planned.get(graph.names[op], _UNKNOWN)
  source, target, _ = graph.op_pairs  # in topological order
  for giver, taker in ((source, target), (target[::-1], source[::-1])):
    for a, b in zip(graph.group[giver], graph.group[taker], strict=True):
      if device[b] == _UNKNOWN:
        device[b] = device[a]
  device[device == _UNKNOWN] = 0
  return graph.with_inputs_on_client(device[graph.group])


def _pin_variables(device, graph: OpGraph, variables: Mapping[str, int]):
  """Gives the groups of variables the variables' devices."""
  first = {}
  for name, place in variables.items():
    if name not in graph.index:
      continue
    group = graph.group[graph.index[name]]
    if device[group] not in (_UNKNOWN, place):
      raise ValueError(
        f"an op uses the variables {first[group]!r} and {name!r}, which the"
        " plan put on different devices"
      )
    device[group] = place
    first.setdefault(group, name)
