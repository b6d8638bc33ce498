import numpy as np
import pytest

from robust_tf import communication
from tests.robust_tf import replicas
from tests.tensorflow_setup import tf

SHAPES = ((2, 3), (4,))


def rows_seen(strategy, gradients, rows):
  """Returns what `all_rows` and `local_values` show, and how often."""
  calls = []

  def look(*merged):
    calls.append(None)
    values = communication.local_values(merged)
    return communication.all_rows(values, rows), len(values)

  @tf.function
  def step():
    def on_replica():
      index = tf.distribute.get_replica_context().replica_id_in_sync_group
      own = [
        tf.constant(g)[index * rows : (index + 1) * rows] for g in gradients
      ]
      return communication.once(look, *own)[0]

    return on_replica() if strategy is None else strategy.run(on_replica)

  return step(), len(calls)


@pytest.mark.parametrize(
  ("num_replicas", "rows"), [(None, 4), (4, 1), (2, 2), (1, 4)]
)
def test_all_rows_is_replica_by_replica_whatever_brings_them(
  num_replicas, rows
):
  gradients = [g[0] for g in replicas.random_gradients(1, 4, SHAPES)]
  expected = np.concatenate([g.reshape(4, -1) for g in gradients], axis=1)
  strategy = None if num_replicas is None else replicas.mirrored(num_replicas)
  seen, num_calls = rows_seen(strategy, gradients, rows)
  assert num_calls == 1
  for replica in getattr(seen, "values", [seen]):
    np.testing.assert_array_equal(replica, expected)


def test_on_every_replica_calls_once_without_a_strategy():
  calls = []
  communication.on_every_replica(lambda: calls.append(None))
  assert len(calls) == 1


def test_on_every_replica_calls_in_each_replicas_context():
  seen = []

  def note():
    context = tf.distribute.get_replica_context()
    seen.append(context.replica_id_in_sync_group)

  def merged():
    communication.on_every_replica(note)

  replicas.mirrored(4).run(
    tf.function(lambda: communication.once(merged) or tf.constant(0))
  )
  assert sorted(int(tf.get_static_value(index)) for index in seen) == [
    *range(4)
  ]


def test_replica_devices_are_all_of_a_strategy():
  assert communication.replica_devices() == (None,)
  with replicas.mirrored(2).scope():
    devices = communication.replica_devices()
  assert [device[-5:] for device in devices] == ["CPU:0", "CPU:1"]


def test_variables_on_are_one_on_each_device_and_saved_alone(tmp_path):
  with replicas.mirrored(2).scope():
    made = []
    for device in communication.replica_devices():
      with communication.variables_on(device):
        made.append(tf.Variable(float(len(made) + 1)))
    mirrored = tf.Variable(0.0)
  assert [v.device[-5:] for v in made] == ["CPU:0", "CPU:1"]
  assert not hasattr(made[0], "values")
  assert len(mirrored.values) == 2
  path = tf.train.Checkpoint(made=made).write(tmp_path / "checkpoint")
  for variable in made:
    variable.assign(0.0)
  tf.train.Checkpoint(made=made).read(path).assert_consumed()
  assert [float(v) for v in made] == [1.0, 2.0]
