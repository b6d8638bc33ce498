"""The parts of a run that need no TensorFlow."""

import os
import socket
import threading

import numpy as np
import pytest

from baechi_tf.cluster import Cluster
from baechi_tf.cluster import Device
from baechi_tf.cluster import Link
from baechi_tf.op_graph import OpGraph
from baechi_tf.output_path import file_output
from baechi_tf.runner import child
from baechi_tf.runner import memory_limit
from baechi_tf.runner import worker
from baechi_tf.runner.correction import corrected_links
from baechi_tf.runner.correction import corrected_ops
from baechi_tf.runner.start import check_hosts
from baechi_tf.runner.start import check_server
from baechi_tf.runner.start import core_note
from baechi_tf.runner.tasks import cluster_spec
from baechi_tf.runner.tasks import needs_servers
from baechi_tf.runner.tasks import tasks_of
from baechi_tf.simulator import simulate

_WORKER = "/job:worker/replica:0/task:{}/device:CPU:{}"


def chain(times_us, num_bytes: int) -> OpGraph:
  """Returns ops that follow one another, each of which sends some bytes."""
  n = len(times_us)
  return OpGraph.build(
    [f"op{i}" for i in range(n)],
    np.array(times_us, float),
    device_types=["CPU"],
    output_op=np.arange(n),
    output_bytes=np.full(n, num_bytes),
    edge_source=np.arange(n - 1),
    edge_output=np.zeros(n - 1, int),
    edge_target=np.arange(1, n),
  )


def two_devices(link: Link) -> Cluster:
  devices = [Device(_WORKER.format(i, 0), "CPU", 1 << 30) for i in range(2)]
  return Cluster(tuple(devices), link)


def test_tasks_of_devices_of_two_processes():
  names = [_WORKER.format(0, 0), _WORKER.format(1, 1), _WORKER.format(1, 0)]
  tasks = tasks_of(names)
  assert [x.name for x in tasks] == ["/job:worker/task:0", "/job:worker/task:1"]
  assert [x.devices for x in tasks] == [(0,), (1, 2)]
  assert [x.num_cpus for x in tasks] == [1, 2]
  assert needs_servers(tasks)
  assert cluster_spec(tasks, ["a:1", "b:2"]) == {"worker": {0: "a:1", 1: "b:2"}}


@pytest.mark.parametrize(
  "names",
  [
    ["/device:CPU:0", "/device:CPU:1"],
    ["/job:localhost/replica:0/task:0/device:CPU:0", "/cpu:1"],
  ],
)
def test_tasks_of_logical_devices_are_one_process(names):
  (task,) = tasks_of(names)
  assert task.num_cpus == 2
  assert not needs_servers([task])


@pytest.mark.parametrize("name", ["gpu", "/job:a/task:x/device:CPU:0", "/CPU"])
def test_tasks_of_other_names_are_refused(name):
  with pytest.raises(ValueError, match="no TensorFlow device"):
    tasks_of([name])


def test_check_hosts_names_the_one_that_does_not_answer():
  tasks = tasks_of([_WORKER.format(i, 0) for i in range(2)])
  with pytest.raises(ValueError, match="1 hosts for the 2 processes"):
    check_hosts(tasks, ["localhost:1"])
  with pytest.raises(ValueError, match='not "address:port"'):
    check_hosts(tasks, ["localhost:1", "localhost"])
  with pytest.raises(ValueError, match=r"task:1: no server .* localhost:1 .*5"):
    check_hosts(tasks, ["localhost:2", "localhost:1"])


def test_check_hosts_names_the_one_that_is_no_tensorflow_server():
  def answer(listener):
    connection, _ = listener.accept()
    with connection:
      connection.recv(100)
      connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

  tasks = tasks_of([_WORKER.format(i, 0) for i in range(2)])
  with socket.create_server(("localhost", 0)) as listener:
    thread = threading.Thread(target=answer, args=(listener,))
    thread.start()
    address = f"localhost:{listener.getsockname()[1]}"
    with pytest.raises(ValueError, match=r"task:1: .* is no TensorFlow server"):
      check_hosts(tasks, ["localhost:1", address])
    thread.join()


def test_core_note_warns_of_more_processes_than_cores(monkeypatch):
  monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
  assert core_note(2) is None
  assert core_note(3).startswith("3 processes share 2 cores: ")


def test_process_removes_the_directory_of_a_run_that_was_killed(tmp_path):
  directory = tmp_path / "run"
  directory.mkdir()
  log = str(directory / "log")
  process = child.start("a", log, module=worker.__name__)
  process.tell(
    {"ask": "setup", "directory": str(directory), "cores": [], "network": None}
  )
  assert child.answer(process, [process], 30)["pid"] == process.process.pid
  (directory / "model.npz").write_bytes(b"inputs")
  process.process.stdin.close()
  assert process.process.wait(30) == 1
  assert not directory.exists()
  process.process.stdout.close()


def test_memory_groups_of_killed_processes_are_removed(tmp_path, monkeypatch):
  gone = 1 << 22  # beyond the largest process id of Linux
  for name in (f"baechi-{gone}-0", f"baechi-{os.getppid()}-0", "other-1-0"):
    (tmp_path / name).mkdir()
  monkeypatch.setattr(memory_limit, "_own_group", lambda: str(tmp_path))
  monkeypatch.setattr(memory_limit, "_write", lambda path, key, value: None)
  with memory_limit.memory_group(3) as path:
    assert sorted(os.listdir(tmp_path)) == sorted(
      [os.path.basename(path), f"baechi-{os.getppid()}-0", "other-1-0"]
    )
  assert not os.path.exists(path)


@pytest.mark.parametrize(
  ("path", "match"),
  [("/proc/trace.json", "cannot write /proc"), ("/tmp/" + "x" * 300, "long")],
)
def test_output_that_cannot_be_written_is_refused_before_the_work(path, match):
  with pytest.raises(ValueError, match=match):
    file_output(path, overwrite=False).check(apart_from=())


@pytest.mark.parametrize(
  ("addresses", "index", "match"),
  [
    (["a:1", "a"], 1, "'a' is not \"address:port\""),
    (["a:70000", "b:1"], 1, "'a:70000' .* from 1 to 65535"),
    (["a:1", "a:1"], 1, "a:1 is given twice"),
    (["a:1", "b:1"], 0, "index= .* got 0, which serves nothing"),
    (["a:1", "b:1"], 2, "1 to 1"),
  ],
)
def test_check_server_refuses_addresses_and_tasks(addresses, index, match):
  tasks = tasks_of([_WORKER.format(i, 0) for i in range(2)])
  with pytest.raises(ValueError, match=match):
    check_server(tasks, addresses, index)


def test_corrected_ops_have_their_types_measured_times():
  graph = chain([10.0, 20.0, 40.0], 0)
  cluster = two_devices(Link(0.0, np.inf))
  device = np.array([0, 1, 1])
  # MatMuls took 30 + 30 instead of 10 + 20; nothing is known of the third.
  corrected, factors = corrected_ops(
    graph, cluster, device, ["MatMul", "MatMul", "Relu"],
    {"op0": 30.0, "op1": 30.0},
  )  # fmt: skip
  assert factors == {"MatMul on CPU": 2.0}
  assert corrected.times_on(["CPU"])[:, 0].tolist() == [20.0, 40.0, 40.0]


def test_corrected_ops_do_not_believe_any_factor():
  graph = chain([10.0, 1.0], 0)
  cluster = two_devices(Link(0.0, np.inf))
  _, factors = corrected_ops(
    graph, cluster, np.zeros(2, int), ["A", "B"], {"op0": 0.1, "op1": 900.0}
  )
  assert factors == {"A on CPU": 0.25, "B on CPU": 4.0}


@pytest.mark.parametrize(
  "link", [Link(5.0, 1000.0, send_us=3.0), Link(0.0, np.inf)]
)
def test_corrected_links_explain_the_measured_step(link):
  graph, cluster = chain([10.0, 10.0], 4000), two_devices(link)
  device = np.array([0, 1])
  corrected, factor = corrected_links(graph, cluster, device, 150.0)
  step = simulate(graph, corrected, device, policy="executor")
  assert factor > 1
  assert step.makespan_us == pytest.approx(150.0, rel=0.02)


def test_corrected_links_stay_where_nothing_moves_or_nothing_is_missing():
  graph, cluster = chain([10.0, 10.0], 4000), two_devices(Link(5.0, 1000.0))
  for device, step_us in (([0, 0], 100.0), ([0, 1], 20.0)):
    corrected, factor = corrected_links(
      graph, cluster, np.array(device), step_us
    )
    assert factor == 1.0
    assert corrected is cluster
