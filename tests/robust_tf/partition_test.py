import pathlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from robust_tf.federated import partition
from robust_tf.federated.partition import by_label
from robust_tf.federated.partition import dirichlet
from robust_tf.federated.partition import iid
from robust_tf.federated.partition import PARTITIONS

ROOT = pathlib.Path(__file__).parents[2]
LABELS = np.random.RandomState(0).randint(10, size=2000)
NEEDED = {"dirichlet": {"dirichlet_alpha": 0.5}}


def cut(name, labels=LABELS, num_workers=20, seed=0, **arguments):
  function = PARTITIONS[name]
  return function(
    labels, num_workers, seed, **NEEDED.get(name, {}), **arguments
  )


def counts(parts, labels=LABELS):
  """Examples of each class that each worker holds, [n, classes]."""
  return np.array([np.bincount(labels[x], minlength=10) for x in parts])


def test_the_table_holds_every_partition():
  assert PARTITIONS == {
    "iid": iid,
    "dirichlet": dirichlet,
    "by_label": by_label,
  }


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("name", PARTITIONS)
@settings(max_examples=30, deadline=None)
@given(
  labels=st.lists(st.integers(0, 5), min_size=40, max_size=120),
  num_workers=st.integers(1, 20),
  seed=st.integers(0, 99),
)
def test_every_example_goes_to_exactly_one_worker(
  name, balanced, labels, num_workers, seed
):
  try:
    parts = cut(name, np.array(labels), num_workers, seed, balanced=balanced)
  except ValueError as error:
    # Sizes follow from the draw only there.
    assert name == "dirichlet" and not balanced
    assert "got none" in str(error)
    return
  assert len(parts) == num_workers
  assert all(len(x) for x in parts)
  assert all((np.diff(x) > 0).all() for x in parts)
  assert (np.sort(np.concatenate(parts)) == np.arange(len(labels))).all()


@pytest.mark.parametrize("name", PARTITIONS)
def test_the_seed_alone_decides(name):
  first, again, other = cut(name), cut(name), cut(name, seed=1)
  assert all((a == b).all() for a, b in zip(first, again, strict=True))
  assert any(list(a) != list(b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("num_workers", [1, 7, 20, 2000])
@pytest.mark.parametrize("name", ["iid", "dirichlet"])
def test_balanced_sizes_differ_by_one_at_most(name, num_workers):
  sizes = [len(x) for x in cut(name, num_workers=num_workers)]
  assert max(sizes) - min(sizes) <= 1


def test_unbalanced_sizes_are_the_papers_progression():
  # SLSGD: 50,000 images on 100 devices, sizes 104, 112, ..., 896. Rounding
  # the cumulative sizes moves each by two at most.
  parts = iid(np.zeros(50_000, int), 100, seed=0, balanced=False)
  sizes = sorted(map(len, parts))
  assert np.abs(np.array(sizes) - np.arange(104, 897, 8)).max() <= 2


def test_iid_workers_hold_the_mix_of_the_whole():
  shares = counts(iid(LABELS, 4, seed=0)) / 500
  # Five deviations of a hypergeometric draw of 500 in 2,000.
  assert shares == pytest.approx(np.full((4, 10), 0.1), abs=0.06)


def test_each_worker_holds_few_labels_when_cut_by_label():
  labels = np.repeat(np.arange(10), 200)
  held = counts(by_label(labels, 20, 0, shards_per_worker=2), labels)
  # 40 shards of 50 examples: four to a label.
  assert ((held > 0).sum(axis=1) <= 2).all()
  assert set(np.unique(held)) <= {0, 50, 100}


def test_one_shard_of_one_worker_is_everything():
  (part,) = by_label(LABELS, 1, 0, shards_per_worker=1)
  assert (part == np.arange(len(LABELS))).all()


@pytest.mark.parametrize("balanced", [True, False])
def test_small_alpha_concentrates_labels(balanced):
  def mean_largest_share(alpha):
    held = counts(dirichlet(LABELS, 10, 0, alpha, balanced=balanced))
    return (held.max(axis=1) / held.sum(axis=1)).mean()

  assert mean_largest_share(0.1) > 0.5
  assert mean_largest_share(1e6) < 0.2


def test_dirichlet_mixes_have_the_variance_of_the_distribution():
  # Of the first workers only: the last ones get what is left. A mix drawn
  # from Dirichlet(alpha p) has variance p (1 - p) / (alpha + 1) per class.
  labels = np.repeat(np.arange(2), 50_000)
  alpha = 3.0
  shares = [
    held[0] / held.sum()
    for seed in range(150)
    for held in counts(dirichlet(labels, 50, seed, alpha)[:4], labels)
  ]
  # 600 draws estimate the variance to 4 %: allow for four deviations.
  assert np.var(shares) == pytest.approx(0.25 / (alpha + 1), rel=0.2)
  assert np.mean(shares) == pytest.approx(0.5, abs=0.05)


def test_dirichlet_takes_an_alpha_that_underflows():
  parts = dirichlet(LABELS, 20, 0, 1e-300)
  assert sum(map(len, parts)) == len(LABELS)


@pytest.mark.parametrize(
  ("name", "arguments", "message"),
  [
    ("iid", {"num_workers": 0}, "num_workers=0 must be at least 1"),
    ("iid", {"num_workers": 2001}, "num_workers=2001 .* got 2000"),
    ("by_label", {"shards_per_worker": 0}, "=0 must be at least 1"),
    ("by_label", {"shards_per_worker": 101}, "2020 shards .* only 2000"),
    ("iid", {"labels": LABELS[None]}, r"integers \[num_examples\]"),
    ("iid", {"labels": LABELS / 2}, "integers .* got float64"),
  ],
)
def test_impossible_partition_is_refused(name, arguments, message):
  with pytest.raises(ValueError, match=message):
    cut(name, **arguments)


@pytest.mark.parametrize("alpha", [0.0, -1.0, np.inf, np.nan])
def test_alpha_that_is_no_concentration_is_refused(alpha):
  with pytest.raises(ValueError, match="dirichlet_alpha=.* above 0"):
    dirichlet(LABELS, 4, 0, alpha)


def test_worker_without_examples_is_refused():
  with pytest.raises(ValueError, match="worker .* got none .* raise it"):
    dirichlet(LABELS, 20, 0, 1e-3, balanced=False)


def test_no_tensorflow_is_imported():
  name = partition.__name__
  code = f"import sys, {name}; sys.exit('tensorflow' in sys.modules)"
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
  assert done.returncode == 0
