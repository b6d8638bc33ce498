"""robust-train with few devices at a time, in one process."""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest

from robust_tf.federated.partition import iid
from robust_tf.federated.staleness import polynomial
from robust_tf.federated.tasks import DeviceTasks
from robust_tf.training import output
from robust_tf.training.data import load
from robust_tf.training.main import main
from robust_tf.training.models import mlp
from robust_tf.training.plot import draw_participation
from tests.robust_tf.perceptron import gradient
from tests.tensorflow_setup import tf  # noqa: F401  sets TensorFlow up

# NumPy 2 asks for an argument of __array__ that TensorFlow 2.21 does not take,
# where Keras writes a model.
pytestmark = pytest.mark.filterwarnings(
  "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)
ROOT = pathlib.Path(__file__).parents[2]
SMALL = ("--workers=6", "--batch_size=8", "--evaluate_every=5", "--steps=20")
DIGITS = load("digits")
RATE, STEPS = 0.1, 20

FED_ASYNC = (
  "--algorithm=fed_async",
  "--local_steps=2-5",
  "--proximal_weight=0.3",
  "--mixing_weight=0.8",
  "--mixing_decay_steps=8",
  "--mixing_decay_factor=0.25",
  "--staleness=polynomial",
  "--staleness_decay=0.7",
  "--simulated_staleness=3",
  "--attack=label_flip",
  "--byzantine=1,4",
  "--attack_start_step=6",
)
SLSGD = (
  "--algorithm=slsgd",
  "--devices_per_round=5",
  "--local_steps=3",
  "--aggregator=trimmed_mean",
  "--trim=1",
  "--mixing_weight=0.7",
  "--mixing_decay_steps=10",
  "--sampling=uniform",
  "--attack=inner_product",
  "--epsilon=2",
  "--byzantine=0,3",
)
ZENO = (
  "--algorithm=fed_avg",
  "--devices_per_round=4",
  "--local_steps=2",
  "--aggregator=zeno",
  "--num_suspected=2",
  "--attack=gaussian",
  "--byzantine=2",
)
ZENO_PLUS_PLUS = (
  "--algorithm=zeno_plus_plus",
  "--validation_batch_size=50",
  "--simulated_staleness=4",
  "--refresh_every=5",
  "--attack=label_flip",
  "--byzantine=0,3",
)


def train(folder, *argv):
  """Runs the command; returns what it wrote, and the weights it ended with."""
  assert main([*SMALL, *argv, f"--output={folder}"]) == 0
  with open(os.path.join(folder, output.RESULT), encoding="utf-8") as file:
    result = json.load(file)
  model = keras.models.load_model(os.path.join(folder, output.MODEL))
  return result, model.get_weights()


def events(folder):
  with open(os.path.join(folder, output.EVENTS), encoding="utf-8") as file:
    return [json.loads(line) for line in file]


def written(folder):
  """Returns the bytes of what must be the same for equal runs."""
  return [
    (pathlib.Path(folder) / name).read_bytes()
    for name in (output.RESULT, output.EVENTS)
  ]


# A literal replay in float64 of the order of events.


def local_model(start, task, rho=0.0):
  """What a device makes of a model, with SGD."""
  weights = start
  for examples in task.examples:
    labels = DIGITS.y_train[examples]
    labels = 9 - labels if task.flipped else labels
    gradients = gradient(weights, DIGITS.x_train[examples], labels)
    weights = [
      w - RATE * (g + rho * (w - s))
      for w, g, s in zip(weights, gradients, start, strict=True)
    ]
  return weights


def mixed(old, new, alpha):
  return [(1 - alpha) * x + alpha * y for x, y in zip(old, new, strict=True)]


def initial_weights():
  model = mlp(DIGITS.input_shape, 10, seed=0)
  return [w.astype(np.float64) for w in model.get_weights()]


def device_tasks(local_steps, **changes):
  parts = iid(DIGITS.y_train, 6, 0)
  return DeviceTasks(parts, 8, local_steps, 0, **changes)


def assert_close(weights, expected):
  for mine, other in zip(weights, expected, strict=True):
    # 20 updates of float32 at most, each of 5 steps.
    np.testing.assert_allclose(mine, other, rtol=0, atol=1e-5)


def test_fed_async_equals_a_replay_of_its_events(tmp_path):
  _, weights = train(tmp_path, *FED_ASYNC)
  tasks = device_tasks((2, 5), flipped=(1, 4), flipped_from=6)
  models, made = [initial_weights()], {}
  for event in events(tmp_path):
    if event["kind"] == "started":
      made[event["serial"]] = event["version"]
      continue
    assert event["kind"] == "accepted"
    t = len(models) - 1
    task = tasks.task(event["serial"], event["device"], made[event["serial"]])
    alpha = 0.8 * (0.25 if t >= 8 else 1)
    alpha *= polynomial(0.7)(t - event["version"])
    assert event["mixing_weight"] == pytest.approx(alpha, rel=1e-12)
    new = local_model(models[event["version"]], task, rho=0.3)
    models.append(mixed(models[-1], new, alpha))
  assert len(models) == STEPS + 1
  assert_close(weights, models[-1])


def test_slsgd_under_attack_equals_a_replay_of_its_events(tmp_path):
  _, weights = train(tmp_path, *SLSGD)
  tasks = device_tasks(3)
  x, rows, version = initial_weights(), {}, 0
  for event in events(tmp_path):
    if event["kind"] == "started":
      continue
    task = tasks.task(event["serial"], event["device"], version)
    new = local_model(x, task)
    rows[event["serial"], event["device"]] = [
      a - b for a, b in zip(x, new, strict=True)
    ]
    if len(rows) < 5:
      continue
    devices = [device for _, device in sorted(rows)]
    honest = [i for i in range(5) if devices[i] not in (0, 3)]
    step = []
    for values in zip(*(rows[key] for key in sorted(rows)), strict=True):
      values = np.stack(values)
      for i in set(range(5)) - set(honest):
        values[i] = -2 * values[honest].mean(axis=0)
      step.append(np.sort(values, axis=0)[1:-1].mean(axis=0))
    alpha = 0.7 * (0.5 if version >= 10 else 1)
    x = [a - alpha * s for a, s in zip(x, step, strict=True)]
    rows, version = {}, version + 1
  assert version == STEPS
  assert_close(weights, x)


def test_fed_avg_with_one_step_of_all_devices_is_synchronous_sgd(tmp_path):
  _, weights = train(
    tmp_path, "--algorithm=fed_avg", "--devices_per_round=6", "--local_steps=1"
  )
  tasks, x = device_tasks(1), initial_weights()
  made = [e for e in events(tmp_path) if e["kind"] == "started"]
  for version in range(STEPS):
    batch = np.concatenate(
      [
        tasks.task(e["serial"], e["device"], version).examples[0]
        for e in made
        if e["version"] == version
      ]
    )
    gradients = gradient(x, DIGITS.x_train[batch], DIGITS.y_train[batch])
    x = [a - RATE * g for a, g in zip(x, gradients, strict=True)]
  assert_close(weights, x)


@pytest.mark.parametrize(
  ("argv", "most"),
  [(FED_ASYNC, 3), (ZENO_PLUS_PLUS, 4)],
  ids=["fed_async", "zeno_plus_plus"],
)
def test_staleness_is_drawn_up_to_its_bound(tmp_path, argv, most):
  result, _ = train(tmp_path, *argv)
  found = {int(x) for x in result["federated"]["staleness"]}
  assert found <= set(range(most + 1)) and len(found) > 1


# Stop and go on.


@pytest.mark.parametrize(
  "argv",
  [FED_ASYNC, SLSGD, ZENO, ZENO_PLUS_PLUS],
  ids=["fed_async", "slsgd", "zeno", "zeno_plus_plus"],
)
def test_run_that_goes_on_equals_one_that_was_not_stopped(tmp_path, argv):
  train(tmp_path / "whole", *argv)
  train(tmp_path / "parts", *argv, "--steps=10")
  # What was done after the checkpoint by a process that was killed.
  with open(tmp_path / "parts" / output.EVENTS, "a") as file:
    file.write('{"kind": "accepted", "serial": 999}\n{"kind')
  train(tmp_path / "parts", *argv)
  assert written(tmp_path / "whole") == written(tmp_path / "parts")


@contextlib.contextmanager
def small_disk(path, size):
  """Makes a folder a file system of its own, as far as that is allowed."""
  path.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
  if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
    pytest.skip("mounting a small file system is not allowed here")
  try:
    yield
  finally:
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_full_disk_leaves_the_checkpoint_before(tmp_path, capsys):
  argv = [*SMALL, "--algorithm=fed_async", "--simulated_staleness=50"]
  disk = tmp_path / "disk"
  with small_disk(disk, 2**21):
    assert main([*argv, f"--output={disk / 'run'}"]) == 0
    free = shutil.disk_usage(disk).free
    # Of 50 models there are 20, which take 190 kB.
    (disk / "filler").write_bytes(bytes(free - 2**16))
    capsys.readouterr()
    assert main([*argv, "--steps=30", f"--output={disk / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("robust-train: the checkpoint of step 25 cannot be")
    assert "No space left on device; the one before it is still" in error
    assert error.count("\n") == 1
    (disk / "filler").unlink()
    assert main([*argv, "--steps=30", f"--output={disk / 'run'}"]) == 0
    found = written(disk / "run")
  assert main([*argv, "--steps=30", f"--output={tmp_path / 'whole'}"]) == 0
  assert found == written(tmp_path / "whole")


# What is written, and shown.


def test_report_and_pictures_are_of_all_events(tmp_path):
  result, _ = train(tmp_path, *ZENO_PLUS_PLUS)
  found = events(tmp_path)
  kinds = [e["kind"] for e in found]
  report = result["federated"]
  assert report["accepted"] == kinds.count("accepted") == STEPS
  assert sum(report["refused"].values()) == kinds.count("refused")
  assert report["started"] == kinds.count("started")
  pushes = [e["device"] for e in found if e["kind"] != "started"]
  assert report["pushes_per_device"] == {
    str(x): pushes.count(x) for x in sorted(set(pushes))
  }
  accepted = sum(x.get("accepted", 0) for x in result["evaluations"])
  assert accepted == STEPS
  for name in (output.PARTICIPATION, output.PARTITION, output.PLOT):
    assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_table_shows_pushes_and_staleness(capsys):
  assert main([*SMALL, *FED_ASYNC]) == 0
  title, head, first, *_ = capsys.readouterr().out.splitlines()
  assert title.startswith("fed_async(mixing_weight=0.8, mixing_decay_steps=8")
  assert title.endswith("against label_flip by 2 of 6 devices")
  assert head.split() == [
    *("step", "test", "loss", "test", "accuracy"),
    *("accepted", "refused", "staleness"),
  ]
  assert first.split()[0] == "0"


def test_participation_without_any_push_is_drawn(tmp_path):
  report = {"staleness": {}, "pushes_per_device": {}}
  draw_participation(report, 3, (1,), str(tmp_path / "a.png"))
  assert (tmp_path / "a.png").stat().st_size > 0


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (
      [*SLSGD, "--trim=3"],
      "--aggregator=trimmed_mean: the aggregator does not work with"
      " arrivals_per_round=5",
    ),
    (
      [*ZENO, "--validation_batch_size=5000"],
      "--validation_batch_size=5000 must be at least 1, and at most the 1437",
    ),
    (
      [*ZENO[:-2], "--attack=worst_case", "--byzantine=1"],
      "--attack=worst_case tries updates out on the rule, which",
    ),
    (
      [*ZENO[:-2], "--attack=a_little_is_enough", "--byzantine=0,1"],
      "--attack=a_little_is_enough needs --z",
    ),
    (
      [*SLSGD, "--byzantine=0-5"],
      "all 5 workers are Byzantine: this attack needs an honest one",
    ),
  ],
)
def test_what_does_not_go_together_is_one_line(capsys, argv, message):
  assert main([*SMALL, *argv]) == 2
  error = capsys.readouterr().err
  assert error.startswith("robust-train: ") and error.count("\n") == 1
  assert message in error


@pytest.mark.slow
def test_interrupted_coordinator_says_so_and_goes_on(tmp_path):
  command = [
    *(sys.executable, "-c"),
    "from robust_tf.training.main import run; run()",
    *SMALL,
    *SLSGD,
    "--steps=100000",
    f"--output={tmp_path}",
  ]
  with subprocess.Popen(
    command, cwd=ROOT, stderr=subprocess.PIPE, text=True
  ) as process:
    try:
      while not (tmp_path / output.CHECKPOINTS / "ckpt-5.index").exists():
        assert process.poll() is None
      process.send_signal(2)
      _, error = process.communicate(timeout=60)
    finally:
      process.kill()
  assert process.returncode == 130
  assert error.splitlines()[-1] == "robust-train: interrupted"


@pytest.mark.slow
def test_run_of_which_all_is_refused_ends(capsys):
  argv = [*SMALL, "--algorithm=zeno_plus_plus", "--rho=1e6"]
  assert main(argv) == 1
  assert "the last 1000 pushes were refused" in capsys.readouterr().err
