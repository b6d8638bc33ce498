"""Labelled examples to train on: digits, synthetic ones, or a file.

`digits` are the 1,797 images of 8 x 8 pixels that scikit-learn carries along.
`synthetic` are ten Gaussian classes of the same shape. A file is an `.npz` as
Keras' data sets are kept: arrays x_train, y_train, x_test and y_test.

Inputs are centred: the training examples' mean, of each pixel or feature by
itself, is subtracted from all.
"""

import dataclasses
import hashlib
import os
import zipfile

import numpy as np

NAMES = ("digits", "synthetic")
_ARRAYS = ("x_train", "y_train", "x_test", "y_test")

_SYNTHETIC_SHAPE = (8, 8, 1)
_SYNTHETIC_CLASSES = 10
_SYNTHETIC_TRAIN, _SYNTHETIC_TEST = 4000, 1000
# Of the classes' centres, where each example has deviation 1: 2 % or so of
# the examples lie nearer to another class' centre.
_SYNTHETIC_SPREAD = 0.5


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
  """Examples and their labels.

  x_train and x_test are float32 `[examples, *input_shape]`, y_train and y_test
  int32 `[examples]` in `[0, num_classes)`.
  """

  x_train: np.ndarray
  y_train: np.ndarray
  x_test: np.ndarray
  y_test: np.ndarray
  num_classes: int

  @property
  def input_shape(self) -> tuple[int, ...]:
    """The shape of one example."""
    return self.x_train.shape[1:]

  def digest(self) -> str:
    """Returns a SHA-256 of all arrays, in hexadecimal."""
    digest = hashlib.sha256()
    for name in _ARRAYS:
      array = getattr(self, name)
      digest.update(repr((name, array.dtype.str, array.shape)).encode())
      digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def load(data: str, seed: int = 0) -> Dataset:
  """Returns the examples of a name or a file.

  Args:
    data: one of `NAMES`, or the path of an `.npz` file.
    seed: of the split of `digits`, and of the draw of `synthetic`.

  Raises:
    ValueError: there is no such name or file, or the file is not as it must
      be; says which array and how.
  """
  if data == "digits":
    return _digits(seed)
  if data == "synthetic":
    return _synthetic(seed)
  return _read_npz(data)


def _digits(seed: int) -> Dataset:
  # Takes a second to import, and most files and errors do without.
  from sklearn.datasets import load_digits

  digits = load_digits()
  order = np.random.RandomState(seed).permutation(len(digits.images))
  images, labels = digits.images[order, ..., None] / 16, digits.target[order]
  count = int(0.8 * len(images))
  return _centred(
    images[:count], labels[:count], images[count:], labels[count:]
  )


def _synthetic(seed: int) -> Dataset:
  rng = np.random.default_rng(seed)
  shape = (_SYNTHETIC_CLASSES, *_SYNTHETIC_SHAPE)
  centres = rng.normal(scale=_SYNTHETIC_SPREAD, size=shape)

  def draw(count):
    labels = rng.permutation(np.arange(count) % _SYNTHETIC_CLASSES)
    noise = rng.normal(size=(count, *_SYNTHETIC_SHAPE))
    return centres[labels] + noise, labels

  return _centred(*draw(_SYNTHETIC_TRAIN), *draw(_SYNTHETIC_TEST))


def _read_npz(path: str) -> Dataset:
  if not os.path.isfile(path):
    raise ValueError(
      f"no such data: {path!r} is neither a file nor one of {', '.join(NAMES)}"
    )
  try:
    x_train, y_train, x_test, y_test = _arrays(path)
    x_train, x_test = _inputs(x_train, "x_train"), _inputs(x_test, "x_test")
    y_train = _labels(y_train, "y_train", len(x_train))
    y_test = _labels(y_test, "y_test", len(x_test))
    if x_train.shape[1:] != x_test.shape[1:]:
      raise ValueError(
        f"x_train holds examples of shape {list(x_train.shape[1:])},"
        f" x_test of {list(x_test.shape[1:])}; they must be the same"
      )
  except (ValueError, EOFError, zipfile.BadZipFile) as error:
    raise ValueError(f"{path} is no data set for training: {error}") from None
  return _centred(x_train, y_train, x_test, y_test)


def _arrays(path: str) -> list[np.ndarray]:
  """Returns the four arrays of a file."""
  # NumPy itself leaves a file open that turns out to be no archive.
  with open(path, "rb") as file:
    archive = np.load(file, allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
      raise ValueError("it is a single array, no .npz archive")
    with archive:
      missing = [name for name in _ARRAYS if name not in archive]
      if missing:
        raise ValueError(
          f"there is no array {missing[0]} in it (it has:"
          f" {', '.join(sorted(archive)) or 'none'}; it needs:"
          f" {', '.join(_ARRAYS)})"
        )
      return [archive[name] for name in _ARRAYS]


def _inputs(x: np.ndarray, name: str) -> np.ndarray:
  """Returns float32 inputs: bytes as [0, 1], images with a channel axis."""
  if x.ndim < 2 or not x.size:
    raise ValueError(
      f"{name} has shape {list(x.shape)}; it must be [examples, ...] with at"
      " least one example"
    )
  if not (x.dtype == np.uint8 or np.issubdtype(x.dtype, np.floating)):
    raise ValueError(f"{name} is {x.dtype}; it must be uint8 or floats")
  with np.errstate(over="ignore"):
    scaled = x.astype(np.float32) / (255 if x.dtype == np.uint8 else 1)
  if not np.isfinite(scaled).all():
    raise ValueError(f"{name} holds values that are not finite in float32")
  return scaled[..., None] if scaled.ndim == 3 else scaled


def _labels(y: np.ndarray, name: str, num_examples: int) -> np.ndarray:
  """Returns the labels `[examples]`."""
  if y.ndim == 2 and y.shape[1] == 1:  # as Keras' CIFAR-10 has them
    y = y[:, 0]
  if y.shape != (num_examples,):
    raise ValueError(
      f"{name} has shape {list(y.shape)}; it must be [{num_examples}], a"
      " label for each example"
    )
  if not np.issubdtype(y.dtype, np.integer):
    raise ValueError(f"{name} is {y.dtype}; it must be integers")
  if y.min() < 0:
    raise ValueError(f"{name} holds the label {y.min()}; labels start at 0")
  return y


def _centred(x_train, y_train, x_test, y_test) -> Dataset:
  mean = x_train.mean(axis=0, dtype=np.float64).astype(x_train.dtype)
  return Dataset(
    x_train=(x_train - mean).astype(np.float32, copy=False),
    y_train=y_train.astype(np.int32),
    x_test=(x_test - mean).astype(np.float32, copy=False),
    y_test=y_test.astype(np.int32),
    num_classes=int(max(y_train.max(), y_test.max())) + 1,
  )
