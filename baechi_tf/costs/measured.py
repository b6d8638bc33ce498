"""Runs a step here and reads what each op took.

The flat graph runs in a session on one device, one op at a time, with no
optimization. A traced step yields TensorFlow's step stats; the median over
several steps counts, after a warm-up that is dropped. Every planned op runs as
the op it is, but those that run inside another's kernel (see `fused_kernels`):
they get their share of its time. A loop or branch runs as one op and its own
span is its time. On a GPU the kernels' own time counts, not their launch.
Tracing slows small ops and shows no work between ops: untraced steps, before
and after the traced ones, correct the sum.
"""

import statistics
import time
from collections.abc import Callable
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from baechi_tf.costs.fused_kernels import devices_apart
from baechi_tf.costs.fused_kernels import find_hosts
from baechi_tf.costs.fused_kernels import Node
from baechi_tf.costs.fused_kernels import nodes_by_name
from baechi_tf.costs.fused_kernels import share_out
from baechi_tf.costs.profile import OpCost
from baechi_tf.costs.step_stats import match_step
from baechi_tf.costs.step_stats import medians
from baechi_tf.costs.step_stats import parse_step_stats
from baechi_tf.graph_item import GraphItem

v1 = tf.compat.v1

_LOWERING = "_lower_using_switch_merge"
# Steps that tell how to share a kernel's time: dropped, and counted.
_STEPS_APART = (1, 3)

Progress = Callable[[int, int], None]


def measure(
  item: GraphItem,
  input_values: Mapping[str, np.ndarray],
  *,
  device_type: str = "CPU",
  num_steps: int = 10,
  warmup: int = 3,
  progress: Progress | None = None,
) -> dict[str, OpCost]:
  """Returns the measured cost of each planned op that the trace shows.

  Ops that the trace does not show are not in the result: they are missing,
  not free.

  Args:
    item: the model.
    input_values: a value for every feed, see `inputs.synthesize_inputs`.
    device_type: "CPU" or "GPU", the first such device of this machine.
    num_steps: steps to measure.
    warmup: steps to run before, dropped.
    progress: called with (steps done, steps in all).

  Raises:
    ValueError: a count is too small, a feed has no value, or there is no such
      device here.
  """
  if num_steps < 1 or warmup < 0:
    raise ValueError(
      f"num_steps= must be at least 1, got {num_steps}, and warmup= at least 0,"
      f" got {warmup}"
    )
  missing = [x.name for x in item.feeds if x.name not in input_values]
  if missing:
    raise ValueError(f"input {missing[0]!r} has no value")
  report = progress or (lambda done, total: None)
  with open_session(item, device_type) as session:
    item.initialize(session)
    steps_us = _untraced_us(item, input_values, session, warmup, num_steps)
    costs, executed = _traced(
      item, input_values, session, warmup, num_steps, report
    )
    # On both sides, because the speed of a machine may change meanwhile.
    steps_us += _untraced_us(item, input_values, session, warmup, num_steps)
  planned = set(item.op_names)
  hosts = find_hosts(
    nodes_by_name(x for x in item.graph_def.node if x.name in planned),
    executed,
  )
  if hosts:
    done, more = warmup + num_steps, sum(_STEPS_APART)
    with open_session(item, device_type, devices_apart(hosts)) as session:
      item.initialize(session)
      apart, _ = _traced(
        item, input_values, session, *_STEPS_APART,
        lambda step, total: report(done + step, done + more),
      )  # fmt: skip
    costs = share_out(costs, apart, hosts)
  costs = _fed_costs(item, input_values) | match_step(
    costs, statistics.median(steps_us), on_host=device_type == "CPU"
  )
  return {name: costs[name] for name in item.op_names if name in costs}


def _traced(
  item, input_values, session, warmup, num_steps, report
) -> tuple[dict[str, OpCost], dict[str, Node]]:
  """Returns the median cost of each op that a step shows, and what ran."""
  fetches = [*item.fetches, *item.targets]
  feed_dict = {x.tensor: input_values[x.name] for x in item.feeds}
  op_types = {node.name: node.op for node in item.graph_def.node}
  op_types = {name: op_types[name] for name in item.op_names}
  executed, steps = {}, []
  for step in range(warmup + num_steps):
    report(step, warmup + num_steps)
    options = v1.RunOptions(
      trace_level=v1.RunOptions.FULL_TRACE, output_partition_graphs=step == 0
    )
    metadata = v1.RunMetadata()
    session.run(fetches, feed_dict, options, metadata)
    for graph in metadata.partition_graphs:
      executed.update(nodes_by_name(graph.node))
    if step >= warmup:
      steps.append(parse_step_stats(metadata.step_stats, op_types))
  report(warmup + num_steps, warmup + num_steps)
  return medians(steps, item.op_names), executed


def _untraced_us(item, input_values, session, warmup, num_steps):
  """Returns the times of half the steps; a traced step slows the next one."""
  count = warmup + (num_steps + 1) // 2
  return step_times_us(item, input_values, session, count)[warmup:]


def _fed_costs(item: GraphItem, input_values) -> dict[str, OpCost]:
  """Returns a cost for each fed op; one that nothing takes is in no trace."""
  return {
    feed.tensor.partition(":")[0]: OpCost(
      "Placeholder",
      0.0,
      output_bytes=(np.asarray(input_values[feed.name]).nbytes,),
    )
    for feed in item.feeds
  }


def step_times_us(
  item: GraphItem,
  input_values: Mapping[str, np.ndarray],
  session: v1.Session,
  num_steps: int,
) -> list[float]:
  """Returns the times of steps that are not traced.

  Args:
    item: the model.
    input_values: a value for every feed.
    session: from `open_session`, initialized.
    num_steps: the number of steps to run.
  """
  step = session.make_callable(
    [*item.fetches, *item.targets], [x.tensor for x in item.feeds]
  )
  values = [input_values[x.name] for x in item.feeds]
  times_us = []
  for _ in range(num_steps):
    start = time.perf_counter()
    step(*values)
    times_us.append((time.perf_counter() - start) * 1e6)
  return times_us


def open_session(
  item: GraphItem,
  device_type: str = "CPU",
  device_of: Mapping[str, int] | None = None,
) -> v1.Session:
  """Returns a session that runs the item one op at a time, as it is.

  Args:
    item: the model.
    device_type: "CPU" or "GPU".
    device_of: the devices of ops that are not to be on device 0.

  Raises:
    ValueError: there is no such device here.
  """
  if device_type not in ("CPU", "GPU"):
    raise ValueError(
      f"cannot measure on a {device_type!r}: it must be 'CPU' or 'GPU'"
    )
  if device_type == "GPU" and not tf.config.list_physical_devices("GPU"):
    raise ValueError("there is no GPU here to measure on")
  graph_def = v1.GraphDef()
  graph_def.CopyFrom(item.graph_def)
  bodies = [function.node_def for function in graph_def.library.function]
  device_of = device_of or {}
  for node in graph_def.node:
    if device_of:
      node.attr.pop("_class", None)  # would bind ops that are to be apart
    node.device = f"/device:{device_type}:{device_of.get(node.name, 0)}"
  for node in (node for body in (graph_def.node, *bodies) for node in body):
    # A lowered loop falls apart into many ops that are not planned.
    if _LOWERING in node.attr:
      node.attr[_LOWERING].b = False
  for node in (node for body in bodies for node in body):
    node.device = ""
  graph = tf.Graph()
  with graph.as_default():
    tf.import_graph_def(graph_def, name="")
  config = v1.ConfigProto(
    allow_soft_placement=True,  # an op without a GPU kernel runs on the CPU
    inter_op_parallelism_threads=1,
    device_count={
      "CPU": 1 + max(device_of.values(), default=0),
      "GPU": int(device_type == "GPU"),
    },
  )
  config.graph_options.rewrite_options.disable_meta_optimizer = True
  config.graph_options.optimizer_options.opt_level = -1  # L0
  return v1.Session(graph=graph, config=config)
