"""Devices on workers of this process: what is done there, and what is said."""

import json
import textwrap

import pytest

from tests.robust_tf.server_network import server_network
from tests.tensorflow_setup import run_script


@pytest.fixture(scope="module")
def found():
  """Returns what a coordinator found, in a process of its own."""
  script = textwrap.dedent("""
    import json
    import os

    import numpy as np

    from robust_tf import federated
    from robust_tf.distribute import parameter_server
    from tests.robust_tf import federated_cluster as cluster
    from tests.robust_tf import federated_replay as replay

    coordinator = parameter_server.connect(cluster.servers_here(), timeout_s=30)
    tasks = replay.device_tasks()
    found = {}
    training = cluster.local_training(cluster.make_model(), gives_update=False)
    remote = federated.RemoteDevices(coordinator, training, cluster.data())
    remote.publish(replay.INITIAL, 7)
    found["nothing"] = remote.next_push(0.01) is None
    task = tasks.task(0, 4, 2)
    remote.start(task)
    push = remote.next_push(60)
    found["task"] = push.task is task
    found["version"] = push.version
    model = replay.local_model(replay.flat(replay.INITIAL), task)
    found["error"] = np.abs(replay.flat(push.values) - model).max()
    found["dtypes"] = [str(x.dtype) for x in push.values]
    found["none_left"] = remote.next_push(0.01) is None
    found["retried"] = len(remote.retried())

    pushed = set()
    for serial in range(1, 9):
      remote.start(tasks.task(serial, serial, 2))
    for _ in range(8):
      pushed.add(remote.next_push(60).task.serial)
    found["pushed"] = sorted(pushed)
    found["done"] = sum(remote.tasks_done.values())

    remote.publish([2 * x for x in replay.INITIAL], 8)
    remote.start(task)
    push = remote.next_push(60)
    found["next_version"] = push.version
    model = replay.local_model(2 * replay.flat(replay.INITIAL), task)
    found["next_error"] = np.abs(replay.flat(push.values) - model).max()
    print(json.dumps(found), flush=True)
    os._exit(0)
  """)
  with server_network() as prefix:
    ended = run_script(script, prefix=prefix)
  assert ended.returncode == 0, ended.stderr[-4000:]
  return json.loads(ended.stdout.splitlines()[-1])


def test_push_is_what_the_task_makes_of_the_published_model(found):
  assert found["task"]
  assert found["version"] == 7
  assert found["error"] < 1e-6  # some roundings of numbers below 4
  assert found["dtypes"] == ["float32", "float32"]


def test_next_model_is_read_once_it_is_published(found):
  assert found["next_version"] == 8
  assert found["next_error"] < 1e-6


def test_each_task_is_pushed_once(found):
  assert found["pushed"] == list(range(1, 9))
  assert found["done"] == 9
  assert found["retried"] == 0


def test_waiting_for_a_push_ends(found):
  assert found["nothing"]
  assert found["none_left"]
