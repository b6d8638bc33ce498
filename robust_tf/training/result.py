"""What came of a run: files in its folder, and lines for the terminal.

`result.json` says nothing of time or place: equal runs have equal files.
"""

import hashlib
import json
import os
import platform
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from robust_tf.training import output
from robust_tf.training.algorithms import ASYNCHRONOUS
from robust_tf.training.algorithms import SYNCHRONOUS
from robust_tf.training.data import Dataset
from robust_tf.training.experiment import derived_arguments
from robust_tf.training.journal import Evaluation
from robust_tf.training.journal import finite_or_none
from robust_tf.training.journal import Journal
from robust_tf.training.plot import draw_curves
from robust_tf.training.plot import draw_participation
from robust_tf.training.plot import draw_partition
from robust_tf.training.printable import printable
from robust_tf.training.settings import Settings

_COLUMNS = {
  "step": "{}",
  "train_loss": "{:.4g}",
  "test_loss": "{:.4g}",
  "test_accuracy": "{:.4f}",
  "accepted": "{}",
  "refused": "{}",
  "overdue": "{}",
  "retried": "{}",
  "staleness": "{:.1f}",
  "rows_accepted": "{:.1f}",
  "rows_non_finite": "{:.1f}",
  "bytes_sent": "{:.3g}",
  "compression_ratio": "{:.1f}",
}


def result(
  settings: Settings,
  journal: Journal,
  dataset: Dataset,
  weights: Sequence[np.ndarray],
  report: Mapping[str, object] | None = None,
) -> dict:
  """Returns what `result.json` holds.

  Args:
    settings: of the run.
    journal: of the run, with its last evaluation.
    dataset: what was learned.
    weights: of the trained model.
    report: of a run with few devices at a time, see `FederatedReport`.
  """
  evaluations = [finite_or_none(x) for x in journal.evaluations]
  derived = derived_arguments(settings)
  return {
    "flags": journal.flags,
    **({"attack_derived": derived} if derived else {}),
    "versions": {
      "python": platform.python_version(),
      "tensorflow": tf.__version__,
      "keras": keras.__version__,
      "numpy": np.__version__,
    },
    "data": {
      "train_examples": len(dataset.x_train),
      "test_examples": len(dataset.x_test),
      "num_classes": dataset.num_classes,
      "sha256": journal.data_digest,
    },
    "evaluations": evaluations,
    **({"federated": report} if report else {}),
    "final": {**evaluations[-1], "weights_sha256": weights_digest(weights)},
  }


def to_json(value: dict) -> str:
  """Returns the text of `result.json`."""
  return json.dumps(value, indent=2, allow_nan=False) + "\n"


def weights_digest(weights: Sequence[np.ndarray]) -> str:
  """Returns a SHA-256 of a model's weights, in hexadecimal."""
  digest = hashlib.sha256()
  for array in weights:
    digest.update(repr((array.dtype.str, array.shape)).encode())
    digest.update(np.ascontiguousarray(array))
  return digest.hexdigest()


def write_result(
  settings: Settings,
  dataset: Dataset,
  parts: Sequence[np.ndarray],
  journal: Journal,
  model: keras.Model,
  report: Mapping[str, object] | None = None,
) -> None:
  """Prints what came of the run, and writes it if there is a folder for it.

  Args:
    settings: of the run.
    dataset: what was learned.
    parts: the examples of each worker, indices into the training examples.
    journal: of the run.
    model: the trained one.
    report: of a run with few devices at a time, see `FederatedReport`.

  Raises:
    OSError: a file cannot be written.
  """
  print(title(settings))
  for line in table(journal.evaluations):
    print(line)
  if settings.output is None:
    return

  def replacing(name):
    return output.replacing(os.path.join(settings.output, name))

  with replacing(output.PARTITION) as path:
    who = "worker" if settings.algorithm == SYNCHRONOUS else "device"
    draw_partition(parts, dataset.y_train, path, who)
  with replacing(output.PLOT) as path:
    attacked = settings.attack_start_step if settings.attack else None
    draw_curves(journal.evaluations, attacked, title(settings), path)
  if report:
    with replacing(output.PARTICIPATION) as path:
      draw_participation(report, len(parts), settings.byzantine, path)
  with replacing(output.MODEL) as path:
    # Without the strategy and the optimizer that trained it.
    alone = type(model).from_config(model.get_config())
    alone.set_weights(model.get_weights())
    alone.save(path)
  with replacing(output.RESULT) as path:
    with open(path, "w", encoding="utf-8") as file:
      weights = model.get_weights()
      file.write(to_json(result(settings, journal, dataset, weights, report)))
  written = sorted(output.FILES.intersection(os.listdir(settings.output)))
  print(f"written to {printable(settings.output)}: {', '.join(written)}")


def title(settings: Settings) -> str:
  """Returns one line that says what is trained, and against what."""
  if settings.has_local_models:
    rule = _call(settings.optimizer, settings.optimizer_arguments)
  else:
    rule = _call(settings.aggregator, settings.aggregator_arguments)
  who = "workers"
  if settings.algorithm != SYNCHRONOUS:
    who = "devices"
    rule = _federated_rule(settings, rule)
  if settings.attack is None:
    return f"{rule} on {settings.workers} honest {who}"
  derived = {k: f"{x:.4g}" for k, x in derived_arguments(settings).items()}
  attack = _call(settings.attack, {**settings.attack_arguments, **derived})
  count = len(settings.byzantine)
  return f"{rule} against {attack} by {count} of {settings.workers} {who}"


def _federated_rule(settings: Settings, rule: str) -> str:
  """Returns the algorithm, with those of its flags that are set."""
  given = {
    name: settings.flags[name]
    for name in settings.algorithm_arguments
    if name in settings.flags
  }
  algorithm = _call(settings.algorithm, given)
  if settings.algorithm in ASYNCHRONOUS:
    return algorithm
  return f"{algorithm} with {rule}"


def _call(name: str, arguments) -> str:
  given = ", ".join(f"{key}={value}" for key, value in arguments.items())
  return f"{name}({given})" if given else name


def table(evaluations: Sequence[Evaluation]) -> Iterator[str]:
  """Yields the evaluations, a line each, below the names of what was found."""
  found = set().union(*evaluations)
  columns = {name: text for name, text in _COLUMNS.items() if name in found}
  yield "  ".join(name.replace("_", " ") for name in columns)
  for evaluation in evaluations:
    cells = [
      text.format(evaluation[name]) if name in evaluation else ""
      for name, text in columns.items()
    ]
    yield "  ".join(
      f"{cell:>{len(name)}}" for cell, name in zip(cells, columns, strict=True)
    ).rstrip()
