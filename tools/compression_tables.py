"""What the tables of methods that send less are made of.

A row is a method with its settings, a column a learning rate, and a cell what
came of training so. Sizes and settings of `ratios` are those of Xie et al.,
CSER: Communication-efficient SGD with Error Reset, NeurIPS 2020, for a small
model; the other tables are on Local AdaAlter (arXiv 1911.09030).
"""

import dataclasses

from tools.adaptive_method import AdaptiveMethod
from tools.training_method import Method

NUM_WORKERS = 8


@dataclasses.dataclass(frozen=True)
class Row:
  """A method, with its settings.

  Attributes:
    name: of the method.
    ratio: R_C in name, by which rows of `ratios` are chosen; 1 sends all.
    method: makes the optimizer.
  """

  name: str
  ratio: int
  method: Method | AdaptiveMethod


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows that are trained alike.

  Attributes:
    name: a flag chooses it by this.
    title: for people.
    rows: what is compared.
    batch_size: B, examples that a worker sees at a step.
    num_steps: T.
    warm_up: steps in which the learning rate rises to its value.
    drops: fractions of T at which it becomes a fifth.
    rates: learning rates.
    partitions: `iid`, `by_label` or `consecutive`: who has which examples.
    seeds: how many seeds, from 0, the result is the mean of.
    is_text: learns a text, and not what the command is given.
  """

  name: str
  title: str
  rows: tuple[Row, ...]
  batch_size: int
  num_steps: int
  warm_up: int
  rates: tuple[float, ...]
  drops: tuple[float, ...] = ()
  partitions: tuple[str, ...] = ("iid",)
  seeds: int = 1
  is_text: bool = False


def _cser(title: str, reset, gradient, period: int, released=False) -> Method:
  ratios = {"reset_compressor": reset, "gradient_compressor": gradient}
  return Method(title, "CSER", ratios, period, released)


def _rows_of_ratio(
  ratio: int,
  qsparse: tuple[int, int],
  cser: tuple[int, int, int],
  cser_pl: tuple[int, int],
) -> list[Row]:
  """Returns the methods that reach R_C.

  Args:
    ratio: R_C.
    qsparse: R and H.
    cser: R_1, R_2 and H.
    cser_pl: R and H.
  """
  methods = {
    "ef_sgd": Method("EF-SGD", "ErrorFeedbackSGD", {"compressor": ratio}),
    "qsparse": Method(
      "QSparse", "QSparseLocalSGD", {"compressor": qsparse[0]}, qsparse[1]
    ),
    "csea": Method("CSEA", "CSEA", {"compressor": ratio}),
    "cser": _cser("CSER", *cser),
    "cser_code": _cser("CSER, released code", *cser, released=True),
    "cser_pl": Method(
      "CSER-PL", "CSER_PL", {"compressor": cser_pl[0]}, cser_pl[1]
    ),
  }
  return [Row(name, ratio, method) for name, method in methods.items()]


_RATIOS = (
  # With H = 1 the mean of all models is taken at every step.
  Row("sgd", 1, Method("synchronous SGD", "LocalSGD", sync_period=1)),
  *_rows_of_ratio(16, (4, 4), (8, 32, 4), (4, 4)),
  *_rows_of_ratio(64, (16, 4), (8, 128, 16), (8, 8)),
  *_rows_of_ratio(256, (32, 8), (8, 512, 64), (16, 16)),
  *_rows_of_ratio(1024, (128, 8), (16, 1024, 64), (32, 32)),
)


def _adaptive_rows(epsilon: float, periods) -> tuple[Row, ...]:
  local = {
    f"local_adaalter_{h}": AdaptiveMethod(
      f"Local AdaAlter, H={h}", "LocalAdaAlter", epsilon, h
    )
    for h in periods
  }
  return tuple(
    Row(name, 1, method)
    for name, method in {
      "adagrad": AdaptiveMethod("AdaGrad", "Adagrad", epsilon),
      "adaalter": AdaptiveMethod("AdaAlter", "AdaAlter", epsilon),
      **local,
    }.items()
  )


def _other_local_rows(epsilon: float) -> tuple[Row, ...]:
  return (
    Row(
      "local_adaalter_16_code",
      1,
      AdaptiveMethod(
        "Local AdaAlter, H=16, constant ε",
        "LocalAdaAlter",
        epsilon,
        16,
        constant_epsilon=True,
      ),
    ),
    Row(
      "naive_adagrad_16",
      1,
      AdaptiveMethod(
        "naive local AdaGrad, H=16", "NaiveLocalAdaGrad", epsilon, 16
      ),
    ),
  )


def _adaptive_table(name, epsilon, num_steps, rate, periods) -> Table:
  return Table(
    name,
    f"adaptive learning rates, ε² = b₀² = {epsilon:g}, learning rate {rate:g}",
    _adaptive_rows(epsilon, periods) + _other_local_rows(epsilon),
    batch_size=32,
    num_steps=num_steps,
    warm_up=60,
    rates=(rate,),
    partitions=("iid", "by_label"),
    seeds=2,
  )


TABLES = {
  table.name: table
  for table in (
    Table(
      "ratios",
      "SGD with less to send",
      _RATIOS,
      batch_size=16,
      num_steps=1500,
      warm_up=100,
      rates=(0.05, 0.1, 0.5, 1.0),
      drops=(0.3, 0.6, 0.8),
    ),
    _adaptive_table("adaalter", 1.0, 800, 0.5, (4, 8, 16, 50)),
    _adaptive_table("adaalter_small", 0.01, 400, 0.1, (4, 16)),
    Table(
      "text",
      "a language model",
      _adaptive_rows(1e-4, (4, 16)),
      batch_size=64,
      num_steps=2000,
      warm_up=60,
      rates=(0.2,),
      partitions=("consecutive",),
      is_text=True,
    ),
  )
}
