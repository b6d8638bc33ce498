"""Pins: ops that a user wants on a device, whatever a placer would choose.

A pin is a regular expression and the name of a device. It takes every op in
whose name the expression is found anywhere, as `grep` would, and with the op
all ops that must share its device. The step's inputs stay where the caller has
made them. A graph holds its pins in `OpGraph.pin`, which every placer, the
search and the bounds obey.
"""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from baechi_tf.bounds.memory import input_bytes
from baechi_tf.cluster import Cluster
from baechi_tf.op_graph import FREE
from baechi_tf.op_graph import OpGraph
from baechi_tf.placement import InfeasiblePlacementError

_NUM_NAMES = 3  # that a message gives as examples
_MOST_SHOWN = 60  # characters of a regular expression in a message


@dataclasses.dataclass(frozen=True)
class Pin:
  """A pin of a plan.

  Attributes:
    regex: the regular expression.
    device: the name of the device.
    num_ops: the number of ops in whose names the expression is found, without
      inputs of the step.
    num_sharing: the number of further ops that must share a device with one.
  """

  regex: str
  device: str
  num_ops: int
  num_sharing: int

  @property
  def note(self) -> str:
    """A sentence on the ops that the pin holds."""
    ops = "1 op" if self.num_ops == 1 else f"{self.num_ops:,} ops"
    sharing = ""
    if self.num_sharing:
      sharing = f", and {self.num_sharing:,} more that must share its device"
    return f"pin {shown(self.regex, self.device)} holds {ops}{sharing}"


def shown(regex: str, device: str) -> str:
  """Returns a pin as messages show it."""
  if len(regex) > _MOST_SHOWN:
    regex = f"{regex[:_MOST_SHOWN]}..."
  return f"'{regex}={device}'"


def pinned_graph(
  graph: OpGraph, cluster: Cluster, pins: Mapping[str, str]
) -> tuple[OpGraph, tuple[Pin, ...]]:
  """Returns a graph with pins, and what each of them holds.

  Args:
    graph: the ops; pins that it has already stay.
    cluster: the devices; its own pins count as well.
    pins: device names by regular expression.

  Raises:
    ValueError: an expression is malformed or matches no op, a device is not in
      the cluster, or two pins, or a pin and an input, want one op, or two that
      must share a device, on different devices.
    InfeasiblePlacementError: a device is too small for what is pinned to it.
  """
  asked = _merged(cluster.pins, pins)
  if not asked and (graph.pin == FREE).all():
    return graph, ()
  pin = graph.group_pin[graph.group]  # of each op, with its group's
  # The source of each op's pin, -1 for the graph's own, and the op it names.
  source = np.full(graph.num_ops, -1)
  named_op = _first_of_groups(graph, graph.pin != FREE)
  found = []
  for i, (regex, name) in enumerate(asked.items()):
    device = _device(cluster, regex, name)
    matched = _matches(graph, regex, name)
    held = np.isin(graph.group, graph.group[matched])
    _check_inputs(graph, cluster, device, matched, regex)
    clash = np.flatnonzero(held & (pin != FREE) & (pin != device))
    if len(clash):
      op = int(clash[0])
      first = matched & (graph.group == graph.group[op])
      other = list(asked.items())[source[op]] if source[op] >= 0 else None
      raise ValueError(
        _contradiction(
          graph,
          shown(regex, name),
          int(np.argmax(first)),
          other and shown(*other),
          cluster.device_names[pin[op]],
          int(named_op[op]),
        )
      )
    new = held & (pin == FREE)
    first = _first_of_groups(graph, matched)
    pin[new], source[new], named_op[new] = device, i, first[new]
    num_ops = int(matched.sum())
    found.append(Pin(regex, name, num_ops, int(held.sum()) - num_ops))
  result = graph.with_pins(pin)
  _check_room(result, cluster, [shown(*x) for x in asked.items()], source)
  return result, tuple(found)


def _merged(first: Mapping[str, str], more: Mapping[str, str]):
  """Returns all pins; those that both have must agree."""
  for regex in first:
    if regex in more and more[regex] != first[regex]:
      raise ValueError(
        f"pins {shown(regex, first[regex])}, of the cluster, and"
        f" {shown(regex, more[regex])} contradict each other"
      )
  return {**first, **more}


def _device(cluster: Cluster, regex: str, name: str) -> int:
  if name not in cluster.device_names:
    raise ValueError(
      f"pin {shown(regex, name)}: the cluster has no device {name!r}; its"
      f" devices are {', '.join(cluster.device_names)}"
    )
  return cluster.device_names.index(name)


def _matches(graph: OpGraph, regex: str, name: str) -> np.ndarray:
  """Returns which ops a pin names, bool `[n]`, without inputs of the step."""
  if not regex:
    raise ValueError(
      f"pin {shown(regex, name)}: the regular expression is empty; '.*' is"
      " found in every name"
    )
  try:
    found = re.compile(regex).search
  except (re.error, OverflowError, RecursionError) as error:
    raise ValueError(
      f"pin {shown(regex, name)}: not a regular expression: {error}"
    ) from None
  matched = np.fromiter((found(x) is not None for x in graph.names), bool)
  if not matched.any():
    names = ", ".join(map(repr, graph.names[:_NUM_NAMES]))
    raise ValueError(
      f"pin {shown(regex, name)} matches none of the {graph.num_ops:,} ops"
      + (f", which have names such as {names}" if names else "")
    )
  inner = matched & ~graph.is_input
  if not inner.any():
    raise ValueError(
      f"pin {shown(regex, name)} matches only inputs of the step, such as"
      f" {graph.names[int(np.argmax(matched))]!r}; they stay on the first"
      " device"
    )
  return inner


def _check_inputs(graph, cluster, device, matched, regex) -> None:
  """Refuses a pin that would take an input of the step from device 0."""
  if device == 0:
    return
  bad = np.flatnonzero(matched & graph.is_on_client)
  if len(bad):
    group = graph.group == graph.group[bad[0]]
    given = int(np.argmax(group & graph.is_input))
    raise ValueError(
      f"pin {shown(regex, cluster.device_names[device])} holds op"
      f" {graph.names[bad[0]]!r}, which must share a device with"
      f" {graph.names[given]!r}, an input of the step; inputs stay on the"
      f" first device, {cluster.device_names[0]}"
    )


def _first_of_groups(graph: OpGraph, chosen: np.ndarray) -> np.ndarray:
  """Returns int64 `[n]`: the first chosen op of each op's group, or -1."""
  first = np.full(graph.num_groups, graph.num_ops)
  ops = np.flatnonzero(chosen)
  np.minimum.at(first, graph.group[ops], ops)
  first[first == graph.num_ops] = -1
  return first[graph.group]


def _contradiction(graph, pin, op, other, other_device, other_op) -> str:
  """Returns the message on two pins; `other` is None for the graph's own."""
  name = graph.names[op]
  if other is None:
    pins = (
      f"pin {pin} and the device {other_device} that keep_devices=True keeps"
    )
  else:
    pins = f"pins {other} and {pin}"
  if op == other_op:
    return f"{pins} contradict each other: both hold op {name!r}"
  return (
    f"{pins} contradict each other: op {name!r} must share a device with op"
    f" {graph.names[other_op]!r}"
  )


def _check_room(graph, cluster, pins, source) -> None:
  """Raises `InfeasiblePlacementError` if pinned ops cannot fit a device."""
  pin = graph.pin
  beside = graph.working_bytes + input_bytes(graph, cluster)
  for k in np.unique(pin[pin != FREE]).tolist():
    here = np.flatnonzero(pin == k)
    persistent = int(graph.persistent_bytes[here].sum())
    largest = here[np.argmax(beside[here])]
    needed = persistent + int(beside[largest])
    memory = int(cluster.memory_bytes[k])
    if needed <= memory:
      continue
    held_by = [pins[i] for i in np.unique(source[here]).tolist() if i >= 0]
    if (source[here] < 0).any():
      held_by.append("the model's own devices")
    raise InfeasiblePlacementError(
      f"{cluster.device_names[k]} has {memory:,} bytes, too few for the"
      f" {len(here):,} ops that are pinned to it by {' and '.join(held_by)}:"
      f" they hold {persistent:,} persistent bytes, and op"
      f" {graph.names[largest]!r} needs {int(beside[largest]):,} more. Fewer"
      " pins or another device would help"
    )
