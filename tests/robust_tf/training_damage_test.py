"""A run whose files are damaged goes on from what is whole, and says so."""

import os
import pathlib
import random
import shutil

import numpy as np
import pytest

from robust_tf.training import output
from robust_tf.training import saved_steps
from robust_tf.training.main import main
from robust_tf.training.saved_steps import SavedSteps
from tests.tensorflow_setup import tf

# NumPy 2 asks for an argument of __array__ that TensorFlow 2.21 does not take,
# where Keras writes a model.
pytestmark = pytest.mark.filterwarnings(
  "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)
SMALL = ("--data=synthetic", "--workers=4", "--batch_size=8")
STEPS = ("--evaluate_every=10", "--steps=30")
JOBS = {
  "synchronous": ("--optimizer=adam",),
  "federated": (
    "--algorithm=fed_async",
    "--local_steps=1",
    "--simulated_staleness=2",
  ),
}
DATA = "data-00000-of-00001"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """Returns the folder of a job's run that was left alone, made once."""
  folders = {}

  def of(name):
    if name not in folders:
      folders[name] = tmp_path_factory.mktemp(name) / "run"
      argv = [*SMALL, *STEPS, *JOBS[name], f"--output={folders[name]}"]
      assert main(argv) == 0
    return folders[name]

  return of


def truncate(path):
  os.truncate(path, path.stat().st_size // 2)


def remove(path):
  path.unlink()


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def fill_with_rubbish(path):
  path.write_bytes(b"\xff\xfe\0rubbish\n")


def name_a_missing_checkpoint(path):
  path.write_text('model_checkpoint_path: "ckpt-99"\n')


# What is done to which file; the step to go on from; what is told.
DAMAGE = [
  (truncate, f"ckpt-30.{DATA}", 20, "ckpt-30: Read less bytes than requested"),
  (flip, f"ckpt-30.{DATA}", 20, "ckpt-30: TensorBundle at"),
  (remove, f"ckpt-30.{DATA}", 20, "ckpt-30: "),
  (truncate, "ckpt-30.index", 20, "ckpt-30: not an sstable"),
  (remove, "ckpt-30.index", 20, "ckpt-30: its .index is missing"),
  (fill_with_rubbish, "ckpt-30.index", 20, "ckpt-30: "),
  (fill_with_rubbish, "checkpoint", 30, "checkpoint: it names no checkpoint"),
  (name_a_missing_checkpoint, "checkpoint", 30, "ckpt-99: its .index is"),
]


def go_on(name, folder, capsys):
  """Runs a job again; returns the exit code and the lines on stderr."""
  capsys.readouterr()
  code = main([*SMALL, *STEPS, *JOBS[name], f"--output={folder}"])
  return code, capsys.readouterr().err.splitlines()


def result(folder):
  return (folder / output.RESULT).read_bytes()


@pytest.mark.parametrize(
  ("damage", "file", "step", "told"),
  DAMAGE,
  ids=[f"{damage.__name__}_{file}" for damage, file, _, _ in DAMAGE],
)
def test_damage_is_found(whole, tmp_path, damage, file, step, told):
  directory = tmp_path / "checkpoints"
  shutil.copytree(whole("synchronous") / output.CHECKPOINTS, directory)
  damage(directory / file)
  found = saved_steps.read(str(directory))
  assert max(found.whole) == step
  ((name, reason),) = found.damage.items()
  assert f"{name}: {reason}".startswith(told)


@pytest.mark.parametrize(
  ("name", "damage", "file", "step", "told"),
  [
    ("synchronous", *DAMAGE[0]),
    ("federated", *DAMAGE[4]),
    ("federated", *DAMAGE[6]),
  ],
)
def test_run_goes_on_from_the_newest_whole_checkpoint(
  whole, tmp_path, capsys, name, damage, file, step, told
):
  folder = pathlib.Path(shutil.copytree(whole(name), tmp_path / "run"))
  (folder / output.RESULT).unlink()
  damage(folder / output.CHECKPOINTS / file)
  code, (line,) = go_on(name, folder, capsys)
  assert code == 0
  assert line.startswith("robust-train: ")
  assert told in line
  assert line.endswith(f"; the run goes on from ckpt-{step}")
  assert result(folder) == result(whole(name))
  # And what was damaged has been mended.
  found = saved_steps.read(str(folder / output.CHECKPOINTS))
  assert found == SavedSteps((30, 20), (30, 20), {}, False)


@pytest.mark.parametrize("name", JOBS)
def test_run_without_a_whole_checkpoint_is_refused(
  whole, tmp_path, capsys, name
):
  folder = pathlib.Path(shutil.copytree(whole(name), tmp_path / "run"))
  remove(folder / output.CHECKPOINTS / "ckpt-20.index")
  truncate(folder / output.CHECKPOINTS / f"ckpt-30.{DATA}")
  code, (line,) = go_on(name, folder, capsys)
  assert code == 2
  assert f"no checkpoint in {folder / output.CHECKPOINTS} is whole" in line
  assert "ckpt-30: Read less" in line
  assert line.endswith("give --overwrite to begin anew")


def test_checkpoint_whose_events_are_gone_is_not_gone_on_from(
  whole, tmp_path, capsys
):
  folder = pathlib.Path(shutil.copytree(whole("federated"), tmp_path / "run"))
  events = folder / output.EVENTS
  lines = events.read_bytes().splitlines(keepends=True)
  last = b"".join(lines).rindex(b'"kind": "accepted"')
  os.truncate(events, last)
  code, (line,) = go_on("federated", folder, capsys)
  assert code == 0
  assert "events.jsonl: it is shorter than it was at the checkpoint" in line
  assert line.endswith("; the run goes on from ckpt-20")
  assert result(folder) == result(whole("federated"))
  assert events.read_bytes() == b"".join(lines)


@pytest.mark.parametrize(
  ("damage", "told"),
  [(remove, "it is missing"), (flip, "it is not what it was")],
)
def test_run_without_its_events_is_refused(
  whole, tmp_path, capsys, damage, told
):
  folder = pathlib.Path(shutil.copytree(whole("federated"), tmp_path / "run"))
  damage(folder / output.EVENTS)  # before step 20
  code, (line,) = go_on("federated", folder, capsys)
  assert code == 2
  assert f"events.jsonl: {told}" in line
  assert line.endswith("give --overwrite to begin anew")


def test_first_save_that_was_interrupted_is_no_damage(whole, tmp_path, capsys):
  folder = pathlib.Path(shutil.copytree(whole("synchronous"), tmp_path / "run"))
  for name in ("checkpoint", "ckpt-20.index", "ckpt-30.index"):
    remove(folder / output.CHECKPOINTS / name)
  code, (line,) = go_on("synchronous", folder, capsys)
  assert code == 0
  assert line.endswith("was completed; the run begins anew")
  assert result(folder) == result(whole("synchronous"))


def tensors(directory, step):
  reader = tf.train.load_checkpoint(str(directory / f"ckpt-{step}"))
  return {x: reader.get_tensor(x) for x in reader.get_variable_to_shape_map()}


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("file", ["ckpt-30.index", f"ckpt-30.{DATA}"])
def test_every_bit_that_matters_is_checked(whole, tmp_path, name, file):
  directory = tmp_path / "checkpoints"
  shutil.copytree(whole(name) / output.CHECKPOINTS, directory)
  saved = tensors(directory, 30)
  content = (directory / file).read_bytes()
  generator = random.Random(0)
  found = 0
  for _ in range(100):
    flipped = bytearray(content)
    flipped[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    (directory / file).write_bytes(flipped)
    steps = saved_steps.read(str(directory))
    assert (30 in steps.whole) != ("ckpt-30" in steps.damage)
    if 30 in steps.whole:  # a bit of the index that nobody reads
      now = tensors(directory, 30)
      assert now.keys() == saved.keys()
      assert all(np.array_equal(now[x], saved[x]) for x in saved)
    else:
      found += 1
  assert found > 80


def test_state_of_a_data_set_is_checked(tmp_path):
  stream = iter(tf.data.Dataset.range(9).shuffle(9))
  next(stream)
  manager = tf.train.CheckpointManager(
    tf.train.Checkpoint(stream=stream), str(tmp_path), max_to_keep=2
  )
  for step in (20, 30):
    manager.save(checkpoint_number=step)
  assert saved_steps.read(str(tmp_path)).whole == (30, 20)
  flip(tmp_path / f"ckpt-30.{DATA}")
  found = saved_steps.read(str(tmp_path))
  assert found.whole == (20,)
  assert "checksum" in found.damage["ckpt-30"]


def test_damaged_flags_are_one_line(whole, tmp_path, capsys):
  folder = pathlib.Path(shutil.copytree(whole("synchronous"), tmp_path / "run"))
  path = folder / output.FLAGS
  fill_with_rubbish(path)
  code, (line,) = go_on("synchronous", folder, capsys)
  assert code == 2
  assert str(path) in line
  path.unlink()
  code, (line,) = go_on("synchronous", folder, capsys)
  assert code == 2
  assert "and no run.flags" in line


@pytest.mark.parametrize(
  ("rows", "step", "is_damage"),
  [
    ([[0, 30, 20]], 30, False),
    ([[0, 30, 20], [0, 30, 20]], 30, False),
    ([[0, 30, 20], [0, 20, 10]], 20, False),
    ([[0, 30, 20], [1, 20, 0]], 20, False),
    ([[0, 20, 0], [1, 30, 0]], 0, True),
    ([[0, 30, 20], [0, 0, 0]], 0, True),
    ([[0, 0, 0], [1, 0, 0]], 0, True),
    ([[0, 10, 0], [0, 0, 0], [0, 10, 0]], 0, False),
    ([[0, 0, 0], [0, 0, 0]], 0, False),
  ],
)
def test_processes_go_on_from_one_step(rows, step, is_damage):
  agreed, damage = saved_steps.agreed_step(rows)
  assert agreed == step
  assert bool(damage) == is_damage
