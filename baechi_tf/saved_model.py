"""Writes a placed SavedModel, complete or not at all; loads one.

The graph's nodes get their planned devices, the object graph's variables those
of their handles. Everything else is copied. The new directory is built beside
the target and takes its place when it is complete.
"""

import dataclasses
import os
import uuid
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence

import tensorflow as tf

# Checked with TensorFlow 2.21: fingerprints of SavedModels.
from tensorflow.core.protobuf import fingerprint_pb2

from baechi_tf import atomic
from baechi_tf import private
from baechi_tf.compiled_calls import divided_calls
from baechi_tf.device_rewrite import rewrite_devices
from baechi_tf.graph_files import choose_meta_graph
from baechi_tf.graph_files import read_saved_model
from baechi_tf.graph_item import GraphItem
from baechi_tf.model_files import copy_model_files
from baechi_tf.object_graph import captured_objects
from baechi_tf.order_edges import order_edges
from baechi_tf.order_edges import OrderEdges
from baechi_tf.output_path import OutputPath
from baechi_tf.output_path import saved_model_output
from baechi_tf.rewrites import rewrite_step
from baechi_tf.signatures import signature_names
from baechi_tf.v1_loader import is_v1
from baechi_tf.v1_loader import load_v1

fingerprinting = private.find(
  "tensorflow.python.saved_model.pywrap_saved_model.fingerprinting",
  "the fingerprints of SavedModels",
)

MetaGraphDef = tf.compat.v1.MetaGraphDef

_MODEL = "saved_model.pb"
_REWRITTEN = (_MODEL, "saved_model.pbtxt", "fingerprint.pb")


@dataclasses.dataclass(frozen=True)
class RewriteReport:
  """What `write_saved_model` did.

  Attributes:
    path: the directory written.
    num_ops: nodes whose device was set, those in bodies of loops aside.
    num_variables: variables (and tables) that the object graph now places.
    specialised: functions added because calls of one body have different
      plans.
    order: the control edges that keep the planned order.
    divided: functions that XLA compiles and that an unplanned signature calls
      with variables of several devices.
  """

  path: str
  num_ops: int
  num_variables: int
  specialised: tuple[str, ...]
  order: OrderEdges
  divided: tuple[str, ...]


def load(path: str | os.PathLike, tags: Iterable[str] | None = None):
  """Returns a placed SavedModel, its variables on their planned devices.

  `tf.saved_model.load` itself would put every variable on the default device,
  and the ops that use it would follow.

  Raises:
    OSError: there is no such model.
    RuntimeError: `tf.config.set_soft_device_placement(False)` was called.
  """
  if not tf.config.get_soft_device_placement():
    raise RuntimeError(
      "TensorFlow puts a loaded model's variables on their devices only with"
      " soft device placement; call tf.config.set_soft_device_placement(True)"
    )
  path = os.fspath(path)
  tags = None if tags is None else list(tags)
  if is_v1(path):
    return load_v1(path, tags)
  policy = tf.saved_model.experimental.VariablePolicy.SAVE_VARIABLE_DEVICES
  options = tf.saved_model.LoadOptions(experimental_variable_policy=policy)
  return tf.saved_model.load(path, tags=tags, options=options)


def write_saved_model(
  source_dir: str | os.PathLike,
  target_dir: str | os.PathLike,
  item: GraphItem,
  device_of: Mapping[str, str],
  *,
  order: Sequence[str] = (),
  overwrite: bool = False,
  tags: Iterable[str] | None = None,
  follow_links: bool = False,
) -> RewriteReport:
  """Writes the model in `source_dir` with the item's ops on their devices.

  Whoever looks at `target_dir` sees what was there before or the new model,
  also if this process is killed, see `atomic.publishing`.

  Args:
    source_dir: the SavedModel that the item was read from; it is not changed.
    target_dir: where the placed model goes.
    item: which ops are where in the model.
    device_of: the device of each planned op.
    order: planned ops that control edges keep in this order on their devices.
    overwrite: whether a SavedModel at `target_dir` may be replaced.
    tags: as they were given to `read_item`.
    follow_links: whether to copy what links out of `source_dir` lead to.

  Raises:
    ValueError: the target exists or is tied to the source, a link leads out of
      the source, or the plan is not one of this model's.
    OSError: it cannot be written; nothing is left behind.
  """
  output = saved_model_output(os.fspath(target_dir), overwrite)
  output.check(apart_from=(os.fspath(source_dir),))
  with atomic.publishing() as outputs:
    return stage_saved_model(
      outputs,
      source_dir,
      output,
      item,
      device_of,
      order=order,
      tags=tags,
      follow_links=follow_links,
    )


def stage_saved_model(
  outputs: atomic.Outputs,
  source_dir: str | os.PathLike,
  output: OutputPath,
  item: GraphItem,
  device_of: Mapping[str, str],
  *,
  order: Sequence[str] = (),
  tags: Iterable[str] | None = None,
  follow_links: bool = False,
) -> RewriteReport:
  """Adds the placed model to outputs that are published together.

  Args:
    outputs: the outputs that the model is added to.
    source_dir: the SavedModel that the item was read from; it is not changed.
    output: where the placed model goes; already checked.
    item: the paths of the ops in the model.
    device_of: the device of each planned op.
    order: planned ops that control edges keep in this order on their devices.
    tags: the tags that were given to `read_item`.
    follow_links: whether to copy the targets of links out of `source_dir`.

  Raises:
    ValueError: a link leads out of the source, or the plan is not one of this
      model's.
    OSError: it cannot be written.
  """
  source = os.fspath(source_dir)
  saved_model = read_saved_model(source)
  meta_graph = choose_meta_graph(saved_model, tags)
  if item.rewritten_for:
    rewritten, _ = rewrite_step(meta_graph, item.rewritten_for)
    meta_graph.graph_def.CopyFrom(rewritten)
  variable_devices = _place_variables(meta_graph, item, device_of)
  edges = order_edges(
    meta_graph.graph_def,
    item.paths,
    device_of,
    order,
    in_main_graph=len(signature_names(meta_graph)) <= 1,
  )
  graph_def, specialised = rewrite_devices(
    meta_graph.graph_def, item.paths, device_of, edges.after
  )
  meta_graph.graph_def.CopyFrom(graph_def)
  with outputs.directory(output.path, output.check_replaced) as temporary:
    copy_model_files(
      source, temporary, apart_from=_REWRITTEN, follow_links=follow_links
    )
    data = saved_model.SerializeToString(deterministic=True)
    _write_file(os.path.join(temporary, _MODEL), data)
    _write_fingerprint(source, temporary)
  return RewriteReport(
    path=output.path,
    num_ops=sum(1 for name in device_of if item.paths[name]),
    num_variables=len(variable_devices),
    specialised=specialised,
    order=edges,
    divided=divided_calls(graph_def, variable_devices),
  )


def _place_variables(
  meta_graph: MetaGraphDef, item: GraphItem, device_of: Mapping[str, str]
) -> dict[str, str]:
  """Gives the object graph's variables the devices of their handles.

  Returns:
    The device of each variable or table that was placed, by the name of the
    node that makes its handle.
  """
  planned = {
    item.paths[name][0]: device
    for name, device in device_of.items()
    if len(item.paths.get(name, ())) == 1
  }
  placed = {}
  for handle, index in captured_objects(meta_graph).items():
    kept = meta_graph.object_graph_def.nodes[index]
    kind = kept.WhichOneof("kind")
    if handle in planned and kind in ("variable", "resource"):
      getattr(kept, kind).device = planned[handle]
      placed[handle] = planned[handle]
  return placed


def _write_fingerprint(source: str, temporary: str) -> None:
  """Writes the new model's fingerprint, if the source has one."""
  if not os.path.isfile(os.path.join(source, "fingerprint.pb")):
    return
  fingerprint = fingerprint_pb2.FingerprintDef.FromString(
    fingerprinting.CreateFingerprintDef(temporary)
  )
  # TensorFlow draws a random one; the same plan shall give the same bytes.
  fingerprint.uuid = str(
    uuid.uuid5(uuid.NAMESPACE_OID, str(fingerprint.saved_model_checksum))
  )
  data = fingerprint.SerializeToString(deterministic=True)
  _write_file(os.path.join(temporary, "fingerprint.pb"), data)


def _write_file(path: str, data: bytes) -> None:
  with open(path, "wb") as file:
    file.write(data)
