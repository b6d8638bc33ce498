"""A process of a local cluster, as its supervisor starts it.

    python -m robust_tf.training.cluster_member FLAGS

It ends when its standard input does: however the supervisor ended, nothing is
left behind.
"""

import logging
import os
import signal
import sys

from robust_tf.training import child_processes
from robust_tf.training import main
from robust_tf.training.uninterrupted import interrupt


def run() -> None:
  """Runs the process and exits."""
  logging.getLogger("tensorflow").setLevel(logging.ERROR)
  child_processes.end_with_parent(main.INTERRUPTED)
  signal.signal(signal.SIGTERM, interrupt)
  code = main.main(sys.argv[1:], is_member=True)
  sys.stdout.flush()
  sys.stderr.flush()
  # TensorFlow would say farewell to servers that may be gone.
  os._exit(code)


if __name__ == "__main__":
  run()
