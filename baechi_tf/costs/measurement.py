"""Measures a step on this machine, or says in one line why it does not run."""

import os
import re
from collections.abc import Callable
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from baechi_tf.costs.measured import measure
from baechi_tf.costs.profile import OpCost
from baechi_tf.costs.runnable import python_op
from baechi_tf.graph_item import GraphItem

_WHERE = re.compile(r"^(?:Graph execution error:|Node: .*)$", re.MULTILINE)


def measure_here(
  item: GraphItem,
  values: Mapping[str, np.ndarray],
  device_type: str,
  *,
  inputs: str | os.PathLike | Mapping[str, np.ndarray] | None = None,
  num_steps: int = 10,
  warmup: int = 3,
  progress: Callable[[str], None] = lambda stage: None,
) -> dict[str, OpCost]:
  """Returns what each op costs on a device of this machine.

  Args:
    item: the model, read from a file.
    values: a value for every input.
    device_type: "CPU" or "GPU".
    inputs: where the values are from, see `CostSource`; None if they are made
      up.
    num_steps: steps to measure.
    warmup: steps to run before and drop.
    progress: called with a line that says how many steps are done.

  Raises:
    ValueError: a count is too small, there is no such device, or the step
      fails.
  """
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
      num_steps=num_steps,
      warmup=warmup,
      progress=lambda done, total: progress(f"{stage}, {done} of {total}"),
    )
  except tf.errors.OpError as error:
    raise ValueError(_failure(item, inputs, error.message)) from error
  except UnicodeDecodeError as error:  # of a complaint that quotes an input
    text = error.object.decode(errors="backslashreplace")
    raise ValueError(_failure(item, inputs, text)) from error


def _failure(item: GraphItem, inputs, message: str) -> str:
  """Returns what is wrong, without where, and what would help."""
  complaint = message.partition("\n\t [[")[0]
  complaint = _WHERE.split(complaint)[-1]
  complaint = " ".join(complaint.split()) or "no reason given"
  if complaint.startswith("No OpKernel"):
    advice = "profile the model where the op can run, or use estimate=True"
  elif inputs is not None:
    given = "inputs=" if isinstance(inputs, Mapping) else os.fspath(inputs)
    return (
      f"{item.source}: the step fails with the inputs of {given}: {complaint}"
    )
  else:
    advice = (
      "if made-up inputs do not suit it, give other shapes, or real inputs with"
      " inputs="
    )
  return f"{item.source}: the step fails here: {complaint}; {advice}"
