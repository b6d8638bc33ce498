"""A real training step's graph, read from test data in a tenth of a second."""

import gzip
import pathlib

from baechi_tf.graph_item import GraphItem
from baechi_tf.graph_item import read_item

NUM_OPS = 2570
LOSS = "StatefulPartitionedCall_1/Identity:0"

_DATA = pathlib.Path(__file__).parent / "data" / "transformer_step.pb.gz"


def read_transformer_step(directory: pathlib.Path) -> GraphItem:
  """Returns the step in tests/data, unpacked into `directory`."""
  path = directory / "transformer_step.pb"
  path.write_bytes(gzip.decompress(_DATA.read_bytes()))
  return read_item(path, fetches=[LOSS], rewrite=False)
