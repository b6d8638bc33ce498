r"""Compares the sum of a step's measured op times with the untraced step.

A plan rests on the ops' times, so together they must make up the step. For the
models of `tools.acceptance` and for models as Keras exports them, prints the
table of docs/costs.md:

    taskset --cpu-list 0 python -m tools.step_accounting

Sums and steps are measured in turn, so that a busy machine slows both. The
untraced step runs in the same kind of session as the ops, and as the function
that `baechi run` calls, which Grappler optimizes.
"""

import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf
from absl import app
from absl import flags
from absl import logging
from keras import layers

from baechi_tf.costs import inputs
from baechi_tf.costs import measured
from baechi_tf.graph_item import GraphItem
from baechi_tf.graph_item import read_item
from baechi_tf.runner import step as saved_step
from tools import acceptance
from tools import benchmark_models
from tools import training_step

_CLASSES = 10
_WARMUP = 3  # steps dropped


def cnn() -> keras.Model:
  """Returns convolutions with biases, one of them padded by a layer."""
  return keras.Sequential(
    [
      layers.Input((64, 64, 3)),
      layers.Conv2D(32, 3, activation="relu"),
      layers.MaxPooling2D(),
      layers.ZeroPadding2D(),
      layers.Conv2D(64, 3, activation="relu"),
      layers.MaxPooling2D(),
      layers.Flatten(),
      layers.Dense(_CLASSES),
    ]
  )


def mlp() -> keras.Model:
  """Returns three dense layers."""
  return keras.Sequential(
    [
      layers.Input((784,)),
      layers.Dense(1024, activation="relu"),
      layers.Dense(1024, activation="relu"),
      layers.Dense(_CLASSES),
    ]
  )


def transformer() -> keras.Model:
  """Returns two encoder layers on 32 tokens."""
  x = tokens = layers.Input((32,), dtype="int32")
  x = layers.Embedding(1000, 128)(x)
  for _ in range(2):
    attended = layers.MultiHeadAttention(4, 32)(x, x)
    x = layers.LayerNormalization()(x + attended)
    hidden = layers.Dense(512, activation="gelu")(x)
    x = layers.LayerNormalization()(x + layers.Dense(128)(hidden))
  x = layers.GlobalAveragePooling1D()(x)
  return keras.Model(tokens, layers.Dense(_CLASSES)(x))


KERAS_MODELS = {"cnn": cnn, "mlp": mlp, "transformer": transformer}


@dataclasses.dataclass(frozen=True)
class Accounting:
  """What a step's ops and the step itself took.

  Attributes:
    num_ops: the planned ops.
    num_missing: those without a measured time.
    num_fused: those that run inside another op's kernel.
    ops_us: the sum of the ops' times.
    step_us: the median untraced step.
    function_us: the median step as the function that `baechi run` calls.
    call_us: the median call with the step's inputs that computes nothing.
  """

  num_ops: int
  num_missing: int
  num_fused: int
  ops_us: float
  step_us: float
  function_us: float
  call_us: float

  @property
  def shares(self) -> tuple[float, float, float]:
    """The ops' share of the step, of what is beyond a call, of the function."""
    whole_us = (self.step_us, self.step_us - self.call_us, self.function_us)
    return tuple(self.ops_us / x for x in whole_us)


def account(
  path: str, signature: str, item: GraphItem, batch_size: int, num_steps: int
) -> Accounting:
  """Measures the ops of a step, then the step.

  Args:
    path: a SavedModel.
    signature: its step.
    item: what `read_item` returns for them.
    batch_size: the first dimension of inputs that do not fix it.
    num_steps: steps of each kind that count.
  """
  values = inputs.synthesize_inputs(item, batch_size)
  costs = measured.measure(item, values, num_steps=num_steps, warmup=_WARMUP)
  nothing = dataclasses.replace(
    item, fetches=(item.feeds[0].tensor,), targets=()
  )
  function_us = _median_function_us(path, signature, values, num_steps)
  with measured.open_session(item) as session:
    item.initialize(session)
    return Accounting(
      num_ops=len(item.op_names),
      num_missing=len(item.op_names) - len(costs),
      num_fused=sum(bool(x.fused_into) for x in costs.values()),
      ops_us=sum(x.compute_time_us for x in costs.values()),
      step_us=_median_us(item, values, session, num_steps),
      function_us=function_us,
      call_us=_median_us(nothing, values, session, num_steps),
    )


def _median_us(item, values, session, num_steps) -> float:
  times_us = measured.step_times_us(item, values, session, num_steps + _WARMUP)
  return statistics.median(times_us[_WARMUP:])


def _median_function_us(path, signature, values, num_steps) -> float:
  with tempfile.NamedTemporaryFile(suffix=".npz") as archive:
    np.savez(archive, **values)
    archive.flush()
    run = saved_step.load_step(path, signature, None, archive.name)
  times_us = []
  for _ in range(num_steps + _WARMUP):
    start = time.perf_counter()
    run()
    times_us.append((time.perf_counter() - start) * 1e6)
  return statistics.median(times_us[_WARMUP:])


def subjects(
  batch_size: int, directory: str, only: str
) -> Iterator[tuple[str, str, str]]:
  """Exports models, and yields the name, path and signature of their steps.

  Args:
    batch_size: examples in a step of a Keras model.
    directory: where the models go.
    only: what the name of a model must contain, as the table shows it.
  """
  for name, sizes in acceptance.MODELS.items():
    if only not in f"acceptance: {name}":
      continue
    path = os.path.join(directory, name)
    sizes = benchmark_models.sizes_for(name, "tiny", **sizes)
    benchmark = benchmark_models.build(sizes)
    training_step.export(training_step.TrainingStep(benchmark), path)
    yield f"acceptance: {name}", path, "train"
  for name, build in KERAS_MODELS.items():
    if only not in f"Keras {name}":
      continue
    model = build()
    path = os.path.join(directory, f"keras_{name}")
    model.export(path, verbose=False)
    yield f"Keras {name}, inference", path, "serving_default"
    benchmark = benchmark_models.Benchmark(
      model,
      tuple(
        tf.TensorSpec((batch_size, *x.shape[1:]), x.dtype, x.name)
        for x in model.inputs
      ),
      tf.TensorSpec((batch_size,), tf.int32, "labels"),
      _CLASSES,
    )
    path = os.path.join(directory, f"keras_{name}_training")
    training_step.export(training_step.TrainingStep(benchmark, "adam"), path)
    yield f"Keras {name}, training", path, "train"


def row(name: str, accounts: list[Accounting]) -> str:
  """Returns a line of the table, for the round of the median share."""
  accounts = sorted(accounts, key=lambda x: x.shares)
  x = accounts[len(accounts) // 2]
  cells = [f"{x.num_ops:,}", x.num_missing, x.num_fused]
  cells += [f"{us / 1e3:.2f}" for us in (x.ops_us, x.step_us, x.function_us)]
  cells += [f"{share:.0%}" for share in x.shares]
  return f"| {name} | {' | '.join(map(str, cells))} |"


def main(argv: list[str]) -> None:
  """Prints the table."""
  if len(argv) > 1:
    raise app.UsageError("no arguments are wanted")
  logging.set_verbosity(logging.ERROR)  # of TensorFlow's saver and loader
  tf.config.threading.set_inter_op_parallelism_threads(1)  # as the session does
  columns = (
    "step", "ops", "missing", "in another's kernel", "ops ms", "untraced ms",
    "function ms", "ops / untraced", "without the call", "ops / function",
  )  # fmt: skip
  print(f"| {' | '.join(columns)} |\n|---|{'--:|' * (len(columns) - 1)}")
  with tempfile.TemporaryDirectory() as directory:
    for name, path, signature in subjects(
      flags.FLAGS.batch_size, directory, flags.FLAGS.only
    ):
      item = read_item(path, signature=signature)
      accounts = [
        account(
          path, signature, item, flags.FLAGS.batch_size, flags.FLAGS.steps
        )
        for _ in range(flags.FLAGS.rounds)
      ]
      print(row(name, accounts), flush=True)


def define_flags() -> None:
  """Defines the flags, when this is the program that runs."""
  flags.DEFINE_integer("batch_size", 32, "Examples in a step of a Keras model.")
  flags.DEFINE_string("only", "", "Only models with this in their names.")
  flags.DEFINE_integer("steps", 5, "Steps to measure in a round.")
  flags.DEFINE_integer(
    "rounds", 7, "Rounds; the one of the median share counts."
  )


if __name__ == "__main__":
  define_flags()
  app.run(main)
