import types

import numpy as np
import pytest

from baechi_tf.costs import inputs
from baechi_tf.graph_item import Feed
from baechi_tf.graph_item import GraphItem
from tests.tensorflow_setup import session
from tests.tensorflow_setup import tf

v1 = tf.compat.v1


def item_of(*feeds):
  return types.SimpleNamespace(feeds=feeds, graph_def=v1.GraphDef())


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


def test_shapes_unknown_dimension_names_input_and_arguments():
  with pytest.raises(
    ValueError,
    match=r"'image' has shape \[\?, 28, 28, 1\].*batch_size=.*"
    r"input_shapes=\{'image': \(32, 28, 28, 1\)\}",
  ):
    inputs.concrete_shapes(item_of(IMAGE))


def test_shapes_unknown_rank_is_not_for_batch_size():
  with pytest.raises(
    ValueError,
    match="'any' has shape of unknown rank.*input_shapes={'any': .32, 784",
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
  with pytest.raises(ValueError, match="batch_size= must be at least 1, got 0"):
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


def parsing_item(parse, shape=None):
  """Returns an item that feeds strings to what `parse` makes of them."""
  with tf.Graph().as_default() as graph:
    text = v1.placeholder(tf.string, shape, name="text")
    outputs = tf.nest.flatten(parse(text), expand_composites=True)
  return GraphItem(
    graph_def=graph.as_graph_def(),
    feeds=(Feed("text", "text:0", tf.string, shape),),
    fetches=tuple(x.name for x in outputs),
    targets=(),
    op_names=(),
    paths={},
    source="a small graph",
    initializer=lambda session: None,
  )


def raw_parse(text):
  return tf.raw_ops.ParseExample(
    serialized=text,
    names=tf.constant([], tf.string),
    sparse_keys=["words"],
    dense_keys=["pixels", "label"],
    dense_defaults=[tf.constant([], tf.float32), tf.constant([7], tf.int64)],
    sparse_types=[tf.string],
    dense_shapes=[[2, 3], [1]],
  )


FEATURES = {
  "pixels": tf.io.FixedLenFeature([2, 3], tf.float32),
  "label": tf.io.FixedLenFeature([1], tf.int64, 7),
  "frames": tf.io.FixedLenSequenceFeature([4], tf.float32, allow_missing=True),
  "words": tf.io.VarLenFeature(tf.string),
  "rows": tf.io.RaggedFeature(tf.int64),
  "cells": tf.io.SparseFeature("i", "v", tf.float32, 5),
}


def raw_parse_single(text):
  return tf.raw_ops.ParseSingleExample(
    serialized=text,
    dense_defaults=[tf.constant([], tf.float32)],
    num_sparse=1,
    sparse_keys=["words"],
    dense_keys=["pixels"],
    sparse_types=[tf.string],
    dense_shapes=[[2, 3]],
  )


def reshaped_parse(text):
  return tf.io.parse_example(tf.reshape(text, [-1]), FEATURES)


def identical_parse(text):
  return tf.io.parse_example(tf.identity(text), FEATURES)


@pytest.mark.parametrize(
  ("parse", "shape", "full_shape"),
  [
    (raw_parse, None, (3,)),
    (raw_parse_single, None, ()),
    (reshaped_parse, (None, 1), (3, 1)),
    (identical_parse, (None,), (3,)),
    (identical_parse, (), ()),
  ],
)
def test_values_suit_the_op_that_parses_examples(parse, shape, full_shape):
  item = parsing_item(parse, shape)
  value = inputs.synthesize_inputs(item, 3)["text"]
  assert value.shape == full_shape
  with session(item.graph_def) as running:
    outputs = running.run(item.fetches, {"text:0": value})
  (pixels,) = (x for x in outputs if x.shape[-2:] == (2, 3))
  # The example's own numbers, not a default's.
  assert pixels.size == max(value.size, 1) * 6
  assert len(np.unique(pixels)) == 6


def test_values_for_another_parser_are_asked_for():
  item = parsing_item(lambda x: tf.io.decode_jpeg(tf.identity(x)), ())
  with pytest.raises(ValueError, match="read by DecodeJpeg .*inputs="):
    inputs.synthesize_inputs(item)


def test_values_from_file_are_whole_examples(tmp_path):
  spec = {"x": tf.io.FixedLenFeature([2], tf.int64)}
  item = parsing_item(lambda x: tf.io.parse_example(x, spec), (None,))
  examples = [
    tf.train.Example(
      features={"feature": {"x": {"int64_list": {"value": numbers}}}}
    ).SerializeToString()
    for numbers in ([1, 0], [300, 2])
  ]
  array = np.array(examples)
  assert array[0] != examples[0]  # NumPy dropped the zero at its end
  path = saved(tmp_path / "in.npz", text=array)
  value = inputs.synthesize_inputs(item, given=path)["text"]
  with session(item.graph_def) as running:
    (parsed,) = running.run(item.fetches, {"text:0": value})
  np.testing.assert_array_equal(parsed, [[1, 0], [300, 2]])


def test_values_of_resources_cannot_be_made_up():
  feed = Feed("handle", "h:0", tf.resource, ())
  with pytest.raises(ValueError, match="'handle' has type resource.*inputs="):
    inputs.synthesize_inputs(item_of(feed))


def saved(path, **arrays):
  np.savez(path, **arrays)
  return path


def test_values_from_file(tmp_path):
  image = np.ones([2, 28, 28, 1], np.float32)
  words = np.array([["a", "b", "c"]])
  path = saved(tmp_path / "in.npz", image=image, words=words)
  values = inputs.synthesize_inputs(item_of(IMAGE, WORDS), given=path)
  assert list(values) == ["image", "words"]
  np.testing.assert_array_equal(values["image"], image)
  np.testing.assert_array_equal(values["words"], words)


@pytest.mark.parametrize(
  ("arrays", "message"),
  [
    ({}, r"in\.npz: input 'label' is missing; the model's inputs are"),
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
    inputs.synthesize_inputs(item_of(LABEL), given=path)


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 cut short"])
def test_values_from_file_that_is_no_archive(tmp_path, content):
  path = tmp_path / "in.npz"
  path.write_bytes(content)
  with pytest.raises(ValueError, match=r"in\.npz: not a NumPy"):
    inputs.synthesize_inputs(item_of(LABEL), given=path)


def test_values_from_file_with_a_bare_array(tmp_path):
  path = tmp_path / "in.npz"
  with open(path, "wb") as file:
    np.save(file, np.zeros(3))
  with pytest.raises(ValueError, match=r"in\.npz: not a NumPy"):
    inputs.synthesize_inputs(item_of(LABEL), given=path)
