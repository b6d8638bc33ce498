"""A placed model, run beside the model and judged by its plan."""

import dataclasses
import json
import os
from collections.abc import Mapping

import tensorflow as tf

from baechi_tf.graph_files import choose_meta_graph
from baechi_tf.graph_files import read_saved_model
from baechi_tf.graph_item import GraphItem
from baechi_tf.graph_item import read_item
from baechi_tf.saved_model import load
from tools import step_run
from tools.op_fates import Account
from tools.op_fates import account
from tools.step_run import compare
from tools.step_run import Difference
from tools.step_run import Run


@dataclasses.dataclass(frozen=True, eq=False)
class Check:
  """A placed model beside the model, rewritten by TensorFlow or as it is."""

  model: Run
  placed: Run
  difference: Difference
  account: Account

  @property
  def passes(self) -> bool:
    """Whether the placed model does what it should."""
    return (
      self.difference.is_same
      and self.placed.executed.num_devices > 1
      and not self.account.unexplained
    )


class PlacedModel:
  """A placed SavedModel and its plan, ready to be run and judged."""

  def __init__(
    self, path: str, signature: str, placement: str | os.PathLike | None = None
  ):
    """Reads the placed model.

    Args:
      path: the placed SavedModel.
      signature: the step that was planned.
      placement: the plan's JSON; else the devices in the model are the plan.

    Raises:
      ValueError: a file is not what it should be.
      OSError: a file cannot be read.
    """
    self.path = path
    self.signature = signature
    self.item = read_item(path, signature=signature, rewrite=False)
    self.graph_def = choose_meta_graph(read_saved_model(path), None).graph_def
    if placement is None:
      self.device_of = _written_devices(self.item)
    else:
      with open(placement, encoding="utf-8") as file:
        self.device_of = json.load(file)["placement"]

  def check(self, model: Run, *, rewritten: bool) -> Check:
    """Runs as many steps as `model` has, and compares.

    Args:
      model: the model's own run, likewise.
      rewritten: whether TensorFlow may rewrite the graph.
    """
    step_run.set_rewriting(rewritten)
    steps = len(model.outputs)
    placed = step_run.run_steps(load(self.path), self.signature, steps)
    return Check(
      model,
      placed,
      compare(model, placed, exactly=not rewritten),
      account(
        self.item,
        self.graph_def,
        self.device_of,
        placed.executed,
        rewritten=rewritten,
      ),
    )


def run_model(
  path: str, signature: str, num_steps: int, *, rewritten: bool
) -> Run:
  """Returns what a model that is not placed does."""
  step_run.set_rewriting(rewritten)
  return step_run.run_steps(tf.saved_model.load(path), signature, num_steps)


def _written_devices(item: GraphItem) -> Mapping[str, str]:
  device_of = {node.name: node.device for node in item.graph_def.node}
  return {name: device_of[name] for name in item.op_names}
