"""The training job: it computes what its flags say, however it is spread."""

import json
import os
import pathlib
import shutil
import statistics

import keras
import numpy as np
import pytest

from robust_tf.attacks import flip_labels
from robust_tf.training import experiment
from robust_tf.training import output
from robust_tf.training.batches import WorkerBatches
from robust_tf.training.data import load
from robust_tf.training.evaluation import test_function as make_test
from robust_tf.training.main import main
from robust_tf.training.models import mlp
from robust_tf.training.plot import draw_curves
from robust_tf.training.plot import draw_partition
from robust_tf.training.progress import StepProgress
from robust_tf.training.settings import parse_settings
from tests.robust_tf.perceptron import gradient
from tests.tensorflow_setup import run_script
from tests.tensorflow_setup import tf

# NumPy 2 asks for an argument of __array__ that TensorFlow 2.21 does not take,
# where Keras writes a model.
pytestmark = pytest.mark.filterwarnings(
  "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)
ROOT = pathlib.Path(__file__).parents[2]
SMALL = ("--workers=4", "--batch_size=8", "--evaluate_every=10", "--steps=20")
DIGITS = load("digits")
# What only runs with few devices at a time write.
FEDERATED = {output.EVENTS, output.PARTICIPATION, output.PROCESSES}


def train(folder, *argv):
  """Runs the command; returns what it wrote, and the weights it ended with."""
  assert main([*SMALL, *argv, f"--output={folder}"]) == 0
  return outcome(folder)


def outcome(folder):
  with open(os.path.join(folder, output.RESULT), encoding="utf-8") as file:
    result = json.load(file)
  model = keras.models.load_model(os.path.join(folder, output.MODEL))
  return result, model.get_weights()


def assert_close(weights, others, atol):
  for mine, other in zip(weights, others, strict=True):
    np.testing.assert_allclose(mine, other, rtol=0, atol=atol)


# A literal replay in float64.


def replay(batches, rule, steps, rates, momentum=0.0):
  """Trains the perceptron on the workers' batches; returns its weights."""
  model = mlp(DIGITS.input_shape, 10, seed=batches.seed)
  weights = [w.astype(np.float64) for w in model.get_weights()]
  velocity = [np.zeros_like(w) for w in weights]
  workers = range(len(batches.parts))
  for step in range(steps):
    updates = [gradient(weights, *batches.batch([i], step)) for i in workers]
    aggregate = rule(
      [np.stack(rows) for rows in zip(*updates, strict=True)], step
    )
    velocity = [
      momentum * v - rates[step] * g
      for v, g in zip(velocity, aggregate, strict=True)
    ]
    weights = [w + v for w, v in zip(weights, velocity, strict=True)]
  return weights


def worker_batches(seed, **changes):
  from robust_tf.federated.partition import iid

  parts = iid(DIGITS.y_train, 4, seed)
  return WorkerBatches(load("digits", seed), parts, 8, seed, **changes)


def mean(rows, step):
  del step
  return [r.mean(axis=0) for r in rows]


def attacked_median(rows, step):
  """The median; from step 5 on workers 0 and 2 send -2 x the others' mean."""
  rows = [r.copy() for r in rows]
  if step >= 5:
    for r in rows:
      r[[0, 2]] = -2 * r[[1, 3]].mean(axis=0)
  return [np.median(r, axis=0) for r in rows]


def test_mean_of_honest_workers_equals_a_replay(tmp_path):
  _, weights = train(tmp_path, "--seed=3")
  assert_close(weights, replay(worker_batches(3), mean, 20, [0.1] * 20), 1e-5)


def test_attack_rule_momentum_and_schedule_equal_a_replay(tmp_path):
  _, weights = train(
    tmp_path,
    "--aggregator=median",
    "--attack=inner_product",
    "--epsilon=2",
    "--byzantine=0,2",
    "--attack_start_step=5",
    "--optimizer=momentum",
    "--momentum=0.5",
    "--decay_steps=8,15",
    "--decay_factor=0.5",
  )
  rates = [0.1] * 8 + [0.05] * 7 + [0.025] * 5
  expected = replay(worker_batches(0), attacked_median, 20, rates, momentum=0.5)
  assert_close(weights, expected, 1e-5)


def test_label_flip_equals_a_replay(tmp_path):
  _, weights = train(
    tmp_path, "--attack=label_flip", "--byzantine=1", "--attack_start_step=7"
  )
  flipped = worker_batches(0, flipped_workers=(1,), flipped_from=7)
  assert_close(weights, replay(flipped, mean, 20, [0.1] * 20), 1e-5)
  _, labels = flipped.batch([1], 7)
  honest = worker_batches(0).batch([1], 7)[1]
  np.testing.assert_array_equal(labels, flip_labels(honest, 10))


# The same numbers, however workers are spread over devices.

SPREAD = {
  "mean": (),
  "attacked": (
    "--aggregator=trimmed_mean",
    "--trim=1",
    "--attack=gaussian",
    "--byzantine=2",
    "--optimizer=adam",
    "--learning_rate=0.01",
    "--partition=dirichlet",
    "--dirichlet_alpha=1",
  ),
  "krum": ("--aggregator=geometric_median", "--attack=mimic", "--byzantine=1"),
  "zeno": (
    "--aggregator=zeno",
    "--num_suspected=1",
    "--attack=sign_flip",
    "--byzantine=3",
  ),
}


# In a process of its own, which ends without collecting what replicas leave
# behind: TensorFlow waits then, for seconds or minutes, and does nothing.
SPREAD_OUT = """\
import gc
import os
import sys
from tests.tensorflow_setup import tf
from robust_tf.training.main import main
gc.disable()
folder, *argv = sys.argv[1:]
for replicas in (1, 2, 4):
  mirrored = ["--strategy=mirrored", f"--replicas={replicas}"]
  strategy = mirrored if replicas > 1 else ["--strategy=none"]
  if main([*argv, *strategy, f"--output={folder}/{replicas}"]):
    sys.exit(1)
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("case", SPREAD)
def test_real_replicas_give_the_numbers_of_simulated_workers(tmp_path, case):
  argv = (str(tmp_path), *SMALL, *SPREAD[case])
  done = run_script(SPREAD_OUT, *argv, timeout_s=600)
  assert done.returncode == 0, done.stderr
  one, weights = outcome(tmp_path / "1")
  for replicas in (2, 4):
    other, others = outcome(tmp_path / str(replicas))
    assert_close(weights, others, 1e-6)
    for a, b in zip(one["evaluations"], other["evaluations"], strict=True):
      assert a.keys() == b.keys()
      assert a == pytest.approx(b, abs=1e-4)


# What a run leaves.


def test_result_says_all_that_is_needed_to_repeat_the_run(tmp_path):
  argv = ("--attack=sign_flip", "--byzantine=0", "--partition=by_label")
  result, _ = train(tmp_path / "a", *argv)
  assert set(os.listdir(tmp_path / "a")) == output.FILES - FEDERATED
  assert result["flags"]["byzantine"] == "0"
  assert result["versions"]["tensorflow"] == tf.__version__
  assert [x["step"] for x in result["evaluations"]] == [0, 10, 20]
  assert result["data"]["sha256"] == DIGITS.digest()
  final = result["final"]
  assert {"step", "test_accuracy", "test_loss", "train_loss"} <= final.keys()
  assert final["rows_accepted"] == 4 and final["rows_non_finite"] == 0
  flagfile = f"--flagfile={tmp_path / 'a' / output.FLAGS}"
  assert main([flagfile, f"--output={tmp_path / 'b'}"]) == 0
  first, second = (
    (tmp_path / name / output.RESULT).read_bytes() for name in "ab"
  )
  assert first == second


def test_derived_argument_of_an_attack_is_told(tmp_path, capsys):
  argv = ["--workers=5", "--batch_size=8", "--steps=1"]
  argv += ["--attack=a_little_is_enough", "--byzantine=0,1"]
  assert main([*argv, f"--output={tmp_path}"]) == 0
  # One of three honest workers must side with the two.
  z = statistics.NormalDist().inv_cdf(2 / 3)
  first, *_ = capsys.readouterr().out.splitlines()
  assert (
    first == f"mean against a_little_is_enough(z={z:.4g}) by 2 of 5 workers"
  )
  with open(tmp_path / output.RESULT, encoding="utf-8") as file:
    assert json.load(file)["attack_derived"] == {"z": z}


def test_saved_model_is_the_one_that_was_evaluated(tmp_path):
  result, _ = train(tmp_path)
  model = keras.models.load_model(tmp_path / output.MODEL)
  found = make_test(model, DIGITS)()
  final = result["final"]
  assert found == pytest.approx({name: final[name] for name in found})


def test_evaluation_equals_its_definition():
  model = mlp(DIGITS.input_shape, 10, seed=1)
  found = make_test(model, DIGITS)()
  logits = model(DIGITS.x_test).numpy().astype(np.float64)
  probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  rows = np.arange(len(logits))
  loss = -np.log(probabilities[rows, DIGITS.y_test]).mean()
  accuracy = np.mean(logits.argmax(axis=1) == DIGITS.y_test)
  assert found == pytest.approx(
    {"test_loss": loss, "test_accuracy": accuracy}, rel=1e-6
  )


def test_logs_hold_every_evaluation_by_step(tmp_path):
  result, _ = train(tmp_path)
  (log,) = (tmp_path / output.LOGS).iterdir()
  logged = {}
  for event in tf.compat.v1.train.summary_iterator(str(log)):
    for value in event.summary.value:
      number = float(tf.make_ndarray(value.tensor))
      logged.setdefault(event.step, {})[value.tag] = number
  assert sorted(logged) == [0, 10, 20]
  for evaluation in result["evaluations"]:
    step = evaluation.pop("step")
    assert logged[step] == pytest.approx(evaluation, rel=1e-6)


def test_nothing_is_written_without_an_output(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert main([*SMALL, "--attack=sign_flip", "--byzantine=0"]) == 0
  assert os.listdir(tmp_path) == []
  out, err = capsys.readouterr()
  assert out.startswith("mean against sign_flip by 1 of 4 workers\nstep  ")
  assert len(out.splitlines()) == 5
  assert err == ""


def test_diverged_run_has_a_result_that_json_can_hold(tmp_path):
  argv = ("--attack=omniscient", "--byzantine=0", "--model=cnn")
  result, _ = train(tmp_path, *argv)
  assert result["final"]["test_loss"] is None
  assert result["final"]["test_accuracy"] == 0


def test_last_steps_are_evaluated_though_no_multiple(tmp_path):
  result, _ = train(tmp_path, "--steps=13")
  assert [x["step"] for x in result["evaluations"]] == [0, 10, 13]


def test_cnn_learns_from_an_npz_file(tmp_path):
  path = tmp_path / "digits.npz"
  images = (DIGITS.x_train[:200, ..., 0] * 100 + 100).astype(np.uint8)
  np.savez(
    path,
    x_train=images,
    y_train=DIGITS.y_train[:200],
    x_test=images[:50],
    y_test=DIGITS.y_train[:50],
  )
  result, weights = train(
    tmp_path / "run", f"--data={path}", "--model=cnn", "--steps=30"
  )
  losses = [x["test_loss"] for x in result["evaluations"]]
  assert losses[-1] < losses[0]
  assert len(weights) == 8


@pytest.mark.parametrize("name", ["digits_zeno_majority", "digits_krum_ipm"])
def test_experiment_of_a_flagfile_runs(name, capsys):
  flagfile = ROOT / f"configs/train/{name}.flags"
  short = ("--steps=2", "--evaluate_every=1")
  assert main([f"--flagfile={flagfile}", *short]) == 0
  assert len(capsys.readouterr().out.splitlines()) == 5


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_for_terminals(capsys, monkeypatch, terminal):
  monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
  with StepProgress(total=20) as progress:
    progress(0, {"test_accuracy": 0.1})
    progress(7, {"loss": 1.23456, "rows_accepted": 3.0, "other": 1.0})
  out, err = capsys.readouterr()
  assert out == ""
  shown = "loss 1.235, accuracy 0.1000, 3.0 rows accepted"
  assert (shown in err) is terminal
  assert ("7/20" in err) is terminal
  assert bool(err) is terminal


# Going on.


def test_more_steps_end_as_if_asked_for_at_once(tmp_path):
  argv = SPREAD["zeno"]
  train(tmp_path / "parts", *argv, "--steps=10")
  parts, _ = train(tmp_path / "parts", *argv)
  whole, _ = train(tmp_path / "whole", *argv)
  assert parts == whole


def test_finished_run_is_found_finished(tmp_path):
  first, _ = train(tmp_path)
  checkpoint = tmp_path / output.CHECKPOINTS / "ckpt-20.index"
  written = checkpoint.stat().st_mtime_ns
  again, _ = train(tmp_path)
  assert again == first
  assert checkpoint.stat().st_mtime_ns == written


def test_overwrite_begins_anew(tmp_path):
  train(tmp_path, "--seed=5")
  anew, _ = train(tmp_path, "--overwrite")
  assert anew["flags"]["seed"] == "0"
  assert [x["step"] for x in anew["evaluations"]] == [0, 10, 20]


def complaint(folder, capsys, *argv):
  capsys.readouterr()
  assert main([*SMALL, *argv, f"--output={folder}"]) == 2
  out, err = capsys.readouterr()
  assert out == "" and err.count("\n") == 1
  return err


def test_checkpoint_of_another_model_is_refused_by_what_differs(
  tmp_path, capsys
):
  train(tmp_path / "mlp")
  train(tmp_path / "cnn", "--model=cnn", "--steps=10")
  err = complaint(tmp_path / "mlp", capsys, "--model=cnn")
  assert "another run: --model=mlp there, --model=cnn here" in err
  # And so are checkpoints that were moved.
  shutil.rmtree(tmp_path / "mlp" / output.CHECKPOINTS)
  shutil.copytree(
    tmp_path / "cnn" / output.CHECKPOINTS,
    tmp_path / "mlp" / output.CHECKPOINTS,
  )
  err = complaint(tmp_path / "mlp", capsys)
  assert "ckpt-10 holds another run: --model=cnn there, --model=mlp here" in err


def test_checkpoint_on_other_data_is_refused(tmp_path, capsys):
  path = tmp_path / "a.npz"
  arrays = {
    "x_train": DIGITS.x_train[:80],
    "y_train": DIGITS.y_train[:80],
    "x_test": DIGITS.x_test,
    "y_test": DIGITS.y_test,
  }
  np.savez(path, **arrays)
  train(tmp_path / "run", f"--data={path}")
  np.savez(path, **{**arrays, "y_train": 9 - arrays["y_train"]})
  err = complaint(tmp_path / "run", capsys, f"--data={path}")
  assert "ckpt-20 was trained on other data than there is now" in err


# What only shows when the job is put together.


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (
      ("--aggregator=krum", "--num_byzantine=2"),
      "--aggregator=krum with --workers=4: .*num_byzantine=2 .* 7",
    ),
    (
      ("--attack=mimic", "--byzantine=0", "--target=0"),
      "--attack=mimic: target=0",
    ),
    (
      ("--attack=a_little_is_enough", "--byzantine=0"),
      "--attack=a_little_is_enough: no z above 0 follows from 1 .* of 4",
    ),
    (
      ("--aggregator=zeno", "--num_suspected=1", "--attack=worst_case",
       "--byzantine=0"),
      "--attack=worst_case tries updates out on the rule",
    ),
    (("--strategy=mirrored", "--replicas=5", "--workers=5"), "--replicas=5"),
  ],
)  # fmt: skip
def test_what_does_not_go_together_is_one_line(capsys, argv, message):
  assert main([*SMALL, *argv]) == 2
  out, err = capsys.readouterr()
  assert out == "" and err.count("\n") == 1
  with pytest.raises(AssertionError, match=message):
    raise AssertionError(err)


def test_cnn_on_what_is_no_image_is_refused(tmp_path, capsys):
  x = np.ones((40, 7), np.float32)
  y = np.arange(40) % 3
  np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x, y_test=y)
  argv = (f"--data={tmp_path / 'a.npz'}", "--model=cnn")
  assert main([*SMALL, *argv]) == 2
  assert "cnn needs images" in capsys.readouterr().err


def test_rate_falls_at_the_given_steps():
  settings = parse_settings(
    ["--learning_rate=1", "--decay_steps=2,5", "--decay_factor=0.1"]
  )
  schedule = experiment.make_optimizer(settings)._learning_rate
  rates = [float(schedule(step)) for step in range(7)]
  assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.01, 0.01])


def test_every_optimizer_can_be_made():
  from robust_tf.training.job_flags import OPTIMIZERS

  for name in OPTIMIZERS:
    made = experiment.make_optimizer(parse_settings([f"--optimizer={name}"]))
    assert float(made.learning_rate) == pytest.approx(0.1)


def test_pictures_are_drawn(tmp_path):
  parts = [np.arange(3), np.arange(3, 10)]
  path = str(tmp_path / "a.png")
  draw_partition(parts, np.arange(10) % 4, path)
  assert tf.io.decode_png(tf.io.read_file(path)).shape[2] in (3, 4)
  evaluations = [
    {"step": 0, "test_accuracy": 0.1, "test_loss": 2.0},
    {"step": 5, "test_accuracy": 0.0, "test_loss": float("nan")},
    {"step": 9, "test_accuracy": 0.0, "test_loss": 1e30},
  ]
  draw_curves(evaluations, 5, "a title", path)
  assert tf.io.decode_png(tf.io.read_file(path)).shape[2] in (3, 4)
