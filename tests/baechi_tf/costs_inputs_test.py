import types

import numpy as np
import pytest

from baechi_tf.costs import inputs
from baechi_tf.graph_item import Feed
from tests.tensorflow_setup import tf


def item_of(*feeds):
  return types.SimpleNamespace(feeds=feeds)


IMAGE = Feed("image", "a:0", tf.float32, (None, 28, 28, 1))
LABEL = Feed("label", "b:0", tf.int64, (None,))
WORDS = Feed("words", "c:0", tf.string, (None, 3))
FLAG = Feed("flag", "d:0", tf.bool, ())
ANY = Feed("any", "e:0", tf.float32, None)


def test_shapes_batch_size_fills_first_dimensions():
  shapes = inputs.concrete_shapes(item_of(IMAGE, LABEL, FLAG), 32)
  assert shapes == {"image": (32, 28, 28, 1), "label": (32,), "flag": ()}


def test_shapes_given_shape_wins():
  shapes = inputs.concrete_shapes(
    item_of(IMAGE, ANY), 32, {"image": (8, 28, 28, 1), "any": (5,)}
  )
  assert shapes == {"image": (8, 28, 28, 1), "any": (5,)}


def test_shapes_unknown_dimension_names_input_and_flags():
  with pytest.raises(
    ValueError,
    match=r"'image' has shape \[\?, 28, 28, 1\].*--batch-size.*"
    r"--input-shape image=32,28,28,1",
  ):
    inputs.concrete_shapes(item_of(IMAGE))


def test_shapes_unknown_rank_is_not_for_batch_size():
  with pytest.raises(
    ValueError, match="'any' has shape of unknown rank.*--input-shape any=32"
  ):
    inputs.concrete_shapes(item_of(ANY), batch_size=4)


def test_shapes_unknown_input_lists_inputs():
  with pytest.raises(ValueError, match="no such input; .*'image', 'label'"):
    inputs.concrete_shapes(item_of(IMAGE, LABEL), 1, {"imgae": (1,)})


@pytest.mark.parametrize(
  "shape", [(8, 28, 28), (8, 28, 29, 1), (-1, 28, 28, 1)]
)
def test_shapes_contradiction_is_refused(shape):
  with pytest.raises(ValueError, match=r"does not fit .*\[\?, 28, 28, 1\]"):
    inputs.concrete_shapes(item_of(IMAGE), 1, {"image": shape})


def test_shapes_batch_size_zero_is_refused():
  with pytest.raises(ValueError, match="--batch-size 0 must be at least 1"):
    inputs.concrete_shapes(item_of(IMAGE), 0)


@pytest.mark.parametrize(
  "dtype", ["float32", "float64", "bfloat16", "float16", "complex64"]
)
def test_values_of_floats_are_small_random_and_the_same_twice(dtype):
  feed = Feed("x", "x:0", tf.as_dtype(dtype), (None, 40))
  first, second = (
    inputs.synthesize_inputs(item_of(feed), 25)["x"] for _ in range(2)
  )
  assert first.dtype == feed.dtype.as_numpy_dtype
  assert first.shape == (25, 40)
  assert len(np.unique(first)) > 100
  assert np.abs(first).max() < 1
  assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8"])
def test_values_of_integers_are_in_range_of_two(dtype):
  feed = Feed("x", "x:0", tf.as_dtype(dtype), (100,))
  value = inputs.synthesize_inputs(item_of(feed))["x"]
  assert value.dtype == dtype
  assert set(value.tolist()) == {0, 1}


def test_values_of_strings_and_booleans():
  values = inputs.synthesize_inputs(item_of(WORDS, FLAG), batch_size=2)
  assert values["words"].tolist() == [[b""] * 3] * 2
  assert values["flag"].tolist() is True


def test_values_of_resources_cannot_be_made_up():
  feed = Feed("handle", "h:0", tf.resource, ())
  with pytest.raises(ValueError, match=r"'handle' has type resource.*\.npz"):
    inputs.synthesize_inputs(item_of(feed))


def saved(path, **arrays):
  np.savez(path, **arrays)
  return path


def test_values_from_file(tmp_path):
  image = np.ones([2, 28, 28, 1], np.float32)
  words = np.array([["a", "b", "c"]])
  path = saved(tmp_path / "in.npz", image=image, words=words)
  values = inputs.synthesize_inputs(item_of(IMAGE, WORDS), npz=path)
  assert list(values) == ["image", "words"]
  np.testing.assert_array_equal(values["image"], image)
  np.testing.assert_array_equal(values["words"], words)


@pytest.mark.parametrize(
  ("arrays", "message"),
  [
    ({}, r"in\.npz: input 'label' is missing; the file has nothing"),
    (
      {"label": np.zeros(3, np.int64), "lable": np.zeros(3)},
      "'lable' is no input of the model; its inputs are 'label'",
    ),
    (
      {"label": np.zeros(3, np.float32)},
      "'label' has type float32, the model wants int64",
    ),
    (
      {"label": np.zeros([3, 1], np.int64)},
      r"'label' has shape \[3, 1\], the model wants \[\?\]",
    ),
  ],
)
def test_values_from_file_that_does_not_match(tmp_path, arrays, message):
  path = saved(tmp_path / "in.npz", **arrays)
  with pytest.raises(ValueError, match=message):
    inputs.synthesize_inputs(item_of(LABEL), npz=path)


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 cut short"])
def test_values_from_file_that_is_no_archive(tmp_path, content):
  path = tmp_path / "in.npz"
  path.write_bytes(content)
  with pytest.raises(ValueError, match=r"in\.npz: not a NumPy"):
    inputs.synthesize_inputs(item_of(LABEL), npz=path)


def test_values_from_file_with_a_bare_array(tmp_path):
  path = tmp_path / "in.npz"
  with open(path, "wb") as file:
    np.save(file, np.zeros(3))
  with pytest.raises(ValueError, match=r"in\.npz: not a NumPy"):
    inputs.synthesize_inputs(item_of(LABEL), npz=path)
