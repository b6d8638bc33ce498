"""What devices are asked to do: a function of the task alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robust_tf.federated.tasks import DeviceTasks
from tests.robust_tf.fake_devices import device_tasks


def fields(task):
  return (
    task.serial,
    task.device,
    task.version,
    task.examples.tolist(),
    task.flipped,
    task.seed,
  )


@given(
  size=st.integers(1, 9),
  batch_size=st.integers(1, 5),
  local_steps=st.integers(1, 6),
  serial=st.integers(0, 2**40),
)
def test_examples_are_the_devices_own_each_as_often(
  size, batch_size, local_steps, serial
):
  part = 100 + np.arange(size)
  tasks = DeviceTasks([np.arange(3), part], batch_size, local_steps, seed=0)
  examples = tasks.task(serial, 1, 0).examples
  assert examples.dtype == np.int32
  assert examples.shape == (local_steps, batch_size)
  counts = np.bincount(examples.ravel(), minlength=100 + size)[100:]
  assert counts.sum() == examples.size
  assert counts.max() - counts.min() <= 1


def test_task_is_a_function_of_seed_serial_and_device():
  one, same = device_tasks(seed=3), device_tasks(seed=3)
  assert fields(one.task(5, 2, 8)) == fields(same.task(5, 2, 8))
  other = device_tasks(seed=4)
  orders = [
    tasks.task(serial, 2, 0).examples.tolist()
    for tasks, serial in ((one, 5), (one, 6), (other, 5))
  ]
  assert orders[0] != orders[1] and orders[0] != orders[2]


def test_task_is_the_same_at_every_version_but_for_its_labels():
  tasks = device_tasks(flipped=(2, 7), flipped_from=10)
  before, after = tasks.task(5, 2, 9), tasks.task(5, 2, 10)
  assert before.examples.tolist() == after.examples.tolist()
  assert before.seed == after.seed
  assert not before.flipped and after.flipped
  assert not tasks.task(5, 3, 10).flipped


def test_local_steps_are_drawn_from_their_range():
  tasks = device_tasks(local_steps=(2, 4))
  steps = {len(tasks.task(serial, 1, 0).examples) for serial in range(50)}
  assert steps == {2, 3, 4}


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"batch_size": 0}, "batch_size=0 must be at least 1"),
    ({"local_steps": 0}, "local_steps=0 must be at least 1"),
    ({"local_steps": (3, 2)}, r"local_steps=\(3, 2\) must be at least 1"),
    ({"flipped": (1, 2, 1)}, r"flipped=\[1, 2, 1\] names a device twice"),
    ({"flipped": (10,)}, "there is no device 10: there are 10, from 0"),
    ({"flipped": (-1,)}, "there is no device -1"),
  ],
)
def test_bad_argument_is_an_error(arguments, message):
  with pytest.raises(ValueError, match=message):
    device_tasks(**arguments)


def test_device_without_an_example_is_an_error():
  with pytest.raises(ValueError, match="device 1 holds no example"):
    DeviceTasks([np.arange(3), np.arange(0)], 2, 1, seed=0)
