"""The list scheduler against a naive one that looks at every pair every time.

The naive one keeps nothing but what was decided, and recomputes the rest from
the rules in the docstrings.
"""

import math
import os
import subprocess
import sys

import numpy as np
import pytest

from baechi_tf.cluster import CHANNELS
from baechi_tf.placement import InfeasiblePlacementError
from baechi_tf.placers import list_scheduling
from baechi_tf.placers.favorite_child import favorite_children
from baechi_tf.simulator import simulate
from tests import contracts
from tests.contracts import make_cluster
from tests.contracts import make_graph
from tests.contracts import Op

NONE = list_scheduling.NONE


class Naive:
  """Earliest task first, by its rules; `device` is None when it gets stuck."""

  def __init__(self, graph, cluster, favorites=None):
    self.graph, self.cluster, self.favorites = graph, cluster, favorites
    self.times = graph.times_on(cluster.types)
    self.devices = range(cluster.num_devices)
    edges = list(
      zip(graph.edge_tensor.tolist(), graph.edge_op.tolist(), strict=True)
    )
    ops, tensors = range(graph.num_ops), range(len(graph.tensor_op))
    self.inputs = {op: [x for x, to in edges if to == op] for op in ops}
    self.users = {x: [to for y, to in edges if y == x] for x in tensors}
    self.home = graph.tensor_op.tolist()
    self.placed = {}  # op -> (device, start, finish), in order of placement
    self.sent = {}  # (tensor, to) -> (from, begin, end), in booking order
    self.free = [0.0] * cluster.num_processors
    self.waited = False  # whether an op started later for want of memory
    for _ in ops:
      choice = self.next_choice()
      if choice is None:
        break
      self.place(*choice)
    stuck = len(self.placed) < graph.num_ops
    self.device = None if stuck else [self.placed[op][0] for op in ops]

  def next_choice(self):
    """The op, device and start with the least (start, rank, device).

    A device that waits for another op comes after those that do not.
    """
    choices = []
    for op in range(self.graph.num_ops):
      if op in self.placed:
        continue
      if all(self.home[x] in self.placed for x in self.inputs[op]):
        for k in self.devices:
          start = self.start_with_memory(op, k, self.key(op, k))
          if start < math.inf:
            reluctant = self.is_kept_from(op, k)
            choices.append((start, self.graph.rank[op], reluctant, k, op))
    if not choices:
      return None
    start, _, _, k, op = min(choices)
    self.waited |= start > self.key(op, k)
    return op, k, start

  def may_run(self, op, k):
    """Whether the op's group is on `k`, or nowhere yet."""
    group = self.graph.group[op]
    return all(
      self.placed[other][0] == k
      for other in self.placed
      if self.graph.group[other] == group
    )

  def key(self, op, k):
    """When `k` would take a ready op if it had memory without end."""
    if not self.may_run(op, k):
      return math.inf
    if not self.is_kept_from(op, k):
      return self.earliest_start(op, k)
    return max(
      self.earliest_start(op, k),
      *(
        self.inputs_there(op, other)
        for other in self.devices
        if self.may_run(op, other)
      ),
    )

  def is_kept_from(self, op, k):
    """Whether `k` waits for another op, and `op` could go elsewhere."""
    child = self.awaited(k)
    return child not in (None, op) and not self.group_is_placed(op)

  def group_is_placed(self, op):
    group = self.graph.group[op]
    return any(self.graph.group[other] == group for other in self.placed)

  def device_free(self, k):
    free = self.free[self.cluster.processor[k]]
    return max(free, float(self.cluster.dispatch_us[k]))

  def channel_start(self, sent, source, target, ready):
    """When a tensor can leave, behind all that was booked before."""
    for (_, to), (sender, _, end) in sent.items():
      if contracts.excludes(
        self.cluster.channel, (sender, to), (source, target)
      ):
        ready = max(ready, end)
    return ready

  def duration(self, tensor, source, target):
    link = contracts.link_between(self.cluster, source, target)
    size = int(self.graph.tensor_bytes[tensor])
    return link.latency_us + size / link.bytes_per_us

  def work(self, tensor, source, target):
    """Processor time of sending and of receiving."""
    link = contracts.link_between(self.cluster, source, target)
    size = int(self.graph.tensor_bytes[tensor])
    return (
      link.send_us + size * link.send_us_per_byte,
      link.receive_us + size * link.receive_us_per_byte,
    )

  def work_before(self, op, k):
    """What transfers yet to be booked for the op take of its processor."""
    processor, total = self.cluster.processor, 0.0
    for tensor in self.inputs[op]:
      parent = self.home[tensor]
      if parent not in self.placed or (tensor, k) in self.sent:
        continue
      source = self.placed[parent][0]
      if source != k:
        send, receive = self.work(tensor, source, k)
        total += receive + send * (processor[source] == processor[k])
    return total

  def bookings(self, op, k):
    """All transfers once those that the op needs on `k` are booked too.

    In the order in which the inputs became ready.
    """
    sent = dict(self.sent)
    by_readiness = sorted(
      self.inputs[op],
      key=lambda x: (
        self.placed[self.home[x]][2],
        self.graph.rank[self.home[x]],
        x,
      ),
    )
    for tensor in by_readiness:
      source, _, ready = self.placed[self.home[tensor]]
      if source != k and (tensor, k) not in sent:
        begin = self.channel_start(sent, source, k, ready)
        end = begin + self.duration(tensor, source, k)
        sent[tensor, k] = (source, begin, end)
    return sent

  def earliest_start(self, op, k):
    return max(self.free_for(op, k), self.inputs_there(op, k))

  def free_for(self, op, k):
    """When the device can start the op, if its inputs are there."""
    free = self.free[self.cluster.processor[k]] + self.work_before(op, k)
    return max(self.device_free(k), free)

  def inputs_there(self, op, k):
    sent = self.bookings(op, k)
    there = 0
    for tensor in self.inputs[op]:
      source, _, ready = self.placed[self.home[tensor]]
      there = max(there, ready if source == k else sent[tensor, k][2])
    return there

  def place(self, op, k, start):
    before, self.sent = self.sent, self.bookings(op, k)
    for tensor, target in self.sent.keys() - before.keys():
      source = self.sent[tensor, target][0]
      send, _ = self.work(tensor, source, target)
      self.free[self.cluster.processor[source]] += send
    end = start + float(self.times[op, k])
    self.placed[op] = (k, start, end)
    self.free[self.cluster.processor[k]] = end

  # Memory.

  def holdings(self, k):
    """Bytes on `k` with the instant at which they are known to be freed."""
    graph, held = self.graph, []
    for op, (device, _, finish) in self.placed.items():
      if device == k:
        held.append((int(graph.temporary_bytes[op]), finish))
    for tensor, op in enumerate(self.home):
      if op not in self.placed:
        continue
      users = [(op, *self.placed[op])] + [
        (user, *self.placed[user])
        for user in self.users[tensor]
        if user in self.placed
      ]
      known = all(user in self.placed for user in self.users[tensor])
      if self.placed[op][0] == k:
        end = max(x[3] for x in users) if known else math.inf
        held.append((int(graph.tensor_held_bytes[tensor]), end))
      if (tensor, k) in self.sent:
        end = max(x[3] for x in users if x[1] == k) if known else math.inf
        held.append((int(graph.tensor_bytes[tensor]), end))
    return held

  def need(self, op, k):
    """Persistent bytes and working bytes that `k` would have to add."""
    graph = self.graph
    copies = sum(
      int(graph.tensor_bytes[tensor])
      for tensor in self.inputs[op]
      if self.placed[self.home[tensor]][0] != k and (tensor, k) not in self.sent
    )
    working = graph.temporary_bytes + graph.output_held_bytes
    need = int(working[op]) + copies
    if self.group_is_placed(op):
      return need
    members = graph.group == graph.group[op]
    return int(graph.persistent_bytes[members].sum()) + max(
      need, int(working[members].max())
    )

  def start_with_memory(self, op, k, earliest):
    """The first instant from `earliest` at which the op is known to fit."""
    if earliest == math.inf:
      return math.inf
    here = {
      self.graph.group[other]
      for other, (device, *_) in self.placed.items()
      if device == k
    }
    persistent = sum(
      int(size)
      for size, group in zip(
        self.graph.persistent_bytes, self.graph.group, strict=True
      )
      if group in here
    )
    need = persistent + self.need(op, k)
    held = self.holdings(k)
    for now in sorted({earliest} | {end for _, end in held}):
      if earliest <= now < math.inf:
        live = sum(size for size, end in held if end > now)
        if need + live <= self.cluster.memory_bytes[k]:
          return now
    return math.inf

  # Favourite children.

  def awaited(self, k):
    """The favourite child that `k` waits for, or None.

    That of the op that just ran there, while it is not placed, may run there,
    and can start there earlier than anywhere else.
    """
    if self.favorites is None:
      return None
    here = [op for op, (device, *_) in self.placed.items() if device == k]
    if not here:
      return None
    child = int(self.favorites[here[-1]])
    if child == NONE or child in self.placed or not self.may_run(child, k):
      return None
    now = self.device_free(k)
    starts = {
      other: self.child_start(child, other, now)
      for other in self.devices
      if self.may_run(child, other)
    }
    mine = starts.pop(k)
    return child if all(mine < start for start in starts.values()) else None

  def child_start(self, child, k, now):
    """When a child that may not be ready could start on `k` at the earliest."""
    start = self.free_for(child, k)
    for tensor in self.inputs[child]:
      parent = self.home[tensor]
      if parent not in self.placed:
        arrival = now + float(self.times[parent].min())
      elif self.placed[parent][0] == k:
        arrival = self.placed[parent][2]
      elif (tensor, k) in self.sent:
        arrival = self.sent[tensor, k][2]
      else:
        source, _, ready = self.placed[parent]
        arrival = self.channel_start(self.sent, source, k, ready)
        arrival += self.duration(tensor, source, k)
      start = max(start, arrival)
    return start


def a_case(seed, channel, *, group_share, memory_share=None):
  """A random graph and cluster.

  In a third of the cases transfers take processor time, and more (`costly`).
  Memory is a share of all working bytes, beyond each device's part of the
  persistent ones and the largest op's working bytes.
  """
  rng = np.random.default_rng(seed)
  num_devices = int(rng.integers(1 if memory_share is None else 2, 4))
  types = ("CPU", "GPU")[: 1 + seed % 2]
  graph = contracts.random_graph(
    rng,
    int(rng.integers(2, 16)),
    density=rng.choice([0.1, 0.3, 0.6]),
    device_types=types,
    group_share=group_share,
    max_time=int(rng.choice([2, 40])),
  )
  memory = contracts.AMPLE
  if memory_share is not None:
    persistent = graph.persistent_bytes.sum() / num_devices
    working = graph.temporary_bytes + graph.output_held_bytes
    memory = int(persistent + working.max() + memory_share * working.sum())
  cluster = contracts.random_cluster(
    rng, num_devices, channel=channel, types=types, memory=memory
  )
  if seed % 3 == 2:
    cluster = contracts.costly(rng, cluster)
  return graph, cluster


def devices_of(graph, cluster, favorites=None):
  try:
    placement = list_scheduling.schedule(graph, cluster, favorites)
  except InfeasiblePlacementError:
    return None
  return placement.device.tolist()


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("group_share", [0.0, 0.5])
def test_schedule_with_ample_memory_is_earliest_task_first(
  channel, group_share
):
  for seed in range(60):
    graph, cluster = a_case(seed, channel, group_share=group_share)
    expected = Naive(graph, cluster).device
    assert devices_of(graph, cluster) == expected, seed


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("group_share", [0.0, 0.5])
def test_schedule_with_tight_memory_waits_for_what_will_be_freed(
  channel, group_share
):
  feasible = waited = 0
  for seed in range(100):
    graph, cluster = a_case(
      seed,
      channel,
      group_share=group_share,
      memory_share=(0.1, 0.15, 0.2)[seed % 3],
    )
    naive = Naive(graph, cluster)
    assert devices_of(graph, cluster) == naive.device, seed
    feasible += naive.device is not None
    waited += naive.waited and naive.device is not None
  assert 25 < feasible < 95  # there are plans, and there are none,
  assert waited > 1  # and plans that waiting made possible


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("group_share", [0.0, 0.5])
def test_schedule_with_favorites_keeps_devices_awake(channel, group_share):
  awake_mattered = 0
  for seed in range(60):
    graph, cluster = a_case(seed, channel, group_share=group_share)
    favorites = favorite_children(graph, cluster)
    expected = Naive(graph, cluster, favorites).device
    assert devices_of(graph, cluster, favorites) == expected, seed
    awake_mattered += expected != devices_of(graph, cluster)
  assert awake_mattered > 3


def hubs(seed, num_devices, num_ops, channel, group_share=0.0):
  """A few tensors with many consumers, of which many have the same inputs.

  Memory is tight on every other device.
  """
  rng = np.random.default_rng(seed)
  ops = [Op(f"hub{i}", float(i), (8 * i,)) for i in range(3)]
  edges = []
  for i in range(num_ops):
    name = f"op{rng.integers(10**6):06}/{i}"
    grouped = rng.random() < group_share
    ops.append(
      Op(
        name,
        float(rng.integers(1, 9)),
        (4,),
        temporary=int(rng.integers(0, 9)),
        group=f"g{rng.integers(3)}" if grouped else None,
      )
    )
    inputs = rng.choice(3, rng.integers(1, 3), replace=False)
    edges += [(f"hub{x}", 0, name) for x in inputs]
    if i and rng.random() < 0.3:
      edges.append((ops[-2].name, 0, name))
  memory = [(36, contracts.AMPLE)[k % 2] for k in range(num_devices)]
  cluster = contracts.random_cluster(
    rng, num_devices, channel=channel, memory=memory
  )
  return make_graph(ops, edges), cluster


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("group_share", [0.0, 0.5])
@pytest.mark.parametrize(("num_devices", "num_ops"), [(3, 16), (64, 6)])
def test_schedule_of_hubs_is_the_naive_ones(
  channel, group_share, num_devices, num_ops
):
  for seed in range(12 if num_devices == 3 else 2):
    graph, cluster = hubs(seed, num_devices, num_ops, channel, group_share)
    assert devices_of(graph, cluster) == Naive(graph, cluster).device, seed
    ample = make_cluster(num_devices, latency_us=2.0, channel=channel)
    if seed % 2:
      ample = contracts.costly(np.random.default_rng(seed), ample)
    favorites = favorite_children(graph, ample)
    expected = Naive(graph, ample, favorites).device
    assert devices_of(graph, ample, favorites) == expected, seed


COUNT = """
import cProfile, pstats, sys
import numpy as np
from baechi_tf.placers import list_scheduling, list_state
from baechi_tf.placers.favorite_child import favorite_children
from tests import contracts

def count(graph, num_devices, favorites):
  cluster = contracts.make_cluster(num_devices, latency_us=3.0)
  if favorites:
    favorites = favorite_children(graph, cluster)
  problem = list_state.new_problem(graph, cluster, favorites)
  state = list_state.new_state(problem)
  profile = cProfile.Profile()
  profile.enable()
  assert list_scheduling._schedule(problem, state, np.zeros(2, np.int64))
  profile.disable()
  calls = pstats.Stats(profile).stats.items()
  asked = ("inputs_there", "_earliest_child_start")
  return sum(x[0] for (_, _, name), x in calls if name in asked)

star = contracts.fork_join(120, size=4)
layered = contracts.layered(np.random.default_rng(0), 6, 20)
for graph in (star, layered):
  for favorites in (None, True):
    print(*(count(graph, d, favorites) for d in (4, 64)))
"""


def test_schedule_looks_grow_no_faster_than_devices():
  # How often it asks when an op could start on a device: counted in the plain
  # Python that numba compiles.
  result = subprocess.run(
    [sys.executable, "-c", COUNT],
    env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  counts = [line.split() for line in result.stdout.splitlines()]
  assert len(counts) == 4
  for four, sixty_four in counts:
    # Up to twice: of a few devices, the first to be free is often enough to
    # look at. Were the growth quadratic, it would be sixteen times.
    assert int(sixty_four) / 64 <= 2 * int(four) / 4, counts


def optimum(graph, num_devices):
  """The least makespan on equal devices without communication."""
  parents = {
    op: set(graph.edge_source[graph.edge_op == op].tolist())
    for op in range(graph.num_ops)
  }
  times = graph.compute_time_us[:, 0].tolist()
  best = sum(times)

  def extend(finish, free, latest_start):
    """Appends every next op, in the order of their starts."""
    nonlocal best
    if max(free) >= best:
      return
    if len(finish) == graph.num_ops:
      best = max(free)
      return
    for op, before in parents.items():
      if op in finish or not before <= finish.keys():
        continue
      ready = max((finish[x] for x in before), default=0.0)
      for k in {free.index(x) for x in free}:  # equal devices are one choice
        start = max(ready, free[k])
        if start >= latest_start:
          after = [*free]
          after[k] = start + times[op]
          extend({**finish, op: after[k]}, after, start)

  extend({}, [0.0] * num_devices, 0.0)
  return best


@pytest.mark.parametrize("num_devices", [2, 3])
def test_schedule_without_communication_keeps_grahams_bound(num_devices):
  cluster = make_cluster(num_devices, bytes_per_us=math.inf)
  for seed in range(30):
    rng = np.random.default_rng(seed)
    graph = contracts.random_graph(rng, 7, density=0.2)
    device = devices_of(graph, cluster)
    makespan = simulate(graph, cluster, device).makespan_us
    best = optimum(graph, num_devices)
    assert best <= makespan <= (2 - 1 / num_devices) * best


def test_schedule_grahams_worst_case_takes_what_it_takes():
  # Six ones and a three on three devices: list scheduling in this order ends
  # at 5, the optimum is 3, and the bound is (2 - 1/3) * 3 = 5.
  graph = make_graph([*(Op(f"a{i}", 1.0) for i in range(6)), Op("z", 3.0)])
  cluster = make_cluster(3)
  device = devices_of(graph, cluster)
  assert simulate(graph, cluster, device).makespan_us == 5
  assert optimum(graph, 3) == 3


def test_schedule_waits_for_memory_rather_than_giving_up():
  # Each op needs 8 bytes of workspace; there are 8.
  graph = make_graph([Op("a", 1.0, temporary=8), Op("b", 1.0, temporary=8)])
  assert devices_of(graph, make_cluster(1, memory=8)) == [0, 0]


def test_schedule_memory_freed_later_is_no_memory_now():
  # `a`..`d` start at 0 on d0..d3 and pin their groups there. On d1, the 6
  # bytes of `x` are held until `slow` ends at 40; `late` is a candidate for 99,
  # when they are free. `early` is ready at 20, and d1 has no room then: d3.
  graph = make_graph(
    [
      Op("a", 1.0, group="d0"),
      Op("b", 1.0, (0,), group="d1"),
      Op("c", 1.0, (0,), group="d2"),
      Op("d", 3.0, (0,), group="d3"),
      Op("x", 1.0, (6,), group="d1"),  # 1 to 2
      Op("slow", 38.0, group="d0"),  # 2 to 40
      Op("far", 98.0, (0,), group="d2"),  # 1 to 99
      Op("late", 1.0, temporary=4, group="d1"),  # 99 to 100
      Op("step", 17.0, (0,), group="d3"),  # 3 to 20
      Op("early", 1.0, temporary=6),
    ],
    [
      ("b", 0, "x"),
      ("x", 0, "slow"),
      ("c", 0, "far"),
      ("far", 0, "late"),
      ("d", 0, "step"),
      ("step", 0, "early"),
    ],
  )
  cluster = make_cluster(4, memory=10, bytes_per_us=math.inf)
  assert devices_of(graph, cluster) == [0, 1, 2, 3, 1, 0, 2, 1, 3, 3]
  simulation = simulate(graph, cluster, devices_of(graph, cluster))
  assert simulation.peak_memory_bytes.max() <= 10


def test_schedule_group_reserves_its_persistent_bytes_at_once():
  # `a1` brings 6 bytes of state for its group to d0, so `b` goes to d1.
  graph = make_graph(
    [
      Op("a1", 1.0, (1,), persistent=2, group="a"),
      Op("a2", 1.0, persistent=4, group="a"),
      Op("b", 1.0, persistent=4),
    ],
    [("a1", 0, "a2")],
  )
  assert devices_of(graph, make_cluster(2, memory=8)) == [0, 0, 1]


@pytest.mark.parametrize("favorites", [None, [NONE, NONE, NONE]])
def test_schedule_infeasible_error_names_op_need_and_room(favorites):
  graph = make_graph(
    [Op("a", 1.0, persistent=5), Op("big", 1.0, persistent=9), Op("c")]
  )
  with pytest.raises(
    InfeasiblePlacementError,
    match="op 'big' fits on no device:"
    r" d1 would need 9 bytes \(9 persistent\) and has 8 left;"
    r" d0 would need 9 bytes \(9 persistent\) and has 3 left\.",
  ):
    list_scheduling.schedule(graph, make_cluster(2, memory=8), favorites)


def test_schedule_result_does_not_depend_on_the_listing():
  feasible = 0
  for seed in range(60):
    graph, cluster = a_case(
      seed,
      "full_duplex",
      group_share=0.3,
      memory_share=(0.1, 0.2, 0.3)[seed % 3],
    )
    other = contracts.relisted(graph, np.random.default_rng(seed))
    results = []
    for listed in (graph, other):
      for favorites in (None, favorite_children(listed, cluster)):
        try:
          placement = list_scheduling.schedule(listed, cluster, favorites)
          results.append(placement.as_dict())
          feasible += 1
        except InfeasiblePlacementError as error:
          results.append(str(error))
    assert results[:2] == results[2:], seed
  assert 60 < feasible < 220  # of 240, both plans and errors


def test_schedule_empty_graph_places_nothing():
  assert devices_of(make_graph([]), make_cluster(2)) == []


def test_schedule_unknown_device_type_is_an_error():
  graph = make_graph([Op("a", (3.0,))], device_types=("GPU",))
  with pytest.raises(ValueError, match="no compute times .* 'CPU'"):
    list_scheduling.schedule(graph, make_cluster(1))
