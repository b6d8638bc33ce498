"""Addresses of hosts, "address:port": checked, and asked for an answer."""

import socket

ANSWER_S = 5.0  # for a host to answer

# HTTP/2, which gRPC speaks (RFC 9113): a client opens with a preface and a
# SETTINGS frame, here without settings; a server's first frame is SETTINGS.
_SETTINGS = 4
_OPENING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(
  [0, 0, 0, _SETTINGS, 0, 0, 0, 0, 0]
)
_TYPE_AT = 3  # in a frame, after its length


def split_address(address: str) -> tuple[str, int]:
  """Returns the host and the port of "address:port".

  Raises:
    ValueError: the address does not parse, or its port is out of range.
  """
  host, _, port = address.rpartition(":")
  if not (host and port.isdecimal() and 0 < int(port) < 1 << 16):
    raise ValueError(
      f'{address!r} is not "address:port" with a port from 1 to 65535'
    )
  return host, int(port)


def check_answer(address: str) -> None:
  """Asks for a gRPC server, such as TensorFlow's, at an address.

  Raises:
    OSError: nothing answers there within `ANSWER_S`, or something else does.
    ValueError: the address does not parse.
  """
  with socket.create_connection(split_address(address), ANSWER_S) as connection:
    connection.sendall(_OPENING)
    with connection.makefile("rb") as answer:
      frame = answer.read(_TYPE_AT + 1)
  if frame[_TYPE_AT:] != bytes([_SETTINGS]):
    raise ConnectionError("what listens there is no TensorFlow server")
