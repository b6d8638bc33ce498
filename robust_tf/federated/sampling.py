"""Which devices take part in a round: a function of the seed and the round.

So a run that is resumed asks the same devices as one that was never stopped,
and nothing needs to be kept.
"""

from collections.abc import Callable
from collections.abc import Sequence

import numpy as np

# Draws some of n devices, all different: of n, how many, the round, the seed.
Sample = Callable[[int, int, int, int], Sequence[int]]

# Sets the streams of random numbers apart from each other.
_PERMUTATION, _UNIFORM = 5, 6


def permutation(
  num_devices: int, count: int, round_number: int, seed: int
) -> list[int]:
  """Returns the next devices of a random permutation of all.

  A device is asked again only when a new permutation begins, as in the code
  that the authors of SLSGD released (Xie, Koyejo and Gupta, ECML-PKDD 2019).
  Devices that are left when they are too few for a round go without until then.

  Args:
    num_devices: n.
    count: how many to draw, all different.
    round_number: from 0.
    seed: of the permutations.
  """
  number, place = divmod(round_number, num_devices // count)
  rng = np.random.default_rng([seed, _PERMUTATION, number])
  chosen = rng.permutation(num_devices)[place * count : (place + 1) * count]
  return chosen.tolist()


def uniform(
  num_devices: int, count: int, round_number: int, seed: int
) -> list[int]:
  """Returns devices drawn uniformly, whatever was drawn before.

  As SLSGD is stated (Xie, Koyejo and Gupta, ECML-PKDD 2019, Algorithm 1).

  Args:
    num_devices: n.
    count: how many to draw, all different.
    round_number: from 0.
    seed: of the draws.
  """
  rng = np.random.default_rng([seed, _UNIFORM, round_number])
  return rng.choice(num_devices, count, replace=False).tolist()


SAMPLINGS: dict[str, Sample] = {
  "permutation": permutation,
  "uniform": uniform,
}
