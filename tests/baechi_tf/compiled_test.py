import pathlib
import subprocess
import sys

import numba
import pytest

from baechi_tf import compiled


def cache_of(environment):
  """Returns where a process with this environment caches machine code."""
  script = "from baechi_tf import compiled; print(compiled._cache_folder())"
  done = subprocess.run(
    [sys.executable, "-c", script],
    env={"PYTHONPATH": ":".join(sys.path), **environment},
    check=True,
    capture_output=True,
    text=True,
    timeout=120,
  )
  return pathlib.Path(done.stdout.strip())


def test_cache_is_where_numba_is_told(tmp_path):
  folder = cache_of({"NUMBA_CACHE_DIR": str(tmp_path)})
  assert folder.parent == tmp_path


def test_cache_is_named_after_the_compiled_sources(tmp_path, monkeypatch):
  folder = cache_of({"NUMBA_CACHE_DIR": str(tmp_path)})
  again = cache_of({"NUMBA_CACHE_DIR": str(tmp_path)})
  assert folder == again
  source = tmp_path / "package" / "loop.py"
  source.parent.mkdir()
  monkeypatch.setattr(compiled, "_PACKAGE", source.parent)
  names = set()
  for text in ("", "# compiled import", "# compiled import, changed"):
    source.write_text(text)
    names.add(compiled._cache_folder.__wrapped__())
  assert len(names) == 3


@pytest.mark.parametrize("is_file", [False, True])
def test_cache_goes_to_a_private_folder_if_nothing_else_can_be_written(
  tmp_path, monkeypatch, is_file
):
  # A path below a file can be no folder, whoever asks.
  blocked = tmp_path / "file"
  blocked.write_text("")
  monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
  monkeypatch.setattr(compiled, "_PACKAGE", blocked)
  home = blocked if is_file else tmp_path / "home"
  monkeypatch.setenv("XDG_CACHE_HOME", str(home))
  root = compiled._root()
  if is_file:
    assert root.stat().st_mode & 0o777 == 0o700
    root.rmdir()
  else:
    assert root == home


def test_compiling_leaves_numbas_setting_alone():
  before = numba.config.CACHE_DIR
  double = compiled.compiled(lambda x: x * 2)
  assert double(3) == 6
  assert numba.config.CACHE_DIR == before
