"""The coordinator of a cluster that trains with each algorithm.

    python -m tests.robust_tf.federated_cluster DIRECTORY

Its workers and parameter servers are in this process, too, and reached by gRPC
all the same. What happened in each run is written to NAME.pickle.
"""

import functools
import os
import pathlib
import sys

import keras
import tensorflow as tf

from robust_tf import aggregators
from robust_tf import federated
from robust_tf.distribute import parameter_server
from robust_tf.training import child_processes
from tests.robust_tf import federated_replay as replay

NUM_WORKERS, NUM_SERVERS = 4, 2
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
ROUNDS = 4


class Recorded:
  """Devices, with what they do recorded."""

  def __init__(self, devices, recording):
    self._devices = devices
    self._recording = recording
    self.gives_update = devices.gives_update

  def publish(self, weights, version):
    self._recording.models.setdefault(version, replay.flat(weights))
    self._devices.publish(weights, version)

  def start(self, task):
    self._recording.tasks[task.serial] = task
    self._devices.start(task)

  def next_push(self, timeout_s):
    return self._devices.next_push(timeout_s)

  def retried(self):
    return self._devices.retried()


def servers_here() -> dict[str, list[str]]:
  """Starts workers and parameter servers in this process; returns where."""
  addresses = child_processes.free_addresses(NUM_WORKERS + NUM_SERVERS)
  cluster = {
    "worker": addresses[:NUM_WORKERS],
    "ps": addresses[NUM_WORKERS:],
  }
  # They share a pool, and wait for each other in it.
  config = tf.compat.v1.ConfigProto(
    inter_op_parallelism_threads=32, intra_op_parallelism_threads=1
  )
  for job, members in cluster.items():
    for index in range(len(members)):
      tf.distribute.Server(
        tf.train.ClusterSpec(cluster),
        job_name=job,
        task_index=index,
        protocol="grpc",
        config=config,
      )
  return cluster


def make_model() -> keras.Model:
  """Returns the model of `federated_replay`, at its initial weights."""
  model = keras.Sequential(
    [keras.Input((replay.FEATURES,)), keras.layers.Dense(replay.CLASSES)]
  )
  model.set_weights(replay.INITIAL)
  return model


def data() -> federated.DeviceData:
  """Returns the examples of `federated_replay`."""
  return federated.DeviceData(replay.X, replay.Y, replay.CLASSES)


def local_training(model, *, gives_update: bool) -> federated.LocalTraining:
  """Returns the local steps that `federated_replay.local_model` replays."""
  return federated.LocalTraining(
    model,
    LOSS,
    keras.optimizers.SGD(replay.RATE),
    proximal_weight=replay.RHO,
    gives_update=gives_update,
  )


def fed_async(tasks, **arguments) -> federated.FedAsync:
  """Returns the server that `federated_replay.fed_async` replays."""
  return federated.FedAsync(
    replay.INITIAL,
    tasks,
    mixing_weight=replay.MIXING,
    staleness=federated.polynomial(replay.DECAY),
    **arguments,
  )


def _servers(model):
  """Returns, by name, a server and how many versions it is to make."""
  tasks = replay.device_tasks(flipped=(3,))
  examples = federated.ServerExamples(
    replay.X, replay.Y, replay.SERVER_BATCH, replay.SERVER_SEED
  )
  rounds = functools.partial(federated.SLSGD, replay.INITIAL, tasks)
  trimmed_mean = functools.partial(aggregators.trimmed_mean, trim=1)
  zeno = federated.zeno_on_server(
    model,
    LOSS,
    examples,
    learning_rate=replay.RATE,
    num_suspected=1,
    rho=replay.SCORE_RHO,
  )
  gradient = federated.validation_gradient(model, LOSS, examples)
  return {
    "fed_async": (fed_async(tasks, concurrency=6), 60),
    "option_1": (rounds(devices_per_round=5, mixing_weight=0.8), 8),
    "option_2": (
      rounds(devices_per_round=5, mixing_weight=0.8, aggregator=trimmed_mean),
      8,
    ),
    "first_of": (
      rounds(
        devices_per_round=7,
        arrivals_per_round=4,
        aggregator=aggregators.median,
      ),
      8,
    ),
    "zeno": (rounds(devices_per_round=5, aggregator_at=zeno), 8),
    "zeno_plus_plus": (
      federated.ZenoPlusPlus(
        replay.INITIAL,
        tasks,
        validation_gradient=gradient,
        learning_rate=replay.SERVER_RATE,
        refresh_every=replay.REFRESH,
        rho=replay.SCORE_RHO,
        concurrency=4,
      ),
      25,
    ),
  }


def _hundred_devices(trim: int) -> federated.SLSGD:
  return federated.SLSGD(
    replay.INITIAL,
    replay.device_tasks(100, batch_size=2),
    devices_per_round=100,
    aggregator=functools.partial(aggregators.trimmed_mean, trim=trim),
  )


def record(server, devices, versions) -> replay.Recording:
  """Runs a server; returns what happened."""
  recording = replay.Recording()
  federated.run(
    server,
    Recorded(devices, recording),
    versions,
    on_event=recording.events.append,
  )
  return recording


def main(directory: str) -> None:
  """Runs all algorithms."""
  coordinator = parameter_server.connect(servers_here(), timeout_s=30)
  folder = pathlib.Path(directory)
  model = make_model()
  for name, (server, versions) in _servers(model).items():
    training = local_training(model, gives_update=server.wants_updates)
    devices = federated.RemoteDevices(coordinator, training, data())
    record(server, devices, versions).save(folder / f"{name}.pickle")
  training = local_training(model, gives_update=True)
  for trim in (0, 20):
    everyone = {
      "remote": federated.RemoteDevices(coordinator, training, data()),
      "here": federated.SimulatedDevices(training, data()),
    }
    for name, devices in everyone.items():
      recording = record(_hundred_devices(trim), devices, ROUNDS)
      recording.save(folder / f"hundred_{trim}_{name}.pickle")


if __name__ == "__main__":
  main(sys.argv[1])
  sys.stdout.flush()
  os._exit(0)  # TensorFlow's servers do not end
