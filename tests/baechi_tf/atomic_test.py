import os
import signal
import subprocess
import sys

import pytest

from baechi_tf import atomic


def replace(path):
  """Lets an output replace anything."""


def keep(path):
  raise ValueError("must stay")


def stage_pair(outputs, path, text, check_replaced=replace):
  """Stages a directory of two files that say the same."""
  with outputs.directory(path, check_replaced) as directory:
    for name in ("a", "b"):
      with open(os.path.join(directory, name), "w", encoding="utf-8") as file:
        file.write(text)


def write_pair(path, text):
  with atomic.publishing() as outputs:
    stage_pair(outputs, path, text)


def read_pair(path):
  return [(path / name).read_text() for name in ("a", "b")]


def test_write_text_replaces_the_file(tmp_path):
  path = tmp_path / "file"
  atomic.write_text(path, ["first"])
  atomic.write_text(path, ["sec", "ond é"])
  assert path.read_text(encoding="utf-8") == "second é"
  assert os.listdir(tmp_path) == ["file"]


def test_write_bytes_failure_keeps_the_old_file(tmp_path):
  path = tmp_path / "file"
  path.write_bytes(b"old")

  def chunks():
    yield b"new"
    raise OSError(28, "No space left on device")

  with pytest.raises(OSError, match="No space left on device: '.*/file'"):
    atomic.write_bytes(path, chunks())
  assert path.read_bytes() == b"old"
  assert os.listdir(tmp_path) == ["file"]


def test_write_text_no_parent_names_the_path(tmp_path):
  with pytest.raises(FileNotFoundError, match="No such file.*none"):
    atomic.write_text(tmp_path / "none" / "file", ["text"])


@pytest.fixture(params=[True, False], ids=["renameat2", "fallback"])
def any_file_system(request, monkeypatch):
  """File systems that know the flags of renameat2, and those that do not."""
  if not request.param:
    monkeypatch.setattr(
      atomic, "_renameat2", lambda first, second, flags: False
    )


def test_directory_replaces_the_directory(tmp_path, any_file_system):
  path = tmp_path / "pair"
  write_pair(path, "first")
  (path / "left over").write_text("old")
  write_pair(path, "second")
  assert read_pair(path) == ["second", "second"]
  assert sorted(os.listdir(path)) == ["a", "b"]
  assert os.listdir(tmp_path) == ["pair"]


def test_directory_failure_keeps_the_old_one(tmp_path):
  path = tmp_path / "pair"
  write_pair(path, "old")
  with pytest.raises(KeyError):
    with atomic.publishing() as outputs:
      stage_pair(outputs, path, "new")
      raise KeyError
  assert read_pair(path) == ["old", "old"]
  assert os.listdir(tmp_path) == ["pair"]


def test_directory_errors_name_the_path(tmp_path):
  path = tmp_path / "pair"
  with pytest.raises(FileNotFoundError, match="pair/missing/a'$"):
    with (
      atomic.publishing() as outputs,
      outputs.directory(path, replace) as directory,
    ):
      open(os.path.join(directory, "missing", "a"), "w", encoding="utf-8")
  assert os.listdir(tmp_path) == []


def test_second_writer_of_a_new_path_loses(tmp_path, any_file_system):
  with pytest.raises(ValueError, match="must stay"):
    with atomic.publishing() as slow:
      slow.write_text(tmp_path / "file", ["slow"], keep)
      stage_pair(slow, tmp_path / "pair", "slow", keep)
      with atomic.publishing() as fast:
        fast.write_text(tmp_path / "file", ["fast"], keep)
        stage_pair(fast, tmp_path / "pair", "fast", keep)
  assert (tmp_path / "file").read_text() == "fast"
  assert read_pair(tmp_path / "pair") == ["fast", "fast"]
  assert sorted(os.listdir(tmp_path)) == ["file", "pair"]


@pytest.mark.parametrize("old", ["old", None])
def test_failed_publication_takes_back_the_earlier_ones(
  tmp_path, any_file_system, old
):
  if old:
    (tmp_path / "file").write_text(old)
    write_pair(tmp_path / "pair", old)
  (tmp_path / "taken").write_text("other")
  before = sorted(os.listdir(tmp_path))
  with pytest.raises(ValueError, match="must stay"):
    with atomic.publishing() as outputs:
      outputs.write_text(tmp_path / "file", ["new"])
      stage_pair(outputs, tmp_path / "pair", "new")
      outputs.write_text(tmp_path / "taken", ["new"], keep)
  assert sorted(os.listdir(tmp_path)) == before
  assert (tmp_path / "taken").read_text() == "other"
  if old:
    assert (tmp_path / "file").read_text() == old
    assert read_pair(tmp_path / "pair") == [old, old]


def test_what_came_between_check_and_exchange_stays(tmp_path, any_file_system):
  path = tmp_path / "output"
  path.write_text("old")

  def check_text(there):
    with open(there, encoding="utf-8") as file:
      text = file.read()
    if text != "old":
      raise ValueError(f"{text} must stay")
    path.write_text("thesis")

  with pytest.raises(ValueError, match="thesis must stay"):
    with atomic.publishing() as outputs:
      outputs.write_text(path, ["new"], check_text)
  assert path.read_text() == "thesis"
  assert os.listdir(tmp_path) == ["output"]


def test_symbolic_link_stays_and_its_target_is_replaced(tmp_path):
  for kind, write, read in (
    ("file", lambda path: atomic.write_text(path, ["new"]), os.path.isfile),
    ("pair", lambda path: write_pair(path, "new"), os.path.isdir),
  ):
    (tmp_path / "elsewhere").mkdir(exist_ok=True)
    target, link = tmp_path / "elsewhere" / kind, tmp_path / kind
    link.symlink_to(target)
    for _ in range(2):
      write(link)
      assert link.readlink() == target
      assert read(target)
  assert sorted(os.listdir(tmp_path)) == ["elsewhere", "file", "pair"]
  assert sorted(os.listdir(tmp_path / "elsewhere")) == ["file", "pair"]


def test_longest_name_is_written(tmp_path):
  path = tmp_path / ("x" * 255)
  atomic.write_text(path, ["text"])
  assert path.read_text() == "text"


def test_files_that_look_like_ours_stay(tmp_path):
  staging = f".baechi-{0:032x}"
  (tmp_path / staging).mkdir()
  (tmp_path / staging / "lock").write_text("mine")
  for name in (".file.baechi-notes", f".baechi-{1:032x}", f".file{staging}"):
    (tmp_path / name).write_text("mine")
  before = sorted(os.listdir(tmp_path))
  atomic.write_text(tmp_path / "file", ["text"])
  assert sorted(os.listdir(tmp_path)) == sorted([*before, "file"])


def test_staging_of_a_process_killed_at_its_beginning_or_end_is_removed(
  tmp_path,
):
  (tmp_path / f".baechi-{0:032x}").mkdir()
  (tmp_path / f".baechi-{1:032x}").mkdir()
  (tmp_path / f".baechi-{1:032x}" / "baechi_tf.lock").touch()
  atomic.write_text(tmp_path / "file", ["text"])
  assert os.listdir(tmp_path) == ["file"]


def test_error_without_a_number_names_the_path(tmp_path):
  path = tmp_path / "file"
  with pytest.raises(OSError, match="it broke: '.*/file'"):
    with atomic.publishing() as outputs, outputs.directory(path, keep):
      raise OSError("it broke")


# Waits in the middle of a write until it is killed.
_WRITER = """
import os, sys, time
from baechi_tf import atomic
if sys.argv[2] == "file":
  def chunks():
    yield b"half"
    print("ready", flush=True)
    time.sleep(60)
  atomic.write_bytes(sys.argv[1], chunks())
else:
  with atomic.publishing() as outputs:
    with outputs.directory(sys.argv[1], print) as directory:
      open(os.path.join(directory, "a"), "w").write("half")
      print("ready", flush=True)
      time.sleep(60)
"""


def start_writer(path, kind):
  root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
  writer = subprocess.Popen(
    [sys.executable, "-c", _WRITER, str(path), kind],
    stdout=subprocess.PIPE,
    env={**os.environ, "PYTHONPATH": root},
  )
  assert writer.stdout.readline() == b"ready\n"
  return writer


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_killed_writer_leaves_the_old_and_is_cleaned_up_after(tmp_path, kind):
  path = tmp_path / "output"
  write = {
    "file": lambda text: atomic.write_text(path, [text]),
    "directory": lambda text: write_pair(path, text),
  }[kind]
  read = {
    "file": lambda: path.read_text(),
    "directory": lambda: read_pair(path)[0],
  }[kind]
  write("old")
  with start_writer(path, kind) as writer:
    # A writer that is at work is left alone.
    write("newer")
    assert len(os.listdir(tmp_path)) == 2
    writer.send_signal(signal.SIGKILL)
  assert read() == "newer"
  assert len(os.listdir(tmp_path)) == 2
  write("newest")
  assert read() == "newest"
  assert os.listdir(tmp_path) == ["output"]
