"""Damaged inputs end in one message; and the harness sees what does not."""

import os
import sys

import pytest

from baechi_tf.cli import progress
from tools import fuzz_inputs
from tools.fuzzing import cases
from tools.fuzzing.cases import Command

# What faulty commands do, and what the harness says of them.
_FAULTY = {
  "traceback": (lambda argv: 1 // 0, "ZeroDivisionError"),
  "exit code": (lambda argv: 1, "exit code 1"),
  "two lines": (lambda argv: print("a\nb", file=sys.stderr), "2 lines on std"),
  "native": (lambda argv: os.write(2, b"a\nb\n") * 0, "2 lines on stderr"),
  "no reason": (lambda argv: 2, "0 lines on stderr at exit code 2"),
  "left behind": (lambda argv: open("left", "w").close() or 2, "leaves left"),
  "controls": (lambda argv: print("\x1b[2J"), "prints control characters"),
}


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(progress, "INTERVAL_S", 1000.0)


@pytest.mark.parametrize("kind", list(_FAULTY))
def test_faulty_command_is_seen(kind):
  main, message = _FAULTY[kind]
  command = Command(lambda argv: main(argv) or 0, ("x",))
  wrong, _ = cases.faults([command])
  assert wrong and any(message in fault for fault in wrong)


def test_command_that_must_succeed_is_seen_to_fail():
  def fail(argv):
    print("no plan", file=sys.stderr)
    return 3

  assert cases.faults([Command(fail, ("x",))]) == ([], [3])
  wrong, _ = cases.faults([Command(fail, ("x",), must_succeed=True)])
  assert wrong == ["x: exit code 3: no plan"]


def _check(name: str, num_cases: int, seed: int = 0) -> None:
  (kind,) = fuzz_inputs.formats([name])
  ends = set()
  for wrong, code in fuzz_inputs.outcomes(kind, seed, range(num_cases)):
    assert wrong == []
    ends.add(code)
  assert {0, 2} <= ends  # some damage is harmless, some is refused


@pytest.mark.parametrize("name", ["cost_graph", "cluster", "placement"])
def test_damaged_planning_input_ends_in_one_message(name):
  _check(name, 150)


# Keras 3.15 saves variables through NumPy's old array protocol.
@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.parametrize(
  "name", ["profile", "graph_pb", "graph_pbtxt", "saved_model", "keras"]
)
def test_damaged_model_ends_in_one_message(name):
  _check(name, 15)
