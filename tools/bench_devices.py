"""Times every placer on large made-up graphs, for more and more devices.

Prints CPU-seconds of placing alone, after the machine code has been loaded:

    python -m tools.bench_devices
"""

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable

import numpy as np
from absl import app
from absl import flags

from baechi_tf.cluster import Cluster
from baechi_tf.cluster import Device
from baechi_tf.cluster import Link
from baechi_tf.op_graph import OpGraph
from baechi_tf.placers import PLACERS

_WIDTH = 100  # ops in a layer
_TENSOR_BYTES = 1024


def star(num_ops: int) -> OpGraph:
  """Returns one op whose output all others consume."""
  consumers = np.arange(1, num_ops)
  return _graph(num_ops, np.zeros_like(consumers), consumers)


def layered(num_ops: int) -> OpGraph:
  """Returns layers of 100 ops, each fed by one to three of the layer before."""
  rng = np.random.default_rng(0)
  target = np.repeat(np.arange(_WIDTH, num_ops), 3)
  source = target - target % _WIDTH - rng.integers(1, _WIDTH + 1, len(target))
  kept = rng.random(len(target)) < 2 / 3
  kept[::3] = True
  return _graph(num_ops, source[kept], target[kept])


def chain(num_ops: int) -> OpGraph:
  """Returns ops that follow one another."""
  return _graph(num_ops, np.arange(num_ops - 1), np.arange(1, num_ops))


GRAPHS = {"star": star, "layered": layered, "chain": chain}


def _graph(num_ops, source, target) -> OpGraph:
  times = np.random.default_rng(1).integers(1, 50, num_ops)
  return OpGraph.build(
    [f"op{i:07}" for i in range(num_ops)],
    times.astype(float),
    output_op=np.arange(num_ops),
    output_bytes=np.full(num_ops, _TENSOR_BYTES),
    edge_source=source,
    edge_output=np.zeros_like(source),
    edge_target=target,
  )


def _cluster(num_devices: int) -> Cluster:
  return Cluster(
    tuple(Device(f"d{k}", "CPU", 1 << 40) for k in range(num_devices)),
    Link(latency_us=5.0, bytes_per_us=1000.0),
  )


def cpu_seconds(function: Callable, *args, limit_s: int) -> float | None:
  """Returns the CPU-seconds that a call takes, or None beyond the limit.

  The call runs in a process of its own, which the system ends at the limit.
  """

  def measure(connection):
    used = int(time.process_time())
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (used + limit_s + 1, hard))
    begin = time.process_time()
    function(*args)
    connection.send(time.process_time() - begin)

  fork = multiprocessing.get_context("fork")
  receiver, sender = fork.Pipe(duplex=False)
  process = fork.Process(target=measure, args=(sender,))
  process.start()
  sender.close()
  try:
    return receiver.recv()
  except EOFError:
    return None
  finally:
    process.join()


def main(argv: list[str]) -> None:
  """Prints the table that the flags ask for."""
  if len(argv) != 1:
    raise app.UsageError("no arguments, only flags")
  num_devices = [int(x) for x in flags.FLAGS.devices]
  for place in PLACERS.values():
    place(layered(3 * _WIDTH), _cluster(2))
  print(f"| graph | placer | {' | '.join(map(str, num_devices))} |")
  print("|---|---|" + "--:|" * len(num_devices))
  for name in flags.FLAGS.graph:
    graph = GRAPHS[name](flags.FLAGS.num_ops)
    _ = graph.order, graph.rank, graph.op_pairs  # made once, whoever places
    for placer in flags.FLAGS.placer:
      seconds = [
        cpu_seconds(
          PLACERS[placer], graph, _cluster(k), limit_s=flags.FLAGS.limit_s
        )
        for k in num_devices
      ]
      cells = [
        f"> {flags.FLAGS.limit_s}" if x is None else f"{x:.1f}" for x in seconds
      ]
      print(f"| {name} | {placer} | {' | '.join(cells)} |", flush=True)


def define_flags() -> None:
  """Defines the flags, when this is the program that runs."""
  flags.DEFINE_integer("num_ops", 100_000, "The number of ops of each graph.")
  flags.DEFINE_list("devices", ["4", "16", "64"], "The numbers of devices.")
  flags.DEFINE_multi_enum(
    "graph", list(GRAPHS), list(GRAPHS), "Which graphs; may be repeated."
  )
  flags.DEFINE_multi_enum(
    "placer", list(PLACERS), list(PLACERS), "Which placers; may be repeated."
  )
  flags.DEFINE_integer("limit_s", 120, "Give up after so many CPU-seconds.")


if __name__ == "__main__":
  define_flags()
  sys.exit(app.run(main))
