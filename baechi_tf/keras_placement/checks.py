"""Checks that a model, a cluster and a batch allow a placement."""

from typing import Any

import keras
import tensorflow as tf

from baechi_tf.cluster import Cluster

# What TensorFlow leaves out of a device's name where there is one process.
_HERE = tf.DeviceSpec(job="localhost", replica=0, task=0)


def check_model(model: Any) -> None:
  """Checks that a model can be placed as it is compiled.

  Raises:
    ValueError: the model is no compiled `keras.Model`, or it runs eagerly,
      under XLA or under a strategy, none of which a plan can be written into.
  """
  check_compiled(model)
  where = f"model {model.name!r}"
  if model.run_eagerly:
    raise ValueError(
      f"{where} runs eagerly, op by op, so there is no graph to place: compile"
      " it with run_eagerly=False"
    )
  if model.jit_compile:
    raise ValueError(
      f"{where} is compiled by XLA, which runs a step on one device: compile it"
      ' with jit_compile=False (Keras\' default, "auto", means True where there'
      " is a GPU)"
    )
  strategy = tf.distribute.get_strategy()
  if tf.distribute.has_strategy() or model.distribute_strategy is not strategy:
    strategy = model.distribute_strategy
    raise ValueError(
      f"{where} is under {type(strategy).__name__}, which places variables"
      " itself: build and place the model outside of the strategy's scope"
    )


def check_compiled(model: Any) -> None:
  """Checks that a model is one of Keras, and compiled.

  Raises:
    ValueError: it is not.
  """
  if not isinstance(model, keras.Model):
    raise ValueError(f"model is {type(model).__name__}, must be a keras.Model")
  if not model.compiled or model.optimizer is None:
    raise ValueError(
      f"model {model.name!r} is not compiled: call"
      " model.compile(optimizer=…, loss=…) first"
    )


def check_devices(cluster: Cluster) -> None:
  """Checks that TensorFlow has the cluster's devices in this process.

  Raises:
    ValueError: a device is not here; the message lists those that are.
  """
  here = [x.name for x in tf.config.list_logical_devices()]
  known = {_full_name(name) for name in here}
  missing = [x for x in cluster.device_names if _full_name(x) not in known]
  if missing:
    raise ValueError(
      f"cluster: TensorFlow has no device {', '.join(map(repr, missing))} here;"
      f" it has {', '.join(map(repr, here))}. Make logical devices with"
      " tf.config.set_logical_device_configuration before TensorFlow runs"
      " anything, or reach other processes with baechi_tf.connect"
    )


def _full_name(name: str) -> str:
  try:
    return _HERE.make_merged_spec(tf.DeviceSpec.from_string(name)).to_string()
  except ValueError:
    return name
