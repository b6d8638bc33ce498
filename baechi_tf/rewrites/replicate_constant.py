"""Gives each op that takes a small constant a constant of its own.

A constant with users on two devices is on one of them, and is sent to the
other. A copy costs less than a message. TensorFlow's own pass makes copies for
CPU devices alone, after the plan is made; a copy in the model has a device of
the plan's.
"""

import collections
import dataclasses
import math
from collections.abc import Sequence

import tensorflow as tf

from baechi_tf.rewrites.body import Body

NodeDef = tf.compat.v1.NodeDef

# As in TensorFlow's pass, `replicate_constants_pass.cc`.
MAX_ELEMENTS = 16


def replicate_constant(body: Body) -> tuple[Body, int]:
  """Returns the body with copies of small constants, and how many had users.

  The first user keeps constant "x", further ones take "x/copy_1" and so on.
  Whoever fetches it is its first user. A constant stays alone if it is not the
  step's or is named in an op's `_class`, if an op waits for it, or if a copy's
  name is taken.

  Args:
    body: the nodes to rewrite; not changed.
  """
  copied = _copied(body)
  if not copied:
    return body, 0
  new_name = {
    (constant, user): f"{constant}/copy_{i}"
    for constant, users in copied.items()
    for i, user in enumerate(users, 1)
  }
  nodes = []
  for node in body.nodes:
    new = NodeDef()
    new.CopyFrom(node)
    for i, ref in enumerate(node.input):
      constant, colon, rest = ref.partition(":")
      if (constant, node.name) in new_name:
        new.input[i] = new_name[constant, node.name] + colon + rest
    nodes.append(new)
    for user in copied.get(node.name, ()):
      copy = NodeDef()
      copy.CopyFrom(node)
      copy.name = new_name[node.name, user]
      nodes.append(copy)
  return dataclasses.replace(body, nodes=nodes), len(copied)


def is_small_constant(node: NodeDef) -> bool:
  """Whether a node is a constant that is cheaper to copy than to send."""
  if node.op != "Const":
    return False
  shape = node.attr["value"].tensor.tensor_shape
  return math.prod(x.size for x in shape.dim) <= MAX_ELEMENTS


def _copied(body: Body) -> dict[str, Sequence[str]]:
  """Returns constant -> its users that get copies."""
  names = {node.name for node in body.nodes}
  stay = body.outside | body.tied_names()
  fetched = body.kept.union(x.partition(":")[0] for x in body.returns.values())
  users = collections.defaultdict(dict)  # in order, each once
  for node in body.nodes:
    for ref in node.input:
      users[ref.partition(":")[0]][node.name] = None
  copied = {}
  for node in filter(is_small_constant, body.nodes):
    if node.name in stay or f"^{node.name}" in users:
      continue
    every = users[node.name]
    mine = [x for x in every if x not in body.outside]
    if node.name not in fetched and len(mine) == len(every):
      mine = mine[1:]
    new = {f"{node.name}/copy_{i}" for i, _ in enumerate(mine, 1)}
    if new and names.isdisjoint(new):
      copied[node.name] = mine
  return copied
