"""What is kept of a server and its devices with the checkpoints of a run.

The weights are not here: they are saved as the model's.
"""

import io
import json
from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

Models = Sequence[Sequence[np.ndarray]]


class ServerState(tf.train.experimental.PythonState):
  """Part of a checkpoint: it is filled before it is saved, and by restoring.

  Attributes:
    values: what JSON can say.
    models: a list of models, each a list of arrays.
  """

  def __init__(self):
    self.values: Mapping[str, object] = {}
    self.models: Models = ()

  def serialize(self) -> bytes:
    """Returns all of it as bytes; TensorFlow calls it to save."""
    arrays = {
      f"{i}/{k}": array
      for i, model in enumerate(self.models)
      for k, array in enumerate(model)
    }
    values = {"values": self.values, "sizes": [len(x) for x in self.models]}
    buffer = io.BytesIO()
    np.savez(buffer, json=np.array(json.dumps(values)), **arrays)
    return buffer.getvalue()

  def deserialize(self, string_value: bytes) -> None:
    """Becomes what the bytes say; TensorFlow calls it to restore."""
    with np.load(io.BytesIO(string_value), allow_pickle=False) as arrays:
      values = json.loads(str(arrays["json"]))
      self.values = values["values"]
      self.models = [
        [arrays[f"{i}/{k}"] for k in range(size)]
        for i, size in enumerate(values["sizes"])
      ]
