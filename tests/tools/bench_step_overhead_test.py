"""The benchmark runs every contender and compares with the faster stock op."""

import numpy as np
import pytest

from tests.tensorflow_setup import DEVICES
from tools import bench_step_overhead as bench


def test_contenders_are_stock_first_then_each_rule_both_ways():
  compared = bench.contenders(["median", "krum"])
  assert [(x.way, x.rule) for x in compared] == [
    ("one device", "sum"),
    ("collective", "sum"),
    ("RobustOptimizer", "median"),
    ("RobustCrossDeviceOps", "median"),
    ("RobustOptimizer", "krum"),
    ("RobustCrossDeviceOps", "krum"),
  ]


def test_ratios_are_to_the_faster_stock_op_of_the_same_turn():
  wall = np.array([[3.0, 2.0, 4.0], [9.0, 4.0, 6.0], [6.0, 5.0, 5.0]])
  cpu = np.array([[1.0, 1.0, 3.0], [1.0, 2.0, 1.0], [1.0, 1.0, 2.0]])
  rows = bench.timings(bench.contenders(["mean"])[:3], wall, cpu)
  assert rows[1] == bench.Timing("collective", "sum", 2000.0, 1.0, 1.0, 1.0)
  assert rows[2].step_ms == 4000.0
  assert rows[2].ratio == 2.0
  assert rows[2].median_ratio == 1.5  # of 2, 1.5 and 1
  assert rows[2].cpu_ratio == 2.0  # of 3, 0.5 and 2


@pytest.mark.parametrize(
  "contender", bench.contenders(["median"], ["nothing_sent", "cser"])
)
def test_step_of_each_contender_runs(contender):
  step = bench.make_step(contender, DEVICES, batch_size=2, width=8)
  wall, cpu = bench.time_steps([step], 2)
  assert wall.shape == cpu.shape == (2, 1)
  assert np.all(wall > 0)
