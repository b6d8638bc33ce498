"""Which examples a server judges updates by.

A function of the seed and the step alone: a run that is resumed draws what one
that was never stopped would have drawn.
"""

import numpy as np

_VALIDATION = 1  # sets the stream of random numbers apart from others


def validation_examples(
  num_examples: int, batch_size: int, seed: int, step: int
) -> np.ndarray:
  """Returns the examples of the server's own batch at a step.

  Drawn anew at each step from all training examples, as Zeno's are (Xie,
  Koyejo and Gupta, ICML 2019, Definition 2).

  Args:
    num_examples: how many there are to draw from.
    batch_size: how many are drawn, each once at most.
    seed: of the draws.
    step: 0 is the first.

  Returns:
    Indices `[batch_size]`.
  """
  rng = np.random.default_rng([seed, _VALIDATION, step])
  return rng.choice(num_examples, batch_size, replace=False)
