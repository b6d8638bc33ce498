r"""Trains models cut into micro-batches on two processes of one core each.

Measures the link between the processes, places the model with each number of
micro-batches, and runs the steps of all in alternating rounds, beside those of
the model on one process:

    python -m tools.benchmarks.keras_pipelines --model=chain
    python -m tools.benchmarks.keras_pipelines --model=transformer

A chain takes three minutes on two idle cores: nothing else should run
meanwhile. It prints JSON: for each variant the predicted step, the median step,
the median over the rounds of the one process' step divided by the variant's in
the same round, and the loss after the same number of steps.
"""

import contextlib
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from absl import app
from absl import flags

import baechi_tf
from baechi_tf.runner.start import Host
from robust_tf.training import child_processes
from tools.benchmarks import keras_models
from tools.benchmarks import plan_clusters
from tools.benchmarks.plan_networks import pinned_hosts
from tools.benchmarks.plan_processes import environment
from tools.benchmarks.plan_processes import on

ONE = "one process"
_START_S = 120.0


def chain() -> tuple[keras.Model, tuple[np.ndarray, np.ndarray]]:
  """Returns 12 dense layers of 768 units, and a batch of 512."""
  model = keras_models.chain(12, 768)
  model.compile("sgd", "mse")
  random = np.random.default_rng(0)
  x, y = random.standard_normal((2, 512, 768), np.float32)
  return model, (x, y)


def transformer() -> tuple[keras.Model, tuple[np.ndarray, np.ndarray]]:
  """Returns a causal Transformer of 6 layers, width 256, and 32 sequences."""
  length, vocabulary = 64, 1000
  model = keras_models.decoder(6, 256, 4, length, vocabulary)
  loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  model.compile(keras.optimizers.Adam(1e-4), loss)
  x, y = np.random.default_rng(0).integers(0, vocabulary, (2, 32, length))
  return model, (x.astype("i4"), y.astype("i4"))


MODELS = {"chain": chain, "transformer": transformer}


def step_of(
  model: keras.Model, batch: tuple[np.ndarray, np.ndarray]
) -> Callable[[], float]:
  """Returns a function that does a training step and returns the mean loss."""
  iterator = iter(tf.data.Dataset.from_tensors(batch).repeat())
  model.make_train_function()
  return lambda: float(model.train_function(iterator)["loss"])


def measure(
  name: str, cluster: str, micro_batches: list[int]
) -> dict[str, dict[str, float]]:
  """Returns the figures of each variant of a model, in this client process.

  Args:
    name: a key of `MODELS`.
    cluster: the cluster file.
    micro_batches: the numbers to place the model with.
  """
  values = flags.FLAGS
  steps, predicted_us, losses = {}, {}, {}
  for num in [None, *micro_batches]:
    keras.utils.set_random_seed(0)
    with tf.device(plan_clusters.DEVICES[0]):
      model, batch = MODELS[name]()
      model.optimizer.build(model.trainable_variables)
    title = f"micro_batches={num}" if num else ONE
    if num:
      plan = baechi_tf.place_keras(
        model,
        baechi_tf.read_cluster(cluster),
        batch,
        micro_batches=num,
        progress=lambda line, title=title: _say(f"{title}: {line}"),
      )
      predicted_us[title] = plan.simulation.makespan_us
      moved = plan.simulation.bytes_moved / 2**20
      _say(f"{title}: {plan.chosen.placer} moves {moved:.1f} MiB; {plan.notes}")
    with tf.device(plan_clusters.DEVICES[0]):
      steps[title] = step_of(model, batch)
      for _ in range(values.warm_up):
        losses[title] = steps[title]()
  seconds = {title: [] for title in steps}
  for _ in range(values.rounds):
    for title, step in steps.items():
      times = []
      for _ in range(values.steps):
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
      seconds[title].append(statistics.median(times))
  return {
    title: {
      "predicted_ms": predicted_us.get(title, 0) / 1e3,
      "step_ms": 1e3 * statistics.median(seconds[title]),
      "speed_up": statistics.median(
        a / b for a, b in zip(seconds[ONE], seconds[title], strict=True)
      ),
      "loss": losses[title],
    }
    for title in steps
  }


def _say(text: str) -> None:
  print(f"keras_pipelines: {text}", file=sys.stderr, flush=True)


def client(addresses: list[str], cluster: str) -> None:
  """Connects to the server, and prints the figures as JSON."""
  values = flags.FLAGS
  baechi_tf.connect(baechi_tf.read_cluster(cluster), addresses, wait_s=_START_S)
  numbers = [x if x == "auto" else int(x) for x in values.micro_batches]
  print(json.dumps(measure(values.model, cluster, numbers), indent=1))


def run_both(hosts: Sequence[Host], directory: str) -> None:
  """Runs the server and the client, each on its core.

  Raises:
    RunError: the link could not be measured.
    subprocess.CalledProcessError: the client failed.
  """
  cluster = os.path.join(directory, "cluster.toml")
  log = os.path.join(directory, "server.log")
  _say("measuring the link")
  with plan_clusters.server(hosts, log):
    plan_clusters.write_cluster("loopback", hosts, cluster)
  _say(pathlib.Path(cluster).read_text().rpartition("[[link]]")[2])
  addresses = ",".join(host.address for host in hosts)
  program = [
    *(sys.executable, "-m", "tools.benchmarks.keras_pipelines"),
    *(sys.argv[1:]),
    *(f"--addresses={addresses}", f"--cluster={cluster}"),
  ]
  with contextlib.ExitStack() as stack:
    server = child_processes.start(
      [*on(hosts[1]), *program, "--role=server"], environment()
    )
    try:
      child_processes.keep_output(server, log, stack)
      subprocess.run(
        [*on(hosts[0]), *program, "--role=client"],
        env=environment(),
        check=True,
      )
    finally:
      child_processes.end([server])


def main(argv: list[str]) -> None:
  """Runs both processes, or is one of them."""
  if len(argv) != 1:
    raise app.UsageError("no arguments, only flags")
  values = flags.FLAGS
  # What is started is ended too.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
  match values.role:
    case "client":
      client(values.addresses, values.cluster)
    case "server":
      baechi_tf.serve(
        baechi_tf.read_cluster(values.cluster), values.addresses, 1
      )
    case _:
      with (
        tempfile.TemporaryDirectory(prefix="keras_pipelines_") as directory,
        pinned_hosts("loopback") as hosts,
      ):
        run_both(hosts, directory)


def define_flags() -> None:
  """Defines the flags, when this is the program that runs."""
  flags.DEFINE_enum("model", "chain", list(MODELS), "The model to train.")
  flags.DEFINE_list("micro_batches", ["1", "2", "4"], "Numbers to place with.")
  flags.DEFINE_integer("warm_up", 100, "Steps before any is measured.", 1)
  flags.DEFINE_integer("rounds", 9, "How often each variant has its turn.", 1)
  flags.DEFINE_integer("steps", 5, "Steps in a turn.", 1)
  flags.DEFINE_enum(
    "role", "both", ["both", "client", "server"], "For its own processes."
  )
  flags.DEFINE_list("addresses", [], "For its own processes.")
  flags.DEFINE_string("cluster", None, "For its own processes.")


if __name__ == "__main__":
  define_flags()
  sys.exit(app.run(main))
