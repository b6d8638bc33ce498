"""A network of loopback alone, for the processes of one run.

TensorFlow's servers listen on every interface and do what any peer asks. The
first process of a run makes a network namespace of Linux before it has threads,
and the others join it: nobody else finds anything to connect to. It takes
root's rights, or the right to make a user namespace.
"""

import ctypes
import fcntl
import os
import socket
import struct

# Of Linux: namespaces(7), and netdevice(7) with the `ifreq` that it takes.
_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000
_SET_FLAGS, _UP = 0x8914, 0x1
_IFREQ = struct.Struct("16sH22x")


def create() -> None:
  """Moves this process to a new network, in which loopback is up.

  Raises:
    OSError: the system refuses, or is not Linux.
  """
  ids = os.geteuid(), os.getegid()
  if ids[0] == 0:
    _call("unshare", _NEW_NETWORK)
  else:
    _call("unshare", _NEW_USER | _NEW_NETWORK)
    _keep_ids(*ids)
  with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    fcntl.ioctl(probe, _SET_FLAGS, _IFREQ.pack(b"lo", _UP))


def join(pid: int) -> None:
  """Moves this process to the network that another one has made.

  Raises:
    OSError: the system refuses, or the other process is gone.
  """
  kinds = [] if os.geteuid() == 0 else [("user", _NEW_USER)]
  for kind, flag in [*kinds, ("net", _NEW_NETWORK)]:
    with open(f"/proc/{pid}/ns/{kind}", "rb") as namespace:
      _call("setns", namespace.fileno(), flag)


def _keep_ids(user: int, group: int) -> None:
  """Lets this process' user and group be themselves in its new namespace."""
  for file, text in (
    ("setgroups", "deny"),
    ("uid_map", f"{user} {user} 1"),
    ("gid_map", f"{group} {group} 1"),
  ):
    with open(f"/proc/self/{file}", "w", encoding="ascii") as stream:
      stream.write(text)


def _call(name: str, *arguments: int) -> None:
  """Calls a function of the C library that Python 3.11 does not have."""
  function = getattr(ctypes.CDLL(None, use_errno=True), name, None)
  if function is None:
    raise OSError(f"this system has no {name}(2)")
  if function(*arguments):
    number = ctypes.get_errno()
    raise OSError(number, f"{name}(2) fails: {os.strerror(number)}")
