"""Hosts of a network of their own, with links as slow as they are wanted.

Each host is a network namespace of Linux with one interface, `eth0`. Its link
leads to a bridge, in a namespace of its own too, so that the machine's network
is left alone. Both ends of a link are shaped with the token bucket filter of
tc(8): what a host sends and what it receives each get the rate.

Namespaces need root's rights, and iproute2's ip(8) and tc(8).
"""

import contextlib
import dataclasses
import os
import re
import shutil
import subprocess
from collections.abc import Iterator

from robust_tf.training.private_network import NotAllowedError
from robust_tf.training.uninterrupted import uninterrupted
from tools.local_cluster import Host

INTERFACE = "eth0"

_PORT = 5000
_QUEUE_MS = 200  # TCP fills it; less makes it lose packets and slow down
_TIMER_HZ = 250  # the bucket holds what a link carries between two timer ticks
_SMALLEST_BURST_BYTES = 16384
_BRIDGE = "bridge0"
_MOST_HOSTS = 250  # addresses of 10.0.0.0/24


@dataclasses.dataclass(frozen=True)
class Link:
  """A host and its link to the bridge.

  Attributes:
    namespace: the host's name.
    bridge: the bridge's namespace.
    index: the host's place in the network, from 0.
  """

  namespace: str
  bridge: str
  index: int

  @property
  def host(self) -> Host:
    """How to start a program there, and where others find it."""
    return Host(
      f"{_address(self.index)}:{_PORT}",
      ("ip", "netns", "exec", self.namespace),
    )

  def set_rate(self, bits_per_s: float | None) -> None:
    """Limits what the host sends, and what it receives.

    Processes in the host may call it too.

    Args:
      bits_per_s: in each direction; None for no limit.

    Raises:
      NotAllowedError: if the system refuses.
      ValueError: if the rate is not positive.
    """
    if bits_per_s is None:
      discipline = ["noqueue"]
    else:
      discipline = _token_bucket(bits_per_s)
    for namespace, interface in (
      (self.namespace, INTERFACE),
      (self.bridge, _port_name(self.index)),
    ):
      _run(
        *("tc", "-n", namespace, "qdisc", "replace", "dev", interface, "root"),
        *discipline,
      )


@contextlib.contextmanager
def star(num_hosts: int) -> Iterator[list[Link]]:
  """Yields the links of hosts around a bridge; removes them all at the end.

  Whatever happens, they are removed. Nothing must run in them any more then.

  Raises:
    NotAllowedError: if the system refuses; says what, and its reason.
    ValueError: if there are fewer than 2 hosts, or more than 250.
  """
  if not 2 <= num_hosts <= _MOST_HOSTS:
    raise ValueError(
      f"num_hosts={num_hosts} must be at least 2 and at most {_MOST_HOSTS}"
    )
  prefix = f"slow-links-{os.getpid()}"
  bridge = f"{prefix}-bridge"
  links = [Link(f"{prefix}-{i}", bridge, i) for i in range(num_hosts)]
  try:
    _run("ip", "netns", "add", bridge)
    _run(*_inside(bridge), "add", "name", _BRIDGE, "type", "bridge")
    _run(*_inside(bridge), "set", _BRIDGE, "up")
    for link in links:
      _connect(link)
    yield links
  finally:
    _remove([*(link.namespace for link in links), bridge])


def _connect(link: Link) -> None:
  """Makes a host and its link to the bridge."""
  port = _port_name(link.index)
  address = f"{_address(link.index)}/24"
  _run("ip", "netns", "add", link.namespace)
  _run(
    *(*_inside(link.bridge), "add", "name", port, "type", "veth"),
    *("peer", "name", INTERFACE, "netns", link.namespace),
  )
  _run(*_inside(link.bridge), "set", port, "master", _BRIDGE, "up")
  _run("ip", "-n", link.namespace, "addr", "add", address, "dev", INTERFACE)
  _run(*_inside(link.namespace), "set", INTERFACE, "up")
  _run(*_inside(link.namespace), "set", "lo", "up")


def _inside(namespace: str) -> tuple[str, ...]:
  return ("ip", "-n", namespace, "link")


def _address(index: int) -> str:
  return f"10.0.0.{index + 1}"


def _port_name(index: int) -> str:
  return f"port{index}"


def _token_bucket(bits_per_s: float) -> list[str]:
  """Returns what tc(8) is to be told about a rate."""
  if not bits_per_s > 0:
    raise ValueError(f"bits_per_s={bits_per_s:g} must be positive")
  burst = max(int(bits_per_s / 8 / _TIMER_HZ), _SMALLEST_BURST_BYTES)
  return [
    *("tbf", "rate", f"{round(bits_per_s)}bit"),
    *("burst", f"{burst}b", "latency", f"{_QUEUE_MS}ms"),
  ]


def _remove(names: list[str]) -> None:
  """Removes the namespaces of these names, and their links with them."""
  with uninterrupted():
    left = set(existing())
    for name in names:
      if name in left:
        _run("ip", "netns", "del", name)


def existing() -> list[str]:
  """Returns the names of this machine's network namespaces."""
  if shutil.which("ip") is None:
    return []
  return re.findall(r"^(\S+)", _run("ip", "netns", "list"), re.MULTILINE)


def _run(*command: str) -> str:
  """Runs a command and returns what it wrote.

  Raises:
    NotAllowedError: if there is no such program, or it fails.
  """
  try:
    # In a session of its own, out of Ctrl-C's reach.
    result = subprocess.run(
      command,
      stdin=subprocess.DEVNULL,
      capture_output=True,
      text=True,
      check=False,
      start_new_session=True,
    )
  except FileNotFoundError:
    raise NotAllowedError(f"there is no program {command[0]!r}") from None
  if result.returncode:
    reason = result.stderr.strip() or f"exit code {result.returncode}"
    raise NotAllowedError(f"`{' '.join(command)}` fails: {reason}")
  return result.stdout
