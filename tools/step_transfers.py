r"""Counts what crosses devices in the executed graphs of Keras training steps.

Exports `train_step` of a model of two branches with each of the optimizers
below, cuts it in two for two logical CPUs (`--placer=contiguous`), runs a step,
and prints, by the type of op that gave them, how many tensors were sent. Prints
the figures of docs/planning.md, "What crosses devices in a Keras step":

    python -m tools.step_transfers
"""

import os
import tempfile
from collections.abc import Callable
from collections.abc import Mapping

import keras
import tensorflow as tf
from absl import app
from keras import layers
from keras import optimizers

from baechi_tf.saved_model import load
from tools import acceptance
from tools import markdown
from tools import step_run

OPTIMIZERS: Mapping[str, Callable[[], keras.optimizers.Optimizer]] = {
  "Adam": optimizers.Adam,
  "SGD": optimizers.SGD,
  "SGD, momentum": lambda: optimizers.SGD(momentum=0.9),
  "Adam, `clipnorm`": lambda: optimizers.Adam(clipnorm=1.0),
  "Adam, `global_clipnorm`": lambda: optimizers.Adam(global_clipnorm=1.0),
  "Adam, EMA": lambda: optimizers.Adam(use_ema=True),
  "Adam, mixed precision": optimizers.Adam,
}
_MIXED = "Adam, mixed precision"
_DEVICE_TYPE = """
[device_type.CPU]
kind = "CPU"
cores = 1
frequency_mhz = 2000
flops_per_cycle = 8
bytes_per_us = 1e4
launch_us = 1
"""


class KerasStep(tf.Module):
  """One `train_step` of a compiled model."""

  def __init__(self, optimizer: str):
    """Builds the model; `optimizer` is a key of `OPTIMIZERS`."""
    super().__init__(name="keras_step")
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    policy = "mixed_float16" if optimizer == _MIXED else "float32"
    keras.mixed_precision.set_global_policy(policy)
    model = _two_branches()
    model.compile(OPTIMIZERS[optimizer](), "mse", jit_compile=False)
    x, y = tf.TensorSpec([2, 16, 16, 3]), tf.TensorSpec([2, 4])
    model.train_on_batch(tf.zeros(x.shape), tf.zeros(y.shape))

    @tf.function(input_signature=[x, y])
    def train(x, y):
      return {"loss": tf.convert_to_tensor(model.train_step((x, y))["loss"])}

    self.train = train
    self.captured = list(train.get_concrete_function().graph.variables)


def _two_branches() -> keras.Model:
  x = keras.Input((16, 16, 3))
  outputs = []
  for _ in range(2):
    y = layers.Conv2D(8, 3, padding="same")(x)
    y = layers.ReLU()(layers.BatchNormalization()(y))
    y = layers.Flatten()(layers.Dropout(0.5)(y))
    outputs.append(layers.Dense(64, "relu")(y))
  logits = layers.Dense(4, dtype="float32")(layers.concatenate(outputs))
  return keras.Model(x, logits)


def sent(optimizer: str, directory: str) -> dict[bool, Mapping[str, int]]:
  """Returns the tensors sent by op type, rewritten by us or not.

  Args:
    optimizer: a key of `OPTIMIZERS`.
    directory: an empty directory.
  """
  model, placed, cluster = (
    os.path.join(directory, x) for x in ("model", "placed", "cluster.toml")
  )
  step = KerasStep(optimizer)
  tf.saved_model.save(step, model, signatures={"train": step.train})
  acceptance.write_cluster(cluster, 2, 2**30)
  with open(cluster, "a", encoding="utf-8") as file:
    file.write(_DEVICE_TYPE)
  found = {}
  for rewrite in (False, True):
    acceptance.run_baechi(
      "place", model, placed, f"--cluster={cluster}", "--estimate",
      "--signature=train", "--placer=contiguous", "--no-coplacement",
      "--overwrite", *([] if rewrite else ["--no-rewrite"]),
    )  # fmt: skip
    run = step_run.run_steps(load(placed), "train", num_steps=1)
    found[rewrite] = run.executed.sent
  return found


def main(argv: list[str]) -> None:
  """Prints the table for all optimizers."""
  if len(argv) > 1:
    raise app.UsageError("no arguments are wanted")
  step_run.make_cpus(2)
  rows = []
  for optimizer in OPTIMIZERS:
    with tempfile.TemporaryDirectory() as directory:
      found = sent(optimizer, directory)
    for rewrite, counts in found.items():
      name = optimizer if not rewrite else f"{optimizer}, rewritten"
      kinds = sorted(counts.items(), key=lambda x: (-x[1], x[0]))
      cell = ", ".join(f"{count} {kind}" for kind, count in kinds)
      rows.append([name, cell, str(sum(counts.values()))])
  header = ["step", "tensors sent, by the op that gave them", "in all"]
  print(markdown.table(header, rows, num_left=2))


if __name__ == "__main__":
  app.run(main)
