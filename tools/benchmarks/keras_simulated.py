r"""Simulates Keras models that are cut into micro-batches on a cluster.

Traces the training step of a benchmark model on a batch of 1, 2, 4 or 8 times
its batch size, cut into as many micro-batches, estimates its ops for the
cluster, plans it, and prints the time of all ops on one device divided by the
predicted step:

    python -m tools.benchmarks.keras_simulated --model=transformer \
        --cluster=configs/clusters/4_v100_nvlink.toml

Nothing runs but the trace, so the devices need not be there.
"""

import sys

import keras
import tensorflow as tf
from absl import app
from absl import flags

from baechi_tf.cluster import read_cluster
from baechi_tf.costed_model import CostSource
from baechi_tf.keras_placement.step_plan import Planner
from baechi_tf.planner import BEST
from baechi_tf.search.budget import Budget
from tools import benchmark_models
from tools.benchmarks import keras_models

DECODER = "decoder"
_SEQUENCES = 4  # in a micro-batch of it


class OneArgument(keras.Model):
  """A model that takes its inputs as one tuple, as `fit` gives them."""

  def __init__(self, model: keras.Model):
    super().__init__()
    self.model = model

  def call(self, inputs):
    """Returns the logits for a tuple of inputs."""
    return self.model(*inputs)


def simulate(
  name: str, preset: str, num: int, cluster: str, seconds: float
) -> tuple[int, float, float]:
  """Returns the number of ops, the predicted step in ms, and the speed-up.

  Args:
    name: a model of `benchmark_models.PRESETS`, or `DECODER`.
    preset: its sizes.
    num: the number of micro-batches, each of the preset's batch.
    cluster: a cluster file.
    seconds: of search.
  """
  model, specs = _decoder(num) if name == DECODER else _model(name, preset, num)
  model.compile(
    keras.optimizers.Adam(),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    jit_compile=False,
  )
  rows = specs[1].shape[0]
  planner = Planner(
    model=model,
    train_step=model.train_step,
    specs=specs,
    batch=specs,
    cluster=read_cluster(cluster),
    source=CostSource(estimate=True, batch_size=rows),
    order=True,
    arguments={"placer": BEST, "budget": Budget(seconds=seconds)},
    progress=lambda line: None,
  )
  simulation = planner.plan(num, rows).plan.simulation
  makespan_us = simulation.makespan_us
  speed_up = simulation.busy_time_us.sum() / makespan_us
  return len(simulation.device), makespan_us / 1000, speed_up


def _model(name: str, preset: str, num: int):
  """Returns a model, and the types of `num` times its batch and its labels."""
  benchmark = benchmark_models.build(benchmark_models.sizes_for(name, preset))
  rows = num * benchmark.labels.shape[0]
  inputs = tuple(_with_rows(x, rows) for x in benchmark.inputs)
  return OneArgument(benchmark.model), (
    inputs,
    _with_rows(benchmark.labels, rows),
  )


def _decoder(num: int):
  """Returns a decoder of GPT-2 medium's sizes, and types as `_model` does."""
  length = 512
  model = keras_models.decoder(24, 1024, 16, length, 50_257)
  tokens = tf.TensorSpec([num * _SEQUENCES, length], tf.int32)
  return model, (tokens, tokens)


def _with_rows(spec: tf.TensorSpec, rows: int) -> tf.TensorSpec:
  return tf.TensorSpec([rows, *spec.shape[1:]], spec.dtype, spec.name)


def main(argv: list[str]) -> None:
  """Prints a line for each number of micro-batches."""
  if len(argv) != 1:
    raise app.UsageError("no arguments, only flags")
  values = flags.FLAGS
  print("model, micro-batches, ops, predicted ms, speed-up")
  for num in map(int, values.micro_batches):
    num_ops, step_ms, speed_up = simulate(
      values.model, values.preset, num, values.cluster, values.search_seconds
    )
    print(
      f"{values.model}, {num}, {num_ops:,}, {step_ms:.1f}, {speed_up:.2f}",
      flush=True,
    )


def define_flags() -> None:
  """Defines the flags, when this is the program that runs."""
  presets = benchmark_models.PRESETS
  flags.DEFINE_enum(
    "model", "transformer", [*presets["full"], DECODER], "Which."
  )
  flags.DEFINE_enum("preset", "full", list(presets), "Its sizes.")
  flags.DEFINE_list("micro_batches", ["1", "2", "4", "8"], "Numbers to try.")
  flags.DEFINE_string(
    "cluster", "configs/clusters/4_v100_nvlink.toml", "A cluster file."
  )
  flags.DEFINE_float("search_seconds", 10.0, "Of each search.", 0.0)


if __name__ == "__main__":
  define_flags()
  sys.exit(app.run(main))
