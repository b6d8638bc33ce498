"""The graph of a Keras step, with its inputs, variables and outputs."""

import dataclasses
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from baechi_tf.function_library import CONTROL
from baechi_tf.function_library import parse_ref
from baechi_tf.graph_item import GraphItem
from baechi_tf.graph_item import make_item
from baechi_tf.initializer import Values
from baechi_tf.python_item import capture_nodes
from baechi_tf.python_item import feeds_of
from baechi_tf.rewrites import rewrite_step

GraphDef = tf.compat.v1.GraphDef
_HANDLES = (tf.resource, tf.variant)


@dataclasses.dataclass(frozen=True, eq=False)
class StepGraph:
  """One trace of a step.

  Attributes:
    graph_def: the step's graph; a variable's handle is a VarHandleOp.
    item: the same, flat, to be planned.
    inputs: names of the tensors that are fed, in the order of the batch's.
    variables: the Keras variable by the name of its VarHandleOp.
    outputs: what the step returns, with the names of tensors for tensors.
  """

  graph_def: GraphDef
  item: GraphItem
  inputs: tuple[str, ...]
  variables: Mapping[str, keras.Variable]
  outputs: Any


def trace_step(
  step: Callable[[Any], Any],
  specs: Any,
  variables_of: Callable[[], Mapping[int, keras.Variable]],
) -> StepGraph:
  """Returns the graph of a step, which is rewritten as all steps are.

  Args:
    step: a model's `train_step`, `test_step` or `predict_step`.
    specs: from `batch_specs`.
    variables_of: returns `variables_by_handle`; called after the trace, which
      makes the optimizer's and the metrics' variables.

  Raises:
    ValueError: the step has state that is no Keras variable.
  """
  function = tf.function(step, autograph=False)
  concrete = function.get_concrete_function(specs)
  graph = concrete.graph
  by_handle = variables_of()
  check_captures(concrete.captured_inputs, by_handle, step.__name__)
  graph_def = graph.as_graph_def()
  num_args = len(graph.inputs) - len(concrete.captured_inputs)
  inside = graph.inputs[num_args:]
  captured = capture_nodes(graph_def, inside, concrete)
  outputs = [parse_ref(x.name) for x in graph.outputs]
  outputs += [(x.name, CONTROL) for x in graph.control_outputs]
  feeds = feeds_of(graph.inputs[:num_args])
  roots = tuple(
    dict.fromkeys(
      name for name, _ in (*outputs, *(parse_ref(x.tensor) for x in feeds))
    )
  )
  meta_graph = tf.compat.v1.MetaGraphDef(graph_def=graph_def)
  rewritten, counts = rewrite_step(meta_graph, roots)
  rewritten = _needed(rewritten, (*roots, *captured))
  item = make_item(rewritten, feeds, outputs, step.__name__, Values(captured))
  return StepGraph(
    graph_def=rewritten,
    item=dataclasses.replace(item, rewritten_for=roots, num_rewritten=counts),
    inputs=tuple(x.name for x in graph.inputs[:num_args]),
    variables={name: by_handle[id(x.handle)] for name, x in captured.items()},
    outputs=tf.nest.map_structure(
      lambda x: x.name if isinstance(x, tf.Tensor) else x,
      graph.structured_outputs,
      expand_composites=True,
    ),
  )


def _needed(graph_def: GraphDef, roots: Iterable[str]) -> GraphDef:
  """Returns a graph without the nodes that nothing of `roots` depends on.

  A trace and a rewrite leave such, and no order may delay what they take.
  """
  nodes = {node.name: node for node in graph_def.node}
  pending = list(roots)
  seen = set(pending)
  while pending:
    for ref in nodes[pending.pop()].input:
      name, _ = parse_ref(ref)
      if name not in seen:
        seen.add(name)
        pending.append(name)
  result = GraphDef(versions=graph_def.versions, library=graph_def.library)
  result.node.extend(node for node in graph_def.node if node.name in seen)
  return result


def check_captures(captured, by_handle: Mapping, step: str) -> None:
  """Raises ValueError if a step has state that cannot move."""
  for tensor in captured:
    if tensor.dtype in _HANDLES and id(tensor) not in by_handle:
      raise ValueError(
        f"{step} uses a resource that is no Keras variable of the model, its"
        f" optimizers or metrics, {_name_of(tensor)}: only Keras variables can"
        " move to their devices. Make a variable with self.add_weight; look"
        " strings up before the model, in the tf.data pipeline"
      )


def _name_of(handle: tf.Tensor) -> str:
  return f"of type {handle.dtype.name} on {handle.device}"
