"""What the Byzantine tables are made of: threats, rules, and what must hold.

A table's row is a threat (an attack by q of the n workers), its column a rule,
and a cell the test accuracy after training with the one under the other. The
sizes are those of Xie, Koyejo and Gupta's papers: n = 20 and q = 6, 8 or 12
(Zeno, ICML 2019; Phocas and Generalized Byzantine-tolerant SGD, 2018), and
n = 25 and q = 11 (Fall of Empires, UAI 2019).
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from robust_tf import aggregators
from robust_tf import attacks
from tools.byzantine_bars import ATTACKS_BARS
from tools.byzantine_bars import Bar
from tools.byzantine_bars import EMPIRES_BARS

RHO = 5e-4  # Zeno's, in the paper's norm
# The papers hit the first 1000 coordinates. Here they would all be of the first
# layer, and behind a layer of noise half of the digits can still be learnt.
_ALL_COORDINATES = 2**31 - 1
NUM_VALIDATION = 4  # Zeno's n_r, examples in the server's own batch


@dataclasses.dataclass(frozen=True)
class Threat:
  """What some of the workers do.

  Attributes:
    name: unique in its table.
    title: for people.
    workers: the Byzantine ones.
    attack: `attack(updates, byzantine, seed)`; None leaves updates as they are.
    flips_labels: these workers learn labels `num_classes - 1 - y`.
    epsilon: of an inner product manipulation; 0 where there is none.
    num_suspected: Zeno's b.
  """

  name: str
  title: str
  workers: tuple[int, ...] = ()
  attack: Callable | None = None
  flips_labels: bool = False
  epsilon: float = 0.0
  num_suspected: int = 12


@dataclasses.dataclass(frozen=True)
class Rule:
  """A rule, told how many workers to withstand.

  Attributes:
    name: unique in its table.
    title: for people.
    aggregator: a function of updates; Zeno still lacks `num_suspected`.
    is_zeno: it suspects as many as the threat says, and needs a loss.
  """

  name: str
  title: str
  aggregator: Callable
  is_zeno: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
  """All threats against all rules.

  Attributes:
    name: a flag chooses it by this.
    title: for people.
    num_workers: n.
    num_steps: T.
    start_step: the first step at which updates are attacked.
    threats: the rows.
    rules: the columns.
    bars: what must hold on the digits.
  """

  name: str
  title: str
  num_workers: int
  num_steps: int
  start_step: int
  threats: tuple[Threat, ...]
  rules: tuple[Rule, ...]
  bars: tuple[Bar, ...]


def _chosen_workers(num_workers: int, count: int) -> tuple[int, ...]:
  """Returns workers from all over the range, as no rule may rely on them."""
  order = np.random.default_rng(num_workers).permutation(num_workers)
  return tuple(sorted(order[:count].tolist()))


def _rules(count: int, num_selected: int) -> tuple[Rule, ...]:
  """Returns the rules, all told of as many Byzantine workers."""
  partial = functools.partial
  return (
    Rule("mean", "mean", aggregators.mean),
    Rule("median", "median", aggregators.median),
    Rule(
      "trimmed_mean",
      "trimmed mean",
      partial(aggregators.trimmed_mean, trim=count),
    ),
    Rule("phocas", "Phocas", partial(aggregators.phocas, trim=count)),
    Rule("meamed", "MeaMed", partial(aggregators.meamed, num_byzantine=count)),
    Rule("krum", "Krum", partial(aggregators.krum, num_byzantine=count)),
    Rule(
      "multi_krum",
      "multi-Krum",
      partial(
        aggregators.multi_krum, num_byzantine=count, num_selected=num_selected
      ),
    ),
    Rule("geometric_median", "GeoMed", aggregators.geometric_median),
    Rule("zeno", "Zeno", partial(aggregators.zeno, rho=RHO), is_zeno=True),
  )


def _inner_product(num_workers: int, count: int, epsilon: float) -> Threat:
  return Threat(
    f"inner_product_{epsilon:g}",
    f"inner product ε={epsilon:g} (q={count})",
    _chosen_workers(num_workers, count),
    functools.partial(attacks.inner_product, epsilon=epsilon),
    epsilon=epsilon,
  )


def _attacks_table() -> Table:
  n = 20
  six, eight, twelve = (_chosen_workers(n, count) for count in (6, 8, 12))
  all_workers = tuple(range(n))
  copies = functools.partial(attacks.sign_flip, copies=True)
  threats = (
    Threat("none", "none"),
    Threat("gaussian", "Gaussian, σ=200 (q=6)", six, attacks.gaussian),
    Threat("omniscient", "omniscient −1e20 (q=6)", six, attacks.omniscient),
    Threat(
      "bit_flip",
      "bit flip, dimensional",
      all_workers,
      functools.partial(attacks.bit_flip, num_coordinates=_ALL_COORDINATES),
    ),
    Threat(
      "gambler",
      "gambler 3 %, dimensional",
      all_workers,
      functools.partial(attacks.gambler, probability=0.03),
    ),
    Threat("sign_flip_8", "sign flip, copies (q=8)", eight, copies),
    Threat("label_flip_8", "label flip (q=8)", eight, flips_labels=True),
    Threat(
      "sign_flip_12",
      "sign flip, copies (q=12)",
      twelve,
      copies,
      num_suspected=16,
    ),
    Threat(
      "label_flip_12",
      "label flip (q=12)",
      twelve,
      flips_labels=True,
      num_suspected=16,
    ),
    *(_inner_product(n, 8, x) for x in (0.1, 0.5, 1.0, 2.0, 10.0, 100.0)),
    Threat(
      "a_little_is_enough",
      "a little is enough z=1.5 (q=8)",
      eight,
      functools.partial(attacks.a_little_is_enough, z=1.5),
    ),
  )
  return Table(
    name="attacks",
    title="20 workers, attacked from the start",
    num_workers=n,
    num_steps=300,
    start_step=0,
    threats=threats,
    rules=_rules(count=8, num_selected=10),
    bars=ATTACKS_BARS,
  )


def _empires_table(name: str, title: str, start_step: int, bars) -> Table:
  """Returns a table of inner product manipulation by 11 of 25 workers."""
  n, q = 25, 11
  threats = [_inner_product(n, q, x) for x in (0.1, 0.5, 1.0, 10.0, 100.0)]
  threats = [
    dataclasses.replace(threat, num_suspected=13)
    for threat in [Threat("none", "none"), *threats]
  ]
  return Table(
    name=name,
    title=title,
    num_workers=n,
    num_steps=400,
    start_step=start_step,
    threats=tuple(threats),
    rules=tuple(
      rule
      for rule in _rules(count=q, num_selected=12)
      if rule.name not in ("meamed", "multi_krum")
    ),
    bars=bars,
  )


TABLES: tuple[Table, ...] = (
  _attacks_table(),
  _empires_table(
    "empires",
    "25 workers, 11 of them against the inner product from the start",
    0,
    EMPIRES_BARS,
  ),
  _empires_table(
    "empires_late",
    "25 workers, 11 of them against the inner product from step 200 on",
    200,
    (),
  ),
)
