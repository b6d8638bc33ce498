"""Where tests start TensorFlow's servers, which ask nobody for a password.

Others are kept out where the system allows it; elsewhere tests run all the
same.
"""

import contextlib
from collections.abc import Iterator

from robust_tf.training.private_network import NotAllowedError
from robust_tf.training.private_network import private_network


@contextlib.contextmanager
def server_network() -> Iterator[tuple[str, ...]]:
  """Yields what a command begins with that starts servers."""
  with contextlib.ExitStack() as stack:
    try:
      prefix = stack.enter_context(private_network())
    except NotAllowedError:
      prefix = ()
    yield prefix


def local_cluster_flags() -> tuple[str, ...]:
  """Returns what `robust-train --local_cluster` needs here beside that."""
  try:
    with private_network():
      return ()
  except NotAllowedError:
    return ("--listen_on_network",)
