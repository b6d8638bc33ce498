"""A network that only the processes of one local cluster are in.

TensorFlow's servers bind to every interface, whatever address they announce,
and do what any peer asks of them, files included; there is no option for
either (checked with TensorFlow 2.21). So a local cluster runs in a network
namespace of Linux that has loopback alone: other machines, and other users of
this one, find nothing to connect to. It takes util-linux's unshare(1) and
nsenter(1), and root's rights or those to make a user namespace.
"""

import contextlib
import fcntl
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from collections.abc import Sequence

# Of Linux: netdevice(7), and the `ifreq` that its calls take.
_GET_FLAGS, _SET_FLAGS = 0x8913, 0x8914
_UP, _LOOPBACK = 0x1, 0x8
_IFREQ = struct.Struct("16sH22x")

# How root makes one, and how anybody does.
_AS_ROOT = ("unshare", "--net")
_AS_USER = ("unshare", "--user", "--map-current-user", "--keep-caps", "--net")


class NotAllowedError(Exception):
  """The system does not let this process make a network."""


def is_private() -> bool:
  """Returns whether loopback is the only network that this process is in."""
  if sys.platform != "linux":
    return False
  with _probe() as probe:
    for _, name in socket.if_nameindex():
      request = _IFREQ.pack(name.encode(), 0)
      answer = fcntl.ioctl(probe, _GET_FLAGS, request)
      flags = _IFREQ.unpack(answer)[1]
      if flags & _UP and not flags & _LOOPBACK:
        return False
  return True


@contextlib.contextmanager
def private_network() -> Iterator[tuple[str, ...]]:
  """Yields what a command begins with that runs in a new private network.

  It is empty if this process is in one already. Commands can be started until
  the end of the context; those that run then keep their network.

  Raises:
    NotAllowedError: the system refuses; says what, and its reason.
  """
  if is_private():
    yield ()
    return
  as_user = os.geteuid() != 0
  with contextlib.ExitStack() as stack:
    kinds = ("user", "net") if as_user else ("net",)
    with _holder(_AS_USER if as_user else _AS_ROOT) as pid:
      files = {
        kind: stack.enter_context(open(f"/proc/{pid}/ns/{kind}", "rb"))
        for kind in kinds
      }
    for file in files.values():
      os.set_inheritable(file.fileno(), True)  # for `enter`
    yield (
      "nsenter",
      *(
        f"--{kind}=/proc/{os.getpid()}/fd/{file.fileno()}"
        for kind, file in files.items()
      ),
      *(["--preserve-credentials"] if as_user else []),
    )


def enter() -> None:
  """Starts this program anew in a private network, unless it is in one.

  Raises:
    NotAllowedError: the system refuses; says what, and its reason.
  """
  if not is_private():
    with private_network() as prefix:
      os.execvp(prefix[0], [*prefix, sys.executable, *sys.orig_argv[1:]])


@contextlib.contextmanager
def _holder(command: Sequence[str]) -> Iterator[int]:
  """Yields the id of a process in a new network with loopback; ends it."""
  try:
    # In a session of its own, out of Ctrl-C's reach.
    process = subprocess.Popen(
      [*command, sys.executable, "-I", __file__],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,
    )
  except FileNotFoundError:
    raise NotAllowedError(f"there is no program {command[0]!r}") from None
  with process:
    if not process.stdout.readline():
      lines = process.stderr.read().splitlines() or ["no reason given"]
      raise NotAllowedError(f"`{' '.join(command)}` fails: {lines[-1]}")
    yield process.pid
    process.stdin.close()  # ends it


def _hold() -> None:
  """Starts loopback in the network of this process, and waits for its end."""
  with _probe() as probe:
    fcntl.ioctl(probe, _SET_FLAGS, _IFREQ.pack(b"lo", _UP))
  print("up", flush=True)
  sys.stdin.read()


def _probe() -> socket.socket:
  """Returns a socket through which the kernel is asked about interfaces."""
  return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


if __name__ == "__main__":
  _hold()
