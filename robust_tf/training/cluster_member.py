"""A process of a local cluster, as its supervisor starts it.

    python -m robust_tf.training.cluster_member FLAGS

It ends when its standard input does: however the supervisor ended, nothing is
left behind.
"""

import logging
import os
import signal
import sys
import threading

from robust_tf.training import main
from robust_tf.training.cluster_roles import interrupt


def run() -> None:
  """Runs the process and exits."""
  logging.getLogger("tensorflow").setLevel(logging.ERROR)
  threading.Thread(target=_end_with_supervisor, daemon=True).start()
  signal.signal(signal.SIGTERM, interrupt)
  code = main.main(sys.argv[1:], is_member=True)
  sys.stdout.flush()
  sys.stderr.flush()
  # TensorFlow would say farewell to servers that may be gone.
  os._exit(code)


def _end_with_supervisor() -> None:
  while os.read(0, 1):
    pass
  os._exit(main.INTERRUPTED)


if __name__ == "__main__":
  run()
