"""A model that needs more memory than a process may have, placed and not.

The processes' limits are real: the system kills a process that exceeds its own.
"""

import os

from baechi_tf.cluster import read_cluster
from baechi_tf.runner.start import local_run
from tools.acceptance import run_baechi
from tools.benchmarks import plan_models
from tools.benchmarks import plan_runs
from tools.benchmarks.plan_accuracy import Verdict
from tools.benchmarks.plan_clusters import device_blocks
from tools.benchmarks.plan_clusters import DEVICES
from tools.benchmarks.plan_runs import Say
from tools.benchmarks.plan_runs import Subject

MODEL = "wide_layers"
GOAL = (
  "a model that needs more memory than a process may have is killed on one"
  " device and trains when placed"
)

# Of what the step needs on one device: what a process may have, and what part
# of that is planned for. TensorFlow's own buffers take some of the rest.
_LIMIT = 0.95
_PLANNED = 0.8
_NUM_STEPS = 3
_LINK = "[link]\nlatency_us = 100\nbytes_per_us = 1000\n"


def check(directory: str, say: Say) -> Verdict:
  """Returns whether the goal is reached.

  Args:
    directory: an empty one, for the models.
    say: is told what is being done.

  Raises:
    ChildProcessError: a process ended while the placed model trained.
    PermissionError: this system allows no memory limits.
  """
  subject = plan_runs.prepare(MODEL, directory, say)
  try:
    cluster, placed = _place(subject, directory, say)
  except RuntimeError as error:  # the command has said why
    return Verdict(GOAL, f"no plan: {error}", False)
  say(f"{MODEL}: running it on one device")
  killed = None
  try:
    _run(cluster, subject, subject.path, DEVICES[0])
  except ChildProcessError as error:
    killed = str(error)
  say(f"{MODEL}: running it on two")
  step_us = _run(cluster, subject, placed, None)
  return Verdict(
    GOAL,
    f"one device: {killed or 'trains'}; placed: {step_us / 1e3:.0f} ms a step",
    killed is not None and "memory limit" in killed,
  )


def _place(subject: Subject, directory: str, say: Say) -> tuple[str, str]:
  """Returns the cluster's file and the model placed on it."""
  say(f"{MODEL}: placing")
  unlimited, cluster, plan, placed = (
    os.path.join(directory, x)
    for x in ("unlimited.toml", "limited.toml", "plan.json", "placed")
  )
  _write_cluster(unlimited, 2**40)
  summary = run_baechi(
    "place", *subject.arguments(), plan, f"--cluster={unlimited}",
    "--emit=plan", "--placer=single_device",
  )  # fmt: skip
  needed = max(x["peak_memory_bytes"] for x in summary["devices"])
  _write_cluster(cluster, int(_LIMIT * needed))
  run_baechi(
    "place", *subject.arguments(), placed, f"--cluster={cluster}",
    f"--memory-fraction={_PLANNED}",
  )  # fmt: skip
  return cluster, placed


def _write_cluster(path: str, memory_bytes: int) -> None:
  blocks = device_blocks(str(memory_bytes))
  with open(path, "w", encoding="utf-8") as file:
    file.write("\n".join([*blocks, _LINK]))


def _run(
  cluster: str, subject: Subject, path: str, device: str | None
) -> float:
  """Returns the median step in processes with the cluster's limits."""
  with local_run(read_cluster(cluster), limit_memory=True) as processes:
    processes.load(
      "model", path, plan_models.SIGNATURE, subject.batch, device=device
    )
    return processes.run("model", _NUM_STEPS).median_us
