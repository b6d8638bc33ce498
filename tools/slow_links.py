r"""Times training methods to a loss between workers joined by slow links.

Two to four processes of `MultiWorkerMirroredStrategy`, each in a network
namespace of its own with a link of its own, train a perceptron of 5 million
parameters on scikit-learn's digits (enlarged to 28 x 28) with Keras' `fit`:

    python -m tools.slow_links --json=slow_links.json --picture=slow_links.svg

It needs root's rights on Linux, ip(8) and tc(8); where namespaces are not
allowed it says so and exits with 77. It takes 15 minutes or so on two cores;
nothing else should run meanwhile. Only `kill -9` leaves namespaces behind, with
names slow-links-PID-*, for `ip netns del`.

First plain TCP connections show how fast the links really are. Then each
method trains on links without a limit for all of --steps, which gives its
final accuracy (what a method computes does not depend on the links); then on
links of each of --mbit, until the training loss is at most --target_loss or
the steps are over. The columns:

- time: wall-clock seconds to the target, without the first step (TensorFlow
  traces it) and without evaluations (the clock and the network stand still);
- step, compute: seconds of a step, and of the same step of a model that each
  worker trains by itself with Keras' SGD, all at once; the rest is the method's
  own arithmetic, communication and waiting;
- sent, counted: 1000 bytes that a worker's interface sent by step, evaluations
  left out; and what the optimizer says that it handed to collectives.

The loss is that of the mean of the workers' models on at most 1000 training
examples.
"""

import dataclasses
import json
import os
import pathlib
import signal
import sys
import tempfile
from collections.abc import Sequence

from absl import app
from absl import flags

from robust_tf.training.data import load
from robust_tf.training.uninterrupted import interrupt
from tools import local_cluster
from tools import network_namespaces
from tools import slow_link_report
from tools.slow_link_experiment import Experiment
from tools.slow_link_experiment import EXPERIMENT_FILE
from tools.slow_link_experiment import Measurement
from tools.slow_link_experiment import MEASUREMENTS_FILE
from tools.slow_link_experiment import PROGRESS
from tools.slow_link_experiment import rate_title
from tools.slow_link_methods import METHODS

NOT_ALLOWED = 77  # what test programs exit with when they are skipped

_MOST_WORKERS = 4
_PROBE_BYTES = 25_000_000
_PROBE_S = 12.0  # on slower links fewer bytes are sent
_ROOT = str(pathlib.Path(__file__).parents[1])


class _WorkersFailedError(Exception):
  """Says what a worker wrote in the end.

  Attributes:
    exit_code: what the program is to exit with.
  """

  def __init__(self, outcome: local_cluster.Outcome, timeout_s: float):
    worker = outcome.failed or 0
    if outcome.failed is None:
      reason = f"not done after {timeout_s:g} s; worker 0's last lines"
    else:
      reason = (
        f"worker {worker} failed with exit code {outcome.exit_code}; its last"
        " lines"
      )
    super().__init__(f"{reason}:\n{outcome.tail(worker)}")
    self.exit_code = outcome.exit_code


def run(
  experiment: Experiment, directory: str, timeout_s: float
) -> tuple[list[float], list[Measurement]]:
  """Returns the rates of a probe, and what the methods did.

  Args:
    experiment: what to run; its links' processes are started here.
    directory: an empty one, for files between the processes.
    timeout_s: after which all is ended.
  """
  links = [network_namespaces.Link(**x) for x in experiment.links]
  probed = [_probe(links, rate, directory) for rate in experiment.rates]
  path = pathlib.Path(directory)
  (path / EXPERIMENT_FILE).write_text(
    json.dumps(dataclasses.asdict(experiment))
  )
  _run_workers("tools.slow_link_worker", directory, links, directory, timeout_s)
  measured = json.loads((path / MEASUREMENTS_FILE).read_text())
  return probed, [Measurement(**x) for x in measured]


def _probe(links, rate: float | None, directory: str) -> float:
  """Returns the bits per second that came through the slowest link."""
  for link in links:
    link.set_rate(rate)
  count = _PROBE_BYTES
  if rate is not None:
    count = min(count, int(rate / 8 * _PROBE_S))
  outcome = _run_workers(
    "tools.link_probe", str(count), links, directory, 10 * _PROBE_S
  )
  seconds = max(float(outcome.output(i)) for i in range(len(links)))
  for link in links:
    link.set_rate(None)
  print(
    f"{rate_title(rate)}: {count / 1e6:g} MB from each worker to the next by"
    f" plain TCP in {seconds:.2f} s: {count * 8 / seconds / 1e6:.1f} Mbit/s",
    file=sys.stderr,
  )
  return count * 8 / seconds


def _run_workers(
  module: str, argument: str, links, directory: str, timeout_s: float
) -> local_cluster.Outcome:
  """Runs a module in every host of a network.

  Raises:
    _WorkersFailedError: if one fails or time is up.
  """
  environment = {
    **os.environ,
    "PYTHONPATH": _ROOT,
    # Of the machine's cores each worker gets its share.
    "OPENBLAS_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "-1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
  }
  outcome = local_cluster.run(
    [sys.executable, "-m", module, argument],
    len(links),
    log_directory=os.path.join(directory, "logs"),
    hosts=[link.host for link in links],
    environment=environment,
    timeout_s=timeout_s,
    show=_show_progress,
  )
  if outcome.exit_code:
    raise _WorkersFailedError(outcome, timeout_s)
  return outcome


def _show_progress(line: str) -> None:
  _, _, text = line.partition(" ")
  if text.startswith(PROGRESS):
    print(text, file=sys.stderr)


def _experiment(links: Sequence[network_namespaces.Link]) -> Experiment:
  """Returns what the flags ask for."""
  values = flags.FLAGS
  return Experiment(
    data=values.data,
    hidden=values.hidden,
    batch_size=values.batch_size,
    learning_rate=values.learning_rate,
    target_loss=values.target_loss,
    num_steps=values.steps,
    evaluate_every=values.evaluate_every,
    seed=values.seed,
    methods=list(dict.fromkeys(values.methods)),
    rates=[None, *(1e6 * x for x in dict.fromkeys(values.mbit))],
    links=[dataclasses.asdict(link) for link in links],
  )


def _check_flags() -> None:
  """Refuses what absl's own checks let through."""
  values = flags.FLAGS
  for rate in values.mbit:
    if not 0 < rate < float("inf"):
      raise app.UsageError(f"--mbit={rate:g} must be positive and finite")
  if not values.learning_rate > 0:
    raise app.UsageError(
      f"--learning_rate={values.learning_rate:g} must be positive"
    )
  if values.picture and not values.picture.endswith(".svg"):
    raise app.UsageError(f"--picture={values.picture} must end in .svg")
  try:
    data = load(values.data, values.seed)
  except ValueError as error:
    raise app.UsageError(str(error)) from None
  share = len(data.x_train) // values.workers
  if values.batch_size > share:
    raise app.UsageError(
      f"--batch_size={values.batch_size} must be at most {share}, the training"
      " examples of each worker"
    )


def main(argv: list[str]) -> int:
  """Runs what the flags ask for; returns the exit code."""
  if len(argv) != 1:
    raise app.UsageError("no arguments, only flags")
  _check_flags()
  # Being ended must remove the network too.
  signal.signal(signal.SIGTERM, interrupt)
  values = flags.FLAGS
  try:
    with (
      tempfile.TemporaryDirectory(prefix="slow_links_") as directory,
      network_namespaces.star(values.workers) as links,
    ):
      experiment = _experiment(links)
      probed, measurements = run(experiment, directory, values.timeout_s)
  except network_namespaces.NotAllowedError as error:
    print(
      f"slow_links: network namespaces are not allowed here: {error}",
      file=sys.stderr,
    )
    return NOT_ALLOWED
  except _WorkersFailedError as error:
    print(f"slow_links: {error}", file=sys.stderr)
    return error.exit_code
  except KeyboardInterrupt as stopped:
    return 128 + (stopped.args[0] if stopped.args else signal.SIGINT)
  results = slow_link_report.Results(experiment, probed, measurements)
  print(slow_link_report.as_text(results))
  if values.json:
    slow_link_report.write_json(results, values.json)
  if values.picture:
    slow_link_report.draw(results, values.picture)
  return 0


def define_flags() -> None:
  """Defines the flags, when this is the program that runs."""
  flags.DEFINE_integer("workers", 2, "How many processes.", 2, _MOST_WORKERS)
  flags.DEFINE_multi_float(
    "mbit", [1000, 100, 20], "A link's Mbit/s; may be repeated."
  )
  flags.DEFINE_multi_enum(
    "methods", list(METHODS), list(METHODS), "Which ones; may be repeated."
  )
  flags.DEFINE_string("data", "digits", "digits, or the path of an .npz file.")
  flags.DEFINE_multi_integer(
    "hidden", [2048, 1664], "Size of a hidden layer; may be repeated.", 1
  )
  flags.DEFINE_integer("batch_size", 32, "Of each worker.", 1)
  flags.DEFINE_float("learning_rate", 0.05, "Of all methods.")
  flags.DEFINE_float("target_loss", 0.1, "Ends a run.", 0)
  flags.DEFINE_integer("steps", 120, "A run's most steps.", 2)
  flags.DEFINE_integer("evaluate_every", 2, "Steps between evaluations.", 1)
  flags.DEFINE_integer("seed", 0, "Of data, order and initial model.")
  flags.DEFINE_float("timeout_s", 3600, "Ends all.", 1)
  flags.DEFINE_string("json", None, "A file for the results.")
  flags.DEFINE_string("picture", None, "An .svg file for a picture.")


if __name__ == "__main__":
  define_flags()
  sys.exit(app.run(main))
