"""A Keras model in two processes, of which one is killed at last.

    python -m tests.baechi_tf.keras_two_processes DIRECTORY

is the client. It starts the server itself, trains the model as it is and placed
with and without micro-batches, and writes what came out.
"""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator

import numpy as np

import baechi_tf
from robust_tf.training import child_processes

NAMES = [f"/job:worker/replica:0/task:{i}/device:CPU:0" for i in range(2)]
MICRO_BATCHES = (1, 4)
CLUSTER = "".join(
  f'[[device]]\nname = "{x}"\nmemory = "1 GiB"\n' for x in NAMES
) + ("[link]\nlatency_us = 0\nbytes_per_us = 1e9\n")
_BATCH = 16
_X = np.random.default_rng(0).normal(size=(72, 8)).astype("f")
_Y = np.random.default_rng(1).integers(0, 3, 72).astype("i4")
_SERVE = (
  "import sys, baechi_tf;"
  " baechi_tf.serve(baechi_tf.read_cluster(sys.argv[1]), sys.argv[2:], 1)"
)


def _model():
  import keras

  keras.utils.set_random_seed(0)
  image = keras.Input((8,))
  x = keras.layers.Dense(16, "relu")(image)
  x = keras.layers.Dense(16, "relu")(x)
  model = keras.Model(image, keras.layers.Dense(3)(x))
  model.compile(
    keras.optimizers.AdamW(1e-2),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
  )
  return model


def _outcome(model) -> list[np.ndarray]:
  """Returns losses and metrics, predictions and weights of a training."""
  history = model.fit(
    _X, _Y, batch_size=_BATCH, epochs=2, shuffle=False, verbose=0
  ).history
  numbers = [np.array(values) for _, values in sorted(history.items())]
  numbers.append(np.array(model.evaluate(_X, _Y, verbose=0)))
  return [*numbers, model.predict(_X, verbose=0), *model.get_weights()]


def _where_ops_ran(model, device_of) -> dict[str, int]:
  """Returns how many planned ops were in the executed graphs, and rightly."""
  from tensorflow.python.eager import context

  context.enable_run_metadata()
  try:
    model.train_on_batch(_X[:_BATCH], _Y[:_BATCH])
    metadata = context.export_run_metadata()
  finally:
    context.disable_run_metadata()
  ran = {
    node.name.removeprefix("placed/"): (node.op, node.device)
    for graphs in metadata.function_graphs
    for partition in graphs.partition_graphs
    for node in partition.node
    if node.name.startswith("placed/")
  }
  found = [device_of[x] == ran[x][1] for x in ran if x in device_of]
  return {
    "found": len(found),
    "right": sum(found),
    # Sums of gradients are in the scopes of micro-batches.
    "merged": sum("AddOpsRewrite" in x and "micro_batch_" in x for x in ran),
  }


@contextlib.contextmanager
def _server(addresses: list[str], path: str) -> Iterator[subprocess.Popen]:
  """Yields a process that serves, in a session with all that it starts."""
  server = child_processes.start(
    [sys.executable, "-c", _SERVE, path, *addresses],
    child_processes.peer_environment(os.environ),
    shows_output=True,
  )
  try:
    yield server
  finally:
    child_processes.end([server])


def _error_of(call) -> list[str]:
  """Returns the type and the message of what a call raises."""
  try:
    call()
  except Exception as error:
    return [type(error).__name__, str(error)]
  return ["nothing", ""]


def main(directory: str) -> None:
  """Runs everything and writes it to the directory."""
  path = pathlib.Path(directory)
  (path / "cluster.toml").write_text(CLUSTER)
  cluster = baechi_tf.read_cluster(path / "cluster.toml")
  addresses = child_processes.free_addresses(2)
  refused = _error_of(lambda: baechi_tf.connect(cluster, addresses))
  facts = {"no server": refused}
  with _server(addresses, str(path / "cluster.toml")) as server:
    baechi_tf.connect(cluster, addresses, wait_s=120)
    import keras

    np.savez(path / "whole.npz", *_outcome(_model()))
    for num in MICRO_BATCHES:
      model = _model()
      plan = baechi_tf.place_keras(
        model,
        cluster,
        (_X[:_BATCH], _Y[:_BATCH]),
        micro_batches=num,
        placer="contiguous",
      )
      np.savez(path / f"placed_{num}.npz", *_outcome(model))
      facts[f"ops {num}"] = _where_ops_ran(model, plan.placement.as_dict())
      facts[f"devices {num}"] = sorted(
        {x.value.device for x in model.variables + model.optimizer.variables}
      )
    model.save(path / "model.keras")
    np.savez(path / "saved.npz", *model.get_weights())
    kill = keras.callbacks.LambdaCallback(
      on_train_batch_end=lambda batch, logs: _kill(server, batch)
    )
    facts["killed"] = _error_of(
      lambda: model.fit(
        _X, _Y, batch_size=_BATCH, epochs=2, verbose=0, callbacks=[kill]
      )
    )
  (path / "facts.json").write_text(json.dumps(facts))
  os._exit(0)  # TensorFlow would wait for the server that is gone


def _kill(server: subprocess.Popen, batch: int) -> None:
  if batch == 1:
    os.killpg(server.pid, signal.SIGKILL)


if __name__ == "__main__":
  main(*sys.argv[1:])
