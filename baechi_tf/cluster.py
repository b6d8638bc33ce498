"""A cluster: devices with limited memory, and the links that join them.

Read from TOML. `configs/clusters/` holds examples with their sources.
"""

import dataclasses
import functools
import math
import os
import re
import tomllib
from collections.abc import Mapping
from typing import Any

import numpy as np

from baechi_tf.limits import shown
from baechi_tf.tables import bandwidth
from baechi_tf.tables import check_keys
from baechi_tf.tables import list_of
from baechi_tf.tables import parse_bytes
from baechi_tf.tables import positive
from baechi_tf.tables import table_items
from baechi_tf.tables import time_us
from baechi_tf.tables import us_per_byte

CHANNELS = ("half_duplex", "full_duplex", "parallel")

_MAX_COUNT = 1e9  # of cores, of MHz, of operations in a cycle
_LINK_KEYS = {"latency_us", "bytes_per_us"}
# Optional keys of a link, and what checks their values.
_LINK_WORK = {
  "send_us": time_us,
  "send_us_per_byte": us_per_byte,
  "receive_us": time_us,
  "receive_us_per_byte": us_per_byte,
  "dispatch_us": time_us,
}


@dataclasses.dataclass(frozen=True)
class DeviceType:
  """What an estimate needs to know of a kind of device that is not here.

  Attributes:
    kind: "CPU" or "GPU".
    cores: CPU cores, or a GPU's streaming multiprocessors.
    frequency_mhz: clock of a core.
    bytes_per_us: memory bandwidth.
    architecture: a GPU's compute capability, such as "7.0".
    flops_per_cycle: floating point operations that a core does in a cycle at
      best; None for Grappler's own count (a CPU: 1; a GPU: by architecture).
    launch_us: least time that any op takes (a kernel launch on a GPU, the
      executor's own work per op on a CPU).
  """

  kind: str
  cores: int
  frequency_mhz: int
  bytes_per_us: float
  architecture: str = ""
  flops_per_cycle: float | None = None
  launch_us: float = 1.0


@dataclasses.dataclass(frozen=True)
class Device:
  """One device.

  Attributes:
    name: its TensorFlow name.
    type: a key of `Cluster.device_types`, and of an op's times.
    memory_bytes: its memory.
    processor: the name of what runs its ops. Devices with the same one run one
      op at a time among them; "" is a processor of its own.
  """

  name: str
  type: str
  memory_bytes: int
  processor: str = ""


@dataclasses.dataclass(frozen=True)
class Link:
  """A connection of two devices, alike in both directions.

  A tensor is on its way for `latency_us + bytes / bytes_per_us`. Meanwhile it
  takes `send_us + bytes * send_us_per_byte` of the sending device's processor
  and `receive_us + bytes * receive_us_per_byte` of the receiving one's.

  Attributes:
    latency_us: wall time of a transfer of no bytes.
    bytes_per_us: bandwidth.
    send_us: processor time at the sending end, per tensor.
    send_us_per_byte: processor time at the sending end, per byte.
    receive_us: processor time at the receiving end, per tensor.
    receive_us_per_byte: processor time at the receiving end, per byte.
    dispatch_us: on a link of the cluster's first device, how much later a step
      begins on the other device, and how much later the client, the process of
      the first device, hears that it has ended there.
  """

  latency_us: float
  bytes_per_us: float
  send_us: float = 0.0
  send_us_per_byte: float = 0.0
  receive_us: float = 0.0
  receive_us_per_byte: float = 0.0
  dispatch_us: float = 0.0


@dataclasses.dataclass(frozen=True)
class Cluster:
  """Devices and the links between them.

  Attributes:
    devices: at least one, with distinct names.
    link: joins every pair that `links` does not mention.
    links: by pair of device indices, lower index first.
    channel: `half_duplex` (a device sends or receives one tensor at a time),
      `full_duplex` (sends one and receives one) or `parallel` (any number).
    device_types: properties of the types that estimates are wanted for.
    pins: device names by regular expression: where ops must be, see `pins`.
  """

  devices: tuple[Device, ...]
  link: Link = Link(latency_us=0.0, bytes_per_us=math.inf)
  links: Mapping[tuple[int, int], Link] = dataclasses.field(
    default_factory=dict
  )
  channel: str = "full_duplex"
  device_types: Mapping[str, DeviceType] = dataclasses.field(
    default_factory=dict
  )
  pins: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    if not self.devices:
      raise ValueError("a cluster needs at least one device")
    names = self.device_names
    for i, name in enumerate(names):
      if name in names[:i]:
        raise ValueError(f"device {name!r} is listed twice")
    if self.channel not in CHANNELS:
      raise ValueError(
        f"channel is {shown(self.channel)}, must be one of"
        f" {', '.join(CHANNELS)}"
      )

  @property
  def num_devices(self) -> int:
    """How many devices."""
    return len(self.devices)

  @property
  def device_names(self) -> tuple[str, ...]:
    """The devices' names, in order."""
    return tuple(device.name for device in self.devices)

  @property
  def types(self) -> tuple[str, ...]:
    """The devices' types, in order."""
    return tuple(device.type for device in self.devices)

  @property
  def memory_bytes(self) -> np.ndarray:
    """Int64 `[num_devices]`: the devices' memory."""
    return np.array([x.memory_bytes for x in self.devices], np.int64)

  @functools.cached_property
  def latency_us(self) -> np.ndarray:
    """Float64 `[num_devices, num_devices]`, zero on the diagonal."""
    return self._matrix(lambda link: link.latency_us)

  @functools.cached_property
  def us_per_byte(self) -> np.ndarray:
    """Float64 `[num_devices, num_devices]`, zero on the diagonal."""
    return self._matrix(lambda link: 1.0 / link.bytes_per_us)

  @functools.cached_property
  def send_us(self) -> np.ndarray:
    """Float64 `[num_devices, num_devices]`, from row to column."""
    return self._matrix(lambda link: link.send_us)

  @functools.cached_property
  def send_us_per_byte(self) -> np.ndarray:
    """Float64 `[num_devices, num_devices]`, from row to column."""
    return self._matrix(lambda link: link.send_us_per_byte)

  @functools.cached_property
  def receive_us(self) -> np.ndarray:
    """Float64 `[num_devices, num_devices]`, from row to column."""
    return self._matrix(lambda link: link.receive_us)

  @functools.cached_property
  def receive_us_per_byte(self) -> np.ndarray:
    """Float64 `[num_devices, num_devices]`, from row to column."""
    return self._matrix(lambda link: link.receive_us_per_byte)

  @functools.cached_property
  def dispatch_us(self) -> np.ndarray:
    """Float64 `[num_devices]`: how much later than the client each starts.

    Zero for the devices on the processor of the first, which is the client's.
    """
    from_client = self._matrix(lambda link: link.dispatch_us)[0]
    return np.where(self.processor == self.processor[0], 0.0, from_client)

  @functools.cached_property
  def processor(self) -> np.ndarray:
    """Int64 `[num_devices]`: each device's processor, a number from 0 on."""
    numbers = {}
    names = [(x.processor, "" if x.processor else x.name) for x in self.devices]
    return np.array(
      [numbers.setdefault(x, len(numbers)) for x in names], np.int64
    )

  @property
  def num_processors(self) -> int:
    """Number of processors that run the devices' ops."""
    return int(self.processor.max()) + 1

  def _matrix(self, value) -> np.ndarray:
    matrix = np.full((self.num_devices,) * 2, value(self.link))
    for (i, j), link in self.links.items():
      matrix[i, j] = matrix[j, i] = value(link)
    np.fill_diagonal(matrix, 0.0)
    return matrix

  def with_memory_fraction(self, fraction: float) -> "Cluster":
    """Returns this cluster with every memory times `fraction`.

    Raises:
      ValueError: `fraction` is not in (0, 1].
    """
    if not 0 < fraction <= 1:
      raise ValueError(f"memory fraction {fraction} is not in (0, 1]")
    devices = tuple(
      dataclasses.replace(x, memory_bytes=int(x.memory_bytes * fraction))
      for x in self.devices
    )
    return dataclasses.replace(self, devices=devices)


def read_cluster(path: str | os.PathLike) -> Cluster:
  """Returns the cluster that a TOML file describes.

  Raises:
    ValueError: the file does not parse or breaks the format; the message
      names the file, the field, and what would be right.
    OSError: the file cannot be read.
  """
  with open(path, "rb") as file:
    try:
      tables = tomllib.load(file)
    except RecursionError:
      raise ValueError(f"{path}: not TOML: nested too deeply") from None
    except ValueError as error:
      raise ValueError(f"{path}: not TOML: {error}") from None
  try:
    return cluster_from_tables(tables)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None


def cluster_from_tables(tables: Mapping[str, Any]) -> Cluster:
  """Returns the cluster that parsed TOML tables describe.

  Raises:
    ValueError: as `read_cluster`, without the file's name.
  """
  check_keys(tables, "cluster file", {"device"}, {
    "channel", "link", "device_type", "pins",
  })  # fmt: skip
  devices = []
  for i, table in enumerate(list_of(Mapping, tables["device"], "device")):
    devices.append(_device(table, f"device {i}"))
  types = {
    name: _device_type(table, f"device_type.{name}")
    for name, table in table_items(tables.get("device_type", {}), "device_type")
  }
  link_table = dict(table_items(tables.get("link", {}), "link"))
  between = link_table.pop("between", [])
  index = {device.name: i for i, device in enumerate(devices)}
  links = {}
  for i, table in enumerate(list_of(Mapping, between, "link.between")):
    where = f"link.between {i}"
    check_keys(table, where, {"devices"} | _LINK_KEYS, set(_LINK_WORK))
    rest = dict(table)
    names = list_of(str, rest.pop("devices"), f"{where}: devices")
    for name in names:
      if name not in index:
        raise ValueError(
          f"{where}: unknown device {name!r}; the devices are"
          f" {', '.join(index)}"
        )
    if len(set(names)) != len(names) or len(names) < 2:
      raise ValueError(f"{where}: devices must be two or more different ones")
    ends = sorted(index[name] for name in names)
    between_these = _link(rest, where)
    for position, a in enumerate(ends):
      for b in ends[position + 1 :]:
        links[a, b] = between_these
  link = Cluster.link
  if link_table or len(links) < math.comb(len(devices), 2):
    link = _link(link_table, "link")
  return Cluster(
    devices=tuple(devices),
    link=link,
    links=links,
    channel=tables.get("channel", "full_duplex"),
    device_types=types,
    pins=_pins(tables.get("pins", {})),
  )


def _pins(table: Any) -> dict[str, str]:
  if not isinstance(table, Mapping) or not all(
    isinstance(device, str) for device in table.values()
  ):
    raise ValueError(
      'pins must be a table of "REGEX" = "DEVICE", both in quotes'
    )
  return dict(table)


def _device(table: Mapping[str, Any], where: str) -> Device:
  check_keys(table, where, {"name", "memory"}, {"type", "processor"})
  name = table["name"]
  if not isinstance(name, str) or not name:
    raise ValueError(f"{where}: name must be a non-empty string")
  try:
    memory_bytes = parse_bytes(table["memory"])
  except ValueError as error:
    raise ValueError(f"{where} ({name}): memory: {error}") from None
  kind = re.search(r"(CPU|GPU|TPU)(:\d+)?$", name, re.IGNORECASE)
  default = kind[1].upper() if kind else "CPU"
  processor = table.get("processor", _processor_of(name))
  if "processor" in table and not (isinstance(processor, str) and processor):
    raise ValueError(f"{where} ({name}): processor must be a non-empty string")
  return Device(name, str(table.get("type", default)), memory_bytes, processor)


def _processor_of(name: str) -> str:
  """Returns one name for all CPU devices of a process, "" for other devices."""
  logical_cpu = re.fullmatch(r"(.*CPU):\d+", name, re.IGNORECASE)
  return logical_cpu[1] if logical_cpu else ""


def _device_type(table: Mapping[str, Any], where: str) -> DeviceType:
  required = {"kind", "cores", "frequency_mhz", "bytes_per_us"}
  optional = {"architecture", "flops_per_cycle", "launch_us"}
  check_keys(table, where, required, optional)
  if table["kind"] not in ("CPU", "GPU"):
    raise ValueError(f'{where}: kind must be "CPU" or "GPU"')
  for key in ("cores", "frequency_mhz"):
    if type(table[key]) is not int:
      raise ValueError(f"{where}: {key} must be a whole number")
  flops_per_cycle = table.get("flops_per_cycle")
  if flops_per_cycle is not None:
    flops_per_cycle = positive(
      flops_per_cycle, f"{where}: flops_per_cycle", _MAX_COUNT
    )
  cores, frequency_mhz = (
    int(positive(table[key], f"{where}: {key}", _MAX_COUNT))
    for key in ("cores", "frequency_mhz")
  )
  return DeviceType(
    kind=table["kind"],
    cores=cores,
    frequency_mhz=frequency_mhz,
    bytes_per_us=bandwidth(table["bytes_per_us"], f"{where}: bytes_per_us"),
    architecture=str(table.get("architecture", "")),
    flops_per_cycle=flops_per_cycle,
    launch_us=time_us(table.get("launch_us", 1.0), f"{where}: launch_us"),
  )


def _link(table: Mapping[str, Any], where: str) -> Link:
  check_keys(table, where, _LINK_KEYS, set(_LINK_WORK))
  return Link(
    latency_us=time_us(table["latency_us"], f"{where}: latency_us"),
    bytes_per_us=bandwidth(table["bytes_per_us"], f"{where}: bytes_per_us"),
    **{
      key: check(table[key], f"{where}: {key}")
      for key, check in _LINK_WORK.items()
      if key in table
    },
  )
