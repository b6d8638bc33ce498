import numpy as np
import pytest

from baechi_tf.cluster import Cluster
from baechi_tf.cluster import Device
from baechi_tf.cluster import DeviceType
from baechi_tf.cluster import Link
from baechi_tf.costs.profile import OpCost
from baechi_tf.graph_item import read_item
from baechi_tf.placement import InfeasiblePlacementError
from baechi_tf.placement_pass import place
from baechi_tf.placement_pass import PlacementPass
from baechi_tf.saved_model import load
from tests import models
from tests.tensorflow_setup import DEVICES
from tests.tensorflow_setup import session
from tests.tensorflow_setup import tf

# The same kernels; TensorFlow's optimiser may reorder float32 sums.
RTOL = 1e-5
MEMORY = 2**30
TWO_DEVICES = Cluster(
  tuple(Device(name, "CPU", MEMORY) for name in DEVICES[:2]),
  Link(latency_us=1.0, bytes_per_us=1e3),
)


@pytest.fixture(scope="module")
def mlp(tmp_path_factory):
  return models.save_mlp(tmp_path_factory.mktemp("mlp") / "model")


@pytest.fixture(scope="module")
def item(mlp):
  return read_item(mlp, signature="train")


def profile_of(item, time_us=100.0, bytes_each=64):
  """Returns a profile in which every op costs the same."""
  nodes = {node.name: node for node in item.graph_def.node}
  return {
    "CPU": {
      name: OpCost(
        op_type=nodes[name].op,
        compute_time_us=time_us,
        output_bytes=(bytes_each,) * 8,
      )
      for name in item.op_names
    }
  }


def test_optimize_sets_a_device_on_every_planned_op_and_changes_no_more(item):
  before = item.graph_def.SerializeToString(deterministic=True)
  placed = PlacementPass(profile=profile_of(item)).optimize(TWO_DEVICES, item)
  assert item.graph_def.SerializeToString(deterministic=True) == before
  planned = set(item.op_names)
  devices = {node.device for node in placed.node if node.name in planned}
  assert devices == set(DEVICES[:2])
  for node, original in zip(placed.node, item.graph_def.node, strict=True):
    if node.name in planned:
      node.device = original.device
  assert placed.node == item.graph_def.node


def test_optimize_graph_trains_the_same(mlp, item):
  placed = PlacementPass(profile=profile_of(item)).optimize(TWO_DEVICES, item)
  batches = [models.mlp_batch(seed) for seed in range(3)]
  with session(placed) as running:
    item.initialize(running)
    losses = [
      running.run(
        list(item.fetches), {x.tensor: batch[x.name] for x in item.feeds}
      )
      for batch in batches
    ]
  np.testing.assert_allclose(
    losses, models.run_v1(mlp, "train", batches), rtol=RTOL
  )


@pytest.mark.parametrize("use_resource", [True, False])
def test_optimize_v1_graph_runs(tmp_path, use_resource):
  path = models.save_v1(tmp_path / "model", use_resource)
  item = read_item(path)
  placed = PlacementPass(profile=profile_of(item)).optimize(TWO_DEVICES, item)
  batches = [models.mlp_batch(seed) for seed in range(3)]
  with session(placed) as running:
    item.initialize(running)
    losses = [
      running.run(
        list(item.fetches), {x.tensor: batch[x.name] for x in item.feeds}
      )
      for batch in batches
    ]
  np.testing.assert_allclose(
    losses, models.run_v1(path, "train", batches), rtol=RTOL
  )


def test_optimize_loop_body_follows_the_loop(tmp_path):
  item = read_item(models.save_loop(tmp_path / "model"))
  placed = PlacementPass(profile=profile_of(item)).optimize(TWO_DEVICES, item)
  functions = {f.signature.name: f for f in placed.library.function}
  (loop,) = (node for node in placed.node if node.op.endswith("While"))
  body = functions[loop.attr["body"].func.name]
  assert {node.device for node in body.node_def} == {loop.device}
  x = np.float32([[1, 2], [3, 4]])
  with session(placed) as running:
    item.initialize(running)
    y = running.run(list(item.fetches), {item.feeds[0].tensor: x})
  with session(item.graph_def) as running:
    item.initialize(running)
    expected = running.run(list(item.fetches), {item.feeds[0].tensor: x})
  np.testing.assert_allclose(y, expected, rtol=RTOL)


def test_optimize_twice_gives_the_same_graph(item):
  graphs = [
    PlacementPass(profile=profile_of(item)).optimize(TWO_DEVICES, item)
    for _ in range(2)
  ]
  assert graphs[0] == graphs[1]


def test_optimize_without_profile_estimates(item):
  described = DeviceType(
    kind="CPU", cores=1, frequency_mhz=2000, bytes_per_us=1e4
  )
  cluster = Cluster(
    TWO_DEVICES.devices, TWO_DEVICES.link, device_types={"CPU": described}
  )
  placed = PlacementPass(batch_size=4).optimize(cluster, item)
  planned = set(item.op_names)
  devices = {node.device for node in placed.node if node.name in planned}
  assert devices <= set(DEVICES[:2]) and devices


def test_optimize_without_any_costs_is_rejected(item):
  with pytest.raises(ValueError, match="no cost on device type 'CPU'"):
    PlacementPass().optimize(TWO_DEVICES, item)


def test_optimize_unknown_placer_is_rejected(item):
  with pytest.raises(ValueError, match="unknown placer 'm_top'; choose from"):
    PlacementPass(placer="m_top").optimize(TWO_DEVICES, item)


@pytest.mark.parametrize("name", ["gpu0", "/device:CPU", "a b", ""])
def test_optimize_name_that_is_no_device_is_rejected(item, name):
  cluster = Cluster((Device(name, "CPU", MEMORY),))
  with pytest.raises(ValueError, match="is no name of TensorFlow's"):
    PlacementPass(profile=profile_of(item)).optimize(cluster, item)


def test_optimize_too_little_memory_is_infeasible(item):
  cluster = Cluster(tuple(Device(x, "CPU", 100) for x in DEVICES[:2]))
  with pytest.raises(InfeasiblePlacementError, match="needs|would need"):
    PlacementPass(profile=profile_of(item)).optimize(cluster, item)


def test_optimize_plain_function_item_runs(item):
  from baechi_tf.python_item import item_from_function

  model = models.Mlp()
  ours = item_from_function(model.train_step)
  placed = PlacementPass(profile=profile_of(ours)).optimize(TWO_DEVICES, ours)
  batch = models.mlp_batch(0)
  with session(placed) as running:
    ours.initialize(running)
    (loss,) = running.run(
      list(ours.fetches), {x.tensor: batch[x.name] for x in ours.feeds}
    )
  expected = model.train_step(**{k: tf.constant(v) for k, v in batch.items()})
  np.testing.assert_allclose(loss, expected["loss"], rtol=RTOL)


def test_place_writes_the_model_that_it_planned(mlp, item, tmp_path):
  output = tmp_path / "placed"
  planned = place(
    mlp,
    output,
    TWO_DEVICES,
    signature="train",
    placement_pass=PlacementPass(profile=profile_of(item)),
  )
  placed = read_item(output, signature="train")
  device_of = planned.placement.as_dict()
  written = {x.name: x.device for x in placed.graph_def.node}
  assert placed.op_names == item.op_names
  for name in placed.op_names:
    if placed.paths[name]:  # else a call's boundary, no node of the model
      assert written[name] == device_of[name]
  assert planned.gap >= 0

  batch = {k: tf.constant(v) for k, v in models.mlp_batch(0).items()}
  (loss,) = tf.saved_model.load(mlp).signatures["train"](**batch).values()
  (again,) = load(output).signatures["train"](**batch).values()
  np.testing.assert_allclose(again, loss, rtol=RTOL)


def test_place_refuses_an_existing_output(mlp, item, tmp_path):
  with pytest.raises(ValueError, match="overwrite"):
    place(
      mlp,
      tmp_path,
      TWO_DEVICES,
      signature="train",
      placement_pass=PlacementPass(profile=profile_of(item)),
    )
