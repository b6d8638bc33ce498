"""Items of Python functions and of Keras models' training steps."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from baechi_tf.function_library import CONTROL
from baechi_tf.function_library import parse_ref
from baechi_tf.graph_item import GraphItem
from baechi_tf.graph_item import make_item
from baechi_tf.graph_item import make_rewritten_item
from baechi_tf.initializer import Values
from baechi_tf.signatures import Feed

GraphDef = tf.compat.v1.GraphDef
MetaGraphDef = tf.compat.v1.MetaGraphDef


def item_from_function(
  function: Any, *example_args: Any, rewrite: bool = True
) -> GraphItem:
  """Returns the item of one call of a function.

  The variables that it captures become nodes of the graph; `initialize` gives
  them the values that they have then.

  Args:
    function: a `tf.function`, or a `ConcreteFunction` of one.
    *example_args: what a `tf.function` is traced with: values, or
      `tf.TensorSpec`s; none for a `ConcreteFunction` or if the function has an
      input signature.
    rewrite: whether the step goes through `REWRITES` first.

  Raises:
    ValueError: it captures something other than variables and constants, it
      needs other arguments, or it returns nothing and has no effect.
  """
  if isinstance(function, tf.types.experimental.ConcreteFunction):
    concrete = function
  elif isinstance(function, tf.types.experimental.GenericFunction):
    try:
      concrete = function.get_concrete_function(*example_args)
    except TypeError as error:
      raise ValueError(f"the function cannot be traced: {error}") from error
  else:
    raise ValueError(f"{function!r} is no tf.function: decorate it with one")
  graph = concrete.graph
  outputs = [parse_ref(x.name) for x in graph.outputs]
  # A read that nothing takes has no effect.
  outputs += [
    (x.name, CONTROL)
    for x in graph.control_outputs
    if x.type != "ReadVariableOp"
  ]
  if not outputs:
    raise ValueError(
      f"function {concrete.name!r} returns nothing and has no effect"
    )
  captured = concrete.captured_inputs
  num_args = len(graph.inputs) - len(captured)
  original = graph.as_graph_def()
  variables = capture_nodes(original, graph.inputs[num_args:], concrete)
  feeds = feeds_of(graph.inputs[:num_args])
  source = concrete.name
  initializer = Values(variables)
  if not rewrite:
    return make_item(original, feeds, outputs, source, initializer)
  meta_graph = MetaGraphDef(graph_def=original)
  return make_rewritten_item(meta_graph, feeds, outputs, source, initializer)


def item_from_keras(
  model: keras.Model, inputs: Any, targets: Any, *, rewrite: bool = True
) -> GraphItem:
  """Returns the item of a compiled model's whole training step.

  The step runs the model forward, takes the loss that the model was compiled
  with, and lets its optimizer update the variables; it returns the loss.
  Metrics are not part of it.

  Args:
    model: a compiled `keras.Model`; it is built on the inputs if it is not.
    inputs: one batch, as `fit` takes it (arrays, or a structure of them).
    targets: the batch's targets.
    rewrite: whether the step goes through `REWRITES` first.

  Raises:
    ValueError: the model is not compiled.
  """
  if not model.compiled or model.optimizer is None:
    raise ValueError(
      f"model {model.name!r} is not compiled: call"
      " model.compile(optimizer=…, loss=…) first"
    )
  inputs, targets = as_tensors(inputs), as_tensors(targets)
  if not model.built:
    model(inputs)
  optimizer = model.optimizer
  if not optimizer.built:
    optimizer.build(model.trainable_variables)

  @tf.function
  def train_step(inputs, targets):
    with tf.GradientTape() as tape:
      outputs = model(inputs, training=True)
      loss = model.compute_loss(
        x=inputs, y=targets, y_pred=outputs, training=True
      )
      scaled = optimizer.scale_loss(loss)
    variables = model.trainable_variables
    gradients = tape.gradient(scaled, [x.value for x in variables])
    optimizer.apply(gradients, variables)
    return loss

  return item_from_function(train_step, inputs, targets, rewrite=rewrite)


def feeds_of(inputs: Sequence[tf.Tensor]) -> list[Feed]:
  """Returns the feeds of a traced graph's inputs, captures left out."""
  return [
    Feed(
      name=x.op.name,
      tensor=x.name,
      dtype=x.dtype,
      shape=tuple(x.shape.as_list()) if x.shape.rank is not None else None,
    )
    for x in inputs
  ]


def as_tensors(structure: Any) -> Any:
  """Returns the arrays as tensors, 64-bit floats as Keras' own type."""

  def as_tensor(value):
    value = np.asarray(value)
    if value.dtype == np.float64:
      value = value.astype(keras.config.floatx())
    return tf.constant(value)

  return tf.nest.map_structure(as_tensor, structure)


def capture_nodes(
  original: GraphDef,
  inside: Sequence[tf.Tensor],
  concrete: tf.types.experimental.ConcreteFunction,
) -> dict[str, tf.Variable]:
  """Replaces the placeholders of captures by variables and constants.

  Args:
    original: the function's graph, which is changed.
    inside: the placeholders of the captures in the traced graph.
    concrete: the function.

  Returns:
    The variables by the name of their node.

  Raises:
    ValueError: a capture is neither a variable nor a constant.
  """
  nodes = {node.name: node for node in original.node}
  variable_of = {id(x.handle): x for x in concrete.variables}
  variables = {}
  for tensor, captured in zip(inside, concrete.captured_inputs, strict=True):
    node = nodes[tensor.op.name]
    if id(captured) in variable_of:
      variable = variable_of[id(captured)]
      replacement = _handle_node(node.name, variable)
      variables[node.name] = variable
    elif captured.dtype in (tf.resource, tf.variant) or not hasattr(
      captured, "numpy"
    ):
      raise ValueError(
        f"function {concrete.name!r} captures {captured!r}, which is neither a"
        " variable nor a constant; save it with tf.saved_model.save and read"
        " that"
      )
    else:
      replacement = _constant_node(node.name, captured)
    node.CopyFrom(replacement)
  return variables


def _handle_node(name: str, variable: tf.Variable):
  node = tf.compat.v1.NodeDef(name=name, op="VarHandleOp")
  node.attr["dtype"].type = variable.dtype.as_datatype_enum
  node.attr["shape"].shape.CopyFrom(variable.shape.as_proto())
  node.attr["shared_name"].s = name.encode()
  return node


def _constant_node(name: str, value: tf.Tensor):
  node = tf.compat.v1.NodeDef(name=name, op="Const")
  node.attr["dtype"].type = value.dtype.as_datatype_enum
  node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value.numpy()))
  return node
