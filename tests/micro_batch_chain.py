"""A training step of layers, cut into micro-batches: written by hand."""

import re
from collections.abc import Sequence

import numpy as np

from baechi_tf.cluster import Cluster
from baechi_tf.micro_batch_graph import scope_of
from baechi_tf.op_graph import OpGraph
from tests import contracts
from tests.contracts import Op

FORWARD_US, BACKWARD_US, ACTIVATION = 1.0, 2.0, 64


def chain(
  num_micro_batches: int,
  num_layers: int,
  *,
  forward_us: Sequence[float] | None = None,
  activations: Sequence[int] | None = None,
  weights: Sequence[int] | None = None,
) -> OpGraph:
  """Returns a step of layers, the backward pass of each twice the forward.

  Args:
    num_micro_batches: how many.
    num_layers: how many.
    forward_us: `[num_layers]`, of a micro-batch; by default `FORWARD_US` each.
    activations: `[num_layers]`, bytes of a micro-batch; `ACTIVATION` each.
    weights: `[num_layers]`, bytes; none by default.
  """
  forward_us = forward_us or [FORWARD_US] * num_layers
  activations = activations or [ACTIVATION] * num_layers
  weights = weights or [0] * num_layers
  ops = [Op("x", 0.0, (0,), is_input=True)]
  edges = []
  for layer in range(num_layers):
    name = f"w{layer}"
    size = weights[layer]
    ops += [
      Op(name, 0.0, (size,), size, group=name, persistent_outputs=(0,)),
      Op(f"update{layer}", 0.0, group=name),
    ]
  for i in range(num_micro_batches):
    scope = scope_of(i)
    previous = f"{scope}slice"
    ops.append(Op(previous, 0.0, (0,)))
    edges.append(("x", 0, previous))
    for layer in range(num_layers):
      name = f"{scope}f{layer}"
      ops.append(Op(name, forward_us[layer], (activations[layer],)))
      edges += [(previous, 0, name), (f"w{layer}", 0, name)]
      previous = name
    for layer in reversed(range(num_layers)):
      name = f"gradient_tape/{scope}f{layer}/b"
      backward_us = BACKWARD_US / FORWARD_US * forward_us[layer]
      ops.append(Op(name, backward_us, (0,)))
      edges += [(previous, 0, name), (f"{scope}f{layer}", 0, name)]
      total = f"{scope}add{layer}"
      ops.append(Op(total, 0.0, (0,)))
      edges.append((name, 0, total))
      if i:
        edges.append((f"{scope_of(i - 1)}add{layer}", 0, total))
      previous = name
  last = scope_of(num_micro_batches - 1)
  edges += [
    (f"{last}add{layer}", 0, f"update{layer}") for layer in range(num_layers)
  ]
  return contracts.make_graph(ops, edges)


def layer_of(graph: OpGraph) -> np.ndarray:
  """Returns the layer of each op of a chain, int64 `[n]`; 0 for its input."""
  layers = [re.search(r"(?:f|w|add|update)(\d+)", x) for x in graph.names]
  return np.array([int(x[1]) if x else 0 for x in layers])


def free_transfers(
  num_devices: int, memory: int | Sequence[int] = contracts.AMPLE
) -> Cluster:
  """Returns devices between which tensors take no time to speak of."""
  # Activations at this rate take so little that no sum of times shows it.
  return contracts.make_cluster(
    num_devices, memory=memory, bytes_per_us=2.0**70
  )
