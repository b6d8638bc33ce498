"""Clusters without the devices that a plan must not use."""

import dataclasses
from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
from types import MappingProxyType

from baechi_tf.cluster import Cluster
from baechi_tf.pins import shown


def choose_devices(
  cluster: Cluster,
  only_devices: Collection[str] = (),
  exclude: Collection[str] = (),
  pins: Mapping[str, str] = MappingProxyType({}),
) -> Cluster:
  """Returns a cluster without the devices that a plan must not use.

  The step is planned as if the cluster did not list them. Inputs of the step
  are then on the first device that is left, in the same process.

  Args:
    cluster: the devices and links.
    only_devices: names of the devices to keep; empty keeps all.
    exclude: names of devices to leave out.
    pins: device names by regular expression, which must be left, as must those
      of the cluster's own pins.

  Raises:
    ValueError: a name is not in the cluster, no device is left, none is left in
      the process of the first, or a pin is to one that is left out.
  """
  names = cluster.device_names
  for argument, chosen in ("only_devices", only_devices), ("exclude", exclude):
    for name in chosen:
      if name not in names:
        raise ValueError(
          f"{argument}=: the cluster has no device {name!r}; its devices are"
          f" {', '.join(names)}"
        )
  kept = [
    k
    for k, name in enumerate(names)
    if name not in exclude and (not only_devices or name in only_devices)
  ]
  if len(kept) == len(names):
    return cluster
  if not kept:
    raise ValueError("exclude= leaves no device to plan for")
  _check_client(cluster, kept[0])
  left = [names[k] for k in kept]
  for regex, device in (*cluster.pins.items(), *pins.items()):
    if device in names and device not in left:
      raise ValueError(
        f"pin {shown(regex, device)}: {device} is left out by only_devices= or"
        " exclude="
      )
  return _of_devices(cluster, kept)


def _check_client(cluster: Cluster, first: int) -> None:
  """Refuses a first device of another process than the client's."""
  old, new = cluster.device_names[0], cluster.device_names[first]
  same_process = old.rpartition("/device:")[0] == new.rpartition("/device:")[0]
  if not same_process or cluster.dispatch_us[first] > 0:
    raise ValueError(
      "only_devices= and exclude= leave no device in the process of"
      f" {old}, which starts the step and has its inputs; keep that one, or"
      f" list {new} first in the cluster file"
    )


def _of_devices(cluster: Cluster, kept: Sequence[int]) -> Cluster:
  """Returns the cluster of some devices, indices in ascending order."""
  links = {}
  for b, old_b in enumerate(kept):
    for a, old_a in enumerate(kept[:b]):
      link = cluster.links.get((old_a, old_b), cluster.link)
      if a == 0:  # the links of the first device say when others begin
        link = dataclasses.replace(
          link, dispatch_us=float(cluster.dispatch_us[old_b])
        )
      if link != cluster.link:
        links[a, b] = link
  devices = tuple(cluster.devices[k] for k in kept)
  return dataclasses.replace(cluster, devices=devices, links=links)
