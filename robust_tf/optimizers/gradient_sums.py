"""Sums of each worker's gradients over several steps, for one update."""

from collections.abc import Callable
from collections.abc import Sequence

import tensorflow as tf

from robust_tf import communication


class GradientSums:
  """The sums of the workers of this process, in variables of the optimizer.

  Beside the sums of a replica there is the number of steps in which it had
  examples: its mean gradient is that over these steps.
  """

  def __init__(
    self,
    add_variable: Callable,
    variables: Sequence,
    workers_per_replica: int | None,
  ):
    """Makes the variables, each on its replica's device.

    Args:
      add_variable: of the optimizer.
      variables: of the model.
      workers_per_replica: None, or the length of the gradients' leading axis.
    """
    rows = [] if workers_per_replica is None else [workers_per_replica]
    self._sums = []
    self._steps = []
    for replica, device in enumerate(communication.replica_devices()):
      with communication.variables_on(device):
        self._sums.append(
          [
            add_variable(
              shape=[*rows, *variable.shape],
              dtype=variable.dtype,
              name=f"gradient_accumulator_{replica}",
            )
            for variable in variables
          ]
        )
        self._steps.append(
          add_variable(
            shape=[], dtype="int32", name=f"accumulated_steps_{replica}"
          )
        )

  def add(
    self,
    gradients: Sequence[Sequence[tf.Tensor]],
    votes: Sequence[tf.Tensor] | None,
    indices: Sequence[int],
  ) -> None:
    """Adds the gradients of a step.

    Args:
      gradients: of each replica of this process, one tensor a variable.
      votes: whether each replica has examples; None where all have.
      indices: which variables the gradients belong to.
    """
    for replica, values in enumerate(gradients):
      if votes is not None:
        vote = votes[replica]
        values = [tf.where(vote, x, tf.zeros_like(x)) for x in values]
      for index, value in zip(indices, values, strict=True):
        self._sums[replica][index].assign_add(value)
      self._steps[replica].assign_add(
        1 if votes is None else tf.cast(votes[replica], tf.int32)
      )

  def means(self, indices: Sequence[int]) -> list[list[tf.Tensor]]:
    """Returns each replica's mean gradients; zeros if it never had examples.

    Args:
      indices: of the variables whose gradients are wanted.
    """
    means = []
    for sums, steps in zip(self._sums, self._steps, strict=True):
      steps = tf.maximum(tf.convert_to_tensor(steps.value), 1)
      values = [tf.convert_to_tensor(sums[index].value) for index in indices]
      means.append([x / tf.cast(steps, x.dtype) for x in values])
    return means

  def votes(self) -> list[tf.Tensor]:
    """Returns whether each replica has had examples since the last reset."""
    return [steps.value > 0 for steps in self._steps]

  def reset(self, indices: Sequence[int]) -> None:
    """Sets the sums of some variables, and the numbers of steps, to zero."""
    for sums, steps in zip(self._sums, self._steps, strict=True):
      for variable in [*(sums[index] for index in indices), steps]:
        variable.assign(tf.zeros_like(variable))
