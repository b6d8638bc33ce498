r"""Runs plans for real, and compares each step with its prediction.

Exports the training steps of `plan_models`, profiles each on one core, measures
the link between two processes of one core each, plans with every placer, runs
all plans of a model side by side in alternating rounds, and prints the tables
of docs/real_clusters.md, the goals last:

    python -m tools.benchmarks.plans --results=plans.json
    python -m tools.benchmarks.plans --results=plans.json --only=towers \
        --networks=loopback

The results are kept in --results after each model and network; a second run
with the same file measures what is missing. All takes half an hour or so on two
idle cores: nothing else should run meanwhile.

The processes are joined over loopback, and in network namespaces by links of 1
Gbit/s and 100 Mbit/s. Those need root's rights on Linux, ip(8) and tc(8); where
they are not allowed, the tool says so and leaves them out.
"""

import dataclasses
import os
import pathlib
import signal
import sys
import tempfile
from collections.abc import Sequence

import tensorflow as tf
from absl import app
from absl import flags

from robust_tf.training.private_network import NotAllowedError
from robust_tf.training.uninterrupted import interrupt
from tools.benchmarks import plan_accuracy
from tools.benchmarks import plan_clusters
from tools.benchmarks import plan_memory
from tools.benchmarks import plan_models
from tools.benchmarks import plan_results
from tools.benchmarks import plan_runs
from tools.benchmarks import plan_tables
from tools.benchmarks.plan_accuracy import Verdict
from tools.benchmarks.plan_networks import NETWORKS
from tools.benchmarks.plan_networks import pinned_hosts
from tools.benchmarks.plan_processes import RunError
from tools.benchmarks.plan_results import Results
from tools.benchmarks.plan_runs import Rounds
from tools.benchmarks.plan_runs import Subject

FAILED = 1


def machine() -> str:
  """Returns this machine's processor and cores, and TensorFlow's version."""
  model = "unknown processor"
  cpu_info = pathlib.Path("/proc/cpuinfo")
  if cpu_info.exists():
    for line in cpu_info.read_text().splitlines():
      if line.startswith("model name"):
        model = line.partition(":")[2].strip()
        break
  cores = len(os.sched_getaffinity(0))
  return f"{model}, {cores} cores, TensorFlow {tf.__version__}"


def measure(
  results: Results,
  models: Sequence[str],
  networks: Sequence[str],
  rounds: Rounds,
  path: str | None,
) -> None:
  """Adds what is missing to the results, and keeps them in a file.

  Args:
    results: what there is.
    models: names of models.
    networks: names of networks.
    rounds: how much is measured.
    path: the file; None to keep nothing.

  Raises:
    RunError: a process failed.
    RuntimeError: a plan was not found.
  """
  for model in models:
    missing = [
      x for x in networks if not results.has(model, x, plan_runs.PLANS)
    ]
    if not missing:
      continue
    with tempfile.TemporaryDirectory(prefix="plans_") as directory:
      subject = plan_runs.prepare(model, directory, _say)
      for network in missing:
        try:
          _measure_group(results, subject, network, rounds, directory)
        except NotAllowedError as error:
          _say(f"{network}: skipped: {error}")
          results.notes[network] = f"skipped: {error}"
        if path:
          plan_results.write(path, results)


def _measure_group(
  results: Results,
  subject: Subject,
  network: str,
  rounds: Rounds,
  directory: str,
) -> None:
  """Measures all plans of a model on one network."""
  title = f"{subject.name}, {network}"
  cluster = os.path.join(directory, f"{network}.toml")
  log = os.path.join(directory, f"{network}.log")
  with pinned_hosts(network) as hosts:
    _say(f"{title}: measuring the link")
    with plan_clusters.server(hosts, log):
      plan_clusters.write_cluster(network, hosts, cluster)
    placed = plan_runs.place(subject, network, cluster, directory, _say)
    _say(f"{title}: running {len(placed)} plans")
    cases = plan_runs.run(subject, network, cluster, hosts, placed, rounds)
  results.add(cases)
  results.links[title] = pathlib.Path(cluster).read_text()
  _say(f"{title}:\n{plan_tables.cases_table(cases)}")


def _check_memory(results: Results, path: str | None) -> None:
  """Adds the verdict on a model that is too large for one process."""
  if results.memory:
    return
  with tempfile.TemporaryDirectory(prefix="plans_") as directory:
    try:
      verdict = plan_memory.check(directory, _say)
    except PermissionError as error:
      results.notes["memory limit"] = f"skipped: {error}"
      return
  results.memory = list(dataclasses.astuple(verdict))
  if path:
    plan_results.write(path, results)


def _say(text: str) -> None:
  print(f"plans: {text}", file=sys.stderr, flush=True)


def main(argv: list[str]) -> int:
  """Measures what the flags ask for; returns the exit code."""
  if len(argv) != 1:
    raise app.UsageError("no arguments, only flags")
  # Being ended must end the processes, and remove the networks too.
  signal.signal(signal.SIGTERM, interrupt)
  values = flags.FLAGS
  rounds = Rounds(values.rounds, values.steps_per_round, values.round_s)
  try:
    results = Results(machine())
    if values.results:
      results = plan_results.read(values.results, results.machine)
    measure(results, values.only, values.networks, rounds, values.results)
    if values.memory:
      _check_memory(results, values.results)
  except (RunError, RuntimeError, ChildProcessError, TimeoutError) as error:
    _say(str(error))
    return FAILED
  except (OSError, ValueError) as error:
    raise app.UsageError(str(error)) from error
  except KeyboardInterrupt as stopped:
    return 128 + (stopped.args[0] if stopped.args else signal.SIGINT)
  if not tf.config.list_physical_devices("GPU"):
    results.notes["GPU"] = "skipped: this machine has none"
  verdicts = plan_accuracy.verdicts(results.cases)
  if results.memory:
    verdicts.append(Verdict(*results.memory))
  print("\n".join(plan_tables.report(results.cases, verdicts)))
  for what, note in results.notes.items():
    print(f"\n{what}: {note}")
  return 0


def define_flags() -> None:
  """Defines the flags, when this is the program that runs.

  No subcommand of `baechi`, which runs in this process too, has one of theirs.
  """
  flags.DEFINE_multi_enum(
    "only",
    list(plan_models.BENCHMARKS),
    list(plan_models.MODELS),
    "A model to measure; may be repeated.",
  )
  flags.DEFINE_multi_enum(
    "networks",
    list(NETWORKS),
    list(NETWORKS),
    "A network to measure on; may be repeated.",
  )
  flags.DEFINE_bool(
    "memory", True, "Whether to run a model that is too large for a process."
  )
  flags.DEFINE_integer("rounds", 7, "How often each plan has its turn.", 1)
  flags.DEFINE_integer("steps_per_round", 5, "A plan's steps in a turn.", 1)
  flags.DEFINE_float("round_s", 2.0, "Seconds after which a turn ends.", 0)
  flags.DEFINE_string("results", None, "A file of JSON that keeps the results.")


if __name__ == "__main__":
  define_flags()
  sys.exit(app.run(main))
