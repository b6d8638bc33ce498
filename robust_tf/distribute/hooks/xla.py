"""Whether XLA compiles the function that is being traced."""

import tensorflow as tf

from robust_tf.distribute.hooks import private


def in_xla() -> bool:
  """Whether the function being traced is compiled as a whole by XLA."""
  in_context = private.find(
    __name__,
    "tensorflow.python.ops.control_flow_util.GraphOrParentsInXlaContext",
    ("graph",),
  )
  return in_context(tf.compat.v1.get_default_graph())
