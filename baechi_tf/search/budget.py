"""The budget of a search: time, or a number of placements."""

import dataclasses

MAX_SECONDS = 1e6
MAX_EVALUATIONS = 10**12


@dataclasses.dataclass(frozen=True)
class Budget:
  """The time or the number of placements that a search may take.

  Attributes:
    seconds: of wall time; nothing is searched if it is 0.
    evaluations: placements to try instead, whatever the time: equal budgets
      and seeds give equal plans. None goes by `seconds`.
    seed: of the random moves.

  Raises:
    ValueError: a number is negative, not finite or too large.
  """

  seconds: float = 0.0
  evaluations: int | None = None
  seed: int = 0

  def __post_init__(self) -> None:
    if not 0 <= self.seconds <= MAX_SECONDS:  # NaN is not
      raise ValueError(
        f"seconds= must be from 0 to {MAX_SECONDS:g}, got {self.seconds}"
      )
    if not 0 <= (self.evaluations or 0) <= MAX_EVALUATIONS:
      raise ValueError(
        f"evaluations= must be from 0 to {MAX_EVALUATIONS:,}, got"
        f" {self.evaluations}"
      )
    if not 0 <= self.seed < 2**63:
      raise ValueError(f"seed= must be from 0 to 2^63 - 1, got {self.seed}")

  @property
  def is_empty(self) -> bool:
    """Whether nothing is to be searched."""
    amount = self.seconds if self.evaluations is None else self.evaluations
    return amount == 0


DEFAULT_BUDGET = Budget(seconds=2.0)
