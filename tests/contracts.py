"""The tables of implementations, and the graphs that batteries run them on.

Every placer is in `PLACER_NAMES`; a test fails when one is missing. Graphs and
clusters have whole-number times and power-of-two bandwidths, so that sums are
exact in whatever order they are added and tests can ask for equality.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from baechi_tf.cluster import CHANNELS
from baechi_tf.cluster import Cluster
from baechi_tf.cluster import Device
from baechi_tf.cluster import Link
from baechi_tf.cluster import read_cluster
from baechi_tf.op_graph import CONTROL
from baechi_tf.op_graph import OpGraph
from baechi_tf.simulator import Simulation

PLACER_NAMES = ("single_device", "contiguous", "m_topo", "m_etf", "m_sct")
AMPLE = 2**40  # bytes that no test graph fills


@dataclasses.dataclass(frozen=True)
class Op:
  """One op of a graph that is written by hand.

  `time_us` may be a tuple, one number per device type. `outputs` are sizes in
  bytes; those numbered in `persistent_outputs` share persistent memory. Ops
  that name the same `group` must share a device.
  """

  name: str
  time_us: float | tuple[float, ...] = 1.0
  outputs: tuple[int, ...] = ()
  persistent: int = 0
  temporary: int = 0
  group: str | None = None
  persistent_outputs: tuple[int, ...] = ()
  is_input: bool = False


Edge = tuple[str, int, str]  # producer, which output or CONTROL, consumer


def make_graph(
  ops: Sequence[Op],
  edges: Sequence[Edge] = (),
  device_types: Sequence[str] = ("*",),
) -> OpGraph:
  """Returns the graph of hand-written ops and edges."""
  index = {op.name: i for i, op in enumerate(ops)}
  labels = {}
  return OpGraph.build(
    [op.name for op in ops],
    np.array([np.broadcast_to(x.time_us, len(device_types)) for x in ops]),
    device_types=device_types,
    persistent_bytes=[op.persistent for op in ops],
    temporary_bytes=[op.temporary for op in ops],
    output_op=[i for i, op in enumerate(ops) for _ in op.outputs],
    output_bytes=[size for op in ops for size in op.outputs],
    output_is_persistent=[
      i in op.persistent_outputs for op in ops for i in range(len(op.outputs))
    ],
    edge_source=[index[source] for source, _, _ in edges],
    edge_output=[output for _, output, _ in edges],
    edge_target=[index[target] for _, _, target in edges],
    group=[
      -1 if op.group is None else labels.setdefault(op.group, len(labels))
      for op in ops
    ],
    is_input=[op.is_input for op in ops],
  )


def make_cluster(
  num_devices: int = 2,
  *,
  memory: int | Sequence[int] = AMPLE,
  latency_us: float = 0.0,
  bytes_per_us: float = 1.0,
  send_us: float = 0.0,
  send_us_per_byte: float = 0.0,
  receive_us: float = 0.0,
  receive_us_per_byte: float = 0.0,
  dispatch_us: float = 0.0,
  channel: str = "full_duplex",
  types: Sequence[str] | None = None,
  processors: Sequence[str] | None = None,
  links: dict[tuple[int, int], Link] | None = None,
) -> Cluster:
  """Returns a cluster of devices `d0`, `d1`, …"""
  memories = np.broadcast_to(memory, num_devices).tolist()
  types = types or ["CPU"] * num_devices
  processors = processors or [""] * num_devices
  return Cluster(
    devices=tuple(
      Device(f"d{k}", types[k], memories[k], processors[k])
      for k in range(num_devices)
    ),
    link=Link(
      latency_us,
      bytes_per_us,
      send_us=send_us,
      send_us_per_byte=send_us_per_byte,
      receive_us=receive_us,
      receive_us_per_byte=receive_us_per_byte,
      dispatch_us=dispatch_us,
    ),
    links=links or {},
    channel=channel,
  )


def two_cpus() -> Cluster:
  """Returns this process' two logical CPUs, as if each were a processor."""
  cluster = read_cluster("configs/clusters/2_cpus.toml")
  devices = tuple(
    dataclasses.replace(x, processor=f"processor {i}")
    for i, x in enumerate(cluster.devices)
  )
  return dataclasses.replace(cluster, devices=devices)


def ops_of(graph: OpGraph) -> tuple[list[Op], list[Edge]]:
  """Returns what `make_graph` would build the graph from."""
  ops = []
  for i, name in enumerate(graph.names):
    outputs = data_outputs(graph, i)
    ops.append(
      Op(
        name,
        tuple(graph.compute_time_us[i].tolist()),
        tuple(graph.tensor_bytes[outputs].tolist()),
        int(graph.persistent_bytes[i]),
        int(graph.temporary_bytes[i]),
        f"group {graph.group[i]}",
        tuple(np.flatnonzero(graph.tensor_is_persistent[outputs]).tolist()),
      )
    )
  edges = []
  for tensor, target in zip(graph.edge_tensor, graph.edge_op, strict=True):
    source = graph.tensor_op[tensor]
    output = tensor - graph.tensor_offsets[source]
    if graph.tensor_is_control[tensor]:
      output = CONTROL
    edges.append((graph.names[source], int(output), graph.names[target]))
  return ops, edges


def data_outputs(graph: OpGraph, op: int) -> np.ndarray:
  """Returns the tensors of an op that are no control tensors."""
  first, last = graph.tensor_offsets[op], graph.tensor_offsets[op + 1]
  tensors = np.arange(first, last)
  return tensors[~graph.tensor_is_control[tensors]]


def relisted(graph: OpGraph, rng: np.random.Generator) -> OpGraph:
  """Returns the same graph with its ops and edges listed in another order."""
  ops, edges = ops_of(graph)
  return make_graph(
    [ops[i] for i in rng.permutation(len(ops))],
    [edges[i] for i in rng.permutation(len(edges))],
    graph.device_types,
  )


def scaled(
  graph: OpGraph, cluster: Cluster, factor: float
) -> tuple[OpGraph, Cluster]:
  """Returns both with every time and time per byte multiplied."""

  def slower(link):
    times = {x.name: getattr(link, x.name) for x in dataclasses.fields(Link)}
    bytes_per_us = times.pop("bytes_per_us") / factor
    times = {name: value * factor for name, value in times.items()}
    return Link(bytes_per_us=bytes_per_us, **times)

  graph = dataclasses.replace(
    graph, compute_time_us=graph.compute_time_us * factor
  )
  links = {ends: slower(link) for ends, link in cluster.links.items()}
  cluster = dataclasses.replace(cluster, link=slower(cluster.link), links=links)
  return graph, cluster


def memory_at(
  graph: OpGraph, simulation: Simulation, k: int, now: float
) -> int:
  """Returns the bytes held on device `k` at an instant, by brute force.

  What is held only at that very instant counts.
  """

  def held(begin, end):
    return begin <= now < end or begin == end == now

  device, finish = simulation.device, simulation.finish_time_us
  total = int(graph.persistent_bytes[device == k].sum())
  for op in np.flatnonzero(device == k):
    if held(simulation.start_time_us[op], finish[op]):
      total += int(graph.temporary_bytes[op])
  for tensor, op in enumerate(graph.tensor_op):
    users = graph.edge_op[graph.edge_tensor == tensor]
    if device[op] == k and not graph.tensor_is_persistent[tensor]:
      last = max([finish[op], *finish[users]])
      if held(simulation.start_time_us[op], last):
        total += int(graph.tensor_bytes[tensor])
    for transfer in np.flatnonzero(simulation.transfer_tensor == tensor):
      if simulation.transfer_target[transfer] == k:
        last = max(finish[x] for x in users if device[x] == k)
        if held(simulation.transfer_start_us[transfer], last):
          total += int(graph.tensor_bytes[tensor])
  return total


def chain(length: int, time_us: float = 1.0, size: int = 0) -> OpGraph:
  """Returns ops that follow one another."""
  ops = [Op(f"op{i:03}", time_us, (size,)) for i in range(length)]
  edges = [(f"op{i:03}", 0, f"op{i + 1:03}") for i in range(length - 1)]
  return make_graph(ops, edges)


def independent(num_ops: int, time_us: float = 1.0) -> OpGraph:
  """Returns ops that have nothing to do with each other."""
  return make_graph([Op(f"op{i:03}", time_us) for i in range(num_ops)])


def two_chains(length: int, time_us: float = 1.0, size: int = 0) -> OpGraph:
  """Returns two chains that have nothing to do with each other."""
  ops, edges = [], []
  for name in "ab":
    ops += [Op(f"{name}{i:03}", time_us, (size,)) for i in range(length)]
    edges += [
      (f"{name}{i:03}", 0, f"{name}{i + 1:03}") for i in range(length - 1)
    ]
  return make_graph(ops, edges)


def fork_join(width: int, time_us: float = 1.0, size: int = 0) -> OpGraph:
  """Returns one op, `width` ops that want its output, and one after them."""
  middle = [f"mid{i:03}" for i in range(width)]
  ops = [Op("fork", time_us, (size,))]
  ops += [Op(name, time_us, (size,)) for name in middle]
  ops += [Op("join", time_us)]
  edges = [("fork", 0, name) for name in middle]
  edges += [(name, 0, "join") for name in middle]
  return make_graph(ops, edges)


def layered(
  rng: np.random.Generator, layers: int, width: int, size: int = 8
) -> OpGraph:
  """Returns layers of ops, each op fed by one to three of the layer before."""
  ops, edges = [], []
  for layer in range(layers):
    for i in range(width):
      name = f"layer{layer:02}/op{i:02}"
      state = int(rng.integers(0, 2 * size))
      time_us = float(rng.integers(1, 10))
      ops.append(Op(name, time_us, (size,), persistent=state))
      if layer:
        parents = rng.choice(width, min(width, rng.integers(1, 4)), False)
        edges += [
          (f"layer{layer - 1:02}/op{parent:02}", 0, name) for parent in parents
        ]
  return make_graph(ops, edges)


def random_graph(
  rng: np.random.Generator,
  num_ops: int,
  *,
  density: float = 0.25,
  device_types: Sequence[str] = ("*",),
  group_share: float = 0.0,
  max_time: int = 8,
  max_size: int = 16,
) -> OpGraph:
  """Returns a graph with a bit of everything the format allows.

  Zero-time ops, zero-byte tensors, several outputs per op, persistent ones,
  outputs that nobody wants, control edges, isolated ops; of the ops,
  `group_share` are in groups. Names are in no particular order.
  """
  names = [f"op{i:03}" for i in rng.permutation(num_ops)]
  num_groups = max(1, num_ops // 5)
  ops = []
  for name in names:
    outputs = tuple(rng.integers(0, max_size, rng.integers(0, 4)).tolist())
    times = rng.integers(0, max_time + 1, len(device_types)).astype(float)
    grouped = rng.random() < group_share
    shares = tuple(i for i in range(len(outputs)) if rng.random() < 0.1)
    ops.append(
      Op(
        name,
        tuple(times.tolist()),
        outputs,
        persistent=int(rng.integers(0, max_size))
        + sum(outputs[i] for i in shares),
        temporary=int(rng.integers(0, max_size)),
        group=f"g{rng.integers(num_groups)}" if grouped else None,
        persistent_outputs=shares,
      )
    )
  edges = []
  for j in range(num_ops):
    for i in range(j):
      if rng.random() < density:
        for output in range(CONTROL, len(ops[i].outputs)):
          if rng.random() < 0.5:
            edges.append((names[i], output, names[j]))
  return make_graph(ops, edges, device_types)


def random_cluster(
  rng: np.random.Generator,
  num_devices: int,
  *,
  channel: str | None = None,
  types: Sequence[str] = ("CPU",),
  memory: int | Sequence[int] = AMPLE,
) -> Cluster:
  """Returns a cluster whose links differ; latencies may be zero."""

  def link():
    return Link(float(rng.integers(0, 4)), float(2 ** rng.integers(0, 4)))

  links = {
    (a, b): link()
    for b in range(num_devices)
    for a in range(b)
    if rng.random() < 0.5
  }
  default = link()
  return make_cluster(
    num_devices,
    memory=memory,
    latency_us=default.latency_us,
    bytes_per_us=default.bytes_per_us,
    channel=channel or CHANNELS[rng.integers(len(CHANNELS))],
    types=[types[rng.integers(len(types))] for _ in range(num_devices)],
    links=links,
  )


def costly(rng: np.random.Generator, cluster: Cluster) -> Cluster:
  """Returns the cluster with work of transfers, dispatch, shared processors.

  Some of each, or none; times are multiples of an eighth of a microsecond.
  """

  def with_work(link):
    return dataclasses.replace(
      link,
      send_us=rng.choice([0.0, 0.5, 3.0]),
      send_us_per_byte=rng.choice([0.0, 0.125, 0.5]),
      receive_us=rng.choice([0.0, 1.0, 12.0]),
      receive_us_per_byte=rng.choice([0.0, 0.25]),
      dispatch_us=rng.choice([0.0, 4.0, 30.0]),
    )

  shared = rng.random() < 0.4
  names = ["", "p", "q"] if shared else [""]
  return dataclasses.replace(
    cluster,
    devices=tuple(
      dataclasses.replace(x, processor=rng.choice(names))
      for x in cluster.devices
    ),
    link=with_work(cluster.link),
    links={ends: with_work(link) for ends, link in cluster.links.items()},
  )


def placed_at_random(
  rng: np.random.Generator, seed: int, channel: str, *, with_work: bool = False
) -> tuple[OpGraph, Cluster, np.ndarray]:
  """Returns a random graph on a random cluster, and a device for each op.

  Args:
    rng: where they are drawn from.
    seed: odd ones have two types of devices.
    channel: the cluster's.
    with_work: whether the cluster is `costly`.
  """
  num_devices = int(rng.integers(1, 5))
  types = ("CPU", "GPU")[: 1 + seed % 2]
  graph = random_graph(
    rng,
    int(rng.integers(1, 14)),
    density=rng.choice([0.1, 0.3, 0.6]),
    device_types=types,
    max_time=int(rng.choice([1, 3, 20])),
  )
  cluster = random_cluster(rng, num_devices, channel=channel, types=types)
  if with_work:
    cluster = costly(rng, cluster)
  return graph, cluster, rng.integers(num_devices, size=graph.num_ops)


def excludes(
  channel: str, transfer: tuple[int, int], other: tuple[int, int]
) -> bool:
  """Whether two transfers, (sender, receiver) each, cannot be at once."""
  if channel == "full_duplex":
    return transfer[0] == other[0] or transfer[1] == other[1]
  return channel == "half_duplex" and not set(transfer).isdisjoint(other)


def link_between(cluster: Cluster, a: int, b: int) -> Link:
  """Returns the link that joins two devices."""
  return cluster.links.get((min(a, b), max(a, b)), cluster.link)
