"""The placement benchmark runs from export to plan."""

import json

import pytest

from tests.tensorflow_setup import run_script

RUN = """
import runpy, sys
sys.argv[0] = "bench_placement"
runpy.run_module('tools.bench_placement', run_name='__main__')
"""
CLUSTER = """
[[device]]
name = "/job:localhost/replica:0/task:0/device:CPU:0"
memory = "1 GiB"

[[device]]
name = "/job:localhost/replica:0/task:0/device:CPU:1"
memory = "1 GiB"

[link]
latency_us = 5
bytes_per_us = 1000

[device_type.CPU]
kind = "CPU"
cores = 2
frequency_mhz = 2000
bytes_per_us = 10000
"""

pytestmark = pytest.mark.slow


def test_benchmark_prints_the_seconds_of_every_stage(tmp_path):
  (tmp_path / "cluster.toml").write_text(CLUSTER)
  result = run_script(
    RUN,
    "--model=transformer",
    f"--cluster={tmp_path / 'cluster.toml'}",
    f"--directory={tmp_path / 'models'}",
    "--json",
    timeout_s=600,
  )
  assert result.returncode == 0, result.stderr
  (timings,) = json.loads(result.stdout)
  assert timings["num_ops"] > 7000  # about 7,800 nodes, a few of them unused
  assert timings["num_coarse_ops"] < timings["num_ops"]
  stages = {
    "reading",
    "importing the graph",
    "coarsening",
    "planning",
    "simulating",
  }
  assert stages < timings["seconds"].keys()
