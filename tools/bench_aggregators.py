r"""Times the aggregation rules beside TensorFlow's mean and other libraries.

Every library runs in a process of its own, on one thread, on the same numbers,
and the process's CPU time counts, the least of some repetitions:

    python -m tools.bench_aggregators
    python -m tools.bench_aggregators --byzfl_python=PATH/python \
        --byzpy_python=PATH/python

The two flags name Python interpreters in which ByzFL and byzpy are installed;
a library without its flag is left out. The tables show a rule's time, its ratio
to `tf.reduce_mean` of the same process, how much of the bandwidth at which this
machine reads memory it uses, and how much longer the others take; then what a
row costs with many workers, and the memory that a rule takes beside its input.
"""

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from collections.abc import Mapping

import numpy as np
import rich
from absl import app
from absl import flags
from rich.table import Table

_SIZES = ((10, 1_000_000), (16, 1_000_000), (20, 1_000_000), (50, 1_000_000))
_MANY = tuple((n, 1_000_000) for n in (64, 65, 100, 128, 256))
_REPETITIONS = 10

# What the other libraries run: the same protocol, one process each.
_PEER = """
import json, sys, time
import numpy as np, torch
torch.set_num_threads(1)
name, sizes, repetitions = json.loads(sys.argv[1])
def byzfl_rules(q):
  import byzfl
  return {
    "mean": byzfl.Average(), "median": byzfl.Median(),
    "trimmed_mean": byzfl.TrMean(f=q), "meamed": byzfl.Meamed(f=q),
    "krum": byzfl.Krum(f=q), "multi_krum": byzfl.MultiKrum(f=q),
    "geometric_median": byzfl.GeometricMedian(),
  }
def byzpy_rules(q):
  from byzpy.aggregators import coordinate_wise as c, geometric_wise as g
  rules = {
    "median": c.CoordinateWiseMedian(),
    "trimmed_mean": c.CoordinateWiseTrimmedMean(f=q),
    "meamed": c.MeanOfMedians(f=q), "krum": g.Krum(f=q),
    "multi_krum": g.MultiKrum(f=q, q=q),
    "geometric_median": g.GeometricMedian(),
  }
  return {k: r.aggregate for k, r in rules.items()}
seconds = {}
for n, d in sizes:
  values = np.random.default_rng(0).normal(1, 1, (n, d)).astype(np.float32)
  values[n - n // 5:] *= -10
  updates = torch.from_numpy(values)
  rules = (byzfl_rules if name == "byzfl" else byzpy_rules)(n // 5)
  for rule, function in rules.items():
    given = updates if name == "byzfl" else list(updates)
    best = float("inf")
    for _ in range(max(2, repetitions // 2)):
      begin = time.process_time()
      function(given)
      best = min(best, time.process_time() - begin)
    seconds[f"{rule} {n} {d}"] = best
print(json.dumps(seconds))
"""


def rules_for(num_updates: int) -> Mapping[str, Callable]:
  """Returns the rules that are timed, for a fifth of Byzantine updates."""
  from robust_tf import aggregators

  q = num_updates // 5
  byzantine = {"num_byzantine": q}
  chosen = {
    "mean": aggregators.mean,
    "median": aggregators.median,
    "trimmed_mean": functools.partial(aggregators.trimmed_mean, trim=q),
    "meamed": functools.partial(aggregators.meamed, **byzantine),
    "phocas": functools.partial(aggregators.phocas, trim=q),
    "krum": functools.partial(aggregators.krum, **byzantine),
    "multi_krum": functools.partial(aggregators.multi_krum, **byzantine),
    "geometric_median": aggregators.geometric_median,
  }
  if num_updates >= 4 * q + 3:
    chosen["bulyan"] = functools.partial(aggregators.bulyan, **byzantine)
  return chosen


def updates_of(num_updates: int, size: int) -> np.ndarray:
  """Returns what all libraries aggregate, [n, d] float32.

  A fifth of the rows points the other way, ten times as long.
  """
  values = np.random.default_rng(0).normal(1, 1, (num_updates, size))
  values = values.astype(np.float32)
  values[num_updates - num_updates // 5 :] *= -10
  return values


def cpu_seconds(
  functions: Mapping[str, Callable], repetitions: int
) -> dict[str, float]:
  """Returns the least CPU time of this process that a call of each takes.

  The first call, which may compile, does not count. The functions take turns,
  so that each finds the caches as the others leave them.
  """
  best = dict.fromkeys(functions, float("inf"))
  for function in functions.values():
    function()
  for _ in range(repetitions):
    for name, function in functions.items():
      begin = time.process_time()
      function()
      best[name] = min(best[name], time.process_time() - begin)
  return best


def time_rules(
  sizes, repetitions: int = _REPETITIONS
) -> dict[str, dict[str, float]]:
  """Returns CPU seconds, by "n d", of the rules and of `tf.reduce_mean`."""
  import tensorflow as tf

  seconds = {}
  for n, d in sizes:
    updates = tf.constant(updates_of(n, d))
    functions = {"tf.reduce_mean": lambda x=updates: tf.reduce_mean(x, axis=0)}
    for name, rule in rules_for(n).items():
      functions[name] = functools.partial(rule, updates)
    seconds[f"{n} {d}"] = cpu_seconds(functions, repetitions)
  return seconds


def read_bandwidth(num_bytes: int = 400_000_000) -> float:
  """Returns the bytes a second at which one core reads memory."""
  values = np.ones(num_bytes // 8)
  return num_bytes / cpu_seconds({"max": values.max}, _REPETITIONS)["max"]


def extra_bytes(rule: str, num_updates: int, size: int) -> int:
  """Returns how far a rule's peak of memory is above what was in use before.

  Of this process, on Linux, which starts its count of the peak anew when asked.
  """
  import tensorflow as tf

  updates = tf.constant(updates_of(num_updates, size))
  function = rules_for(num_updates)[rule]
  function(updates[:, :5000])  # Compiles, and loads libraries.
  with open("/proc/self/clear_refs", "w", encoding="ascii") as peak:
    peak.write("5")
  before = _memory_bytes("VmRSS")
  function(updates)
  return _memory_bytes("VmHWM") - before


def _memory_bytes(field: str) -> int:
  with open("/proc/self/status", encoding="ascii") as status:
    (line,) = (line for line in status if line.startswith(field))
  return int(line.split()[1]) * 1024


def one_thread() -> None:
  """Keeps TensorFlow on one thread; before it has run anything."""
  import tensorflow as tf

  tf.config.threading.set_intra_op_parallelism_threads(1)
  tf.config.threading.set_inter_op_parallelism_threads(1)


def time_peer(name: str, python: str, sizes, repetitions: int):
  """Returns CPU seconds of another library's rules, by "rule n d".

  Raises:
    ValueError: the interpreter does not run, or lacks the library.
  """
  task = json.dumps([name, sizes, repetitions])
  try:
    done = subprocess.run(
      [python, "-c", _PEER, task],
      capture_output=True,
      text=True,
      check=False,
      env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
  except OSError as error:
    raise ValueError(f"--{name}_python={python}: {error.strerror}") from None
  if done.returncode:
    reason = (done.stderr.strip().splitlines() or ["it failed"])[-1]
    raise ValueError(f"--{name}_python={python}: {reason}")
  return json.loads(done.stdout)


def speed_table(seconds, bandwidth: float, peers) -> Table:
  """Returns the table of rules against the mean and the other libraries."""
  table = Table(title=f"one core reads {bandwidth / 1e9:.1f} GB/s")
  for column in ("rule", "n", "d", "CPU ms", "/ mean", "bandwidth", *peers):
    table.add_column(column, justify="left" if column == "rule" else "right")
  for key, row in seconds.items():
    n, d = map(int, key.split())
    for rule, taken in row.items():
      others = (peers[name].get(f"{rule} {n} {d}") for name in peers)
      table.add_row(
        rule,
        str(n),
        f"{d:,}",
        f"{taken * 1e3:.2f}",
        f"{taken / row['tf.reduce_mean']:.2f} x",
        f"{4 * n * d / taken / bandwidth:.0%}",
        *(
          "-" if other is None else f"{other / taken:.0f} x" for other in others
        ),
      )
  return table


def many_table(seconds) -> Table:
  """Returns what a row costs with many workers, relative to the first size."""
  table = Table(title="a row's cost, relative to the fewest workers")
  keys = list(seconds)
  table.add_column("rule")
  for key in keys:
    table.add_column(f"n={key.split()[0]}", justify="right")
  for rule in seconds[keys[0]]:
    costs = [
      seconds[k][rule] / int(k.split()[0]) if rule in seconds[k] else None
      for k in keys
    ]
    table.add_row(
      rule, *("-" if c is None else f"{c / costs[0]:.2f} x" for c in costs)
    )
  return table


def memory_table(num_updates: int, size: int) -> Table:
  """Returns what each rule takes beside its input, each in a new process."""
  table = Table(title=f"memory beside the input, n={num_updates}, d={size:,}")
  table.add_column("rule")
  table.add_column("values of d", justify="right")
  for rule in rules_for(num_updates):
    done = subprocess.run(
      [
        sys.executable,
        "-c",
        "import sys; from tools.bench_aggregators import extra_bytes;"
        "print(extra_bytes(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))",
        rule,
        str(num_updates),
        str(size),
      ],
      capture_output=True,
      text=True,
      check=True,
    )
    table.add_row(rule, f"{int(done.stdout) / 4 / size:.2f}")
  return table


def define_flags() -> None:
  """Defines the flags of this tool."""
  flags.DEFINE_string("byzfl_python", None, "An interpreter that has ByzFL.")
  flags.DEFINE_string("byzpy_python", None, "An interpreter that has byzpy.")
  flags.DEFINE_integer(
    "repetitions", _REPETITIONS, "Of each call.", lower_bound=1
  )
  flags.DEFINE_bool("memory", True, "Whether to measure memory too.")


def main(argv: list[str]) -> None:
  """Measures, and prints the tables."""
  if len(argv) > 1:
    raise app.UsageError(f"{argv[1]!r} is not a flag")
  values = flags.FLAGS
  peers = {}
  for name in ("byzfl", "byzpy"):
    python = values[f"{name}_python"].value
    if python is None:
      print(f"{name} is left out: give --{name}_python", file=sys.stderr)
      continue
    try:
      peers[name] = time_peer(name, python, _SIZES, values.repetitions)
    except ValueError as error:
      sys.exit(str(error))
  one_thread()
  bandwidth = read_bandwidth()
  seconds = time_rules(_SIZES, values.repetitions)
  rich.print(speed_table(seconds, bandwidth, peers))
  rich.print(many_table(time_rules(_MANY, values.repetitions)))
  if values.memory:
    rich.print(memory_table(10, 4_000_000))


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  define_flags()
  app.run(main)
