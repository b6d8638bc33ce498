"""A flattened model is a graph that reads back as the same step."""

import gzip

from baechi_tf.graph_item import read_item
from tests import models
from tests.transformer_step import NUM_OPS
from tests.transformer_step import read_transformer_step
from tools.flatten_model import write_flat_graph


def test_flat_graph_reads_back_as_the_same_step(tmp_path):
  model = models.save_mlp(tmp_path / "mlp")
  item = read_item(model, signature="train", rewrite=False)
  write_flat_graph(item, tmp_path / "flat.pb.gz")
  flat = tmp_path / "flat.pb"
  flat.write_bytes(gzip.decompress((tmp_path / "flat.pb.gz").read_bytes()))
  fetches = [*item.fetches, *item.targets]
  again = read_item(flat, fetches=fetches, rewrite=False)
  assert sorted(again.op_names) == sorted(item.op_names)
  nodes = {node.name: node for node in item.graph_def.node}
  assert all(node == nodes[node.name] for node in again.graph_def.node)


def test_same_model_gives_the_same_bytes(tmp_path):
  item = read_item(models.save_mlp(tmp_path / "mlp"), signature="train")
  for name in ("a", "b"):
    write_flat_graph(item, tmp_path / name)
  assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_transformer_step_in_the_test_data_is_whole(tmp_path):
  item = read_transformer_step(tmp_path)
  assert len(item.op_names) == NUM_OPS
  assert {feed.shape for feed in item.feeds} == {(2, 8)}
  ops = [node.op for node in item.graph_def.node]
  assert ops.count("ResourceApplyAdam") == 88  # variables of the model
