import json

import numpy as np
import pytest

from baechi_tf.bounds import lower_bound
from baechi_tf.cluster import Cluster
from baechi_tf.cluster import Device
from baechi_tf.cluster import Link
from baechi_tf.op_graph import CONTROL
from baechi_tf.op_graph import OpGraph
from baechi_tf.placement import Placement
from baechi_tf.planner import plan
from baechi_tf.reports.directory import is_report
from baechi_tf.reports.directory import write_files
from baechi_tf.reports.quantities import duration
from baechi_tf.reports.quantities import size
from baechi_tf.reports.quantities import table
from baechi_tf.reports.summary import summarize
from baechi_tf.reports.text import report
from baechi_tf.reports.trace import trace_lines
from baechi_tf.simulator import simulate

BIG = 10**9


def cluster_of(*memory_bytes: int, channel="full_duplex") -> Cluster:
  return Cluster(
    tuple(
      Device(f"/device:CPU:{k}", "CPU", x) for k, x in enumerate(memory_bytes)
    ),
    Link(latency_us=1.0, bytes_per_us=10.0),
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


def test_summary_has_the_figures_worked_by_hand():
  summary = summary_of(fork_and_join(), cluster_of(BIG, BIG), [0, 1, 0, 0])
  # Device 0: a 0..2, c 2..12. Device 1: b 5..15; its output is there at 18.
  assert summary["makespan_us"] == 21
  assert summary["one_device"]["makespan_us"] == 25
  assert summary["speedup"] == pytest.approx(25 / 21)
  assert summary["bytes_moved"] == 40
  assert summary["num_transfers"] == 2
  assert summary["gap"] == pytest.approx(21 / summary["lower_bound_us"] - 1)
  first, second = summary["devices"]
  assert (first["num_ops"], first["busy_time_us"]) == (3, 15)
  assert (second["num_ops"], second["busy_time_us"]) == (1, 10)
  # 500 persistent, 20 received, 20 of its own output.
  assert second["peak_memory_bytes"] == 540
  assert json.loads(json.dumps(summary)) == summary


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
    return summary_of(graph, Cluster(devices), [0])["one_device"]

  assert one_device(100, 100)["name"] == "f"
  assert one_device(100, 99)["name"] == "s"
  neither = one_device(99, 99)
  assert (neither["name"], neither["fits"]) == ("f", False)
  assert neither["peak_memory_bytes"] == 100


def test_report_names_what_matters():
  cluster = cluster_of(BIG, BIG)
  planned = plan(fork_and_join(), cluster)
  summary = summarize(
    fork_and_join(),
    cluster,
    planned.simulation,
    planned.bound,
    model="some/model",
    chosen=planned.chosen,
    candidates=planned.candidates,
  )
  summary["notes"].append("take note")
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


def test_report_says_optimal_only_below_half_a_percent():
  # One op on one device is exactly its lower bound.
  one_op = OpGraph.build(["a"], np.array([1.0]))
  optimal = summary_of(one_op, cluster_of(BIG), [0])
  assert "optimal under the cost model" in report(optimal)
  optimal["gap"] = 0.006
  assert "optimal" not in report(optimal)


def test_report_says_where_one_device_is_too_small():
  summary = summary_of(fork_and_join(), cluster_of(510, 530), [0, 1, 0, 0])
  text = report(summary)
  assert "where it does not fit (560 B)" in text
  assert "over" in text.splitlines()[-1]


def test_report_of_an_infeasible_candidate_says_why():
  cluster = cluster_of(545, 545)
  planned = plan(fork_and_join(), cluster)
  assert any(x.simulation is None for x in planned.candidates)
  summary = summarize(
    fork_and_join(),
    cluster,
    planned.simulation,
    planned.bound,
    model="m",
    chosen=planned.chosen,
    candidates=planned.candidates,
  )
  text = report(summary)
  for candidate in planned.candidates:
    if candidate.simulation is None:
      assert f"{candidate.placer}: {candidate.error}" in text


def test_empty_graph_is_reported():
  graph = OpGraph.build([], np.zeros(0))
  summary = summary_of(graph, cluster_of(BIG, BIG), np.zeros(0, int))
  assert summary["speedup"] == 1.0
  assert "0 ops" in report(summary)
  assert json.loads("".join(trace_lines(*traced(graph, [])))) is not None


def traced(graph, device, channel="full_duplex"):
  cluster = cluster_of(BIG, BIG, channel=channel)
  device = np.array(device, np.int64)
  return graph, cluster, simulate(graph, cluster, device)


def events(graph, device, channel="full_duplex") -> list[dict]:
  text = "".join(trace_lines(*traced(graph, device, channel)))
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


def test_report_directory_is_the_same_every_time(tmp_path):
  cluster = cluster_of(BIG, BIG)
  graph = fork_and_join()
  written = []
  for name in "ab":
    planned = plan(graph, cluster)
    summary = summarize(
      graph,
      cluster,
      planned.simulation,
      planned.bound,
      model="m",
      chosen=planned.chosen,
      candidates=planned.candidates,
    )
    directory = tmp_path / name
    directory.mkdir()
    write_files(
      str(directory),
      summary,
      graph,
      cluster,
      planned.simulation,
      planned.placement,
    )
    assert is_report(str(directory))
    written.append({x.name: x.read_bytes() for x in directory.iterdir()})
  assert written[0] == written[1]
  assert sorted(written[0]) == ["placement.json", "report.txt", "trace.json"]


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
  write_files(str(tmp_path), summary, graph, cluster, simulation, placement)
  fields = json.loads((tmp_path / "placement.json").read_text())
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
