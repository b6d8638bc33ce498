"""The check tells a placed model that works from one that does not."""

import dataclasses

import numpy as np
import pytest

from baechi_tf.costs.inputs import synthesize_inputs
from baechi_tf.costs.measured import measure
from baechi_tf.graph_item import read_item
from baechi_tf.saved_model import write_saved_model
from tests import models
from tests.tensorflow_setup import DEVICES
from tests.tensorflow_setup import run_script
from tools import op_fates
from tools import step_run
from tools.placed_model import PlacedModel
from tools.placed_model import run_model

SAVERS = {
  "train": models.save_mlp,
  "loop": models.save_loop,
  "two_loops": models.save_two_loops,
  "ordered": models.save_ordered,
}
RUN = (
  "import runpy; runpy.run_module('tools.check_placed', run_name='__main__')"
)


@pytest.fixture(autouse=True)
def rewriting_is_on_afterwards():
  yield
  step_run.set_rewriting(True)


def place(directory, kind="train", devices=DEVICES[:2]):
  """Spreads a small model over devices.

  Returns:
    The paths of the model and of the placed one, and the signature.
  """
  source = SAVERS[kind](directory / "model")
  signature = "train" if kind == "train" else "run"
  item = read_item(source, signature=signature)
  target = str(directory / "placed")
  write_saved_model(source, target, item, models.spread(item, devices))
  return source, target, signature


def run_both(source, target, signature, *, rewritten=False):
  model = run_model(source, signature, 3, rewritten=rewritten)
  return PlacedModel(target, signature).check(model, rewritten=rewritten)


@pytest.mark.parametrize("rewritten", [True, False])
@pytest.mark.parametrize("kind", SAVERS)
def test_placed_model_passes(kind, rewritten, tmp_path):
  check = run_both(*place(tmp_path, kind), rewritten=rewritten)
  assert check.passes
  explained = {op_fates.INPUT, op_fates.BOUNDARY}
  assert {x.fate for x in check.account.exceptions} <= explained


def test_op_in_a_fused_kernel_is_on_its_device(tmp_path):
  source, target = models.save_cnn(tmp_path / "model"), str(tmp_path / "placed")
  item = read_item(source, signature="train")
  costs = measure(item, synthesize_inputs(item, 2), num_steps=1)
  device_of = models.spread(item, DEVICES[:2])
  for name, cost in costs.items():
    device_of[name] = device_of[cost.fused_into or name]
  write_saved_model(source, target, item, device_of)
  check = run_both(source, target, "train")
  assert check.passes
  fused = [x for x in check.account.fates if x.fate == op_fates.FUSED]
  assert {x.op_type for x in fused} == {"Conv2D", "BiasAddGrad"}


def test_every_op_is_found_if_nothing_is_rewritten(tmp_path):
  found = run_both(*place(tmp_path)).account
  nowhere = [x for x in found.fates if not x.found]
  assert {x.fate for x in nowhere} == {op_fates.BOUNDARY}
  assert found.judged == found.fates
  assert found.count(op_fates.VARIABLE) == 3
  assert found.count(op_fates.INPUT) == 2


def test_folded_and_removed_ops_are_not_judged(tmp_path):
  found = run_both(*place(tmp_path), rewritten=True).account
  assert found.count(op_fates.FOLDED) > 0
  assert found.count(op_fates.REMOVED) > 0
  assert all(x.survives and x.found for x in found.judged)


@pytest.mark.parametrize("op_type", ["MatMul", "VarHandleOp"])
def test_op_elsewhere_is_not_explained(op_type, tmp_path):
  source, target, signature = place(tmp_path)
  placed = PlacedModel(target, signature)
  name = next(
    x.name for x in placed.item.graph_def.node if x.op == op_type
    if x.name in placed.device_of
  )  # fmt: skip
  placed.device_of = {**placed.device_of, name: DEVICES[3]}
  model = run_model(source, signature, 1, rewritten=False)
  check = placed.check(model, rewritten=False)
  assert [x.name for x in check.account.unexplained] == [name]
  assert not check.passes


def test_loop_elsewhere_is_not_explained(tmp_path):
  source, target, signature = place(tmp_path, "loop")
  placed = PlacedModel(target, signature)
  (name,) = (x.name for x in placed.item.graph_def.node if x.op == "While")
  placed.device_of = {**placed.device_of, name: DEVICES[3]}
  model = run_model(source, signature, 1, rewritten=True)
  check = placed.check(model, rewritten=True)
  assert [x.name for x in check.account.unexplained] == [name]


def test_one_device_does_not_pass(tmp_path):
  check = run_both(*place(tmp_path, devices=DEVICES[:1]))
  assert check.difference.is_same
  assert not check.passes


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  path = models.save_mlp(tmp_path_factory.mktemp("run") / "model")
  return run_model(path, "train", 2, rewritten=False)


@pytest.mark.parametrize(
  ("change", "same", "same_exactly"),
  [(0.0, True, True), (1e-6, True, False), (1e-2, False, False)]
  + [(np.nan, False, False)],
)
def test_compare_variables(run, change, same, same_exactly):
  final = [run.final[0] + np.float32(change), *run.final[1:]]
  other = dataclasses.replace(run, final=final)
  assert step_run.compare(run, other).is_same == same
  difference = step_run.compare(run, other, exactly=True)
  assert difference.is_same == same_exactly
  assert difference.variable == pytest.approx(change, rel=0.1, nan_ok=True)
  assert difference.num_changed == 3


def test_compare_outputs(run):
  outputs = [dict(x) for x in run.outputs]
  outputs[1]["loss"] = outputs[1]["loss"] * np.float32(1.01)
  difference = step_run.compare(run, dataclasses.replace(run, outputs=outputs))
  assert difference.output == pytest.approx(0.01, rel=1e-3)
  assert not difference.is_same


def test_compare_other_beginnings_is_rejected(run):
  initial = [x + 1 for x in run.initial]
  with pytest.raises(ValueError, match="differ before the first step"):
    step_run.compare(run, dataclasses.replace(run, initial=initial))


def test_unknown_signature_is_rejected(tmp_path):
  path = models.save_mlp(tmp_path / "model")
  with pytest.raises(ValueError, match="'fly'; there are serving_default, tr"):
    run_model(path, "fly", 1, rewritten=True)


def test_plan_of_another_step_is_rejected(tmp_path):
  source, target, signature = place(tmp_path)
  placed = PlacedModel(target, signature)
  placed.device_of = {"nowhere": DEVICES[0]}
  model = run_model(source, signature, 1, rewritten=True)
  with pytest.raises(ValueError, match="not one of this step: see op"):
    placed.check(model, rewritten=True)


def test_tf1_model_is_rejected(tmp_path):
  source = models.save_v1(tmp_path / "model", use_resource=True)
  model = run_model(source, "train", 1, rewritten=True)
  with pytest.raises(ValueError, match="not one function, as a TF2 model"):
    PlacedModel(source, "train").check(model, rewritten=True)


@pytest.mark.slow
def test_command_shows_both_ways_and_succeeds(tmp_path):
  source, target, _ = place(tmp_path)
  result = run_script(RUN, source, target)
  assert result.returncode == 0, result.stderr
  assert "== as TensorFlow rewrites it ==" in result.stdout
  assert "== as it is written ==" in result.stdout
  assert result.stdout.count("3 steps: outputs and variables agree") == 2
  assert "the steps changed 3 of 3 variables" in result.stdout


@pytest.mark.slow
def test_command_fails_on_one_device(tmp_path):
  source, target, _ = place(tmp_path, devices=DEVICES[:1])
  result = run_script(RUN, source, target)
  assert result.returncode == 1, result.stderr
  assert "ops ran on 1 devices" in result.stdout
