"""Ops that run inside another op's kernel.

Before TensorFlow runs a graph on a CPU, oneDNN's layout pass merges a `Conv2D`
with the `Pad` before it or the `BiasAdd` behind it, and a
`Conv2DBackpropFilter` with the `BiasAddGrad` beside it. No option of a session
turns that off, and a placed model runs the merged kernels too, wherever both
ops are on one device. So the merged kernel's time is the true one. The ops
share it in the ratio of the times that they take on devices of their own.

The pairs are read from the graph that ran, not from a list of op types.
"""

import collections
import dataclasses
import re
from collections.abc import Iterable
from collections.abc import Mapping

import tensorflow as tf

from baechi_tf.costs.profile import OpCost
from baechi_tf.function_library import CONTROL
from baechi_tf.function_library import parse_ref

v1 = tf.compat.v1

_FED = re.compile(r"_arg_(.+)_\d+_\d+")
_FETCHED = re.compile(r"_retval_(.+)_\d+_\d+")
_SHORTEST_US = 1e-3  # the trace's resolution


@dataclasses.dataclass(frozen=True)
class Node:
  """A node of a graph, as far as fusions show in it.

  Attributes:
    op_type: its type.
    sources: the producers of its data inputs, in order.
  """

  op_type: str
  sources: tuple[str, ...]


def nodes_by_name(nodes: Iterable[v1.NodeDef]) -> dict[str, Node]:
  """Returns the nodes by op name; a fed op runs under another name."""
  return {
    fed_name(node.name): Node(
      node.op,
      tuple(
        fed_name(source)
        for source, output in map(parse_ref, node.input)
        if output != CONTROL
      ),
    )
    for node in nodes
  }


def fed_name(name: str) -> str:
  """Returns the op's name; a fed op runs as "_arg_NAME_OUTPUT_INDEX"."""
  fed = _FED.fullmatch(name)
  return fed[1] if fed else name


def find_hosts(
  planned: Mapping[str, Node], executed: Mapping[str, Node]
) -> dict[str, str]:
  """Returns, for each op that ran inside another op's kernel, that other op.

  An op that is gone ran inside another op, its host, if

  - the host ran as another op type than planned,
  - the host took everything that the gone op takes, and
  - whatever took an output of the gone op is the host, with other inputs than
    planned, or took an output of the host in its place.

  Folded, pruned and merged equal ops fail one of these: they were replaced by
  a node that is not planned, or by one that ran as planned.

  Args:
    planned: the planned ops.
    executed: the nodes that ran.
  """
  replacements = _replacements(planned, executed)
  return {
    name: host
    for name, (host, *others) in replacements.items()
    if not others
    and host in planned
    and executed[host].op_type != planned[host].op_type
    and planned[name].sources
    and set(planned[name].sources) <= set(executed[host].sources)
  }


def _replacements(planned, executed) -> dict[str, list[str]]:
  """Returns the distinct ops that the users of each gone op have in its place.

  A user that is gone too has "".
  """
  found = collections.defaultdict(dict)
  for name, node in planned.items():
    ran = executed.get(name)
    for i, source in enumerate(node.sources):
      if source in executed:
        continue
      if ran is None:
        found[source][""] = True
      elif len(ran.sources) != len(node.sources):
        found[source][name] = True
      else:
        found[source][ran.sources[i]] = True
  for name, node in executed.items():
    fetched = _FETCHED.fullmatch(name)
    if fetched and fetched[1] in planned and fetched[1] not in executed:
      found[fetched[1]][node.sources[0]] = True
  return {name: list(users) for name, users in found.items()}


def devices_apart(hosts: Mapping[str, str]) -> dict[str, int]:
  """Returns a device for each host and each op inside one.

  Only ops on one device are merged. All other ops are on device 0, so that no
  op here can be merged with one of them either.
  """
  device = dict.fromkeys(hosts.values(), 1)
  num_inside = collections.Counter()
  for name, host in hosts.items():
    num_inside[host] += 1
    device[name] = 1 + num_inside[host]
  return device


def share_out(
  costs: Mapping[str, OpCost],
  apart: Mapping[str, OpCost],
  hosts: Mapping[str, str],
) -> dict[str, OpCost]:
  """Returns the costs with each merged kernel's time shared among its ops.

  An op keeps the bytes that it has by itself, and gets the kernel's workspace.
  A kernel of which an op has no cost of its own stays as it is.

  Args:
    costs: the measured costs; the ops inside a host are missing.
    apart: the costs of the hosts and the ops inside, each run by itself.
    hosts: the result of `find_hosts`.
  """
  inside = collections.defaultdict(list)
  for name, host in hosts.items():
    inside[host].append(name)
  result = dict(costs)
  for host, names in inside.items():
    members = [host, *names]
    if not all(x in apart for x in members):
      continue
    kernel = costs[host]
    own_us = [max(apart[x].compute_time_us, _SHORTEST_US) for x in members]
    for name, time_us in zip(members, own_us, strict=True):
      result[name] = dataclasses.replace(
        apart[name],
        compute_time_us=kernel.compute_time_us * time_us / sum(own_us),
        temporary_bytes=max(
          kernel.temporary_bytes, apart[name].temporary_bytes
        ),
        fused_into=hosts.get(name, ""),
      )
  return result
