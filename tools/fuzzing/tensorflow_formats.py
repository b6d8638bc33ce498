"""The inputs that TensorFlow reads: graphs, models, profiles, checkpoints."""

import functools
import io
import json
import os
import random
import sys
import traceback
import warnings
import zipfile
from collections.abc import Callable
from collections.abc import Sequence

import keras
import tensorflow as tf
from google.protobuf import text_format
from google.protobuf.message import Message

# Checked with TensorFlow 2.21: profiles and SavedModels.
from tensorflow.core.grappler.costs import op_performance_data_pb2
from tensorflow.core.protobuf import saved_model_pb2

from baechi_tf.cli import main as baechi
from baechi_tf.costs.profile import OpCost
from baechi_tf.costs.profile import write_profile
from robust_tf.aggregators import trimmed_mean
from robust_tf.optimizers.robust import RobustOptimizer
from robust_tf.training import main as robust_train
from tools.fuzzing.cases import Command
from tools.fuzzing.cases import damage_file
from tools.fuzzing.cases import Format
from tools.fuzzing.mutations import mutate_bytes
from tools.fuzzing.mutations import mutate_message
from tools.fuzzing.mutations import mutate_tree
from tools.fuzzing.planning_formats import CLUSTER
from tools.fuzzing.planning_formats import write_cluster

_MODEL, _PROFILE = "model", "model.profile"
SavedModel = saved_model_pb2.SavedModel
_STRUCTURED = 0.7  # of cases; the others change bytes
_DEVICE = "/job:localhost/replica:0/task:0/device:CPU:"
_CLUSTER_TABLES = {
  "device": [{"name": f"{_DEVICE}{i}", "memory": "1 MiB"} for i in range(2)],
  "link": {"latency_us": 0, "bytes_per_us": 1e9},
  "device_type": {
    "CPU": {
      "kind": "CPU",
      "cores": 2,
      "frequency_mhz": 2000,
      "bytes_per_us": 1e4,
    }
  },
}


class _Mlp(tf.Module):
  """A layer with a branch and a loop, so that bodies are damaged too."""

  def __init__(self):
    super().__init__(name="mlp")
    self.w = tf.Variable(tf.ones([4, 8]), name="w")
    self.v = tf.Variable(tf.ones([8, 2]), name="v")

  @tf.function(input_signature=[tf.TensorSpec([None, 4], name="x")])
  def step(self, x):
    y = tf.nn.relu(x @ self.w) @ self.v
    for _ in tf.range(2):
      y = y * 0.5
    if tf.reduce_sum(y) > 0.0:
      self.v.assign_sub(0.01 * tf.reduce_mean(y) * self.v)
    return {"y": y}


def _prepare_model() -> None:
  write_cluster(_CLUSTER_TABLES)
  model = _Mlp()
  tf.saved_model.save(model, _MODEL, signatures={"step": model.step})
  _write_again(os.path.join(_MODEL, "saved_model.pb"), SavedModel)


def _graph() -> tf.compat.v1.GraphDef:
  graph = tf.Graph()
  with graph.as_default():
    x = tf.compat.v1.placeholder(tf.float32, [None, 4], name="x")
    w = tf.compat.v1.get_variable("w", [4, 8], use_resource=False)
    tf.add(tf.exp(x) @ w, tf.nn.relu(tf.sin(x) @ w), name="y")
  return graph.as_graph_def()


def _prepare_graph(path: str) -> None:
  write_cluster(_CLUSTER_TABLES)
  tf.io.write_graph(_graph(), ".", path, as_text=path.endswith("txt"))
  if not path.endswith("txt"):
    _write_again(path, tf.compat.v1.GraphDef)


def _write_again(path: str, kind: type[Message]) -> None:
  """Puts a file's map entries in an order that is the same in each process."""
  with open(path, "rb") as file:
    message = kind.FromString(file.read())
  with open(path, "wb") as file:
    file.write(message.SerializeToString(deterministic=True))


def _prepare_profile() -> None:
  _prepare_graph("graph.pb")
  costs = {
    node.name: OpCost(node.op, 3.5, 16, 0, (64,)) for node in _graph().node
  }
  write_profile(_PROFILE, {"CPU": costs})


def _damage_message(
  path: str, kind: type[Message], as_text: bool = False
) -> Callable[[random.Random], None]:
  """Returns a function that damages fields, or else the bytes of the file."""

  def mutate(data: bytes, draw: random.Random) -> bytes:
    if draw.random() >= _STRUCTURED:
      return mutate_bytes(data, draw)
    message = kind()
    if as_text:
      text_format.Parse(data, message)
    else:
      message.ParseFromString(data)
    mutate_message(message, draw)
    if as_text:
      return text_format.MessageToString(message).encode()
    return message.SerializeToString(deterministic=True)

  return damage_file(path, mutate)


def _damage_model(draw: random.Random) -> None:
  path = os.path.join(_MODEL, "saved_model.pb")
  if draw.random() < 0.9:
    _damage_message(path, SavedModel)(draw)
  else:
    _damage_some_file(_MODEL, draw)


def _damage_some_file(folder: str, draw: random.Random) -> None:
  """Damages or deletes one of the files in a folder."""
  path = draw.choice(
    sorted(
      os.path.join(directory, name)
      for directory, _, names in os.walk(folder)
      for name in names
    )
  )
  if draw.random() < 0.2:
    os.remove(path)
  else:
    damage_file(path, mutate_bytes)(draw)


def _place_model(draw: random.Random) -> Sequence[Command]:
  argv = (_MODEL, "placed", CLUSTER, "--estimate", "--batch-size=2")
  return [
    Command(baechi.main, ("inspect", _MODEL)),
    Command(baechi.main, ("place", *argv), outputs=("placed",)),
    Command(baechi.main, ("inspect", "placed"), must_succeed=True),
  ]


def _place_graph(path: str, *flags: str) -> Sequence[Command]:
  step = ("--fetch=y", "--input-shape=x=2,4")
  placed = f"placed-{path}"
  return [
    Command(baechi.main, ("inspect", path, *step)),
    Command(
      baechi.main,
      ("place", path, placed, CLUSTER, *step, *flags),
      outputs=(placed,),
    ),
    Command(baechi.main, ("inspect", placed, *step), must_succeed=True),
  ]


_RUN = (
  "--workers=2", "--batch_size=4", "--steps=4", "--checkpoint_every=2",
  "--evaluate_every=2", "--output=run",
)  # fmt: skip


def _prepare_run() -> None:
  code = robust_train.main(_RUN)
  if code != 0:
    raise RuntimeError(f"the run to damage ends with {code}")


def _damage_run(draw: random.Random) -> None:
  _damage_some_file(os.path.join("run", "checkpoints"), draw)


def _prepare_keras() -> None:
  model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
  rule = functools.partial(trimmed_mean, trim=0)
  model.compile(RobustOptimizer(keras.optimizers.SGD(0.1), rule), "mse")
  model.save("model.keras")


def _damage_keras(data: bytes, draw: random.Random) -> bytes:
  if draw.random() >= _STRUCTURED:
    return mutate_bytes(data, draw)
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    files = {x: archive.read(x) for x in archive.namelist()}
  config = json.loads(files["config.json"])
  part = config["compile_config"]
  part["optimizer"] = mutate_tree(part["optimizer"], draw)
  files["config.json"] = json.dumps(config).encode()
  damaged = io.BytesIO()
  with zipfile.ZipFile(damaged, "w") as archive:
    for name, content in files.items():
      archive.writestr(name, content)
  return damaged.getvalue()


def _load_keras(argv: Sequence[str]) -> int:
  """Loads a Keras model as a command would.

  What Keras makes of a damaged file is Keras' own; what `robust_tf` raises
  must say what is wrong with the configuration.
  """
  try:
    with warnings.catch_warnings(action="ignore"):
      keras.models.load_model(argv[0])
  except Exception as error:
    frames = traceback.extract_tb(error.__traceback__)
    ours = any("robust_tf" in x.filename for x in frames)
    if ours and not isinstance(error, ValueError | TypeError | OSError):
      raise
    print(f"keras: {type(error).__name__}", file=sys.stderr)
    return 2
  return 0


FORMATS = (
  Format(
    "profile",
    _prepare_profile,
    _damage_message(_PROFILE, op_performance_data_pb2.OpPerformanceList),
    lambda draw: _place_graph("graph.pb", f"--profile={_PROFILE}"),
  ),
  Format(
    "graph_pb",
    functools.partial(_prepare_graph, "graph.pb"),
    _damage_message("graph.pb", tf.compat.v1.GraphDef),
    lambda draw: _place_graph("graph.pb", "--estimate"),
  ),
  Format(
    "graph_pbtxt",
    functools.partial(_prepare_graph, "graph.pbtxt"),
    _damage_message("graph.pbtxt", tf.compat.v1.GraphDef, as_text=True),
    lambda draw: _place_graph("graph.pbtxt", "--estimate"),
  ),
  Format("saved_model", _prepare_model, _damage_model, _place_model),
  Format(
    "checkpoint",
    _prepare_run,
    _damage_run,
    lambda draw: [Command(robust_train.main, _RUN)],
  ),
  Format(
    "keras",
    _prepare_keras,
    damage_file("model.keras", _damage_keras),
    lambda draw: [Command(_load_keras, ("model.keras",))],
  ),
)
