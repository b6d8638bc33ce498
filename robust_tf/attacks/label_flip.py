"""Label flip: a worker learns from wrong labels.

The attack is on the data, so the worker's gradient is an honest one of a wrong
task. Xie, Koyejo and Gupta, Zeno: Distributed Stochastic Gradient Descent with
Suspicion-based Fault-tolerance, ICML 2019.
"""

import tensorflow as tf


def label_flip(dataset: tf.data.Dataset, num_classes: int) -> tf.data.Dataset:
  """Returns the dataset with each label y turned into `num_classes - 1 - y`.

  Give it to the Byzantine workers, and the dataset as it is to the others.

  Args:
    dataset: elements `(x, y)` or `(x, y, sample_weight)`, batched or not; y as
      in `flip_labels`.
    num_classes: 2 or more.

  Raises:
    TypeError: the elements are no such tuples; or see `flip_labels`.
    ValueError: see `flip_labels`.
  """
  spec = dataset.element_spec
  if not isinstance(spec, tuple) or len(spec) not in (2, 3):
    raise TypeError(
      f"elements must be (x, y) or (x, y, sample_weight), got {spec}"
    )
  _check_labels(spec[1], num_classes)
  return dataset.map(
    lambda x, y, *weight: (x, flip_labels(y, num_classes), *weight)
  )


def flip_labels(labels: tf.Tensor, num_classes: int) -> tf.Tensor:
  """Returns the labels `num_classes - 1 - y`, of the same shape and dtype.

  Args:
    labels: integers are classes, of any shape; floating numbers are one-hot, or
      probabilities, along the last axis.
    num_classes: 2 or more.

  Raises:
    TypeError: the labels are neither integers nor floating numbers.
    ValueError: `num_classes` is below 2, or not the size of a one-hot axis.
  """
  labels = tf.convert_to_tensor(labels)
  _check_labels(labels, num_classes)
  if labels.dtype.is_floating:
    return tf.reverse(labels, axis=[-1])
  return tf.cast(num_classes - 1, labels.dtype) - labels


def _check_labels(labels: tf.Tensor | tf.TensorSpec, num_classes: int) -> None:
  if num_classes < 2:
    raise ValueError(f"num_classes={num_classes} must be 2 or more")
  is_tensor = isinstance(labels, tf.Tensor | tf.TensorSpec)
  if not is_tensor or not (labels.dtype.is_integer or labels.dtype.is_floating):
    raise TypeError(f"labels must be integer or floating, got {labels}")
  if labels.dtype.is_floating and labels.shape[-1:] != [num_classes]:
    raise ValueError(
      f"floating labels must be one-hot, with {num_classes} as the last axis,"
      f" got the shape {labels.shape}; make class indices integers"
    )
