import collections

import keras
import numpy as np
import pytest

from robust_tf.federated.local_training import DeviceData
from robust_tf.federated.local_training import LocalTraining
from robust_tf.federated.simulated_devices import SimulatedDevices
from robust_tf.federated.tasks import DeviceTasks
from tests.tensorflow_setup import tf

GAMMA = 0.1


def least_squares(labels, outputs):
  """A loss with the gradient (z . x - y) z, meaned over a batch."""
  errors = tf.reshape(outputs, [-1]) - tf.cast(labels, tf.float32)
  return 0.5 * tf.reduce_mean(tf.square(errors))


def data():
  rng = np.random.default_rng(0)
  inputs = rng.normal(size=(24, 3)).astype(np.float32)
  return DeviceData(inputs, rng.integers(0, 4, 24).astype(np.int32), 4)


def tasks(**arguments):
  parts = np.split(np.arange(24), 6)
  return DeviceTasks(
    parts, **{"batch_size": 2, "local_steps": 3, "seed": 0, **arguments}
  )


def devices(**arguments):
  model = keras.Sequential(
    [keras.Input((3,)), keras.layers.Dense(1, use_bias=False)]
  )
  training = LocalTraining(
    model,
    least_squares,
    keras.optimizers.SGD(GAMMA),
    proximal_weight=arguments.pop("proximal_weight", 0.0),
  )
  return SimulatedDevices(training, data(), **arguments)


def model_of(version):
  return [np.full((3, 1), 0.1 * version, np.float32)]


def steps(task, start, center=None, rho=0.0):
  """Returns what float64 makes of a task."""
  examples = data()
  x = start = start.astype(np.float64)
  center = start if center is None else center.astype(np.float64)
  for rows in task.examples:
    z, y = examples.inputs[rows].astype(np.float64), examples.labels[rows]
    if task.flipped:
      y = examples.num_classes - 1 - y
    gradient = z.T @ (z @ x - y[:, None]) / len(rows) + rho * (x - center)
    x = x - GAMMA * gradient
  return x


@pytest.mark.parametrize("flipped", [(), (2,)])
def test_tasks_are_done_in_turn_from_the_published_model(flipped):
  them, source = devices(), tasks(flipped=flipped)
  them.publish(model_of(5), 5)
  out = [source.task(serial, serial % 4, 5) for serial in range(4)]
  for task in out:
    them.start(task)
  for task in out:
    push = them.next_push(None)
    assert push.task is task
    assert push.version == 5
    np.testing.assert_allclose(
      push.values[0], steps(task, model_of(5)[0]), atol=1e-6
    )


def test_stale_push_comes_from_the_model_whose_version_it_names():
  them, source = devices(max_staleness=3, seed=1), tasks()
  seen = collections.Counter()
  for version in range(300):
    them.publish(model_of(version % 20), version)
    task = source.task(version, version % 6, version)
    them.start(task)
    push = them.next_push(None)
    expected = steps(task, model_of(push.version % 20)[0])
    np.testing.assert_allclose(push.values[0], expected, atol=1e-5)
    seen[version - push.version] += version >= 3
  # Uniform over 0 to 3: within five standard deviations of 297 draws.
  assert set(seen) == {0, 1, 2, 3}
  for count in seen.values():
    assert abs(count - 297 / 4) < 5 * np.sqrt(297 * 3 / 16)


def test_first_tasks_are_as_stale_as_there_are_models():
  them, source = devices(max_staleness=50), tasks()
  for version in range(10):
    them.publish(model_of(version), version)
    them.start(source.task(version, 0, version))
    assert 0 <= them.next_push(None).version <= version


def test_poisoned_device_starts_elsewhere_and_is_pulled_to_the_model():
  elsewhere = [np.full((3, 1), -1.0, np.float32)]
  them = devices(
    proximal_weight=0.5,
    start_of=lambda task: elsewhere if task.device == 1 else None,
  )
  them.publish(model_of(5), 5)
  for serial, device in enumerate((0, 1)):
    task = tasks().task(serial, device, 5)
    them.start(task)
    start = elsewhere if device else model_of(5)
    expected = steps(task, start[0], model_of(5)[0], rho=0.5)
    np.testing.assert_allclose(
      them.next_push(None).values[0], expected, atol=1e-6
    )


def test_restored_devices_go_on_as_before():
  source = tasks()

  def pushes(them, versions):
    found = []
    for version in versions:
      them.publish(model_of(version), version)
      them.start(source.task(version, version % 6, version))
      found.append(them.next_push(None))
    return found

  whole = pushes(devices(max_staleness=4, seed=3), range(20))
  first = devices(max_staleness=4, seed=3)
  pushes(first, range(10))
  second = devices(max_staleness=4, seed=3)
  second.restore(**first.state())
  for a, b in zip(whole[10:], pushes(second, range(10, 20)), strict=True):
    assert a.version == b.version
    np.testing.assert_array_equal(a.values[0], b.values[0])


def test_waiting_for_nothing_is_refused():
  them = devices()
  them.publish(model_of(0), 0)
  with pytest.raises(RuntimeError, match="no task was started"):
    them.next_push(None)


def test_negative_staleness_is_refused():
  with pytest.raises(ValueError, match="max_staleness=-1 must be at least 0"):
    devices(max_staleness=-1)
