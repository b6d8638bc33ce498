import numpy as np
import pytest

from robust_tf.training import data
from robust_tf.training.batches import validation_batches
from robust_tf.training.batches import WorkerBatches
from robust_tf.training.data import load


@pytest.fixture(scope="module")
def digits():
  return load("digits")


def npz(path, **changes):
  """Writes a data set of 12 + 4 images, changed; None leaves an array out."""
  rng = np.random.RandomState(0)
  arrays = {
    "x_train": rng.randint(256, size=(12, 4, 5)).astype(np.uint8),
    "y_train": np.arange(12) % 3,
    "x_test": rng.randint(256, size=(4, 4, 5)).astype(np.uint8),
    "y_test": np.arange(4) % 3,
    **changes,
  }
  np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
  return str(path)


def test_digits_are_split_centred_and_scaled(digits):
  assert digits.x_train.shape == (1437, 8, 8, 1)
  assert digits.x_test.shape == (360, 8, 8, 1)
  assert digits.num_classes == 10
  assert digits.x_train.dtype == np.float32
  assert digits.y_train.dtype == np.int32
  assert np.abs(digits.x_train.mean(axis=0)).max() < 1e-6
  assert np.abs(digits.x_train).max() <= 1


def test_digits_split_follows_the_seed(digits):
  from sklearn.datasets import load_digits

  order = np.random.RandomState(3).permutation(1797)
  other = load("digits", seed=3)
  assert (other.y_test == load_digits().target[order[1437:]]).all()
  assert digits.digest() == load("digits").digest() != other.digest()


def test_synthetic_classes_can_be_told_apart_almost():
  dataset = load("synthetic")
  assert dataset.input_shape == (8, 8, 1)
  assert len(dataset.x_train) == 4000 and len(dataset.x_test) == 1000
  assert (np.bincount(dataset.y_train) == 400).all()
  x, y = dataset.x_train.reshape(4000, -1), dataset.y_train
  centres = np.stack([x[y == k].mean(axis=0) for k in range(10)])
  test = dataset.x_test.reshape(1000, -1)
  nearest = ((test[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
  assert 0.9 < (nearest == dataset.y_test).mean() < 1


def test_keras_file_is_read(tmp_path):
  path = npz(tmp_path / "a.npz")
  dataset = load(path)
  assert dataset.input_shape == (4, 5, 1)
  assert dataset.num_classes == 3
  raw = np.load(path)
  mean = raw["x_train"].mean(axis=0) / 255
  expected = raw["x_test"] / 255 - mean
  np.testing.assert_allclose(dataset.x_test[..., 0], expected, atol=1e-6)


def test_labels_in_a_column_and_floats_are_read(tmp_path):
  x = np.random.RandomState(0).normal(size=(12, 7))
  path = npz(
    tmp_path / "a.npz", x_train=x, x_test=x[:4], y_train=np.ones((12, 1), int)
  )
  dataset = load(path)
  assert dataset.input_shape == (7,)
  assert dataset.y_train.shape == (12,)
  np.testing.assert_allclose(dataset.x_train, x - x.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"y_test": None}, "no array y_test in it .it has: x_test, x_train, y_tr"),
    ({"x_train": np.zeros(12)}, r"x_train has shape \[12\]"),
    ({"x_train": np.zeros((0, 4, 5))}, r"x_train has shape \[0, 4, 5\]"),
    ({"x_test": np.zeros((4, 9, 9))}, "shape .4, 5, 1., x_test of .9, 9, 1."),
    ({"x_train": np.zeros((12, 4, 5), int)}, "x_train is int64; .* uint8"),
    ({"x_test": np.full((4, 4, 5), np.nan)}, "x_test holds values .* finite"),
    ({"x_test": np.full((4, 4, 5), 1e300)}, "x_test holds values .* finite"),
    ({"y_train": np.zeros(11, int)}, r"y_train has shape \[11\]; .* \[12\]"),
    ({"y_test": np.zeros(4)}, "y_test is float64; it must be integers"),
    ({"y_test": np.full(4, -1)}, "y_test holds the label -1"),
    ({"y_test": np.array([{}] * 4)}, "a.npz is no data set .*y_test|pickle"),
  ],
)
def test_unfit_file_is_refused_by_field(tmp_path, changes, message):
  path = npz(tmp_path / "a.npz", **changes)
  with pytest.raises(ValueError, match=message) as caught:
    load(path)
  assert path in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 broken"])
def test_file_that_is_no_archive_is_refused(tmp_path, content):
  path = tmp_path / "a.npz"
  path.write_bytes(content)
  with pytest.raises(ValueError, match="a.npz is no data set"):
    load(str(path))


def test_array_instead_of_an_archive_is_refused(tmp_path):
  np.save(tmp_path / "a.npy", np.zeros(3))
  with pytest.raises(ValueError, match="a.npy is no data set"):
    load(str(tmp_path / "a.npy"))


def test_missing_file_is_refused():
  with pytest.raises(ValueError, match="'mnist' is neither a file nor one of"):
    load("mnist")


def worker_batches(dataset, **changes):
  parts = np.array_split(np.arange(100), 3)
  arguments = {"parts": parts, "batch_size": 8, "seed": 5, **changes}
  return WorkerBatches(dataset, **arguments)


def test_a_worker_goes_through_all_its_examples_each_time_round(digits):
  batches = worker_batches(digits)
  size = len(batches.parts[1])  # 33, not a multiple of 8
  seen = np.concatenate([batches.examples(1, t) for t in range(3 * size)])
  rounds = seen.reshape(-1, size)
  assert (np.sort(rounds, axis=1) == batches.parts[1]).all()
  assert len({tuple(x) for x in rounds}) == len(rounds)


def test_a_batch_depends_on_seed_worker_and_step_only(digits):
  batches = worker_batches(digits)
  inputs, labels = batches.batch([0, 1, 2], step=17)
  for worker in (2, 0, 1):
    alone = worker_batches(digits).batch([worker], step=17)
    rows = slice(worker * 8, worker * 8 + 8)
    assert (inputs[rows] == alone[0]).all()
    assert (labels[rows] == alone[1]).all()
  assert (labels == digits.y_train[batches.examples(0, 17)][0]).sum() < 24
  other = worker_batches(digits, seed=6)
  assert list(other.examples(0, 17)) != list(batches.examples(0, 17))


def test_flipped_workers_learn_wrong_labels_from_their_step_on(digits):
  honest = worker_batches(digits)
  flipped = worker_batches(digits, flipped_workers=(0, 2), flipped_from=4)
  assert (flipped.batch([0, 1, 2], 3)[1] == honest.batch([0, 1, 2], 3)[1]).all()
  inputs, labels = flipped.batch([0, 1, 2], 4)
  expected_inputs, expected = honest.batch([0, 1, 2], 4)
  assert (inputs == expected_inputs).all()
  assert (labels[8:16] == expected[8:16]).all()
  assert (labels[:8] == 9 - expected[:8]).all()
  assert (labels[16:] == 9 - expected[16:]).all()


def test_batch_larger_than_a_workers_share_is_refused(digits):
  with pytest.raises(ValueError, match="batch_size=34 .* the 33 .* worker 1"):
    worker_batches(digits, batch_size=34)


def test_validation_batches_depend_on_the_step_only(digits):
  stream = validation_batches(digits, 4, seed=1, first_step=0)
  first = [next(stream) for _ in range(6)]
  resumed = validation_batches(digits, 4, seed=1, first_step=4)
  for inputs, labels in first[4:]:
    again = next(resumed)
    assert (again[0] == inputs).all() and (again[1] == labels).all()
  assert first[0][0].shape == (4, 8, 8, 1)
  assert any((a[1] != first[0][1]).any() for a in first[1:])


def test_names_are_what_load_knows():
  assert data.NAMES == ("digits", "synthetic")
