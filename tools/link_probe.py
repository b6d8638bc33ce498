"""One end of a probe that says how fast the links between workers really are.

    python -m tools.link_probe BYTES

Every worker of TF_CONFIG sends so many bytes over a plain TCP connection to
the next, all at once, as in a ring all-reduce; each prints, in seconds, how
long it took to receive its own from the first byte to the last.
"""

import json
import os
import socket
import sys
import threading
import time

_CHUNK_BYTES = 1 << 16
_START_TIMEOUT_S = 20.0
_RETRY_S = 0.05


def _send(address: str, count: int) -> None:
  """Sends zeros to an address, where somebody will listen soon."""
  host, _, port = address.rpartition(":")
  deadline = time.monotonic() + _START_TIMEOUT_S
  while True:
    try:
      connection = socket.create_connection((host, int(port)))
      break
    except OSError:
      if time.monotonic() > deadline:
        raise
      time.sleep(_RETRY_S)
  with connection:
    connection.sendall(bytes(count))


def _receive(server: socket.socket, count: int) -> float:
  """Returns the seconds from the first byte to the last."""
  connection, _ = server.accept()
  with connection:
    received = len(connection.recv(1))
    begin = time.perf_counter()
    while received < count:
      chunk = connection.recv(_CHUNK_BYTES)
      if not chunk:
        raise ConnectionError(f"{received} of {count} bytes came")
      received += len(chunk)
    return time.perf_counter() - begin


def main(count: int) -> None:
  """Sends to the next worker and receives from the one before."""
  config = json.loads(os.environ["TF_CONFIG"])
  workers, index = config["cluster"]["worker"], config["task"]["index"]
  host, _, port = workers[index].rpartition(":")
  with socket.create_server((host, int(port))) as server:
    following = workers[(index + 1) % len(workers)]
    sender = threading.Thread(target=_send, args=(following, count))
    sender.start()
    print(_receive(server, count), flush=True)
    sender.join()


if __name__ == "__main__":
  main(int(sys.argv[1]))
