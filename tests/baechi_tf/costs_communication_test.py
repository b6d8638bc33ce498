import contextlib
import math
import os
import socket
import subprocess
import sys
import tomllib

import numpy as np
import pytest

from baechi_tf.cluster import cluster_from_tables
from baechi_tf.costs import communication
from baechi_tf.costs import processor_time
from baechi_tf.costs.communication import LinkFit

SERVER = """
import sys
from baechi_tf.costs.communication import start_server
server = start_server(sys.argv[2:], int(sys.argv[1]))
print("up", flush=True)
sys.stdin.read()
"""


def free_ports(count):
  with contextlib.ExitStack() as stack:
    sockets = [
      stack.enter_context(socket.create_server(("127.0.0.1", 0)))
      for _ in range(count)
    ]
    return [x.getsockname()[1] for x in sockets]


@pytest.fixture(scope="module")
def hosts():
  """Two real TensorFlow servers on loopback."""
  hosts = [f"127.0.0.1:{port}" for port in free_ports(2)]
  environment = {
    key: value
    for key, value in os.environ.items()
    if not key.lower().endswith("_proxy")
  } | {"GRPC_FAIL_FAST": "use_caller", "TF_CPP_MIN_LOG_LEVEL": "2"}
  servers = [
    subprocess.Popen(
      [sys.executable, "-c", SERVER, str(task), *hosts],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env=environment,
    )
    for task in range(2)
  ]
  try:
    for server in servers:
      assert server.stdout.readline() == "up\n"
    yield hosts
  finally:
    for server in servers:
      server.kill()
      server.communicate(timeout=30)


@pytest.mark.parametrize("latency_us", [0.0, 0.5, 30.0, 900.0])
@pytest.mark.parametrize("bytes_per_us", [1.0, 117.0, 12000.0])
def test_fit_exact_times_gives_them_back(latency_us, bytes_per_us):
  times = [latency_us + s / bytes_per_us for s in communication.SIZES]
  fit = communication.fit_link(communication.SIZES, times)
  assert fit.latency_us == pytest.approx(latency_us, abs=1e-6)
  assert fit.bytes_per_us == pytest.approx(bytes_per_us)
  assert fit.r_squared == pytest.approx(1)


def test_fit_noisy_times_solves_the_weighted_normal_equations():
  rng = np.random.default_rng(0)
  sizes = np.array(communication.SIZES, float)
  times = (20 + sizes / 1000) * rng.uniform(0.8, 1.25, len(sizes))
  fit = communication.fit_link(sizes, times)
  # Relative errors: every row of `[1, size] @ [latency, slope] = time`
  # divided by its time.
  rows = np.stack([1 / times, sizes / times], axis=1)
  (latency, slope), *_ = np.linalg.lstsq(rows, np.ones(len(times)))
  assert fit.latency_us == pytest.approx(latency)
  assert fit.bytes_per_us == pytest.approx(1 / slope)
  assert 0.9 < fit.r_squared < 1


def test_fit_negative_latency_becomes_a_line_through_the_origin():
  sizes, times = np.array([1e6, 2e6]), np.array([900.0, 2000.0])
  fit = communication.fit_link(sizes, times)
  # Minimises (1e6 s / 900 - 1)^2 + (2e6 s / 2000 - 1)^2 over the slope s.
  a, b = 1e6 / 900, 1000.0
  assert fit.latency_us == pytest.approx(0, abs=1e-9)
  assert 1 / fit.bytes_per_us == pytest.approx((a + b) / (a * a + b * b))


def test_fit_time_falls_with_size_bandwidth_is_infinite():
  times = np.array([6.0, 5.0, 4.0])
  fit = communication.fit_link([1, 1000, 1000000], times)
  # The best constant c minimises sum((c / t - 1)^2).
  assert fit.latency_us == pytest.approx(
    (1 / times).sum() / (1 / times**2).sum()
  )
  assert fit.bytes_per_us == math.inf
  assert fit.r_squared == pytest.approx(0)


def test_fit_constant_time_has_a_perfect_fit():
  fit = communication.fit_link([1, 1000, 1000000], [5.0, 5.0, 5.0])
  assert fit.latency_us == pytest.approx(5)
  assert fit.r_squared == 1


def test_fit_too_few_times_is_refused():
  with pytest.raises(ValueError, match="two different sizes, got 1"):
    communication.fit_link([1, 1000], [0.0, 3.0])


def test_toml_is_a_block_of_a_cluster_file():
  a, b = "/job:worker/task:0/device:GPU:0", "/job:worker/task:1/device:GPU:0"
  text = (
    f'[[device]]\nname = "{a}"\nmemory = 1\n'
    f'[[device]]\nname = "{b}"\nmemory = 1\n'
    "[link]\nlatency_us = 1\nbytes_per_us = 1\n"
    + communication.to_toml(a, b, LinkFit(12.5, 1170.0, 0.99))
  )
  cluster = cluster_from_tables(tomllib.loads(text))
  assert cluster.links[0, 1].latency_us == 12.5
  assert cluster.links[0, 1].bytes_per_us == 1170.0
  assert "R² = 0.990" in text


def test_toml_devices_of_one_process_says_memory_is_shared():
  fit = LinkFit(5.0, math.inf, 0.2)
  text = communication.to_toml("/device:CPU:0", "/device:CPU:1", fit)
  assert "share memory" in text
  table = tomllib.loads(text)["link"]["between"][0]
  assert table["bytes_per_us"] == math.inf


def test_measure_two_hosts_moves_every_byte(hosts):
  devices = [f"/job:worker/task:{task}/device:CPU:0" for task in range(2)]
  sizes = (1, 4096, 16 << 20)
  seen = []
  measured = communication.measure_link(
    *devices,
    target=f"grpc://{hosts[0]}",
    sizes=sizes,
    repeats=3,
    progress=lambda done, total: seen.append((done, total)),
  )
  assert measured.sizes == sizes
  assert len(measured.step_us) == 3
  assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
  # No memory bus moves 16 MiB in 50 us (335 GB/s), so it was not skipped.
  assert measured.times_us[2] > 50
  assert measured.times_us[2] > measured.times_us[0] > 0
  fit = communication.fit_link(sizes, measured.times_us)
  assert math.isfinite(fit.bytes_per_us)


def test_measure_unknown_device_lists_the_devices(hosts):
  with pytest.raises(
    ValueError, match=r"task:7.*is not there; there are .*CPU"
  ):
    communication.measure_link(
      "/job:worker/task:0/device:CPU:0",
      "/job:worker/task:7/device:CPU:0",
      target=f"grpc://{hosts[0]}",
      sizes=(1,),
    )


def test_check_hosts_servers_that_run_pass(hosts):
  communication.check_hosts(hosts)


def test_check_hosts_nothing_listens_names_the_host():
  (port,) = free_ports(1)
  with pytest.raises(ValueError, match=f"answers at 127.0.0.1:{port}.*task 0"):
    communication.check_hosts([f"127.0.0.1:{port}"])


def test_check_hosts_without_port_is_refused():
  with pytest.raises(ValueError, match="'somewhere' is not"):
    communication.check_hosts(["somewhere"])


def test_start_server_unknown_task_is_refused():
  with pytest.raises(ValueError, match="task 2 is not one of 2 hosts"):
    communication.start_server(["a:1", "b:2"], 2)


def test_measure_devices_of_this_process():
  measured = communication.measure_link(
    "/device:CPU:0", "/device:CPU:1", sizes=(1, 1024), repeats=2
  )
  assert min(measured.times_us) >= 0


def test_processor_time_between_processes_grows_with_the_size(hosts):
  devices = [f"/job:worker/task:{task}/device:CPU:0" for task in range(2)]
  times = processor_time.measure_processor_time(
    *devices, target=f"grpc://{hosts[0]}", sizes=(1, 16 << 20), repeats=1
  )
  for spent_us in (times.send_us, times.receive_us):
    # Each end copies 16 MiB at least once, which no processor does in 50 us.
    assert spent_us[1] > 50
    assert spent_us[1] > spent_us[0] >= 0
  assert times.dispatch_us > 0


def test_processor_time_within_a_process_is_refused():
  with pytest.raises(ValueError, match="belong to one process"):
    processor_time.measure_processor_time(
      "/device:CPU:0", "/device:CPU:1", target=""
    )


@pytest.mark.parametrize(
  ("device", "same"),
  [
    ("/job:a/replica:0/task:0/device:CPU:1", True),
    ("/job:a/task:1/device:CPU:0", False),
    ("/job:b/task:0/device:CPU:0", False),
  ],
)
def test_share_process_compares_job_and_task(device, same):
  assert (
    processor_time.share_process("/job:a/task:0/device:CPU:0", device) == same
  )


def test_reading_is_cpu_time_divided_by_the_allowed_cores():
  stat = b"12 (a) b (c) S 1 1 1 0 -1 4 9 7 0 0 467 33 8 8 20 0 8"
  status = b"Name:\tx\nCpus_allowed:\t1,00000003\nCpus_allowed_list:\t0-1,32\n"
  # 467 + 33 ticks of 10 ms over the three cores of the mask.
  assert processor_time.parse_reading(stat, status) == pytest.approx(5e6 / 3)


def test_processor_fit_exact_times_gives_them_back_as_toml():
  sizes = communication.SIZES
  times = processor_time.ProcessorTimes(
    sizes=sizes,
    send_us=tuple(20 + 3e-4 * s for s in sizes),
    receive_us=tuple(30 + 5e-4 * s for s in sizes),
    in_flight_us=(0.0,) * len(sizes),
    dispatch_us=150.0,
  )
  fit = processor_time.fit_processor_time(times)
  assert tomllib.loads(processor_time.to_toml(fit)) == pytest.approx(
    {
      "send_us": 20,
      "send_us_per_byte": 3e-4,
      "receive_us": 30,
      "receive_us_per_byte": 5e-4,
      "dispatch_us": 150,
    }
  )
