import numpy as np
import pytest

from robust_tf.optimizers.finite_workers import finite_workers
from tests.tensorflow_setup import tf


def gradients(*bad):
  """Returns two variables' gradients of 4 workers, some not finite."""
  first = np.ones((4, 3, 2), np.float32)
  second = np.ones((4, 5), np.float32)
  for worker, value in bad:
    (first if worker % 2 else second)[worker].flat[-1] = value
  return [first, None, second]


@pytest.mark.parametrize(
  ("bad", "count"),
  [((), 4), ([(1, np.nan)], 3), ([(0, np.inf), (3, -np.inf)], 2)],
)
def test_each_worker_with_finite_gradients_counts(bad, count):
  assert finite_workers(gradients(*bad), 4) == (count, 4)


def test_sparse_gradient_of_one_worker_counts_by_its_values():
  def of(value):
    return tf.IndexedSlices([[1.0], [value]], [0, 2], [4, 1])

  assert finite_workers([of(1.0)], None) == (1, 1)
  assert finite_workers([of(np.nan)], None) == (0, 1)


def test_workers_of_all_replicas_count_that_have_examples():
  strategy = tf.distribute.MirroredStrategy(
    ["CPU:0", "CPU:1", "CPU:2"],
    cross_device_ops=tf.distribute.ReductionToOneDevice(),
  )

  @tf.function(autograph=False)
  def counts():
    def on_replica():
      context = tf.distribute.get_replica_context()
      replica = context.replica_id_in_sync_group
      gradients = [tf.where(replica == 1, np.nan, 1.0) * tf.ones([2])]
      return (
        finite_workers(gradients, None),
        finite_workers(gradients, None, replica > 0),
      )

    return [
      strategy.experimental_local_results(count)
      for pair in strategy.run(on_replica)
      for count in pair
    ]

  found = [[int(x) for x in count] for count in counts()]
  assert found == [[2] * 3, [3] * 3, [1] * 3, [2] * 3]
