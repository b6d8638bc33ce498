"""The demo tells a placed model that works from one that does not."""

import pytest

from baechi_tf.graph_item import read_item
from baechi_tf.saved_model import write_saved_model
from tests import models
from tests.tensorflow_setup import DEVICES
from tests.tensorflow_setup import run_script

RUN = "import runpy; runpy.run_module('tools.demo', run_name='__main__')"

pytestmark = pytest.mark.slow


def _place(directory, devices):
  """Places the ops that work on `w` on the first device, the rest on the last.

  Returns:
    The paths of the model and of the placed one.
  """
  source = models.save_mlp(directory / "mlp")
  item = read_item(source, signature="train")
  readers = {"w"}
  for node in item.graph_def.node:
    if any(name.split(":")[0].lstrip("^") in readers for name in node.input):
      if "ReadVariableOp" in node.op or "Assign" in node.op:
        readers.add(node.name)
  device_of = {
    name: devices[0 if name in readers else -1] for name in item.op_names
  }
  write_saved_model(source, str(directory / "placed"), item, device_of)
  return source, str(directory / "placed")


def test_same_losses_on_two_devices_succeed(tmp_path):
  result = run_script(RUN, *_place(tmp_path, DEVICES[:2]))
  assert result.returncode == 0, result.stderr
  assert "3 steps: losses agree" in result.stdout
  assert "ops ran on 2 devices" in result.stdout


def test_one_device_fails(tmp_path):
  result = run_script(RUN, *_place(tmp_path, DEVICES[:1]))
  assert result.returncode == 1, result.stderr
  assert "ops ran on 1 devices" in result.stdout
