r"""Writes the flat graph of a model's step, without variables, compressed.

What it writes is a GraphDef that holds the planned ops and nothing else, for
tests that want a real graph and not the time to trace one. It prints the
fetches with which to read it again:

    python -m tools.flatten_model --signature=train MODEL GRAPH.pb.gz
"""

import gzip
import os
import sys

import tensorflow as tf
from absl import app
from absl import flags

from baechi_tf.graph_item import GraphItem
from baechi_tf.graph_item import read_item


def write_flat_graph(item: GraphItem, path: str | os.PathLike) -> None:
  """Writes the planned ops as a gzipped GraphDef, the same bytes each time."""
  planned = set(item.op_names)
  graph_def = tf.compat.v1.GraphDef(
    node=[node for node in item.graph_def.node if node.name in planned],
    library=item.graph_def.library,
    versions=item.graph_def.versions,
  )
  data = graph_def.SerializeToString(deterministic=True)
  with open(path, "wb") as file:
    file.write(gzip.compress(data, mtime=0))


def main(argv: list[str]) -> None:
  """Flattens the model that the arguments name."""
  if len(argv) != 3:
    raise app.UsageError("two arguments: the model, and the file to write")
  item = read_item(argv[1], signature=flags.FLAGS.signature, rewrite=False)
  write_flat_graph(item, argv[2])
  print(
    f"{argv[2]}: {len(item.op_names):,} ops, {os.path.getsize(argv[2]):,}"
    f" bytes; fetches: {' '.join([*item.fetches, *item.targets])}"
  )


def define_flags() -> None:
  """Defines the flags, when this is the program that runs."""
  flags.DEFINE_string("signature", "train", "Which step.")


if __name__ == "__main__":
  define_flags()
  sys.exit(app.run(main))
