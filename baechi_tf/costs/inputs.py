"""What to feed a step with: full shapes, and values of them."""

import os
import zipfile
import zlib
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from baechi_tf.costs.serialized import made_up_example
from baechi_tf.costs.serialized import parser_of
from baechi_tf.costs.serialized import usual_shape
from baechi_tf.costs.serialized import whole_examples
from baechi_tf.graph_item import Feed
from baechi_tf.graph_item import GraphItem

_DAMAGED = (
  AttributeError,  # a single array, which has no items
  EOFError,
  NotImplementedError,
  ValueError,  # also arrays of Python objects
  zipfile.BadZipFile,
  zlib.error,
)


def concrete_shapes(
  item: GraphItem,
  batch_size: int | None = None,
  input_shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> dict[str, tuple[int, ...]]:
  """Returns a full shape for every feed.

  Args:
    item: the model.
    batch_size: for a first dimension that is unknown.
    input_shapes: feed name -> its whole shape.

  Raises:
    ValueError: a dimension stays unknown, a shape contradicts the model's or
      names no input; the message says which and what to pass.
  """
  input_shapes = dict(input_shapes or {})
  names = [feed.name for feed in item.feeds]
  for name in input_shapes:
    if name not in names:
      raise ValueError(
        f"input_shapes= has {name!r}: there is no such input; the inputs are"
        f" {', '.join(map(repr, names))}"
      )
  return {
    feed.name: _concrete_shape(
      item, feed, batch_size, input_shapes.get(feed.name)
    )
    for feed in item.feeds
  }


def synthesize_inputs(
  item: GraphItem,
  batch_size: int | None = None,
  input_shapes: Mapping[str, tuple[int, ...]] | None = None,
  given: Mapping[str, np.ndarray] | str | os.PathLike | None = None,
) -> dict[str, np.ndarray]:
  """Returns a value for every feed: a given one, or made up.

  Made-up floats are small and random, integers 0 or 1 (so that they are in
  range as labels and indices), booleans true, strings empty, or serialized
  examples where a `ParseExample` reads them; the same every time.

  Args:
    item: the model.
    batch_size: see `concrete_shapes`.
    input_shapes: see `concrete_shapes`.
    given: an array for every feed, by name, or the path of a NumPy archive of
      them.

  Raises:
    ValueError: a shape stays unknown, a type cannot be made up, or the
      arrays do not match the feeds.
    OSError: the archive cannot be read.
  """
  if isinstance(given, Mapping):
    arrays = {name: np.asarray(value) for name, value in given.items()}
    return _matched(item, arrays, "inputs=")
  if given is not None:
    return _matched(item, _read_arrays(given), os.fspath(given))
  shapes = concrete_shapes(item, batch_size, input_shapes)
  rng = np.random.default_rng(0)
  return {
    feed.name: _made_up(item, feed, shapes[feed.name], rng)
    for feed in item.feeds
  }


def _concrete_shape(
  item: GraphItem, feed: Feed, batch_size, given
) -> tuple[int, ...]:
  shape = feed.shape
  if given is not None:
    given = tuple(given)
    fits = shape is None or (
      len(given) == len(shape)
      and all(x in (None, y) for x, y in zip(shape, given, strict=True))
    )
    if not fits or any(x < 0 for x in given):
      raise ValueError(
        f"input_shapes={{{feed.name!r}: {given}}} does not fit the model's"
        f" shape {_shape_text(shape)}"
      )
    return given
  shape = usual_shape(item, feed)
  if shape and shape[0] is None and batch_size is not None:
    if batch_size < 1:
      raise ValueError(f"batch_size= must be at least 1, got {batch_size}")
    shape = (batch_size, *shape[1:])
  if shape is None or None in shape:
    example = tuple(x or 32 for x in shape or (32, 784))
    raise ValueError(
      f"input {feed.name!r} has shape {_shape_text(feed.shape)}, which is not"
      " fully known: pass batch_size= for a first dimension, or"
      f" input_shapes={{{feed.name!r}: {example}}}"
    )
  return shape


def _shape_text(shape) -> str:
  if shape is None:
    return "of unknown rank"
  return f"[{', '.join('?' if x is None else str(x) for x in shape)}]"


def _made_up(item: GraphItem, feed: Feed, shape, rng) -> np.ndarray:
  dtype = feed.dtype.base_dtype
  if dtype == tf.string:
    parser = parser_of(item, feed)
    text = made_up_example(item, feed, parser, rng) if parser else b""
    texts = np.empty(shape, object)
    texts.fill(text)  # np.full drops zero bytes at its end
    return texts
  if dtype == tf.bool:
    return np.ones(shape, bool)
  if dtype.is_integer and not dtype.is_quantized:
    return rng.integers(0, 2, shape).astype(dtype.as_numpy_dtype)
  if dtype.is_floating or dtype.is_complex:
    return (0.1 * rng.standard_normal(shape)).astype(dtype.as_numpy_dtype)
  raise ValueError(
    f"input {feed.name!r} has type {dtype.name}, for which no value can be"
    " made up: give real inputs with inputs="
  )


def _read_arrays(path) -> dict[str, np.ndarray]:
  with open(path, "rb") as file:
    try:
      archive = np.load(file, allow_pickle=False)
      values = dict(archive.items())
    except _DAMAGED:
      values = None
  if values is None or not all(
    isinstance(x, np.ndarray) for x in values.values()
  ):
    raise ValueError(
      f"{path}: not a NumPy .npz archive of arrays of numbers or strings"
    )
  return values


def _matched(item: GraphItem, values, source: str) -> dict[str, np.ndarray]:
  """Returns the feeds' arrays, checked; `source` is theirs, for messages."""
  names = [feed.name for feed in item.feeds]
  for name in names:
    if name not in values:
      raise ValueError(
        f"{source}: input {name!r} is missing; the model's inputs are"
        f" {', '.join(map(repr, names))}, given are"
        f" {', '.join(map(repr, sorted(values))) or 'nothing'}"
      )
  for name in sorted(values.keys() - set(names)):
    raise ValueError(
      f"{source}: {name!r} is no input of the model; its inputs are"
      f" {', '.join(map(repr, names))}"
    )
  return {
    feed.name: _checked(item, feed, values[feed.name], source)
    for feed in item.feeds
  }


def _checked(
  item: GraphItem, feed: Feed, value: np.ndarray, source: str
) -> np.ndarray:
  dtype = feed.dtype.base_dtype
  is_text = dtype == tf.string and value.dtype.kind in "SU"
  if not is_text and value.dtype != dtype.as_numpy_dtype:
    raise ValueError(
      f"{source}: input {feed.name!r} has type {value.dtype}, the model wants"
      f" {dtype.name}"
    )
  fits = tf.TensorShape(feed.shape).is_compatible_with(value.shape)
  if not fits:
    raise ValueError(
      f"{source}: input {feed.name!r} has shape {_shape_text(value.shape)}, the"
      f" model wants {_shape_text(feed.shape)}"
    )
  if value.dtype.kind == "S" and parser_of(item, feed):
    return whole_examples(value)
  return value
