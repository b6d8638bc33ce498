"""Every optimizer with local models, transcribed into float64 NumPy.

Slow, short, and written from the papers, never from `robust_tf`. Rows are
workers: a model or state of all is `[n, d]`, and the letters are the papers'.
Each algorithm is a generator that takes what is to be optimized and yields,
after every step t = 1..T, what the workers hold then, by name. Callbacks count
steps from 0, as optimizers do: they get t - 1.

Xie et al., CSER, NeurIPS 2020; Xie et al., Local AdaAlter, 2019.
"""

import dataclasses
from collections.abc import Callable
from collections.abc import Iterator

import numpy as np

# Of a vector [d] at a step on a worker: what is sent, as a vector [d].
Compressor = Callable[[np.ndarray, int, int], np.ndarray]
State = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Problem:
  """What the workers optimize, and how fast.

  Attributes:
    x0: the first model, [d].
    num_workers: n.
    num_steps: T.
    gradient: of a worker's loss, of (worker, model [d], step), [d].
    learning_rate: eta, of a step.
  """

  x0: np.ndarray
  num_workers: int
  num_steps: int
  gradient: Callable[[int, np.ndarray, int], np.ndarray]
  learning_rate: Callable[[int], float]

  def start(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first model on every worker, and zeros; `[n, d]` each."""
    x = np.tile(self.x0.astype(np.float64), (self.num_workers, 1))
    return x, np.zeros_like(x)

  def gradients(self, x: np.ndarray, t: int) -> np.ndarray:
    """Returns every worker's gradient at its own model, [n, d]."""
    return np.stack([self.gradient(i, x[i], t - 1) for i in range(len(x))])


def compressed(v: np.ndarray, c: Compressor, t: int) -> np.ndarray:
  """Returns C(v_i) of every worker, [n, d]."""
  return np.stack([c(v[i], t - 1, i) for i in range(len(v))])


def psync(
  v: np.ndarray, c: Compressor, t: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns what partial synchronisation makes of v, and the residuals."""
  v_sent = compressed(v, c, t)
  r = v - v_sent
  return v_sent.mean(axis=0) + r, r


def identity(v: np.ndarray, step: int, worker: int) -> np.ndarray:
  """Returns everything: delta = 1."""
  del step, worker
  return v


def zero(v: np.ndarray, step: int, worker: int) -> np.ndarray:
  """Returns nothing."""
  del step, worker
  return np.zeros_like(v)


def top_k(ratio: float) -> Compressor:
  """Returns the compressor that keeps the d / ratio largest magnitudes."""

  def compress(v, step, worker):
    del step, worker
    k = max(1, round(len(v) / ratio))
    kept = np.argsort(-np.abs(v), kind="stable")[:k]
    return on_support(lambda size, step: kept)(v, 0, 0)

  return compress


def scaled_sign(v: np.ndarray, step: int, worker: int) -> np.ndarray:
  """Returns (|v|_1 / d) sign(v); a bit has no third value for the sign of 0."""
  del step, worker
  return np.abs(v).sum() / len(v) * np.where(v < 0, -1.0, 1.0)


def on_support(support: Callable[[int, int], np.ndarray]) -> Compressor:
  """Returns the compressor that keeps the coordinates support(d, step)."""

  def compress(v, step, worker):
    del worker
    kept = np.zeros_like(v)
    at = support(len(v), step)
    kept[at] = v[at]
    return kept

  return compress


def blocks(ratio: float, num_blocks: int, seed: int) -> Compressor:
  """Returns GRBS: whole blocks, drawn anew at each step for all workers."""

  def support(size, step):
    random = np.random.default_rng((seed, step))
    count = round(num_blocks / ratio)
    chosen = random.choice(num_blocks, size=count, replace=False)
    return np.concatenate(
      [
        np.arange(b * size // num_blocks, (b + 1) * size // num_blocks)
        for b in np.sort(chosen)
      ]
    )

  return on_support(support)


def sgd(problem: Problem, beta=0.0, wd=0.0) -> Iterator[State]:
  """Yields synchronous SGD with Nesterov momentum: one model for all."""
  x, m = problem.start()
  for t in range(1, problem.num_steps + 1):
    eta = problem.learning_rate(t - 1)
    g = problem.gradients(x, t).mean(axis=0)
    m = beta * m + g
    x = x - eta * (beta * m + g + wd * x)
    yield {"models": x, "momentum": m}


def cser(problem: Problem, c1, c2, h: int) -> Iterator[State]:
  """Yields CSER as it is without momentum."""
  x, e = problem.start()
  for t in range(1, problem.num_steps + 1):
    eta = problem.learning_rate(t - 1)
    g = problem.gradients(x, t)
    g_synced, r = psync(g, c2, t)
    x_half = x - eta * g_synced
    e_half = e - eta * r
    if t % h:
      x, e = x_half, e_half
    else:
      e_synced, e = psync(e_half, c1, t)
      x = x_half - e_half + e_synced
    yield {"models": x, "error": e, "updates": eta * g}


def m_cser(
  problem: Problem, c1, c2, h: int, beta=0.0, wd=0.0
) -> Iterator[State]:
  """Yields M-CSER: Nesterov momentum, and decoupled weight decay."""
  x, e = problem.start()
  m = np.zeros_like(x)
  for t in range(1, problem.num_steps + 1):
    eta = problem.learning_rate(t - 1)
    g = problem.gradients(x, t)
    m = beta * m + g
    p = eta * (beta * m + g) + eta * wd * x
    p_synced, r = psync(p, c2, t)
    x_half = x - p_synced
    e_half = e - r
    if t % h:
      x, e = x_half, e_half
    else:
      e_synced, e = psync(e_half, c1, t)
      x = x_half - e_half + e_synced
    yield {"models": x, "error": e, "momentum": m, "updates": p}


def released_cser(
  problem: Problem, c1, c2, h: int, beta=0.0, wd=0.0
) -> Iterator[State]:
  """Yields what the authors' trainer does: it averages models, on one block.

  At each H-th step that is C1's block instead of C2's. Both keep coordinates
  that are the same on all workers.
  """
  x, m = problem.start()
  for t in range(1, problem.num_steps + 1):
    eta = problem.learning_rate(t - 1)
    g = problem.gradients(x, t)
    m = beta * m + g
    p = eta * (beta * m + g) + eta * wd * x
    x, _ = psync(x - p, c2 if t % h else c1, t)
    yield {"models": x, "momentum": m, "updates": p}


def local_sgd(problem: Problem, h: int, beta=0.0, wd=0.0) -> Iterator[State]:
  """Yields local SGD: every H steps all models become their mean."""
  x, m = problem.start()
  for t in range(1, problem.num_steps + 1):
    eta = problem.learning_rate(t - 1)
    g = problem.gradients(x, t)
    m = beta * m + g
    x = x - eta * (beta * m + g) - eta * wd * x
    if t % h == 0:
      x = np.broadcast_to(x.mean(axis=0), x.shape)
    yield {"models": x, "momentum": m}


def ef_sgd(problem: Problem, c, beta=0.0, wd=0.0) -> Iterator[State]:
  """Yields EF-SGD(M): one model; weight decay is applied to it directly."""
  x, e = problem.start()
  m = np.zeros_like(x)
  for t in range(1, problem.num_steps + 1):
    eta = problem.learning_rate(t - 1)
    g = problem.gradients(x, t)
    m = beta * m + g
    p = eta * (beta * m + g)
    v = p + e
    sent = compressed(v, c, t)
    e = v - sent
    x = x - eta * wd * x - sent.mean(axis=0)
    yield {"models": x, "error": e, "momentum": m}


def qsparse_local_sgd(
  problem: Problem, c, h: int, beta=0.0, wd=0.0
) -> Iterator[State]:
  """Yields QSparse-local-SGD: H local steps, whose sum is compressed."""
  x, e = problem.start()
  x_local, m = problem.start()
  for t in range(1, problem.num_steps + 1):
    eta = problem.learning_rate(t - 1)
    g = problem.gradients(x_local, t)
    m = beta * m + g
    x_local = x_local - eta * (beta * m + g) - eta * wd * x_local
    if t % h == 0:
      v = e + (x_local - x)
      sent = compressed(v, c, t)
      e = v - sent
      x = x + sent.mean(axis=0)
      x_local = x
    yield {"models": x_local, "common": x, "error": e, "momentum": m}


def adagrad(problem: Problem, b0_squared, eps_squared) -> Iterator[State]:
  """Yields distributed AdaGrad: the mean gradient's square, then the step."""
  x, zeros = problem.start()
  b_squared = zeros + b0_squared
  for t in range(1, problem.num_steps + 1):
    eta = problem.learning_rate(t - 1)
    g = problem.gradients(x, t).mean(axis=0)
    b_squared = b_squared + g * g
    x = x - eta * g / np.sqrt(b_squared + eps_squared)
    yield {"models": x, "accumulator": b_squared}


def adaalter(
  problem: Problem, b0_squared, eps_squared, wd=0.0
) -> Iterator[State]:
  """Yields distributed AdaAlter: the step, then the mean of the squares."""
  x, zeros = problem.start()
  b_squared = zeros + b0_squared
  for t in range(1, problem.num_steps + 1):
    eta = problem.learning_rate(t - 1)
    g = problem.gradients(x, t)
    x = x - eta * (g.mean(axis=0) / np.sqrt(b_squared + eps_squared) + wd * x)
    b_squared = b_squared + (g * g).mean(axis=0)
    yield {
      "models": x,
      "accumulator": b_squared,
      "denominator": b_squared,
    }


def local_adaalter(
  problem: Problem,
  b0_squared,
  eps_squared,
  h: int,
  wd=0.0,
  constant_epsilon=False,
) -> Iterator[State]:
  """Yields Local AdaAlter; with a constant epsilon, the authors' code."""
  x, zeros = problem.start()
  a_squared = b_squared = zeros + b0_squared
  for t in range(1, problem.num_steps + 1):
    eta = problem.learning_rate(t - 1)
    t_prime = 1 if constant_epsilon else (t - 1) % h + 1
    g = problem.gradients(x, t)
    y = x - eta * (g / np.sqrt(b_squared + t_prime * eps_squared) + wd * x)
    a_squared = a_squared + g * g
    if t % h:
      x = y
    else:
      x = np.broadcast_to(y.mean(axis=0), y.shape)
      a_squared = np.broadcast_to(a_squared.mean(axis=0), y.shape)
      b_squared = a_squared
    yield {
      "models": x,
      "accumulator": a_squared,
      "denominator": b_squared,
    }


def naive_local_adagrad(
  problem: Problem, b0_squared, eps_squared, h: int
) -> Iterator[State]:
  """Yields local AdaGrad that averages models, never the denominators."""
  x, zeros = problem.start()
  a_squared = zeros + b0_squared
  for t in range(1, problem.num_steps + 1):
    eta = problem.learning_rate(t - 1)
    g = problem.gradients(x, t)
    a_squared = a_squared + g * g
    x = x - eta * g / np.sqrt(a_squared + eps_squared)
    if t % h == 0:
      x = np.broadcast_to(x.mean(axis=0), x.shape)
    yield {"models": x, "accumulator": a_squared}
