"""What is known of a run so far: kept with its checkpoints."""

import json
import math
from collections.abc import Mapping

import tensorflow as tf

Evaluation = Mapping[str, float]


class Journal(tf.train.experimental.PythonState):
  """A run's identity and its evaluations, as part of a checkpoint.

  Attributes:
    flags: the text of each of the run's flags.
    data_digest: of the examples, see `Dataset.digest`.
    evaluations: what was found after `step` steps, with that name among
      others, in order.
  """

  _FIELDS = ("flags", "data_digest", "evaluations")

  def __init__(self, flags: Mapping[str, str], data_digest: str):
    self.flags = dict(flags)
    self.data_digest = data_digest
    self.evaluations: list[Evaluation] = []

  def serialize(self) -> str:
    """Returns all of it as text; TensorFlow calls it to save."""
    return json.dumps({name: getattr(self, name) for name in self._FIELDS})

  def deserialize(self, string_value: str) -> None:
    """Becomes what the text says; TensorFlow calls it to restore."""
    for name, value in json.loads(string_value).items():
      setattr(self, name, value)

  @property
  def step(self) -> int:
    """Steps done when it was last evaluated."""
    return self.evaluations[-1]["step"] if self.evaluations else 0


def finite_or_none(evaluation: Evaluation) -> dict[str, float | None]:
  """Returns the numbers that JSON can write, None for the others."""
  return {
    name: value if math.isfinite(value) else None
    for name, value in evaluation.items()
  }
