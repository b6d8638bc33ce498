"""Workers that a batch gives no examples, and the rule of the others.

A batch with fewer examples than workers leaves some without any. What these
would send is no estimate of the gradient, and a rule must not count it: the
median of two gradients and two vectors of zeros is too short. A mean alone
counts all workers, as Keras does: the short batch then weighs less.
"""

import functools
from collections.abc import Callable
from collections.abc import Sequence

import tensorflow as tf
from absl import logging

from robust_tf import aggregators
from robust_tf import communication
from robust_tf.distribute.hooks import batch_examples
from robust_tf.optimizers.rule_config import rule_and_parameters

# Logs a message at its first call.
warn_once = functools.cache(logging.warning)


def counts_all(aggregator: Callable) -> bool:
  """Returns whether a rule counts workers without examples too."""
  rule, _ = rule_and_parameters(aggregator)
  return rule is aggregators.mean


def votes(
  aggregator: Callable, gradients: Sequence[Sequence[tf.Tensor]]
) -> list[tf.Tensor] | None:
  """Returns which replicas of this process have a vote in a step.

  To be called outside the replicas. In a training loop of a user's own, where
  nobody knows who has examples, all vote, and a warning is logged once if a
  gradient is all zeros.

  Args:
    aggregator: the rule.
    gradients: of each replica of this process, one tensor a variable.

  Returns:
    A bool scalar for each replica; None where all of them vote.
  """
  if counts_all(aggregator):
    return None
  if not batch_examples.examples_are_seen():
    _warn_of_zeros(gradients)
  return batch_examples.replicas_with_examples()


def rule_of_voters(
  votes: Sequence[tf.Tensor],
  rule_of_all: Callable[[], list[tf.Tensor]],
  all_rows: Callable[[], tf.Tensor],
  rule_of_rows: Callable[[tf.Tensor], list[tf.Tensor]],
  like: Sequence[tf.Tensor],
) -> list[tf.Tensor]:
  """Returns the rule of the workers that have examples.

  Where they are too few for the rule it is zero, and a warning says so once.
  To be called outside the replicas.

  Args:
    votes: whether each replica of this process has examples.
    rule_of_all: returns the rule of all workers, one tensor a variable.
    all_rows: returns the gradients of all workers, `[n, d]`.
    rule_of_rows: returns the rule of some of these rows. It raises `ValueError`
      if they are too few.
    like: tensors of the shapes and dtypes of the result.
  """
  flags = tf.cast(communication.all_flags(votes), tf.int32)
  num_workers = flags.shape[0]
  num_voters = tf.reduce_sum(flags)

  def rule_of_first(rows: tf.Tensor, count: int):
    try:
      return rule_of_rows(rows[:count])
    except ValueError as error:
      _warn_in_step(
        f"a batch has examples for {count} of {num_workers} workers only, and"
        f" the rule refuses so few ({error}): its gradient is taken as zero;"
        " drop the remainder of the data, or choose a batch size that divides"
      )
      return [tf.zeros_like(value) for value in like]

  def rule_of_some():
    voters_first = tf.argsort(flags, direction="DESCENDING", stable=True)
    rows = tf.gather(all_rows(), voters_first)
    # Rules are made for a fixed number of rows: a branch for each number.
    return tf.switch_case(
      num_voters,
      [
        functools.partial(rule_of_first, rows, count)
        for count in range(num_workers)
      ],
    )

  return tf.cond(num_voters == num_workers, rule_of_all, rule_of_some)


def _warn_of_zeros(gradients: Sequence[Sequence[tf.Tensor]]) -> None:
  if len(gradients) == 1:
    return
  zero = [
    tf.reduce_all([tf.reduce_all(tf.equal(value, 0)) for value in own])
    for own in gradients
  ]
  tf.cond(
    tf.reduce_any(zero),
    lambda: _warn_in_step(
      "a worker's gradient is exactly zero, and the rule counts it: if the"
      " worker had no examples, drop the remainder of the data; only the"
      " training loops of Keras show which workers have examples"
    ),
    lambda: None,
  )


def _warn_in_step(message: str) -> None:
  """Logs a warning when the step runs, at the first time only."""
  tf.numpy_function(functools.partial(warn_once, message), [], [])
