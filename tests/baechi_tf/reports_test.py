import dataclasses
import json

import numpy as np
import pytest

from baechi_tf import atomic
from baechi_tf.bounds import lower_bound
from baechi_tf.cluster import Cluster
from baechi_tf.cluster import Device
from baechi_tf.cluster import Link
from baechi_tf.op_graph import CONTROL
from baechi_tf.op_graph import OpGraph
from baechi_tf.placement import Placement
from baechi_tf.planner import plan
from baechi_tf.reports.directory import is_report
from baechi_tf.reports.directory import report_output
from baechi_tf.reports.directory import stage_report
from baechi_tf.reports.quantities import duration
from baechi_tf.reports.quantities import size
from baechi_tf.reports.quantities import table
from baechi_tf.reports.summary import summarize
from baechi_tf.reports.text import candidates
from baechi_tf.reports.text import report
from baechi_tf.reports.trace import trace_lines
from baechi_tf.simulator import simulate
from tests import contracts

BIG = 10**9


def cluster_of(
  *memory_bytes: int,
  channel="full_duplex",
  processors=("", ""),
  send_us=0.0,
  receive_us=0.0,
  dispatch_us=0.0,
) -> Cluster:
  return Cluster(
    tuple(
      Device(f"/device:CPU:{k}", "CPU", x, processors[k])
      for k, x in enumerate(memory_bytes)
    ),
    Link(
      latency_us=1.0,
      bytes_per_us=10.0,
      send_us=send_us,
      receive_us=receive_us,
      dispatch_us=dispatch_us,
    ),
    channel=channel,
  )


def fork_and_join() -> OpGraph:
  """a -> (b, c) -> d: 2 + 10 + 10 + 3 us; a's 20 bytes take 3 us to send."""
  return OpGraph.build(
    ["a", "b", "c", "d"],
    np.array([2.0, 10.0, 10.0, 3.0]),
    persistent_bytes=[0, 500, 0, 0],
    output_op=[0, 1, 2],
    output_bytes=[20, 20, 20],
    edge_source=[0, 0, 1, 2],
    edge_output=[0, 0, 0, 0],
    edge_target=[1, 2, 3, 3],
  )


def summary_of(graph, cluster, device, **kwargs):
  simulation = simulate(graph, cluster, np.array(device))
  bound = lower_bound(graph, cluster)
  return summarize(graph, cluster, simulation, bound, model="m", **kwargs)


def summary_of_plan(graph, cluster, planned, *, model="m", notes=()):
  return summarize(
    graph,
    cluster,
    planned.simulation,
    planned.bound,
    model=model,
    chosen=planned.chosen,
    candidates=planned.candidates,
    notes=notes,
  )


def test_summary_has_the_figures_worked_by_hand():
  summary = summary_of(fork_and_join(), cluster_of(BIG, BIG), [0, 1, 0, 0])
  # Device 0: a 0..2, c 2..12. Device 1: b 5..15; its output is there at 18.
  assert summary.makespan_us == 21
  assert summary.one_device.makespan_us == 25
  assert summary.speedup == pytest.approx(25 / 21)
  assert summary.bytes_moved == 40
  assert summary.num_transfers == 2
  assert summary.gap == pytest.approx(21 / summary.lower_bound_us - 1)
  first, second = summary.devices
  assert (first.num_ops, first.busy_time_us) == (3, 15)
  assert (second.num_ops, second.busy_time_us) == (1, 10)
  # 500 persistent, 20 received, 20 of its own output.
  assert second.peak_memory_bytes == 540
  fields = json.loads(json.dumps(summary.fields()))
  assert fields["devices"][1]["peak_memory_bytes"] == 540
  assert not fields.keys() & {"num_rewritten", "verification"}


def test_summary_and_report_say_what_transfers_take_of_processors():
  cluster = cluster_of(BIG, BIG, send_us=0.5, receive_us=1.5, dispatch_us=1.0)
  # As above; sending delays c on device 0, receiving d: b's output is there at
  # 18, received from 16.5 on.
  summary = summary_of(fork_and_join(), cluster, [0, 1, 0, 0])
  assert summary.makespan_us == 21
  assert [x.transfer_work_us for x in summary.devices] == [2.0, 2.0]
  assert [x.busy_time_us for x in summary.devices] == [15.0, 10.0]
  assert [x.dispatch_us for x in summary.devices] == [0.0, 1.0]
  assert summary.one_device.makespan_us == 25
  lines = report(summary).splitlines()
  (header,) = (x for x in lines if x.startswith("device "))
  assert "  transfers  dispatch  peak memory" in header
  row = next(x for x in lines if x.startswith("/device:CPU:1"))
  assert row.split()[6:12] == ["%", "2.00", "us", "1.00", "us", "540"]
  free = report(summary_of(fork_and_join(), cluster_of(BIG), [0] * 4))
  assert "transfers  " not in free
  assert "dispatch" not in free


def test_report_says_what_sharing_a_processor_means():
  cluster = cluster_of(BIG, BIG, processors=("p", "p"))
  summary = summary_of(fork_and_join(), cluster, [0, 1, 0, 0])
  assert summary.num_processors == 1
  assert summary.speedup <= 1
  assert (
    "note: 2 devices share one processor: no plan is faster than one device; a"
    " plan helps only if memory is short\n"
  ) in report(summary)
  cluster = cluster_of(BIG, BIG, BIG, processors=("p", "", "p"))
  assert (
    "note: /device:CPU:0, /device:CPU:2 share one processor, which runs one op"
    " at a time\n"
  ) in report(summary_of(fork_and_join(), cluster, [0, 1, 0, 0]))
  apart = report(summary_of(fork_and_join(), cluster_of(BIG, BIG), [0] * 4))
  assert "share" not in apart


def test_report_predicts_the_step_in_tensorflows_order_too():
  graph = OpGraph.build(
    ["a1", "a2", "b", "c", "d"],
    np.array([2.0, 3.0, 1.0, 1.0, 9.0]),
    output_op=[0, 1, 2],
    output_bytes=[0, 0, 0],
    edge_source=[0, 1, 2],
    edge_output=[0, 0, 0],
    edge_target=[3, 2, 4],
  )
  cluster = cluster_of(BIG, BIG)
  # Device 0: a1 0..2, a2 2..5, b 5..6, and d starts at 7. TensorFlow runs what
  # a1 has made ready, c, before a2: b 6..7, and d starts at 8.
  summary = summary_of(graph, cluster, [0, 0, 0, 0, 1])
  assert summary.makespan_us == 5 + 1 + 1 + 9
  assert summary.unordered_makespan_us == 5 + 2 + 1 + 9
  assert "unordered" in report(summary)


def test_one_device_pays_for_its_dispatch():
  graph = OpGraph.build(["a"], np.array([[5.0, 4.0]]), device_types=["C", "G"])
  devices = (Device("c", "C", BIG), Device("g", "G", BIG))

  def one_device(dispatch_us):
    cluster = Cluster(devices, Link(1.0, 1.0, dispatch_us=dispatch_us))
    one = summary_of(graph, cluster, [0]).one_device
    return one.name, one.makespan_us

  assert one_device(0.25) == ("g", 4.5)
  assert one_device(1.0) == ("c", 5)


def test_one_device_is_the_fastest_with_enough_memory():
  graph = OpGraph.build(
    ["a"],
    np.array([[5.0, 2.0]]),
    device_types=["slow", "fast"],
    persistent_bytes=[100],
  )

  def one_device(slow_bytes, fast_bytes):
    devices = (
      Device("s", "slow", slow_bytes),
      Device("f", "fast", fast_bytes),
    )
    return summary_of(graph, Cluster(devices), [0]).one_device

  assert one_device(100, 100).name == "f"
  assert one_device(100, 99).name == "s"
  neither = one_device(99, 99)
  assert (neither.name, neither.fits) == ("f", False)
  assert neither.peak_memory_bytes == 100


def test_report_names_what_matters():
  cluster = cluster_of(BIG, BIG)
  planned = plan(fork_and_join(), cluster)
  summary = summary_of_plan(
    fork_and_join(), cluster, planned, model="some/model", notes=["take note"]
  )
  text = report(summary)
  assert text.startswith(
    "some/model: 4 ops in 4 groups on 2 devices, placed by"
  )
  assert "gap to lower bound" in text
  assert planned.bound.name in text
  assert planned.bound.witness in text
  assert text.count("* ") == 1
  assert "note: take note" in text
  for candidate in planned.candidates:
    assert candidate.placer in text


def test_candidates_names_the_tasks_of_devices_that_look_alike():
  cluster = Cluster(
    tuple(
      Device(f"/job:w/replica:0/task:{task}/device:CPU:0", "CPU", BIG)
      for task in range(2)
    )
  )
  planned = plan(fork_and_join(), cluster)
  summary = summary_of_plan(fork_and_join(), cluster, planned)
  header = candidates(summary).splitlines()[0]
  assert header.endswith("peak 0/CPU:0  peak 1/CPU:0")


def test_report_says_optimal_only_below_half_a_percent():
  # One op on one device is exactly its lower bound.
  one_op = OpGraph.build(["a"], np.array([1.0]))
  optimal = summary_of(one_op, cluster_of(BIG), [0])
  assert "optimal under the cost model" in report(optimal)
  worse = dataclasses.replace(optimal, gap=0.006)
  assert "optimal" not in report(worse)


def test_report_says_where_one_device_is_too_small():
  summary = summary_of(fork_and_join(), cluster_of(510, 530), [0, 1, 0, 0])
  text = report(summary)
  assert "where it does not fit (560 B)" in text
  assert "over" in text.splitlines()[-1]


def test_report_of_an_infeasible_candidate_says_why():
  cluster = cluster_of(545, 545)
  planned = plan(fork_and_join(), cluster)
  assert any(x.simulation is None for x in planned.candidates)
  summary = summary_of_plan(fork_and_join(), cluster, planned)
  text = report(summary)
  for candidate in planned.candidates:
    if candidate.simulation is None:
      assert f"{candidate.placer}: {candidate.error}" in text


def test_empty_graph_is_reported():
  graph = OpGraph.build([], np.zeros(0))
  summary = summary_of(graph, cluster_of(BIG, BIG), np.zeros(0, int))
  assert summary.speedup == 1.0
  assert "0 ops" in report(summary)
  assert json.loads("".join(trace_lines(*traced(graph, [])))) is not None


def traced(graph, device, channel="full_duplex"):
  cluster = cluster_of(BIG, BIG, channel=channel)
  device = np.array(device, np.int64)
  return graph, cluster, simulate(graph, cluster, device)


def events(graph, device, channel="full_duplex") -> list[dict]:
  return events_of(*traced(graph, device, channel))


def events_of(graph, cluster, simulation) -> list[dict]:
  text = "".join(trace_lines(graph, cluster, simulation))
  return json.loads(text)["traceEvents"]


def test_trace_shows_ops_on_their_devices_when_they_run():
  ops = {
    x["name"]: (x["pid"], x["ts"], x["dur"])
    for x in events(fork_and_join(), [0, 1, 0, 0])
    if x["ph"] == "X" and x["tid"] == 0
  }
  assert ops == {
    "a": (0, 0, 2),
    "b": (1, 5, 10),
    "c": (0, 2, 10),
    "d": (0, 18, 3),
  }


def test_trace_shows_transfers_on_both_ends_with_an_arrow():
  trace = events(fork_and_join(), [0, 1, 0, 0])
  transfers = [
    (x["name"], x["pid"], x["ts"], x["dur"], x["args"]["bytes"])
    for x in trace
    if x["ph"] == "X" and x["tid"] > 0
  ]
  assert transfers == [
    ("a", 0, 2, 3, 20),
    ("a", 1, 2, 3, 20),
    ("b", 1, 15, 3, 20),
    ("b", 0, 15, 3, 20),
  ]
  arrows = [
    (x["ph"], x["pid"], x["ts"]) for x in trace if x["ph"] in ("s", "t", "f")
  ]
  # From the start of the producer, over the transfer, to the consumer.
  assert arrows == [
    ("s", 0, 0),
    ("t", 1, 2),
    ("f", 1, 5),
    ("s", 1, 5),
    ("t", 0, 15),
    ("f", 0, 18),
  ]


def test_trace_shows_what_transfers_take_inside_the_ops_that_they_delay():
  graph, cluster = (
    fork_and_join(),
    cluster_of(BIG, BIG, send_us=4.0, receive_us=2.0),
  )
  simulation = simulate(graph, cluster, np.array([0, 1, 1, 0]))
  rows = {0: [], 1: []}
  for x in events_of(graph, cluster, simulation):
    if x["ph"] == "X" and x["tid"] == 0:
      rows[x["pid"]].append((x["name"], x["ts"], x["ts"] + x["dur"]))
  # a is sent 2..5; received 3..5. b 5..15; sent 15..18, taking 4 us of device 1
  # before c 19..29, sent 29..32. d waits for the receiving of c's output.
  assert rows[0] == [
    ("a", 0, 2),
    ("d", 32, 35),
    ("send a", 2, 6),
    ("receive b", 16, 18),
    ("receive c", 30, 32),
  ]
  assert rows[1] == [
    ("b", 5, 15),
    ("c", 19, 29),
    ("receive a", 3, 5),
    ("send b", 15, 19),
    ("send c", 29, 33),
  ]


def test_trace_has_a_memory_counter_that_ends_at_what_persists():
  memory = [
    x
    for x in events(fork_and_join(), [0, 1, 0, 0])
    if x["ph"] == "C" and x["pid"] == 1
  ]
  levels = [x["args"]["bytes"] for x in memory]
  assert (levels[0], max(levels), levels[-1]) == (500, 540, 500)


@pytest.mark.parametrize("channel", ["half_duplex", "full_duplex", "parallel"])
@pytest.mark.parametrize("seed", range(5))
def test_trace_slices_never_overlap_on_a_track(channel, seed):
  rng = np.random.default_rng(seed)
  n = 30
  source, target = np.sort(rng.integers(0, n, (2, 60)), axis=0)
  apart = source < target
  graph = OpGraph.build(
    [f"op{i}" for i in range(n)],
    rng.random(n) * 5,
    output_op=np.arange(n),
    output_bytes=rng.integers(0, 100, n),
    edge_source=source[apart],
    edge_output=np.where(rng.random(apart.sum()) < 0.2, CONTROL, 0),
    edge_target=target[apart],
  )
  tracks = {}
  for event in events(graph, rng.integers(0, 2, n), channel):
    if event["ph"] == "X":
      track = tracks.setdefault((event["pid"], event["tid"]), [])
      track.append((event["ts"], event["ts"] + event["dur"]))
  for track in tracks.values():
    track.sort()
    for (_, end), (begin, _) in zip(track, track[1:], strict=False):
      assert begin >= end - 0.002  # times are rounded to a nanosecond


@pytest.mark.parametrize("seed", range(10))
def test_trace_work_is_inside_an_op_or_outside_all(seed):
  rng = np.random.default_rng(seed)
  graph = contracts.random_graph(rng, 20, density=0.3)
  cluster = contracts.random_cluster(rng, 3, channel="parallel")
  cluster = contracts.costly(rng, cluster)
  device = rng.integers(0, 3, graph.num_ops)
  simulation = simulate(graph, cluster, device, policy="executor")
  tracks = {}
  for event in events_of(graph, cluster, simulation):
    if event["ph"] == "X" and event["tid"] == 0 and event["dur"] > 0:
      ends = (event["ts"], event["ts"] + event["dur"])
      is_work = event["name"].startswith(("send ", "receive "))
      tracks.setdefault(event["pid"], ([], []))[is_work].append(ends)
  for ops, works in tracks.values():
    works.sort()
    for (_, end), (begin, _) in zip(works, works[1:], strict=False):
      assert begin >= end
    for begin, end in works:
      for start, finish in ops:
        assert (
          end <= start or begin >= finish or (start <= begin and end <= finish)
        )


def _write_report(directory, *contents):
  output = report_output(str(directory), overwrite=False)
  with atomic.publishing() as outputs:
    stage_report(outputs, output, *contents)


def test_report_directory_is_the_same_every_time(tmp_path):
  cluster = cluster_of(BIG, BIG)
  graph = fork_and_join()
  written = []
  for name in "ab":
    planned = plan(graph, cluster)
    summary = summary_of_plan(graph, cluster, planned)
    directory = tmp_path / name
    _write_report(
      directory,
      summary,
      graph,
      cluster,
      planned.simulation,
      planned.placement,
    )
    assert is_report(str(directory))
    written.append({x.name: x.read_bytes() for x in directory.iterdir()})
  assert written[0] == written[1]
  assert sorted(written[0]) == [
    "placement.json",
    "report.html",
    "report.txt",
    "trace.json",
  ]


def test_directory_with_other_files_is_no_report(tmp_path):
  (tmp_path / "report.txt").touch()
  assert is_report(str(tmp_path))
  (tmp_path / "thesis.tex").touch()
  assert not is_report(str(tmp_path))
  assert not is_report(str(tmp_path / "report.txt"))


def test_placement_in_report_is_the_placement(tmp_path):
  graph, cluster, simulation = traced(fork_and_join(), [0, 1, 0, 0])
  placement = Placement(graph.names, cluster.device_names, simulation.device)
  summary = summary_of(graph, cluster, simulation.device)
  directory = tmp_path / "report"
  _write_report(directory, summary, graph, cluster, simulation, placement)
  fields = json.loads((directory / "placement.json").read_text())
  assert fields["placement"] == placement.as_dict()


@pytest.mark.parametrize(
  "time_us, text",
  [(0.0, "0.00 us"), (999.0, "999.00 us"), (1500, "1.50 ms"), (2e6, "2.00 s")],
)
def test_duration_has_the_unit_that_suits(time_us, text):
  assert duration(time_us) == text


@pytest.mark.parametrize(
  "num_bytes, text",
  [(0, "0 B"), (1023, "1023 B"), (1536, "1.50 KiB"), (3 << 40, "3.00 TiB")],
)
def test_size_has_the_unit_that_suits(num_bytes, text):
  assert size(num_bytes) == text


def test_table_aligns_columns():
  assert table(["op", "n"], [["a", "10"], ["long", "2", "note"]]) == (
    "op     n\n----  --\na     10\nlong   2  note\n"
  )
