"""Who holds which examples: IID, Dirichlet and by-label partitions.

Each function returns one index array per worker, in ascending order. Every
example goes to exactly one worker, and no worker goes without.

Unbalanced sizes are an arithmetic progression, as in SLSGD (Xie, Koyejo and
Gupta, ECML-PKDD 2019, section 6: 104, 112, ..., 896 images, where balanced
devices hold 500), in an order drawn from the seed.
"""

from collections.abc import Callable
from collections.abc import Sequence

import numpy as np

# The smallest and largest share of an unbalanced partition, in even shares.
_SMALLEST, _LARGEST = 104 / 500, 896 / 500


def iid(
  labels: np.ndarray, num_workers: int, seed: int, balanced: bool = True
) -> list[np.ndarray]:
  """Returns a partition in which all workers draw from one distribution.

  Args:
    labels: class of each example, integers `[num_examples]`.
    num_workers: n >= 1.
    seed: of the shuffle.
    balanced: sizes differ by one at most; otherwise see the module.

  Returns:
    n index arrays.

  Raises:
    ValueError: there is not an example for each worker.
  """
  labels = _check(labels, num_workers)
  rng = np.random.default_rng(seed)
  sizes = _sizes(len(labels), num_workers, balanced, rng)
  return _cut(rng.permutation(len(labels)), sizes)


def dirichlet(
  labels: np.ndarray,
  num_workers: int,
  seed: int,
  dirichlet_alpha: float,
  balanced: bool = True,
) -> list[np.ndarray]:
  """Returns a partition whose workers favour classes of their own.

  Balanced: each worker draws its mix of classes from a Dirichlet distribution
  around the whole data's mix, and takes an even share of the examples in that
  mix, worker after worker, as far as the classes last (Hsu, Qi and Brown,
  Measuring the Effects of Non-Identical Data Distribution for Federated Visual
  Classification, 2019). Unbalanced: each class is divided among the workers in
  proportions drawn from a Dirichlet distribution, and sizes follow from that
  (Yurochkin et al., Bayesian Nonparametric Federated Learning of Neural
  Networks, ICML 2019).

  Args:
    labels: class of each example, integers `[num_examples]`.
    num_workers: n >= 1.
    seed: of all draws.
    dirichlet_alpha: above 0; large values come close to IID, small ones to
      one class a worker.
    balanced: sizes differ by one at most.

  Returns:
    n index arrays.

  Raises:
    ValueError: `dirichlet_alpha` is not above 0, or a worker goes without.
  """
  labels = _check(labels, num_workers)
  if not (dirichlet_alpha > 0 and np.isfinite(dirichlet_alpha)):
    raise ValueError(
      f"dirichlet_alpha={dirichlet_alpha} must be a finite number above 0"
    )
  rng = np.random.default_rng(seed)
  classes = [rng.permutation(x) for x in _by_class(labels)]
  if balanced:
    sizes = _sizes(len(labels), num_workers, True, rng)
    counts = _balanced_counts([*map(len, classes)], sizes, dirichlet_alpha, rng)
  else:
    counts = np.stack(
      [
        _shares(
          len(x), rng.dirichlet(np.full(num_workers, float(dirichlet_alpha)))
        )
        for x in classes
      ],
      axis=1,
    )
  parts = _deal(classes, counts)
  for worker, part in enumerate(parts):
    if not len(part):
      raise ValueError(
        f"worker {worker} of {num_workers} got none of {len(labels)} examples"
        f" with dirichlet_alpha={dirichlet_alpha}; raise it, or take another"
        " seed, fewer workers or a balanced partition"
      )
  return parts


def by_label(
  labels: np.ndarray,
  num_workers: int,
  seed: int,
  shards_per_worker: int = 2,
  balanced: bool = True,
) -> list[np.ndarray]:
  """Returns a partition into shards of examples sorted by label.

  The sorted examples are cut into `n * shards_per_worker` shards, which are
  shuffled and dealt (McMahan et al., Communication-Efficient Learning of Deep
  Networks from Decentralized Data, AISTATS 2017, section 3).

  Args:
    labels: class of each example, integers `[num_examples]`.
    num_workers: n >= 1.
    seed: of the shuffles: of examples within a label, and of shards.
    shards_per_worker: shards that each worker gets, at least 1.
    balanced: sizes of shards differ by one at most; otherwise see the module.

  Returns:
    n index arrays.

  Raises:
    ValueError: `shards_per_worker` is below 1, or there is not an example for
      each shard.
  """
  labels = _check(labels, num_workers)
  if shards_per_worker < 1:
    raise ValueError(
      f"shards_per_worker={shards_per_worker} must be at least 1"
    )
  num_shards = num_workers * shards_per_worker
  if num_shards > len(labels):
    raise ValueError(
      f"shards_per_worker={shards_per_worker} makes {num_shards} shards for"
      f" {num_workers} workers of only {len(labels)} examples; give fewer"
    )
  rng = np.random.default_rng(seed)
  by_label = np.concatenate([rng.permutation(x) for x in _by_class(labels)])
  shards = _cut(by_label, _sizes(len(labels), num_shards, balanced, rng))
  dealt = rng.permutation(num_shards).reshape(num_workers, shards_per_worker)
  return [np.sort(np.concatenate([shards[i] for i in row])) for row in dealt]


PARTITIONS: dict[str, Callable[..., list[np.ndarray]]] = {
  "iid": iid,
  "dirichlet": dirichlet,
  "by_label": by_label,
}


def _check(labels, num_workers: int) -> np.ndarray:
  labels = np.asarray(labels)
  if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(
      "labels must be integers [num_examples], got"
      f" {labels.dtype} {list(labels.shape)}"
    )
  if num_workers < 1:
    raise ValueError(f"num_workers={num_workers} must be at least 1")
  if num_workers > len(labels):
    raise ValueError(
      f"num_workers={num_workers} needs at least as many examples, got"
      f" {len(labels)}"
    )
  return labels


def _by_class(labels: np.ndarray) -> list[np.ndarray]:
  """Returns the examples of each class that occurs, by class."""
  return [np.flatnonzero(labels == x) for x in np.unique(labels)]


def _cut(order: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
  """Returns consecutive pieces of the given sizes, each sorted."""
  return [np.sort(x) for x in np.split(order, np.cumsum(sizes)[:-1])]


def _sizes(total: int, count: int, balanced: bool, rng) -> np.ndarray:
  """Returns `count` sizes of at least 1 that add up to `total`."""
  if balanced:
    return np.full(count, total // count) + (np.arange(count) < total % count)
  weights = rng.permutation(np.linspace(_SMALLEST, _LARGEST, count))
  # One each, and the rest by weight.
  return 1 + _shares(total - count, weights / weights.sum())


def _shares(total: int, proportions: np.ndarray) -> np.ndarray:
  """Returns integers in these proportions that add up to `total`."""
  edges = np.rint(np.cumsum(proportions) / proportions.sum() * total)
  return np.diff(edges.astype(int), prepend=0)


def _balanced_counts(
  available: Sequence[int], sizes: Sequence[int], alpha: float, rng
) -> np.ndarray:
  """Returns how many of each class each worker takes, `[n, classes]`."""
  left = np.array(available)
  prior = left / left.sum()
  counts = np.zeros((len(sizes), len(left)), int)
  for worker, size in enumerate(sizes):
    mix = rng.dirichlet(alpha * prior)
    while (missing := size - counts[worker].sum()) > 0:
      # Classes that have run out, and mixes of nothing but such classes.
      mix = np.where(left > 0, mix, 0)
      mix = mix if mix.sum() > 0 else left / left.sum()
      taken = np.minimum(rng.multinomial(missing, mix / mix.sum()), left)
      counts[worker] += taken
      left -= taken
  return counts


def _deal(
  classes: Sequence[np.ndarray], counts: np.ndarray
) -> list[np.ndarray]:
  """Returns for each worker its count of each class's examples."""
  pieces = [
    np.split(examples, np.cumsum(counts[:, k])[:-1])
    for k, examples in enumerate(classes)
  ]
  return [
    np.sort(np.concatenate([piece[worker] for piece in pieces]))
    for worker in range(len(counts))
  ]
