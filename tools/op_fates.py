"""What became of each planned op in the graphs that TensorFlow ran.

An op is found by its call path, which is its name after inlining. TensorFlow
replaces ops (by a oneDNN kernel, a fused one, a constant), copies small
constants to the devices of their users, and turns variables and inputs into
arguments; every op gets one of the fates below, and one of these explains why
an op is not on its planned device, or the op is an unexplained exception.
"""

import collections
import dataclasses
import re
from collections.abc import Mapping
from collections.abc import Sequence

import tensorflow as tf

from baechi_tf.graph_item import GraphItem
from tools.step_run import Executed

GraphDef = tf.compat.v1.GraphDef

# A node has the op's name.
RAN = "ran as it is"
KERNEL = "ran as a oneDNN or fused kernel"
SIMPLIFIED = "became another op"
# The op is there in another form.
VARIABLE = "variable or table"
INPUT = "input"
COPIED = "constant, copied to its users"
LOWERED = "loop or branch, ran in parts"
# Nothing is left of it.
FOLDED = "folded: depends on constants alone"
FUSED = "fused into its neighbour"
REMOVED = "removed: unused, a no-op, or the same as another"
BOUNDARY = "orders other ops; no node of the model"

FATES = (
  RAN, KERNEL, SIMPLIFIED, VARIABLE, INPUT, COPIED, LOWERED,
  FOLDED, FUSED, REMOVED, BOUNDARY,
)  # fmt: skip
_SURVIVING = frozenset(FATES[:7])

# Why an op of such a fate may be elsewhere than planned, and it is no fault.
EXPLANATIONS = {
  INPUT: "an input stays where its caller made it, a captured tensor too",
  COPIED: (
    "the runtime makes a small constant on the devices of its users, rather"
    " than send it there"
  ),
  BOUNDARY: "a function's boundary has no node that could run",
}

_HANDLES = frozenset({"VarHandleOp", "HashTableV2", "MutableHashTableV2"})
# In the names of kernels that run several ops: "_FusedConv2D",
# "_MklNativeConv2DWithBias", "_MklNativePadWithConv2D".
_FUSED_KERNELS = ("Fused", "With")
_CONTROL_FLOW = ("While", "If", "Case")
# Values known before the step, where shapes are static.
_CONSTANT = frozenset({"Const", "Shape", "ShapeN", "Size", "Rank"})


@dataclasses.dataclass(frozen=True)
class OpFate:
  """Where a planned op ended.

  Attributes:
    name: of the op in the plan.
    op_type: of the op in the plan.
    fate: one of `FATES`.
    planned: its device in the plan.
    found: the devices that it is on; several for a copied constant or a loop.
    became: the op type of the node with its name, "" without one.
  """

  name: str
  op_type: str
  fate: str
  planned: str
  found: tuple[str, ...]
  became: str = ""

  @property
  def survives(self) -> bool:
    """Whether something of it is in the graphs that ran."""
    return self.fate in _SURVIVING

  @property
  def agrees(self) -> bool:
    """Whether it is on its planned device, a loop nowhere else."""
    if self.fate == LOWERED:
      return set(self.found) == {self.planned}
    return self.planned in self.found


@dataclasses.dataclass(frozen=True)
class Account:
  """All planned ops, and which of them count.

  Attributes:
    fates: one per planned op.
    rewritten: whether TensorFlow rewrote the graph. If so the plan can only be
      judged by the ops that survive; if not, by every op.
  """

  fates: Sequence[OpFate]
  rewritten: bool

  @property
  def judged(self) -> list[OpFate]:
    """The ops that must be on their devices."""
    return [x for x in self.fates if x.survives or not self.rewritten]

  @property
  def exceptions(self) -> list[OpFate]:
    """The judged ops that are not."""
    return [x for x in self.judged if not x.agrees]

  @property
  def unexplained(self) -> list[OpFate]:
    """The exceptions for which there is no good reason."""
    return [x for x in self.exceptions if x.fate not in EXPLANATIONS]

  @property
  def agreement(self) -> float:
    """The part of the judged ops that are on their devices."""
    return 1.0 - len(self.exceptions) / max(len(self.judged), 1)

  def count(self, fate: str) -> int:
    """Returns how many ops have this fate."""
    return sum(x.fate == fate for x in self.fates)


def account(
  item: GraphItem,
  graph_def: GraphDef,
  device_of: Mapping[str, str],
  executed: Executed,
  *,
  rewritten: bool,
) -> Account:
  """Returns what became of every planned op.

  Args:
    item: the step that was planned.
    graph_def: of the SavedModel that it was read from, functions and all.
    device_of: the plan.
    executed: where the ops of the placed model ran.
    rewritten: whether TensorFlow rewrote the graph.

  Raises:
    ValueError: the plan is not one of this step.
  """
  if device_of.keys() != set(item.op_names):
    odd = sorted(device_of.keys() ^ set(item.op_names))[0]
    raise ValueError(f"the plan is not one of this step: see op {odd!r}")
  nodes = {x.name: x for x in item.graph_def.node}
  position = _argument_positions(item, graph_def)
  constant = _constants(nodes, item.op_names)
  fates = {}
  for name in item.op_names:
    op_type, inner = nodes[name].op, "/".join(item.paths[name][1:])
    became, device = executed.nodes.get(inner, ("", ""))
    found = (device,)
    if position.get(name) in executed.arguments:
      fate = VARIABLE if nodes[name].op in _HANDLES else INPUT
      found = (executed.arguments[position[name]],)
    elif not item.paths[name]:
      fate, found = BOUNDARY, ()
    elif op_type.removeprefix("Stateless") in _CONTROL_FLOW:
      fate, found = LOWERED, _devices_within(inner, executed)
    elif became:
      fate = _fate_of_node(op_type, became)
    elif inner in executed.copies:
      fate, found = COPIED, executed.copies[inner]
    else:
      fate, found = FOLDED if name in constant else REMOVED, ()
    fates[name] = OpFate(name, op_type, fate, device_of[name], found, became)
  return Account(_with_fused(fates, nodes), rewritten)


def _devices_within(scope: str, executed: Executed) -> tuple[str, ...]:
  """Returns the devices of the work in a loop or branch.

  TensorFlow takes it apart: a loop variable and its switches stay with what
  they came from, "SCOPE/body/_N/..." and the like are the work. What ends in
  a number was made to move tensors.
  """
  work = re.compile(re.escape(scope) + r"/[a-z0-9]+/_\d+/(.*/)?(?!_\d+$)[^/]+")
  devices = {
    device
    for name, (_, device) in executed.nodes.items()
    if work.fullmatch(name)
  }
  return tuple(sorted(devices))


def _fate_of_node(op_type: str, became: str) -> str:
  if became == op_type:
    return RAN
  return KERNEL if became.startswith(("_Mkl", "_Fused")) else SIMPLIFIED


def _argument_positions(item: GraphItem, graph_def: GraphDef):
  """Returns the place of variables and inputs in the call of the step.

  A TF2 signature is one call in the top graph.

  Raises:
    ValueError: it is not.
  """
  calls = {path[0] for path in item.paths.values() if len(path) > 1}
  if len(calls) != 1:
    raise ValueError(
      f"{item.source}: the step is not one function, as a TF2 model has it;"
      " only functions can be looked into"
    )
  planned = {item.paths[x][0]: x for x in item.op_names if item.paths[x]}
  return {
    planned[ref.partition(":")[0]]: position
    for node in graph_def.node
    if node.name in calls
    for position, ref in enumerate(x for x in node.input if x[0] != "^")
    if ref.partition(":")[0] in planned
  }


def _inputs(node) -> list[str]:
  return [x.partition(":")[0] for x in node.input if x[0] != "^"]


def _constants(nodes: Mapping, op_names: Sequence[str]) -> set[str]:
  """Returns the ops whose values depend on constants alone."""
  users = collections.defaultdict(list)
  unknown = {}  # inputs not known to be constant, by op
  for name in op_names:
    inputs = _inputs(nodes[name])
    unknown[name] = len(inputs)
    for x in inputs:
      users[x].append(name)
  constant = {x for x in op_names if nodes[x].op in _CONSTANT}
  pending = list(constant)
  while pending:
    for user in users[pending.pop()]:
      unknown[user] -= 1
      if unknown[user] == 0 and user not in constant:
        constant.add(user)
        pending.append(user)
  return constant


def _with_fused(fates: Mapping[str, OpFate], nodes: Mapping) -> list[OpFate]:
  """Tells ops that are part of a fused kernel from those removed.

  The kernel's op is a neighbour, or takes all that the part takes.
  """
  wholes = collections.defaultdict(list)  # by what they take and give
  for name, fate in fates.items():
    if any(word in fate.became for word in _FUSED_KERNELS):
      for x in (name, *_inputs(nodes[name])):
        wholes[x].append(name)
  found = {}
  for name, fate in fates.items():
    inputs = set(_inputs(nodes[name]))
    for whole in (x for each in (name, *inputs) for x in wholes[each]):
      whole_inputs = _inputs(nodes[whole])
      is_neighbour = whole in inputs or name in whole_inputs
      if fate.fate == REMOVED and (
        is_neighbour or inputs.issubset(whole_inputs)
      ):
        found[name] = fates[whole].found
  return [
    dataclasses.replace(x, fate=FUSED, found=found[x.name])
    if x.name in found
    else x
    for x in fates.values()
  ]
