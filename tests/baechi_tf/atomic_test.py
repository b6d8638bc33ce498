import os
import signal
import subprocess
import sys

import pytest

from baechi_tf import atomic


def write_pair(path, text):
  """Writes a directory of two files that say the same."""
  with atomic.replacing_directory(path) as directory:
    for name in ("a", "b"):
      with open(os.path.join(directory, name), "w", encoding="utf-8") as file:
        file.write(text)


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


@pytest.mark.parametrize("can_exchange", [True, False])
def test_replacing_directory_replaces_the_directory(
  tmp_path, monkeypatch, can_exchange
):
  if not can_exchange:
    monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)
  path = tmp_path / "pair"
  write_pair(path, "first")
  (path / "left over").write_text("old")
  write_pair(path, "second")
  assert read_pair(path) == ["second", "second"]
  assert sorted(os.listdir(path)) == ["a", "b"]
  assert os.listdir(tmp_path) == ["pair"]


def test_replacing_directory_failure_keeps_the_old_one(tmp_path):
  path = tmp_path / "pair"
  write_pair(path, "old")
  with pytest.raises(KeyError):
    with atomic.replacing_directory(path) as directory:
      with open(os.path.join(directory, "a"), "w", encoding="utf-8") as file:
        file.write("new")
      raise KeyError
  assert read_pair(path) == ["old", "old"]
  assert os.listdir(tmp_path) == ["pair"]


def test_replacing_directory_errors_name_the_path(tmp_path):
  path = tmp_path / "pair"
  with pytest.raises(FileNotFoundError, match="pair/missing/a'$"):
    with atomic.replacing_directory(path) as directory:
      open(os.path.join(directory, "missing", "a"), "w", encoding="utf-8")
  assert os.listdir(tmp_path) == []


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
  with atomic.replacing_directory(sys.argv[1]) as directory:
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
