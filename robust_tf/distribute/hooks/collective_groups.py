"""Groups of collective ops that no two strategies of a process share.

Every `MirroredStrategy` of TensorFlow 2.21 numbers its groups of devices from 1
on, and the process remembers what each number stands for: a second strategy of
other devices, or one whose ops come in another order, ends with "Device ... is
joining a group with size2, but that group has size 4", and so do all after it.
"""

import itertools

import tensorflow as tf

from robust_tf.distribute.hooks import private

# A strategy has a few groups at most, one for each set of devices.
_FIRST_GROUPS = itertools.count(1000, 1000)


def separate(strategy: tf.distribute.MirroredStrategy) -> None:
  """Has a strategy number its groups apart from those of all others.

  Args:
    strategy: one whose replicas are all in this process.

  Raises:
    ValueError: this TensorFlow numbers groups in another way.
  """
  # TensorFlow 2.21: groups are numbered from `_collective_key_base` on when
  # the ops are made, and `_cross_device_ops` are these ops by default.
  extended = strategy.extended
  if private.attribute(__name__, extended, "_collective_key_base"):
    return
  make_ops = private.attribute(
    __name__, extended, "_make_collective_ops_with_fallbacks"
  )
  shared = private.attribute(__name__, extended, "_collective_ops")
  extended._collective_key_base = next(_FIRST_GROUPS)
  extended._collective_ops = make_ops()
  if private.attribute(__name__, extended, "_cross_device_ops") is shared:
    extended._cross_device_ops = extended._collective_ops
