"""Measures a step on this machine, or says in one line why it does not run."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from baechi_tf.cli.progress import Progress

if TYPE_CHECKING:  # they import TensorFlow
  from baechi_tf.costs.profile import OpCost
  from baechi_tf.graph_item import GraphItem

_WHERE = re.compile(r"^(?:Graph execution error:|Node: .*)$", re.MULTILINE)


def measure_here(
  item: "GraphItem",
  values: Mapping[str, np.ndarray],
  device_type: str,
  progress: Progress,
  inputs: str | None = None,
  **counts: int,
) -> "dict[str, OpCost]":
  """Returns what each op costs on a device of this machine.

  Args:
    item: the model, read from a file.
    values: a value for every input.
    device_type: "CPU" or "GPU".
    progress: is told how many steps are done.
    inputs: the file that the values are from; None if they are made up.
    counts: `num_steps` and `warmup` of `measure`.

  Raises:
    ValueError: there is no such device, or the step fails.
  """
  import tensorflow as tf  # loaded already; not wanted by cost graphs

  # These import TensorFlow.
  from baechi_tf.costs.measured import measure
  from baechi_tf.costs.runnable import python_op

  python = python_op(item)
  if python is not None:
    raise ValueError(
      f"{item.source}: op {python!r} calls a Python function, which is not in"
      " the model: the step cannot run here; export the model without"
      " py_function and numpy_function"
    )
  stage = f"measuring ops on this {device_type}"
  try:
    return measure(
      item,
      values,
      device_type=device_type,
      progress=progress.count(stage),
      **counts,
    )
  except tf.errors.OpError as error:
    raise ValueError(_failure(item, inputs, error.message)) from error
  except UnicodeDecodeError as error:  # of a complaint that quotes an input
    text = error.object.decode(errors="backslashreplace")
    raise ValueError(_failure(item, inputs, text)) from error


def _failure(item: "GraphItem", inputs: str | None, message: str) -> str:
  """Returns what is wrong, without where, and what would help."""
  complaint = message.partition("\n\t [[")[0]
  complaint = _WHERE.split(complaint)[-1]
  complaint = " ".join(complaint.split()) or "no reason given"
  if complaint.startswith("No OpKernel"):
    advice = "profile the model where the op can run, or use --estimate"
  elif inputs is not None:
    return (
      f"{item.source}: the step fails with the inputs of {inputs}: {complaint}"
    )
  else:
    advice = (
      "if made-up inputs do not suit it, give other shapes, or real inputs with"
      " --inputs"
    )
  return f"{item.source}: the step fails here: {complaint}; {advice}"
