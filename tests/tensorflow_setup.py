"""Imports TensorFlow for tests: four logical CPU devices, little logging.

Devices cannot be changed once TensorFlow has run anything, so every test that
needs TensorFlow imports it from here:

    from tests.tensorflow_setup import tf
"""

import gc
import os
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

# A million objects that stay: nothing to collect while they are made, nor to
# look through ever after.
gc.disable()
import tensorflow as tf  # noqa: E402  the variables above come first

# Checked with TensorFlow 2.21: where the ops of a function really ran.
from tensorflow.python.eager import context  # noqa: E402

gc.freeze()
gc.enable()

NUM_DEVICES = 4
DEVICES = tuple(
  f"/job:localhost/replica:0/task:0/device:CPU:{i}" for i in range(NUM_DEVICES)
)

tf.config.set_logical_device_configuration(
  tf.config.list_physical_devices("CPU")[0],
  [tf.config.LogicalDeviceConfiguration()] * NUM_DEVICES,
)


def _without_autotuning(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """Returns a data set of which no thread tunes the parallelism."""
  options = tf.data.Options()
  options.autotune.enabled = False
  return dataset.with_options(options)


# The destructor of an iterator waits for the thread that tunes it, which sleeps
# for up to a minute if it wakes before its cancellation is noted. TensorFlow
# 2.21 has no switch for all data sets of a process; every iterator is made of
# what this method returns.
tf.data.Dataset._apply_debug_options = _without_autotuning


def session(graph_def, num_devices: int = NUM_DEVICES):
  """Returns a session on the graph, with that many CPU devices."""
  graph = tf.Graph()
  with graph.as_default():
    tf.import_graph_def(graph_def, name="")
  config = tf.compat.v1.ConfigProto(device_count={"CPU": num_devices})
  return tf.compat.v1.Session(graph=graph, config=config)


def executed_nodes(function, **inputs):
  """Calls a loaded function; returns what it gave and where its ops ran.

  Returns:
    The function's outputs, and (op, device) by node name in the partitions.
  """
  context.enable_run_metadata()
  try:
    outputs = function(**{k: tf.constant(v) for k, v in inputs.items()})
    metadata = context.export_run_metadata()
  finally:
    context.disable_run_metadata()
  nodes = {
    node.name: (node.op, node.device)
    for graphs in metadata.function_graphs
    for partition in graphs.partition_graphs
    for node in partition.node
  }
  return outputs, nodes


def run_script(script: str, *args: str, timeout_s: float = 120, prefix=()):
  """Runs Python code in a process of its own; returns what came of it.

  Args:
    script: the code.
    *args: its arguments.
    timeout_s: how long it may take.
    prefix: what the command begins with, see `private_network`.
  """
  root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
  return subprocess.run(
    [*prefix, sys.executable, "-c", script, *args],
    cwd=root,
    env={**os.environ, "PYTHONPATH": root},
    capture_output=True,
    text=True,
    timeout=timeout_s,
    check=False,
  )
