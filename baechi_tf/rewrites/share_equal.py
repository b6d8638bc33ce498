"""Keeps one of several reads, or of several sums, that give the same value.

Keras reads the learning rate and `iterations` once for each trained variable,
and computes Adam's step size from them each time: between two devices, two
messages for each variable. One op has all users, and is sent to a device once.

Two reads of a variable that wait for the same ops may run at the same moment.
So whatever one read gives to the users of both, two could have given, and where
control edges say which writes come before and after, they give that alone.
Arithmetic on equal inputs gives equal bits.

TensorFlow's graph optimizer does the same with arithmetic, but only on one
device, and never with reads. A gradient that is taken of the rewritten function
later adds up the same parts, which may round in another order.
"""

import dataclasses
from collections import ChainMap
from collections.abc import Mapping
from collections.abc import Sequence

import tensorflow as tf

from baechi_tf.rewrites.body import Body
from baechi_tf.rewrites.replicate_constant import is_small_constant

NodeDef = tf.compat.v1.NodeDef

_READ = "ReadVariableOp"
# Each output element is a function of the elements that it is computed from.
_ARITHMETIC = frozenset({
  "AddV2", "Cast", "Maximum", "Minimum", "Mul", "Neg", "Pow", "RealDiv",
  "Rsqrt", "Sqrt", "Square", "Sub",
})  # fmt: skip


def share_equal(body: Body) -> tuple[Body, int]:
  """Returns the body with one op for equal ones, and how many went.

  The first of equal ops stays. An op stays too if it is fetched, is not the
  step's or is named in an op's `_class`. Small constants are equal if their
  values are; those that only ops took that went go too.

  Args:
    body: the nodes to rewrite; not changed.
  """
  constants = {x.name for x in body.nodes if x.op == "Const"}
  stand_in = {
    name: one for name, one in equal_ops(body).items() if name not in constants
  }
  if not stand_in:
    return body, 0
  nodes, lost = [], []
  for node in body.nodes:
    if node.name in stand_in:
      lost.append(node)
      continue
    new = NodeDef()
    new.CopyFrom(node)
    # A node waits for another once.
    new.input[:] = dict.fromkeys(
      _redirected(x, stand_in) for x in node.input if x.startswith("^")
    )
    data = [x for x in node.input if not x.startswith("^")]
    new.input[:0] = [_redirected(x, stand_in) for x in data]
    nodes.append(new)
  # A caller waits for a node once. Sorted, because a protobuf's map is not.
  waited = {}
  for key, name in sorted(body.control_returns.items()):
    waited.setdefault(stand_in.get(name, name), key)
  result = dataclasses.replace(
    body,
    nodes=nodes,
    returns={k: _redirected(x, stand_in) for k, x in body.returns.items()},
    control_returns={key: name for name, key in waited.items()},
  )
  return _without_unused_constants(result, lost), len(stand_in)


def equal_ops(body: Body) -> dict[str, str]:
  """Returns each op that an earlier one equals, with the first of them.

  Small constants are among them.

  Args:
    body: the nodes to compare; not changed.
  """
  fixed = body.outside | body.tied_names()
  nodes = [x for x in body.nodes if x.name not in fixed and _may_be_equal(x)]
  stand_in, found = {}, True
  while found:  # equal inputs make more ops equal
    first, found = {}, {}
    for node in nodes:
      if node.name in stand_in:
        continue
      one = first.setdefault(_key(node, ChainMap(found, stand_in)), node.name)
      if one != node.name and node.name not in body.kept:
        found[node.name] = one
    stand_in = {k: found.get(x, x) for k, x in stand_in.items()} | found
  return stand_in


def _may_be_equal(node: NodeDef) -> bool:
  return node.op == _READ or node.op in _ARITHMETIC or is_small_constant(node)


def _key(node: NodeDef, stand_in: Mapping[str, str]) -> tuple:
  """Returns what equal ops have in common."""
  refs = [_redirected(x, stand_in) for x in node.input]
  return (
    node.op,
    node.device,
    tuple(x for x in refs if not x.startswith("^")),
    frozenset(x for x in refs if x.startswith("^")),
    frozenset(
      (key, value.SerializeToString(deterministic=True))
      for key, value in node.attr.items()
    ),
  )


def _redirected(ref: str, stand_in: Mapping[str, str]) -> str:
  """Returns a reference to the op that stands in for the one referred to."""
  control = "^" if ref.startswith("^") else ""
  name, colon, rest = ref.removeprefix("^").partition(":")
  return control + stand_in.get(name, name) + colon + rest


def _without_unused_constants(body: Body, lost: Sequence[NodeDef]) -> Body:
  """Returns the body without constants that the lost nodes alone took."""
  were_taken = {x.partition(":")[0] for node in lost for x in node.input}
  unused = were_taken - body.taken_names() - body.fixed_names()
  nodes = [x for x in body.nodes if x.op != "Const" or x.name not in unused]
  return dataclasses.replace(body, nodes=nodes)
