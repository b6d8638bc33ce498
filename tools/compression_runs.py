"""Runs parts of the tables of methods that send less, in a few processes."""

import dataclasses
import functools
import sys
import time
from collections.abc import Iterator
from collections.abc import Sequence

import numpy as np

from robust_tf.federated import partition
from robust_tf.training.batches import WorkerBatches
from robust_tf.training.data import Dataset
from robust_tf.training.data import load
from tools import compression_invariant
from tools.compression_tables import NUM_WORKERS
from tools.compression_tables import Row
from tools.compression_tables import Table
from tools.compression_training import Point
from tools.compression_training import Training
from tools.language_text import language_model
from tools.language_text import load_text
from tools.processes import mapping
from tools.small_models import small_model
from tools.worker_examples import worker_examples

_HIDDEN = 64


@dataclasses.dataclass(frozen=True)
class Part:
  """What is computed at a time: the cells of a row.

  Attributes:
    table: what is run; its flags' values are in it.
    row: one of its rows.
    data: a name or a path, see `robust_tf.training.data`.
  """

  table: Table
  row: Row
  data: str


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What came of one training.

  Attributes:
    table: the name of the table.
    method: the name of the row's method.
    ratio: R_C in name.
    rate: the learning rate.
    partition: who had which examples.
    seed: of everything.
    vector_bytes: of a whole gradient.
    curve: the model from step to step.
  """

  table: str
  method: str
  ratio: int
  rate: float
  partition: str
  seed: int
  vector_bytes: int
  curve: Sequence[Point]

  @property
  def counted_ratio(self) -> float:
    """The bytes of whole gradients over those that were sent."""
    last = self.curve[-1]
    if not last.bytes_sent:
      return float("inf")
    return last.step * self.vector_bytes / last.bytes_sent


def run(parts: Sequence[Part], jobs: int) -> Iterator[Outcome]:
  """Yields what came of all parts, in order, and says how far it is.

  Args:
    parts: what to run.
    jobs: how many processes run them; 1 is this one alone.
  """
  begin = time.perf_counter()
  with mapping(jobs) as run_all:
    for number, (part, outcomes) in enumerate(
      zip(parts, run_all(run_part, parts), strict=True), start=1
    ):
      print(
        f"{number} of {len(parts)} parts after"
        f" {time.perf_counter() - begin:.0f} s: {part.table.name},"
        f" {part.row.name}, R_C {part.row.ratio}",
        file=sys.stderr,
      )
      yield from outcomes


def run_part(part: Part) -> list[Outcome]:
  """Returns what came of each training of a part."""
  table, row = part.table, part.row
  training = Training(
    functools.partial(_model, part.data, table.is_text),
    row.method.make_optimizer,
    num_workers=NUM_WORKERS,
    num_steps=table.num_steps,
    warm_up=table.warm_up,
    drops=table.drops,
  )
  return [
    Outcome(
      table.name,
      row.name,
      row.ratio,
      rate,
      partition_name,
      seed,
      training.vector_bytes,
      training.run(
        dataset(part.data, table.is_text, seed),
        _examples(
          part.data,
          table.is_text,
          partition_name,
          seed,
          table.batch_size,
          table.num_steps,
        ),
        rate,
        seed,
      ),
    )
    for partition_name in table.partitions
    for seed in range(table.seeds)
    for rate in table.rates
  ]


@functools.lru_cache(maxsize=2)
def dataset(data: str, is_text: bool, seed: int) -> Dataset:
  """Returns the text, or what `robust_tf.training.data.load` returns."""
  return load_text() if is_text else load(data, seed)


def _model(data: str, is_text: bool, seed: int):
  examples = dataset(data, is_text, seed)
  if is_text:
    return language_model(examples.num_classes, seed)
  return small_model(examples, seed, _HIDDEN)


@functools.lru_cache(maxsize=4)
def _examples(
  data: str,
  is_text: bool,
  partition_name: str,
  seed: int,
  batch_size: int,
  num_steps: int,
) -> np.ndarray:
  """Returns what all workers see at all steps; methods see the same."""
  examples = dataset(data, is_text, seed)
  parts = _partitioned(partition_name, examples.y_train, seed)
  batches = WorkerBatches(examples, parts, batch_size, seed)
  return worker_examples(batches, num_steps)


def _partitioned(name: str, labels: np.ndarray, seed: int):
  """Returns the examples of each worker."""
  if name == "iid":
    return partition.iid(labels, NUM_WORKERS, seed)
  if name == "by_label":
    return partition.by_label(labels, NUM_WORKERS, seed, shards_per_worker=1)
  return np.array_split(np.arange(len(labels)), NUM_WORKERS)


def common_model_spread(data: str, num_steps: int) -> float:
  """Returns how far CSER's models without their errors are apart.

  Args:
    data: a name or a path.
    num_steps: after each of which they are compared.
  """
  examples = dataset(data, False, 0)
  return compression_invariant.common_model_spread(
    _model(data, False, 0),
    examples,
    _partitioned("iid", examples.y_train, 0),
    0.1,
    num_steps,
  )
