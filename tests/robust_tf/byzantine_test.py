"""Who attacks, from when on, and with which random numbers."""

import dataclasses
import functools

import numpy as np
import pytest

from robust_tf import random_values
from robust_tf.attacks import Byzantine
from robust_tf.attacks import flip_labels
from robust_tf.attacks import gaussian
from robust_tf.attacks import label_flip
from robust_tf.attacks import sign_flip
from tests.tensorflow_setup import tf

UPDATES = np.arange(1, 13, dtype=np.float32).reshape(4, 3)
NOISE = Byzantine(workers=(1, 3), attack=gaussian)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_attack_starts_at_its_step(jit_compile):
  byzantine = Byzantine((2,), sign_flip, start_step=5)
  function = tf.function(byzantine, jit_compile=jit_compile)
  np.testing.assert_array_equal(function(UPDATES, tf.constant(4)), UPDATES)
  attacked = UPDATES * [[1], [1], [-1], [1]]
  for step in (5, 6):
    np.testing.assert_array_equal(
      function(UPDATES, tf.constant(step)), attacked
    )


def test_attack_before_its_step_is_not_run():
  runs = tf.Variable(0)

  def counting(updates, byzantine, seed):
    runs.assign_add(1)
    return sign_flip(updates, byzantine, seed)

  function = tf.function(Byzantine((0,), counting, start_step=2))
  for step in tf.range(4):
    function(UPDATES, step)
  assert runs.numpy() == 2


def test_each_step_has_its_own_noise():
  steps = [NOISE(UPDATES, step).numpy() for step in (0, 1, 0)]
  assert not np.array_equal(steps[0], steps[1])
  np.testing.assert_array_equal(steps[0], steps[2])


def test_seed_decides_the_noise():
  other = dataclasses.replace(NOISE, seed=1)
  assert not np.array_equal(NOISE(UPDATES, 0), other(UPDATES, 0))


@pytest.mark.parametrize("dtype", [tf.int32, tf.int64])
def test_noise_is_the_same_eagerly_and_in_a_function(dtype):
  function = tf.function(NOISE)
  np.testing.assert_array_equal(
    function(UPDATES, tf.constant(7, dtype)), NOISE(UPDATES, 7)
  )


def test_parameters_are_set_by_partial():
  byzantine = Byzantine((0,), functools.partial(sign_flip, scale=10.0))
  np.testing.assert_array_equal(byzantine(UPDATES, 0)[0], -10 * UPDATES[0])


@pytest.mark.parametrize(
  ("workers", "message"),
  [
    ((0, 4), "worker 4 is not one of the 4 workers 0 to 3"),
    ((-1,), "worker -1 is not"),
    ((1, 1), "worker 1 is named twice"),
    ((), "names no worker"),
  ],
)
def test_check_of_bad_workers_raises(workers, message):
  with pytest.raises(ValueError, match=message):
    Byzantine(workers, sign_flip).check(4)


def test_check_of_good_workers_passes():
  Byzantine(tuple(range(4)), sign_flip).check(4)


def test_negative_start_raises():
  with pytest.raises(ValueError, match="start_step=-1 must be 0 or more"):
    Byzantine((0,), sign_flip, start_step=-1)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
@pytest.mark.parametrize("shape", [(6,), (6, 1), (2, 3)])
def test_class_labels_are_flipped(dtype, shape):
  labels = np.array([0, 1, 2, 7, 8, 9], dtype).reshape(shape)
  flipped = flip_labels(labels, 10)
  assert flipped.dtype == labels.dtype
  np.testing.assert_array_equal(flipped, 9 - labels)


def test_one_hot_labels_are_flipped():
  labels = np.array([0, 3, 9])
  one_hot = np.eye(10, dtype=np.float32)
  np.testing.assert_array_equal(
    flip_labels(one_hot[labels], 10), one_hot[9 - labels]
  )


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("weighted", [False, True])
def test_label_flip_changes_the_labels_only(batch_size, weighted):
  columns = [UPDATES, np.arange(4), np.ones(4)][: 3 if weighted else 2]
  dataset = tf.data.Dataset.from_tensor_slices(tuple(columns))
  if batch_size:
    dataset = dataset.batch(batch_size)
  expected = [UPDATES, 3 - np.arange(4), np.ones(4)]
  flipped = label_flip(dataset, num_classes=4)
  assert flipped.element_spec == dataset.element_spec
  if batch_size:
    flipped = flipped.unbatch()
  for got, column in zip(zip(*flipped, strict=True), expected, strict=False):
    np.testing.assert_array_equal(got, column)


@pytest.mark.parametrize(
  ("labels", "num_classes", "error", "message"),
  [
    (np.zeros(3, np.float32), 10, ValueError, "10 as the last axis"),
    (np.zeros([3, 9]), 10, ValueError, "make class indices integers"),
    (np.zeros(3, np.int32), 1, ValueError, "num_classes=1 must be 2"),
    (np.zeros(3, bool), 2, TypeError, "must be integer or floating"),
    (np.array(["a", "b"]), 2, TypeError, "must be integer or floating"),
  ],
)
def test_bad_labels_raise(labels, num_classes, error, message):
  with pytest.raises(error, match=message):
    flip_labels(labels, num_classes)
  dataset = tf.data.Dataset.from_tensors((np.zeros(3), labels))
  with pytest.raises(error, match=message):
    label_flip(dataset, num_classes)


@pytest.mark.parametrize("element", [np.zeros(3), (np.zeros(3),)])
def test_elements_without_labels_raise(element):
  dataset = tf.data.Dataset.from_tensors(element)
  with pytest.raises(TypeError, match="must be .x, y. or"):
    label_flip(dataset, 10)


@pytest.mark.parametrize("seed", [0, -1, 2**40])
def test_streams_do_not_change_with_compilation(seed):
  def draw(seed):
    return random_values.uniform([4], random_values.fold_in([seed, 14], 3))

  seed = tf.constant(seed, tf.int64)
  compiled = tf.function(draw, jit_compile=True)(seed)
  np.testing.assert_array_equal(draw(seed), compiled)
