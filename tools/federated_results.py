"""What came of the cells of the federated tables."""

import dataclasses
from collections.abc import Iterable
from collections.abc import Sequence

import numpy as np

from tools.federated_cells import Cell

# Parts of a run: from FedAsync's steep beginning until alpha drops; the end.
MIDDLE = (0.18, 0.4)
END = (0.75, 1.0)

Curve = Sequence[tuple[int, float]]


@dataclasses.dataclass(frozen=True)
class Summary:
  """A cell's test accuracy, the mean over seeds of what each run has.

  Attributes:
    middle: the mean over the middle of a run.
    middle_std: its standard deviation there, of one run.
    end: the mean over the end.
    end_std: its standard deviation there, of one run.
    end_min: the least there.
  """

  middle: float
  middle_std: float
  end: float
  end_std: float
  end_min: float


@dataclasses.dataclass(frozen=True)
class Result:
  """The runs of a cell.

  Attributes:
    cell: what was trained.
    curves: of each seed, (pushes so far, test accuracy).
  """

  cell: Cell
  curves: Sequence[Curve]

  @property
  def summary(self) -> Summary:
    """The runs in five numbers."""
    middle = [_part(curve, MIDDLE) for curve in self.curves]
    end = [_part(curve, END) for curve in self.curves]
    return Summary(
      middle=_mean(np.mean(x) for x in middle),
      middle_std=_mean(np.std(x) for x in middle),
      end=_mean(np.mean(x) for x in end),
      end_std=_mean(np.std(x) for x in end),
      end_min=_mean(np.min(x) for x in end),
    )


def _part(curve: Curve, part: tuple[float, float]) -> np.ndarray:
  """Returns the accuracies after the part's begin, up to its end."""
  pushes = np.array([x for x, _ in curve])
  accuracies = np.array([y for _, y in curve])
  begin, end = (fraction * pushes[-1] for fraction in part)
  return accuracies[(pushes > begin) & (pushes <= end)]


def _mean(values: Iterable[float]) -> float:
  return float(np.mean(list(values)))
