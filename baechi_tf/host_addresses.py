"""Addresses of hosts, "address:port": checked, and asked for an answer."""

import socket

ANSWER_S = 5.0  # for a host to answer


def split_address(address: str) -> tuple[str, int]:
  """Returns the host and the port of "address:port".

  Raises:
    ValueError: the address does not parse, or its port is out of range.
  """
  host, _, port = address.rpartition(":")
  if not (host and port.isdecimal() and 0 < int(port) < 1 << 16):
    raise ValueError(
      f'--host {address!r} is not "address:port" with a port from 1 to 65535'
    )
  return host, int(port)


def check_answer(address: str) -> None:
  """Connects to an address, and leaves at once.

  Raises:
    OSError: nothing answers there within `ANSWER_S`.
    ValueError: as `split_address`.
  """
  socket.create_connection(split_address(address), ANSWER_S).close()
