"""Rewrites of a step that change no number, made before it is planned.

Tracing leaves nodes that TensorFlow's graph optimizer removes on one device and
keeps once their neighbours have devices. A rewrite takes them out of the model
itself, so that the plan, the written model and the loaded one are one graph. It
touches the nodes of the step and of the functions that it calls; loops,
branches and calls that XLA compiles stay as they are.
"""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Mapping

import tensorflow as tf

from baechi_tf.function_library import called_function
from baechi_tf.function_library import CONTROL
from baechi_tf.function_library import functions_by_name
from baechi_tf.function_library import parse_ref
from baechi_tf.rewrites.body import Body
from baechi_tf.rewrites.replicate_constant import replicate_constant
from baechi_tf.rewrites.share_equal import share_equal
from baechi_tf.rewrites.split_pass_through import split_pass_through
from baechi_tf.signatures import nodes_behind

GraphDef = tf.compat.v1.GraphDef
MetaGraphDef = tf.compat.v1.MetaGraphDef

# In the order in which they are made. Each returns the changed body, and how
# many nodes it replaced.
REWRITES: Mapping[str, Callable[[Body], tuple[Body, int]]] = {
  "split_pass_through": split_pass_through,
  "share_equal": share_equal,
  "replicate_constant": replicate_constant,
}


def rewrite_step(
  meta_graph: MetaGraphDef, roots: Collection[str]
) -> tuple[GraphDef, dict[str, int]]:
  """Returns the model's graph with its step rewritten, and what was done.

  Args:
    meta_graph: the model; it is not changed.
    roots: the top graph's nodes that the step is run for.

  Returns:
    The graph, and by rewrite how many nodes it replaced, if any. A second
    rewrite of the graph replaces none.
  """
  result = GraphDef()
  result.CopyFrom(meta_graph.graph_def)
  library = functions_by_name(result)
  nodes = {node.name: node for node in result.node}
  behind = nodes_behind(((name, CONTROL) for name in roots), nodes)
  called = _called(map(nodes.get, sorted(behind)), library)
  counts = dict.fromkeys(REWRITES, 0)

  def rewritten(body: Body) -> Body:
    for name, rewrite in REWRITES.items():
      body, count = rewrite(body)
      counts[name] += count
    return body

  kept = frozenset({*roots, *_named_outside(meta_graph)})
  outside = frozenset(nodes.keys() - behind)
  rewritten(Body.of_graph(result, kept, outside)).write_to_graph(result)
  for function in result.library.function:
    if function.signature.name in called:
      rewritten(Body.of_function(function)).write_to_function(function)
  return result, {name: count for name, count in counts.items() if count}


def _called(nodes: Iterable, library: Mapping) -> set[str]:
  """Returns the functions whose bodies take the place of calls."""
  called, pending = set(), list(nodes)
  while pending:
    name = called_function(pending.pop(), library)
    if name in library and name not in called:
      called.add(name)
      pending.extend(library[name].node_def)
  return called


def _named_outside(meta_graph: MetaGraphDef) -> set[str]:
  """Returns the nodes that signatures and collections name."""
  names = set()
  for signature in meta_graph.signature_def.values():
    for info in (*signature.inputs.values(), *signature.outputs.values()):
      names.update(_tensor_names(info))
  for collection in meta_graph.collection_def.values():
    names.update(collection.node_list.value)
  return {parse_ref(name)[0] for name in names}


def _tensor_names(info) -> Iterable[str]:
  match info.WhichOneof("encoding"):
    case "coo_sparse":
      sparse = info.coo_sparse
      yield sparse.values_tensor_name
      yield sparse.indices_tensor_name
      yield sparse.dense_shape_tensor_name
    case "composite_tensor":
      for part in info.composite_tensor.components:
        yield from _tensor_names(part)
    case _:
      yield info.name
