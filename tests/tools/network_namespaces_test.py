"""Networks of namespaces: what is joined, how fast, and that nothing is left.

Skipped, with the system's reason, where namespaces are not allowed.
"""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from tools import local_cluster
from tools import network_namespaces
from tools.network_namespaces import NotAllowedError

ROOT = pathlib.Path(__file__).parents[2]

# Makes a network, says so, and waits.
HOLD = """
import signal, time
from tools import network_namespaces

def interrupt(number, frame):
  raise KeyboardInterrupt

signal.signal(signal.SIGTERM, interrupt)
with network_namespaces.star(2) as links:
  print(*(link.namespace for link in links), flush=True)
  time.sleep(600)
"""


@contextlib.contextmanager
def network(num_hosts=2):
  """Yields links; skips the test if there can be none."""
  with contextlib.ExitStack() as stack:
    try:
      links = stack.enter_context(network_namespaces.star(num_hosts))
    except NotAllowedError as error:
      pytest.skip(f"network namespaces are not allowed here: {error}")
    yield links


def inside(link, *command):
  """Returns what a command writes that runs in a host."""
  result = subprocess.run(
    [*link.host.prefix, *command], capture_output=True, text=True, check=True
  )
  return result.stdout


def ours():
  """Returns the namespaces that this process made."""
  return [x for x in network_namespaces.existing() if str(os.getpid()) in x]


def test_hosts_have_addresses_of_their_own_and_one_interface():
  with network(3) as links:
    addresses = [link.host.address for link in links]
    assert len(set(addresses)) == 3
    for link in links:
      interfaces = inside(link, "ls", "/sys/class/net").split()
      assert {"lo", network_namespaces.INTERFACE} <= set(interfaces)
      ip = link.host.address.partition(":")[0]
      assert f"inet {ip}/24" in inside(link, "ip", "addr", "show", "eth0")


def test_both_ends_of_a_link_get_the_rate_and_lose_it():
  with network() as links:
    link = links[0]
    bridge = ("ip", "netns", "exec", link.bridge)

    def disciplines():
      return [
        inside(link, "tc", "qdisc", "show", "dev", "eth0"),
        subprocess.run(
          [*bridge, "tc", "qdisc", "show", "dev", "port0"],
          capture_output=True,
          text=True,
          check=True,
        ).stdout,
      ]

    assert not any("tbf" in x for x in disciplines())
    link.set_rate(20e6)
    assert all("tbf" in x and "rate 20Mbit" in x for x in disciplines())
    link.set_rate(1e9)
    assert all("rate 1Gbit" in x for x in disciplines())
    link.set_rate(None)
    assert not any("tbf" in x for x in disciplines())


def test_probe_measures_no_more_than_the_rate(tmp_path):
  rate, count = 40e6, 2_000_000
  with network() as links:
    for link in links:
      link.set_rate(rate)
    outcome = local_cluster.run(
      [sys.executable, "-m", "tools.link_probe", str(count)],
      len(links),
      log_directory=str(tmp_path),
      hosts=[link.host for link in links],
      environment={**os.environ, "PYTHONPATH": str(ROOT)},
      timeout_s=60,
    )
  assert outcome.exit_code == 0, outcome.tail(outcome.failed or 0)
  for index in range(2):
    # What the bucket, the sockets and the queue hold is not limited; it is
    # less than half of all. A busy machine may be slower at will.
    assert float(outcome.output(index)) > 0.5 * count * 8 / rate


@pytest.mark.parametrize("rate", [0.0, -20.0, float("nan")])
def test_rate_must_be_positive(rate):
  link = network_namespaces.Link("none", "none", 0)
  with pytest.raises(ValueError, match=f"bits_per_s={rate:g} must be positive"):
    link.set_rate(rate)


@pytest.mark.parametrize("num_hosts", [1, 251])
def test_number_of_hosts_is_checked(num_hosts):
  with (
    pytest.raises(ValueError, match=f"num_hosts={num_hosts} must be at least"),
    network_namespaces.star(num_hosts),
  ):
    pass


def test_nothing_is_left():
  with network():
    assert len(ours()) == 3
  assert not ours()


def test_nothing_is_left_after_a_failure():
  with pytest.raises(KeyError), network():
    raise KeyError
  assert not ours()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_after_an_interruption(number):
  with network():
    pass  # or skip
  process = subprocess.Popen(
    [sys.executable, "-c", HOLD],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
  )
  with process:
    made = process.stdout.readline().split()
    assert set(made) <= set(network_namespaces.existing())
    process.send_signal(number)
    process.wait(timeout=60)
  left = network_namespaces.existing()
  assert not [x for x in left if str(process.pid) in x]


def test_refusal_says_what_and_why_and_leaves_nothing(tmp_path, monkeypatch):
  # A program in ip's place that lists what there is and may do nothing.
  fake = tmp_path / "ip"
  fake.write_text(
    '#!/bin/sh\n[ "$2" = list ] && exit 0\n'
    'echo "mount failed: Operation not permitted" >&2\nexit 1\n'
  )
  fake.chmod(0o755)
  monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
  with (
    pytest.raises(
      NotAllowedError, match="netns add .* Operation not permitted"
    ),
    network_namespaces.star(2),
  ):
    pass


def test_missing_program_is_a_refusal(tmp_path, monkeypatch):
  monkeypatch.setenv("PATH", str(tmp_path))
  with (
    pytest.raises(NotAllowedError, match="there is no program 'ip'"),
    network_namespaces.star(2),
  ):
    pass
