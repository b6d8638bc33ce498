"""What must hold in the Byzantine tables.

A bar is a claim of the papers as a bound on cells, with slack for other random
numbers than those that it was measured with. The bars were set for the digits.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from collections.abc import Sequence

_MONOTONE_SLACK = 0.03


@dataclasses.dataclass(frozen=True)
class Bar:
  """Bounds on the cells of some threats and rules.

  Attributes:
    name: as in the table's documentation.
    threats: names of threats.
    rules: names of rules.
    at_least: no cell may be below it.
    at_most: no cell may be above it.
    falls: from threat to threat no cell may rise, but for a little slack.
  """

  name: str
  threats: tuple[str, ...]
  rules: tuple[str, ...]
  at_least: float = 0.0
  at_most: float = 1.0
  falls: bool = False


def missed(
  bars: Sequence[Bar], accuracies: Mapping[tuple[str, str], float]
) -> list[str]:
  """Returns a line for each cell that misses a bar.

  Args:
    bars: what must hold.
    accuracies: by (threat, rule); bars on other cells are passed over.
  """
  lines = []
  for bar in bars:
    for rule in bar.rules:
      cells = [
        (threat, accuracies[threat, rule])
        for threat in bar.threats
        if (threat, rule) in accuracies
      ]
      for threat, accuracy in cells:
        if not accuracy >= bar.at_least:
          bound = f"is below {bar.at_least:.2f}"
        elif not accuracy <= bar.at_most:
          bound = f"is above {bar.at_most:.2f}"
        else:
          continue
        lines.append(f"({bar.name}) {rule}, {threat}: {accuracy:.3f} {bound}")
      for (one, before), (other, after) in itertools.pairwise(cells):
        if bar.falls and after > before + _MONOTONE_SLACK:
          lines.append(
            f"({bar.name}) {rule}: {before:.3f} under {one} rises to"
            f" {after:.3f} under {other}"
          )
  return lines


_DIMENSIONAL = ("bit_flip", "gambler")
_MAJORITY = ("sign_flip_12", "label_flip_12")
_HALF = ("inner_product_0.5",)
_SMALL = ("inner_product_0.1", "inner_product_0.5", "inner_product_1")
_LARGE = ("inner_product_10", "inner_product_100")

_BY_COORDINATE = ("median", "trimmed_mean", "phocas", "meamed")
_WHOLE_VECTOR = ("krum", "multi_krum", "geometric_median")
_ALL_BUT_ZENO = ("mean", *_BY_COORDINATE, *_WHOLE_VECTOR)

ATTACKS_BARS = (
  Bar("a", _DIMENSIONAL, _BY_COORDINATE, at_least=0.90),
  # Zeno too takes or leaves whole vectors: it must fail.
  Bar("a", _DIMENSIONAL, ("mean", *_WHOLE_VECTOR, "zeno"), at_most=0.30),
  Bar(
    "b",
    ("gaussian", "omniscient"),
    ("phocas", "meamed", "krum", "multi_krum"),
    at_least=0.88,
  ),
  Bar("b", ("gaussian",), ("mean",), at_most=0.75),
  Bar("b", ("omniscient",), ("mean",), at_most=0.30),
  Bar("c", _MAJORITY, ("zeno",), at_least=0.88),
  Bar("c", _MAJORITY, _ALL_BUT_ZENO, at_most=0.30),
  Bar("d", ("sign_flip_8",), ("zeno",), at_least=0.90),
  Bar("d", ("sign_flip_8",), ("krum",), at_most=0.20),
  Bar("e", _HALF, ("krum",), at_most=0.20),
  Bar("e", _HALF, ("zeno",), at_least=0.90),
  Bar("e", _HALF, ("median",), at_most=0.85),
  Bar("f", ("none",), (*_ALL_BUT_ZENO, "zeno"), at_least=0.90),
)

EMPIRES_BARS = (
  Bar("krum", _SMALL, ("krum",), at_most=0.25),
  Bar("krum", _LARGE, ("krum",), at_least=0.85),
  Bar("median", _LARGE, ("median",), at_most=0.60),
  Bar("median", ("none", *_SMALL, *_LARGE), ("median",), falls=True),
  Bar("mean", ("inner_product_10",), ("mean",), at_most=0.30),
  Bar("zeno", ("none", *_SMALL, *_LARGE), ("zeno",), at_least=0.82),
)
