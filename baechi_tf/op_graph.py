"""OpGraph: the one structure that everything below the readers speaks.

A step of a model is a directed acyclic graph of ops. An op produces tensors;
an edge joins a tensor to an op that consumes it. A control edge is an edge on
a tensor of no bytes that its producer has for that purpose, so that "a tensor
is sent to a device once" covers both. Everything is a frozen array, because
a graph may hold a million ops.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from baechi_tf.compiled import compiled
from baechi_tf.limits import MAX_BYTES

ANY_DEVICE_TYPE = "*"
CONTROL = -1  # the `edge_output` of a control edge
FREE = -1  # the `pin` of an op that may be on any device


def _frozen(array: np.ndarray) -> np.ndarray:
  array = np.ascontiguousarray(array)
  array.setflags(write=False)
  return array


def offsets_of(sorted_ids: np.ndarray, num_ids: int) -> np.ndarray:
  """Returns CSR offsets `[num_ids + 1]` of a non-decreasing id array."""
  counts = np.bincount(sorted_ids, minlength=num_ids)
  return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


@compiled
def _depths(num_ops, tensor_op, tensor_offsets, consumer_offsets, edge_op):
  """Longest path to each op in edges; -1 for ops on or behind a cycle."""
  pending = np.zeros(num_ops, np.int64)
  for op in edge_op:
    pending[op] += 1
  depth = np.zeros(num_ops, np.int64)
  queue = np.empty(num_ops, np.int64)
  head = tail = 0
  for op in range(num_ops):
    if pending[op] == 0:
      queue[tail] = op
      tail += 1
  while head < tail:
    op = queue[head]
    head += 1
    first = consumer_offsets[tensor_offsets[op]]
    last = consumer_offsets[tensor_offsets[op + 1]]
    for edge in range(first, last):
      consumer = edge_op[edge]
      depth[consumer] = max(depth[consumer], depth[op] + 1)
      pending[consumer] -= 1
      if pending[consumer] == 0:
        queue[tail] = consumer
        tail += 1
  for op in range(num_ops):
    if pending[op] > 0:
      depth[op] = -1
  return depth


@dataclasses.dataclass(frozen=True, eq=False)
class OpGraph:
  """A step of a model: n ops, m tensors, e edges, costs on t device types.

  Make one with `OpGraph.build`, which validates; the fields are read-only.

  Attributes:
    names: the ops' names, unique, `[n]`.
    device_types: what the columns of `compute_time_us` are for, `[t]`;
      `ANY_DEVICE_TYPE` stands for every type that is not listed.
    compute_time_us: float64 `[n, t]`, microseconds to run the op.
    persistent_bytes: int64 `[n]`, held for ever (variables, their slots).
    temporary_bytes: int64 `[n]`, workspace held while the op runs.
    tensor_op: int64 `[m]`, the op that produces the tensor, non-decreasing.
    tensor_bytes: int64 `[m]`, what moves when the tensor is sent.
    tensor_is_persistent: bool `[m]`, its buffer is counted in its op's
      `persistent_bytes`: sending it costs bytes, keeping it costs none.
    tensor_is_control: bool `[m]`, it only carries control edges.
    edge_tensor: int64 `[e]`, non-decreasing.
    edge_op: int64 `[e]`, the op that consumes `edge_tensor`.
    group: int64 `[n]`, ops of one id must be on one device; ids are dense and
      numbered by first appearance; an op without company has its own.
    is_input: bool `[n]`, the caller of the step makes the op's output: it is on
      the client, device 0, whatever else is planned.
    pin: int64 `[n]`, the index of the device that an op must be on, or `FREE`;
      it binds the op's whole group.
  """

  names: tuple[str, ...]
  device_types: tuple[str, ...]
  compute_time_us: np.ndarray
  persistent_bytes: np.ndarray
  temporary_bytes: np.ndarray
  tensor_op: np.ndarray
  tensor_bytes: np.ndarray
  tensor_is_persistent: np.ndarray
  tensor_is_control: np.ndarray
  edge_tensor: np.ndarray
  edge_op: np.ndarray
  group: np.ndarray
  is_input: np.ndarray
  pin: np.ndarray

  @classmethod
  def build(
    cls,
    names: Sequence[str],
    compute_time_us: np.ndarray,
    *,
    device_types: Sequence[str] = (ANY_DEVICE_TYPE,),
    persistent_bytes: np.ndarray | None = None,
    temporary_bytes: np.ndarray | None = None,
    output_op: np.ndarray = (),
    output_bytes: np.ndarray = (),
    output_is_persistent: np.ndarray | None = None,
    edge_source: np.ndarray = (),
    edge_output: np.ndarray = (),
    edge_target: np.ndarray = (),
    group: np.ndarray | None = None,
    is_input: np.ndarray | None = None,
  ) -> "OpGraph":
    """Returns the validated graph of ops, their outputs and their edges.

    Repeated edges count once, and a control edge beside a data edge between
    the same two ops says nothing new: both are dropped.

    Args:
      names: `[n]` unique op names.
      compute_time_us: `[n]` or `[n, t]` microseconds, finite and >= 0.
      device_types: `[t]` names of the columns of `compute_time_us`.
      persistent_bytes: int `[n]`, default 0.
      temporary_bytes: int `[n]`, default 0.
      output_op: int `[k]` non-decreasing; op index of each output.
      output_bytes: int `[k]` bytes of each output.
      output_is_persistent: bool `[k]`, default false.
      edge_source: int `[e]` op index of the producer.
      edge_output: int `[e]` which output of the producer, or `CONTROL`.
      edge_target: int `[e]` op index of the consumer.
      group: int `[n]` labels; ops of one label >= 0 must share a device.
      is_input: bool `[n]`, default false.

    Raises:
      ValueError: a name is repeated or no text, an array's length is not what
        it should be, a cost is negative or not finite, bytes are more than
        `limits.MAX_BYTES`, an edge or output refers to an op or output that is
        not there, or the edges form a cycle (the message names the ops on it).
    """
    n = len(names)
    names = tuple(names)
    _check_text(names)
    _check_text(device_types)
    if len(set(names)) != n:
      seen = set()
      twice = next(x for x in names if x in seen or seen.add(x))
      raise ValueError(f"op {twice!r} is listed twice")
    times = np.asarray(compute_time_us, np.float64)
    if times.size != n * len(device_types):
      raise ValueError(
        f"compute_time_us has {times.size} numbers for {n} ops on"
        f" {len(device_types)} device types"
      )
    times = times.reshape(n, len(device_types))
    persistent = _costs(names, "persistent_bytes", persistent_bytes)
    temporary = _costs(names, "temporary_bytes", temporary_bytes)
    output_op = np.asarray(output_op, np.int64)
    if is_input is None:
      is_input = np.zeros(n, bool)
    _check_length("is_input", is_input, n)
    if output_is_persistent is None:
      output_is_persistent = np.zeros(len(output_op), bool)
    wrong = ~(np.isfinite(times) & (times >= 0))
    _reject(names, "compute_time_us", wrong, "finite and >= 0")
    if len(output_op) and not (0 <= output_op.min() and output_op.max() < n):
      raise ValueError(f"an output belongs to an op outside 0..{n - 1}")
    output_bytes = _costs(names, "output_bytes", output_bytes, output_op)
    _check_total(persistent, temporary, output_bytes)
    _check_length("output_is_persistent", output_is_persistent, len(output_op))

    source = np.asarray(edge_source, np.int64)
    output = np.asarray(edge_output, np.int64)
    target = np.asarray(edge_target, np.int64)
    _check_length("edge_output", output, len(source))
    _check_length("edge_target", target, len(source))
    num_outputs = np.bincount(output_op, minlength=n)
    _check_edges(names, num_outputs, source, output, target)

    # A control edge needs a tensor: one more output of its producer.
    is_control = output == CONTROL
    has_data = np.unique(source[~is_control] * n + target[~is_control])
    redundant = is_control & np.isin(source * n + target, has_data)
    source, output, target, is_control = (
      x[~redundant] for x in (source, output, target, is_control)
    )
    control_op = np.unique(source[is_control])
    tensor_op = np.concatenate([output_op, control_op])
    by_op = np.argsort(tensor_op, kind="stable")
    tensor_op = tensor_op[by_op]
    first_tensor = offsets_of(tensor_op, n)
    output = np.where(is_control, num_outputs[source], output)
    edges = np.unique(
      np.stack([first_tensor[source] + output, target], axis=1), axis=0
    ).reshape(-1, 2)
    no_control = np.zeros(len(control_op), np.int64)

    graph = cls(
      names=names,
      device_types=tuple(device_types),
      compute_time_us=_frozen(times),
      persistent_bytes=_frozen(persistent),
      temporary_bytes=_frozen(temporary),
      tensor_op=_frozen(tensor_op),
      tensor_bytes=_frozen(np.concatenate([output_bytes, no_control])[by_op]),
      tensor_is_persistent=_frozen(
        np.concatenate([output_is_persistent, no_control])[by_op].astype(bool)
      ),
      tensor_is_control=_frozen(
        np.concatenate([np.zeros(len(output_op)), no_control + 1])[by_op] > 0
      ),
      edge_tensor=_frozen(edges[:, 0]),
      edge_op=_frozen(edges[:, 1]),
      group=_frozen(dense_groups(group, n)),
      is_input=_frozen(np.array(is_input, bool)),
      pin=_frozen(np.full(n, FREE)),
    )
    if n and graph.depth.min() < 0:
      raise ValueError(f"the graph has a cycle: {_a_cycle(graph)}")
    return graph

  @property
  def num_ops(self) -> int:
    """How many ops."""
    return len(self.names)

  @property
  def num_groups(self) -> int:
    """How many groups, ops without company included."""
    return int(self.group.max()) + 1 if self.num_ops else 0

  @functools.cached_property
  def index(self) -> dict[str, int]:
    """The index of each op by its name."""
    return {name: op for op, name in enumerate(self.names)}

  @functools.cached_property
  def tensor_offsets(self) -> np.ndarray:
    """Int64 `[n + 1]`: op `i` makes tensors `[i]` up to `[i + 1]`."""
    return _frozen(offsets_of(self.tensor_op, self.num_ops))

  @functools.cached_property
  def consumer_offsets(self) -> np.ndarray:
    """Int64 `[m + 1]`: tensor `x` has edges `[x]` up to `[x + 1]`."""
    return _frozen(offsets_of(self.edge_tensor, len(self.tensor_op)))

  @functools.cached_property
  def input_edges(self) -> np.ndarray:
    """Int64 `[e]`: the edges, sorted by the op that consumes them."""
    return _frozen(np.argsort(self.edge_op, kind="stable"))

  @functools.cached_property
  def input_offsets(self) -> np.ndarray:
    """Int64 `[n + 1]`: op `i` consumes `input_edges[i]` up to `[i + 1]`."""
    return _frozen(offsets_of(self.edge_op[self.input_edges], self.num_ops))

  @functools.cached_property
  def edge_source(self) -> np.ndarray:
    """Int64 `[e]`: the op that produces each edge's tensor."""
    return _frozen(self.tensor_op[self.edge_tensor])

  @functools.cached_property
  def op_pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Source and target of each pair of joined ops, and each edge's pair.

    Int64 `[q]`, `[q]` and `[e]`; in topological order of source, then target.
    """
    joined = (
      self.rank[self.edge_source] * self.num_ops + self.rank[self.edge_op]
    )
    pairs, pair_of_edge = np.unique(joined, return_inverse=True)
    source, target = np.divmod(pairs, max(self.num_ops, 1))
    return (
      _frozen(self.order[source]),
      _frozen(self.order[target]),
      _frozen(pair_of_edge),
    )

  @functools.cached_property
  def tensor_held_bytes(self) -> np.ndarray:
    """Int64 `[m]`: what keeping the tensor on its own device costs."""
    return _frozen(np.where(self.tensor_is_persistent, 0, self.tensor_bytes))

  @functools.cached_property
  def output_held_bytes(self) -> np.ndarray:
    """Int64 `[n]`: what all of an op's outputs hold on its device."""
    total = np.zeros(self.num_ops, np.int64)
    np.add.at(total, self.tensor_op, self.tensor_held_bytes)
    return _frozen(total)

  @functools.cached_property
  def working_bytes(self) -> np.ndarray:
    """Int64 `[n]`: what an op takes at its start, persistent bytes aside."""
    return _frozen(self.temporary_bytes + self.output_held_bytes)

  @functools.cached_property
  def group_persistent_bytes(self) -> np.ndarray:
    """Int64 `[num_groups]`: the persistent bytes of each group."""
    return _frozen(self.sum_by_group(self.persistent_bytes))

  @functools.cached_property
  def group_working_bytes(self) -> np.ndarray:
    """Int64 `[num_groups]`: the most that one op of each group works with."""
    most = np.zeros(self.num_groups, np.int64)
    np.maximum.at(most, self.group, self.working_bytes)
    return _frozen(most)

  @functools.cached_property
  def group_memory_bytes(self) -> np.ndarray:
    """Int64 `[num_groups]`: all of a group's memory, were it held at once."""
    return _frozen(
      self.sum_by_group(self.persistent_bytes + self.working_bytes)
    )

  @functools.cached_property
  def depth(self) -> np.ndarray:
    """Int64 `[n]`: edges on the longest path to each op."""
    return _frozen(
      _depths(
        self.num_ops,
        self.tensor_op,
        self.tensor_offsets,
        self.consumer_offsets,
        self.edge_op,
      )
    )

  @functools.cached_property
  def order(self) -> np.ndarray:
    """Int64 `[n]`: the topological order that breaks every tie.

    Sorted by depth, then name, so that it depends on what the graph is and
    not on the order in which its ops were listed.
    """
    return _frozen(np.lexsort((np.array(self.names, object), self.depth)))

  def with_order(self, order: np.ndarray) -> "OpGraph":
    """Returns the graph with another topological order that breaks ties.

    Args:
      order: int `[n]`, every op once, after all that it depends on.
    """
    result = dataclasses.replace(self)
    result.__dict__["order"] = _frozen(np.array(order, np.int64))
    return result

  @functools.cached_property
  def rank(self) -> np.ndarray:
    """Int64 `[n]`: each op's position in `order`."""
    rank = np.empty(self.num_ops, np.int64)
    rank[self.order] = np.arange(self.num_ops)
    return _frozen(rank)

  @functools.cached_property
  def is_on_client(self) -> np.ndarray:
    """Bool `[n]`: whether an op's group has an input of the step."""
    return _frozen(np.isin(self.group, self.group[self.is_input]))

  def with_inputs_on_client(self, device: np.ndarray) -> np.ndarray:
    """Returns `device`, int `[n]`, with the step's inputs on device 0."""
    return np.where(self.is_on_client, 0, device)

  def with_pins(self, pin: np.ndarray) -> "OpGraph":
    """Returns the graph with other pins, int `[n]`, and the same order.

    Raises:
      ValueError: ops of one group are pinned to different devices.
    """
    pin = np.array(pin, np.int64)
    _check_length("pin", pin, self.num_ops)
    result = dataclasses.replace(self, pin=_frozen(pin)).with_order(self.order)
    pinned = np.flatnonzero(pin != FREE)
    split = pinned[result.group_pin[self.group[pinned]] != pin[pinned]]
    if len(split):
      raise ValueError(
        f"op {self.names[split[0]]!r} is pinned to another device than an op"
        " that must share its device"
      )
    return result

  @functools.cached_property
  def group_pin(self) -> np.ndarray:
    """Int64 `[num_groups]`: the device that a pin gives a group, or `FREE`."""
    pin = np.full(self.num_groups, FREE)
    np.maximum.at(pin, self.group, self.pin)
    return _frozen(pin)

  @functools.cached_property
  def fixed_device(self) -> np.ndarray:
    """Int64 `[n]`: the device of inputs and of pinned ops, else `FREE`."""
    return _frozen(self.with_inputs_on_client(self.group_pin[self.group]))

  def with_fixed(self, device: np.ndarray) -> np.ndarray:
    """Returns `device`, int `[n]`, with inputs and pinned ops on theirs."""
    return np.where(self.fixed_device == FREE, device, self.fixed_device)

  def sum_by_group(self, values: np.ndarray) -> np.ndarray:
    """Returns the sum of `values` `[n, ...]` over each group's ops."""
    total = np.zeros((self.num_groups, *values.shape[1:]), values.dtype)
    np.add.at(total, self.group, values)
    return total

  def times_on(self, device_types: Sequence[str]) -> np.ndarray:
    """Returns float64 `[n, len(device_types)]`, each op's time on each type.

    Raises:
      ValueError: there is no column for a type and none for any type.
    """
    columns = {name: i for i, name in enumerate(self.device_types)}
    missing = [
      x
      for x in device_types
      if x not in columns and ANY_DEVICE_TYPE not in columns
    ]
    if missing:
      raise ValueError(
        f"no compute times for device type {missing[0]!r}; the graph has"
        f" times for {', '.join(map(repr, self.device_types))}"
      )
    chosen = [
      columns.get(x, columns.get(ANY_DEVICE_TYPE)) for x in device_types
    ]
    return _frozen(self.compute_time_us[:, chosen])


def dense_groups(labels: np.ndarray | None, num_ops: int) -> np.ndarray:
  """Returns int64 `[num_ops]` dense ids by first appearance.

  Args:
    labels: int `[num_ops]`; a negative label stands for an op of its own.
      None stands for all negative.
    num_ops: the number of ops.
  """
  if labels is None:
    return np.arange(num_ops, dtype=np.int64)
  labels = np.array(labels, np.int64)
  _check_length("group", labels, num_ops)
  alone = labels < 0
  labels[alone] = labels.max(initial=0) + 1 + np.arange(alone.sum())
  _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
  appearance = np.empty(len(first), np.int64)
  appearance[np.argsort(first)] = np.arange(len(first))
  return appearance[inverse]


def _check_length(field, values, length) -> None:
  if len(values) != length:
    raise ValueError(f"{field} has {len(values)} entries, needs {length}")


def _check_text(names) -> None:
  """Refuses half of a UTF-16 pair, which JSON can spell but no file holds."""
  try:
    "".join(names).encode()
  except UnicodeEncodeError as error:
    wrong = next(x for x in names if error.object[error.start] in x)
    raise ValueError(f"the name {wrong!r} is not Unicode text") from None


def _costs(names, field, values, op_of=None) -> np.ndarray:
  """Returns bytes as int64; they may be Python integers of any size."""
  length = len(names) if op_of is None else len(op_of)
  if values is None:
    return np.zeros(length, np.int64)
  values = np.asarray(values)
  _check_length(field, values, length)
  right = (values >= 0) & (values <= MAX_BYTES)  # False for NaN
  bound = f"from 0 to {MAX_BYTES:,}"
  _reject(names, field, ~right.astype(bool), bound, op_of)
  return values.astype(np.int64)


def _check_total(*byte_counts) -> None:
  total = sum(float(x.sum(dtype=np.float64)) for x in byte_counts)
  if total > MAX_BYTES:
    raise ValueError(
      f"all bytes together are {total:.3g}, more than {MAX_BYTES:,}"
    )


def _reject(names, field, bad, bound, op_of=None) -> None:
  bad = np.flatnonzero(bad.any(axis=tuple(range(1, bad.ndim))))
  if len(bad):
    op = bad[0] if op_of is None else op_of[bad[0]]
    raise ValueError(f"op {names[op]!r}: {field} must be {bound}")


def _check_edges(names, num_outputs, source, output, target) -> None:
  n = len(names)
  for end in (source, target):
    if len(end) and not (0 <= end.min() and end.max() < n):
      raise ValueError(f"an edge refers to an op outside 0..{n - 1}")
  bad = np.flatnonzero((output < CONTROL) | (output >= num_outputs[source]))
  if len(bad):
    edge = bad[0]
    raise ValueError(
      f"edge {names[source[edge]]!r} -> {names[target[edge]]!r}: the source"
      f" has {num_outputs[source[edge]]} outputs, none numbered"
      f" {output[edge]}"
    )


def _a_cycle(graph: OpGraph) -> str:
  """Returns "a -> b -> a" for one cycle of a graph that has one."""
  on_or_behind = graph.depth < 0
  op = int(np.flatnonzero(on_or_behind)[0])
  path = []
  while op not in path:
    path.append(op)
    first, last = graph.input_offsets[op], graph.input_offsets[op + 1]
    sources = graph.edge_source[graph.input_edges[first:last]]
    op = int(sources[on_or_behind[sources]][0])  # every such op has one
  cycle = [*path[path.index(op) :], op][::-1]
  return " -> ".join(graph.names[x] for x in cycle)
