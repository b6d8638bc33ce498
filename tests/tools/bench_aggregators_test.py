"""The benchmark of aggregation rules runs, on sizes that take no time."""

import subprocess
import sys

import numpy as np
import pytest

from tests.tensorflow_setup import tf  # noqa: F401  sets TensorFlow up
from tools import bench_aggregators


def test_every_rule_is_timed_beside_the_mean():
  seconds = bench_aggregators.time_rules(((8, 100),), repetitions=1)
  row = seconds["8 100"]
  assert {"tf.reduce_mean", "median", "krum", "bulyan"} <= set(row)
  assert all(0 <= taken < 60 for taken in row.values())


def test_updates_have_a_fifth_that_points_the_other_way():
  updates = bench_aggregators.updates_of(10, 2000)
  means = updates.mean(axis=1)
  assert updates.shape == (10, 2000) and updates.dtype == np.float32
  np.testing.assert_allclose(means[:8], 1, atol=0.2)
  np.testing.assert_allclose(means[8:], -10, atol=2)


def test_tables_show_each_rule_and_peer():
  seconds = {"10 100": {"tf.reduce_mean": 1e-6, "median": 2e-6}}
  peers = {"byzfl": {"median 10 100": 1e-4}}
  table = bench_aggregators.speed_table(seconds, 1e10, peers)
  cells = [list(column.cells) for column in table.columns]
  assert cells[0] == ["tf.reduce_mean", "median"]
  assert cells[4] == ["1.00 x", "2.00 x"]
  assert cells[5] == ["40%", "20%"]
  assert cells[6] == ["-", "50 x"]


def test_many_workers_are_compared_by_the_row():
  seconds = {"64 10": {"median": 64.0}, "128 10": {"median": 256.0}}
  table = bench_aggregators.many_table(seconds)
  assert [list(c.cells) for c in table.columns] == [
    ["median"],
    ["1.00 x"],
    ["2.00 x"],
  ]


def test_peer_that_is_not_installed_is_one_clear_error():
  with pytest.raises(ValueError, match="--byzfl_python=.*No module named"):
    bench_aggregators.time_peer("byzfl", sys.executable, [(8, 10)], 1)


def test_peer_interpreter_that_does_not_exist_is_one_clear_error():
  with pytest.raises(ValueError, match="--byzpy_python=/nowhere: No such file"):
    bench_aggregators.time_peer("byzpy", "/nowhere", [(8, 10)], 1)


def test_help_names_the_peers():
  done = subprocess.run(
    [sys.executable, "-m", "tools.bench_aggregators", "--help"],
    capture_output=True,
    text=True,
    check=False,
  )
  assert "--byzfl_python" in done.stdout + done.stderr
