"""Splits an op of independent outputs into one op for each.

Keras passes all gradients through one `IdentityN`, and the gradient of a
concatenation asks one `ShapeN` for the shapes of all its inputs. Such an op
gathers tensors on its device and sends them back. Output i depends on input i
alone, so `Identity` and `Shape` do the same, each where its tensor is.

An op with a custom gradient is split only beside ops that update variables: a
training step has taken its gradients when it was traced, but another function
may yet be differentiated by whoever loads it.
"""

import dataclasses
import re

import tensorflow as tf

from baechi_tf.rewrites.body import Body

NodeDef = tf.compat.v1.NodeDef

_SINGLE = {"IdentityN": "Identity", "ShapeN": "Shape"}
_CUSTOM_GRADIENT = "_gradient_op_type"
_UPDATE = re.compile("Assign|Resource(Sparse)?Apply|ResourceScatter")


def split_pass_through(body: Body) -> tuple[Body, int]:
  """Returns the body without ops of independent outputs, and their number.

  Output i of op "x" becomes op "x/output_i". An op stays if it is named
  outside or in an op's `_class`, or if such a name is taken.

  Args:
    body: the nodes to rewrite; not changed.
  """
  parts = _parts(body)
  if not parts:
    return body, 0
  nodes = []
  for node in body.nodes:
    for copy in parts.get(node.name, (node,)):
      new = NodeDef()
      new.CopyFrom(copy)
      new.input[:] = [
        y for x in copy.input for y in _redirected(x, parts, body.is_function)
      ]
      nodes.append(new)
  returns = {
    key: _redirected(value, parts, body.is_function)[0]
    for key, value in body.returns.items()
  }
  return dataclasses.replace(body, nodes=nodes, returns=returns), len(parts)


def _parts(body: Body) -> dict[str, list[NodeDef]]:
  """Returns what takes the place of each op that is split."""
  taken = {node.name for node in body.nodes}
  stay = body.fixed_names()
  updates = any(_UPDATE.match(node.op) for node in body.nodes)
  parts = {}
  for node in body.nodes:
    if node.op not in _SINGLE or node.name in stay:
      continue
    if _CUSTOM_GRADIENT in node.attr and not updates:
      continue
    split = _split(node)
    if taken.isdisjoint(x.name for x in split):
      parts[node.name] = split
  return parts


def _split(node: NodeDef) -> list[NodeDef]:
  data = [x for x in node.input if not x.startswith("^")]
  controls = [x for x in node.input if x.startswith("^")]
  parts = []
  for i, tensor in enumerate(data):
    part = NodeDef(op=_SINGLE[node.op], device=node.device)
    part.name = f"{node.name}/output_{i}"
    part.input.extend([tensor, *controls])
    for key, value in node.attr.items():
      if key not in ("N", _CUSTOM_GRADIENT):
        part.attr[key].CopyFrom(value)
    if node.op == "IdentityN":
      dtype = node.attr["T"].list.type[i]
      part.attr["T"].Clear()
      part.attr["T"].type = dtype
    if "_output_shapes" in node.attr:
      shape = node.attr["_output_shapes"].list.shape[i]
      part.attr["_output_shapes"].Clear()
      part.attr["_output_shapes"].list.shape.add().CopyFrom(shape)
    parts.append(part)
  return parts


def _redirected(ref: str, parts, is_function: bool) -> list[str]:
  """Returns what a reference becomes: a control edge waits for all parts."""
  if ref.startswith("^"):
    split = parts.get(ref[1:])
    return [f"^{x.name}" for x in split] if split else [ref]
  name, _, rest = ref.partition(":")
  if name not in parts:
    return [ref]
  index = rest.rpartition(":")[2]
  part = parts[name][int(index) if index.isdigit() else 0].name
  return [f"{part}:output:0" if is_function else part]
