"""Contiguous pipelines of a step of micro-batches, as placements."""

import numpy as np

from baechi_tf.cluster import Cluster
from baechi_tf.layer_line import layer_lines
from baechi_tf.layer_line import LayerLine
from baechi_tf.micro_batch_graph import micro_batch_of
from baechi_tf.op_graph import OpGraph
from baechi_tf.stage_cuts import best_cuts
from baechi_tf.stage_cuts import fits
from baechi_tf.stage_cuts import StageCosts
from baechi_tf.transfer import HALF_DUPLEX
from baechi_tf.transfer import link_costs
from baechi_tf.transfer import PARALLEL
from baechi_tf.transfer import RECEIVE
from baechi_tf.transfer import SEND

# Longer lines are cut at the cheapest place of each of so many pieces only.
_MOST_CUTS = 400
# What the estimate of memory leaves out may overflow a device: then a split of
# devices with less memory is the one that fits.
_MEMORY_FRACTIONS = (1.0, 0.9, 0.8, 0.7, 0.55)


def pipeline_splits(
  graph: OpGraph, cluster: Cluster, most_in_flight: int
) -> list[np.ndarray]:
  """Returns placements, int64 `[n]` each, with one stretch of layers a device.

  Stage s is on device s; there is a pipeline of two stages, of three, up to one
  of all devices, each with the best cuts by `best_cuts`. One whose memory the
  estimate says to overflow is left out.

  Args:
    graph: a step of micro-batches, from `as_pipeline`.
    cluster: the devices, whose memory is a limit, and links.
    most_in_flight: how many micro-batches begin before the first has ended.
  """
  num = int(micro_batch_of(graph.names).max(initial=0)) + 1
  found = {}
  for line in layer_lines(graph):
    cuts = _possible_cuts(graph, line, cluster)
    for num_stages in range(2, min(cluster.num_devices, len(cuts) - 1) + 1):
      chosen = None
      for fraction in _MEMORY_FRACTIONS:
        part = cluster.with_memory_fraction(fraction)
        costs = _costs(graph, line, part, cuts, num_stages, num, most_in_flight)
        if chosen is not None and fits(costs, chosen):
          continue
        chosen = best_cuts(costs, num)
        if chosen is None:
          break
        inner = cuts[chosen[1:-1]]
        device = np.searchsorted(inner, line.position, side="right")
        device = graph.with_fixed(device)
        found.setdefault(device.tobytes(), device)
  return list(found.values())


def _possible_cuts(
  graph: OpGraph, line: LayerLine, cluster: Cluster
) -> np.ndarray:
  """Returns where a line may be cut, both of its ends among them."""
  num_groups = graph.num_groups
  if num_groups <= _MOST_CUTS:
    return np.arange(num_groups + 1)
  apart = ~np.eye(cluster.num_devices, dtype=bool)
  price = (
    line.num_crossing * cluster.latency_us[apart].mean()
    + line.crossing_bytes * cluster.us_per_byte[apart].mean()
  ).sum(axis=0)
  times = graph.sum_by_group(graph.compute_time_us.min(axis=1))[line.groups]
  spent = np.cumsum(times)
  piece = np.floor(_MOST_CUTS * (spent - spent[0]) / (spent[-1] or 1.0))
  # The cheapest cut before a group of each piece.
  by_price = np.lexsort((price[:-1], piece))
  _, first = np.unique(piece[by_price], return_index=True)
  inner = by_price[first]
  return np.unique(np.concatenate([[0], inner, [num_groups]]))


def _costs(
  graph, line, cluster, cuts, num_stages, num, most_in_flight
) -> StageCosts:
  """Returns the costs of stages of a line that is cut at some places."""
  links = link_costs(cluster)
  columns = graph.times_on(cluster.types[:num_stages])
  times_us = graph.sum_by_group(columns)[line.groups]
  enter, leave, hop, channel = np.zeros((4, num_stages, len(cuts)))
  num_crossing = line.num_crossing[:, cuts]
  size = line.crossing_bytes[:, cuts]
  for s in range(1, num_stages):
    walls = []
    for direction, ends in enumerate([(s - 1, s), (s, s - 1)]):
      args = num_crossing[direction], size[direction], *ends
      work = [_work(links, end, *args) for end in (SEND, RECEIVE)]
      wall = (
        num_crossing[direction] * links.latency_us[ends]
        + size[direction] * links.us_per_byte[ends]
      )
      enter[s] += work[RECEIVE if direction == 0 else SEND]
      leave[s - 1] += work[SEND if direction == 0 else RECEIVE]
      walls.append(wall)
    hop[s] = np.sum(walls, axis=0)
    if links.channel == HALF_DUPLEX:
      channel[s] = hop[s]
    elif links.channel != PARALLEL:
      channel[s] = np.max(walls, axis=0)
  return StageCosts(
    times_us=_before(times_us.T / num, cuts),
    enter_us=enter,
    leave_us=leave,
    hop_us=hop,
    channel_us=channel,
    persistent_bytes=_before(line.persistent_bytes, cuts),
    kept_bytes=_before(line.kept_bytes, cuts),
    received_bytes=line.received_bytes[cuts].astype(np.float64),
    # One forward, one backward: a stage holds one for itself and each stage
    # after it.
    in_flight=np.minimum(most_in_flight, num_stages - np.arange(num_stages)),
    memory_bytes=cluster.memory_bytes[:num_stages].astype(np.float64),
  )


def _work(links, end, num, size, source, target) -> np.ndarray:
  """Returns what some tensors take of the processor at one end."""
  return (
    num * links.work_us[end, source, target]
    + size * links.work_us_per_byte[end, source, target]
  )


def _before(values, cuts) -> np.ndarray:
  """Returns the sum of what comes before each cut, float64 `[…, q + 1]`."""
  zero = np.zeros((*values.shape[:-1], 1))
  return np.concatenate([zero, values.cumsum(axis=-1)], axis=-1)[..., cuts]
