"""The pipeline from a model to a placed one, and what placed graphs do."""

import numpy as np
import pytest

from baechi_tf.cluster import Cluster
from baechi_tf.cluster import Device
from baechi_tf.cluster import DeviceType
from baechi_tf.cluster import Link
from baechi_tf.costed_model import CostSource
from baechi_tf.costs.profile import OpCost
from baechi_tf.costs.profile import write_profile
from baechi_tf.device_rewrite import rewrite_devices
from baechi_tf.graph_files import read_graph_file
from baechi_tf.graph_item import read_item
from baechi_tf.pipeline import cost_item
from baechi_tf.pipeline import place
from baechi_tf.placement import InfeasiblePlacementError
from baechi_tf.planner import plan
from baechi_tf.saved_model import load
from baechi_tf.search.budget import Budget
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
DESCRIBED = Cluster(
  TWO_DEVICES.devices,
  TWO_DEVICES.link,
  device_types={
    "CPU": DeviceType(kind="CPU", cores=1, frequency_mhz=2000, bytes_per_us=1e4)
  },
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


def placed_graph(item):
  """Returns the item's flat graph with the devices of a plan."""
  source = CostSource(profile=profile_of(item))
  planned = plan(cost_item(item, TWO_DEVICES, source).graph, TWO_DEVICES)
  paths = {name: (name,) for name in item.op_names}
  return rewrite_devices(item.graph_def, paths, planned.placement.as_dict())[0]


def test_plan_sets_a_device_on_every_planned_op_and_changes_no_more(item):
  before = item.graph_def.SerializeToString(deterministic=True)
  placed = placed_graph(item)
  assert item.graph_def.SerializeToString(deterministic=True) == before
  planned = set(item.op_names)
  devices = {node.device for node in placed.node if node.name in planned}
  assert devices == set(DEVICES[:2])
  for node, original in zip(placed.node, item.graph_def.node, strict=True):
    if node.name in planned:
      node.device = original.device
  assert placed.node == item.graph_def.node


def test_placed_graph_trains_the_same(mlp, item):
  placed = placed_graph(item)
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
def test_placed_v1_graph_runs(tmp_path, use_resource):
  path = models.save_v1(tmp_path / "model", use_resource)
  item = read_item(path)
  placed = placed_graph(item)
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


def test_placed_loop_body_follows_the_loop(tmp_path):
  item = read_item(models.save_loop(tmp_path / "model"))
  placed = placed_graph(item)
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


def test_plain_function_item_runs_placed():
  from baechi_tf.python_item import item_from_function

  model = models.Mlp()
  ours = item_from_function(model.train_step)
  batch = models.mlp_batch(0)
  with session(placed_graph(ours)) as running:
    ours.initialize(running)
    (loss,) = running.run(
      list(ours.fetches), {x.tensor: batch[x.name] for x in ours.feeds}
    )
  expected = model.train_step(**{k: tf.constant(v) for k, v in batch.items()})
  np.testing.assert_allclose(loss, expected["loss"], rtol=RTOL)


def counts(item, source, cluster=TWO_DEVICES):
  """Returns how many ops are measured and estimated, and the graph."""
  model = cost_item(item, cluster, source)
  (coverage,) = model.coverage
  return coverage.num_measured, coverage.num_estimated, model.graph


def test_costs_are_measured_here_for_inputs_of_a_batch_or_shapes(item):
  shapes = {"x": (4, 4), "y": (4, 2)}
  batch = {name: np.ones(x, np.float32) for name, x in shapes.items()}
  graphs = []
  for source in (
    CostSource(batch_size=4),
    CostSource(input_shapes=shapes),
    CostSource(inputs=batch),
  ):
    measured, estimated, graph = counts(item, source)
    assert (measured, estimated) == (len(item.op_names), 0)
    graphs.append(graph)
  for graph in graphs[1:]:
    np.testing.assert_array_equal(graph.tensor_bytes, graphs[0].tensor_bytes)


def test_costs_of_a_profile_are_read_from_its_file_too(item, tmp_path):
  profile = profile_of(item)
  write_profile(tmp_path / "p", profile)
  *told, graph = counts(item, CostSource(profile=profile))
  *read, again = counts(item, CostSource(profile=tmp_path / "p"))
  assert told == read == [len(item.op_names), 0]
  np.testing.assert_array_equal(graph.compute_time_us, again.compute_time_us)


def test_costs_are_estimated_on_request(item):
  source = CostSource(estimate=True, batch_size=4)
  measured, estimated, _ = counts(item, source, DESCRIBED)
  assert (measured, estimated) == (0, len(item.op_names))


@pytest.mark.parametrize(
  "source, message",
  [
    (CostSource(estimate=True), r"no \[device_type.CPU\] table .* profile="),
    (CostSource(), "pass batch_size= .*input_shapes={'x': .32, 4"),
    (CostSource(inputs={}), "inputs=: input 'x' is missing"),
    (CostSource(profile={"CPU": {}}), "made for another model"),
  ],
)
def test_costs_that_cannot_be_had_name_the_argument(source, message, item):
  with pytest.raises(ValueError, match=message):
    cost_item(item, TWO_DEVICES, source)


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"profile": {}, "estimate": True}, "profile= is of no use with estimate="),
    ({"inputs": {}, "estimate": True}, "estimates take shapes: give batch_siz"),
    ({"inputs": {}, "profile": {}}, "inputs= is of no use with profile="),
    ({"inputs": {}, "batch_size": 0}, "inputs= is of no use with batch_size="),
    ({"inputs": {}, "input_shapes": {}}, "of no use with input_shapes="),
  ],
)
def test_costs_from_two_sources_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    CostSource(**fields)


def test_place_writes_the_model_that_it_planned(mlp, item, tmp_path):
  output = tmp_path / "placed"
  stages = []
  planned = place(
    mlp,
    output,
    TWO_DEVICES,
    signature="train",
    tags=["serve"],
    profile=profile_of(item),
    order=True,
    budget=Budget(evaluations=200),
    progress=stages.append,
  )
  assert (stages[0], stages[-1]) == ("reading the model", "writing")
  assert planned.ordered_ops
  assert any("control edges keep" in x for x in planned.notes)
  assert planned.candidates[-1].placer == "search"
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


def test_place_measures_and_writes_a_graph_file(tmp_path):
  with tf.Graph().as_default() as graph:
    x = tf.compat.v1.placeholder(tf.float32, [None, 4], name="x")
    tf.add(tf.exp(x), tf.sin(x), name="y")
  path, output = str(tmp_path / "graph.pb"), str(tmp_path / "placed.pb")
  tf.io.write_graph(graph, str(tmp_path), "graph.pb", as_text=False)
  planned = place(
    path,
    output,
    TWO_DEVICES,
    fetches=["y"],
    rewrite=False,
    input_shapes={"x": (2, 4)},
    placer="m_etf",
  )
  device_of = planned.placement.as_dict()
  for node in read_graph_file(output).graph_def.node:
    assert node.device == device_of[node.name]


@pytest.mark.parametrize(
  "arguments, message",
  [
    ({"placer": "m_top"}, "unknown placer 'm_top'; choose from"),
    (
      {"placer": "m_etf", "budget": Budget(1.0)},
      "budget= is of no use with placer 'm_etf'",
    ),
    ({"estimate": True}, r"no \[device_type.CPU\] table"),
    ({"fetches": ["loss"]}, "signature= is of no use with fetches="),
    ({"tags": ["tpu"]}, "no graph has the tags 'tpu'"),
    ({"signature": "fly"}, "there is no signature 'fly'"),
  ],
)
def test_place_refuses_wrong_arguments(arguments, message, mlp, tmp_path):
  with pytest.raises(ValueError, match=message):
    place(
      mlp, tmp_path / "p", TWO_DEVICES, **{"signature": "train", **arguments}
    )
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["gpu0", "/device:CPU", "a b", ""])
def test_place_refuses_a_name_that_is_no_device(name, mlp, tmp_path):
  cluster = Cluster((Device(name, "CPU", MEMORY),))
  with pytest.raises(ValueError, match="is no TensorFlow device"):
    place(mlp, tmp_path / "p", cluster, signature="train")


def test_place_without_enough_memory_is_infeasible(mlp, item, tmp_path):
  cluster = Cluster(tuple(Device(x, "CPU", 100) for x in DEVICES[:2]))
  with pytest.raises(InfeasiblePlacementError, match="needs|would need"):
    place(
      mlp,
      tmp_path / "p",
      cluster,
      signature="train",
      profile=profile_of(item),
    )


def test_place_refuses_an_existing_output(mlp, tmp_path):
  with pytest.raises(ValueError, match="give overwrite=True"):
    place(mlp, tmp_path, TWO_DEVICES, signature="train")
