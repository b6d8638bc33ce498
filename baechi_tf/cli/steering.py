"""The arguments by which a user says where ops must be, or must not."""

import argparse
import dataclasses

from baechi_tf.cluster import Cluster
from baechi_tf.costed_model import CostedModel
from baechi_tf.device_choice import choose_devices
from baechi_tf.pins import shown


def add_steering_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds pins, and what says which devices a plan uses."""
  group = parser.add_argument_group("steering the plan (docs/steering.md)")
  group.add_argument(
    "--pin",
    metavar="REGEX=DEVICE",
    type=_pin,
    action="append",
    default=[],
    help="put every op in whose name REGEX is found, as by grep, on DEVICE,"
    " with all that must share its device, such as"
    " --pin 'embedding=/device:GPU:1'; may be given several times. The plan"
    " keeps it, or there is none. The cluster file's [pins] count as well",
  )
  group.add_argument(
    "--keep-devices",
    action="store_true",
    help="keep the devices that ops have in the model already; default: ignore"
    " them",
  )
  group.add_argument(
    "--only-devices",
    metavar="D,D,...",
    type=_names,
    default=[],
    help="plan for these devices of the cluster alone",
  )
  group.add_argument(
    "--exclude",
    metavar="D,D,...",
    type=_names,
    default=[],
    help="plan without these devices of the cluster",
  )


def pins_of(args: argparse.Namespace) -> dict[str, str]:
  """Returns the pins that are asked for, devices by regular expression.

  Raises:
    ValueError: one expression is pinned to two devices.
  """
  pins = {}
  for regex, device in args.pin:
    if pins.setdefault(regex, device) != device:
      raise ValueError(
        f"pins {shown(regex, pins[regex])} and {shown(regex, device)}"
        " contradict each other"
      )
  return pins


def chosen_devices(args: argparse.Namespace, cluster: Cluster) -> Cluster:
  """Returns a cluster with the devices that the plan may use.

  Raises:
    ValueError: a device is not in the cluster, none is left, a pin is to one
      that is left out, or one expression is pinned to two devices.
  """
  pins = pins_of(args)
  try:
    return choose_devices(cluster, args.only_devices, args.exclude, pins)
  except ValueError as error:
    raise ValueError(f"{args.cluster}: {error}") from None


def with_devices(
  args: argparse.Namespace, model: CostedModel, cluster: Cluster
) -> CostedModel:
  """Returns a model with its own devices kept, or noted as ignored.

  Raises:
    ValueError: a device in the model is none of the cluster's.
  """
  if model.item is None:
    return model
  from baechi_tf.model_devices import with_own_devices  # imports TensorFlow

  graph, notes = with_own_devices(
    model.graph, model.item, cluster, keep=args.keep_devices
  )
  return dataclasses.replace(model, graph=graph, notes=(*model.notes, *notes))


def _pin(text: str) -> tuple[str, str]:
  regex, separator, device = text.rpartition("=")
  if not (separator and regex and device):
    raise argparse.ArgumentTypeError(
      f"{text!r} is not REGEX=DEVICE, such as 'embedding=/device:GPU:1'"
    )
  return regex, device


def _names(text: str) -> list[str]:
  names = [name.strip() for name in text.split(",")]
  if not all(names):
    raise argparse.ArgumentTypeError(
      f"{text!r} is not a list of devices, such as /device:GPU:0,/device:GPU:1"
    )
  return names
