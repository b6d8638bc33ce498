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

from baechi_tf.limits import MAX_BYTES
from baechi_tf.limits import MAX_TIME_US
from baechi_tf.limits import MIN_BYTES_PER_US
from baechi_tf.limits import shown

CHANNELS = ("half_duplex", "full_duplex", "parallel")

_MAX_COUNT = 1e9  # of cores, of MHz, of operations in a cycle
_UNITS = {
  "": 1,
  "b": 1,
  "kb": 10**3,
  "mb": 10**6,
  "gb": 10**9,
  "tb": 10**12,
  "kib": 2**10,
  "mib": 2**20,
  "gib": 2**30,
  "tib": 2**40,
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
  """One device: its TensorFlow name, its type, and its memory."""

  name: str
  type: str
  memory_bytes: int


@dataclasses.dataclass(frozen=True)
class Link:
  """A connection: `latency_us + bytes / bytes_per_us` per tensor."""

  latency_us: float
  bytes_per_us: float


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


def parse_bytes(value: int | str) -> int:
  """Returns a number of bytes: an integer, or "16 GiB", "512MB", "1.5 TiB".

  Raises:
    ValueError: it does not parse, is not positive, or is more than
      `limits.MAX_BYTES`.
  """
  if isinstance(value, int) and not isinstance(value, bool):
    size = value
  else:
    text = value if isinstance(value, str) else ""
    match = re.fullmatch(r"\s*([\d.]+)\s*([A-Za-z]*)\s*", text)
    unit = _UNITS.get(match[2].lower()) if match else None
    try:
      size = float(match[1]) * unit
    except (TypeError, ValueError):
      raise ValueError(
        f"{shown(value)} is not a size; write a number of bytes or one with a"
        ' unit, such as "16 GiB" or "512 MB"'
      ) from None
  if size < 1:
    raise ValueError(f"{shown(value)} is not a positive size")
  if size > MAX_BYTES:
    raise ValueError(f"{shown(value)} is more than {MAX_BYTES:,} bytes")
  return int(size)


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
  _check_keys(tables, "cluster file", {"device"}, {
    "channel", "link", "device_type",
  })  # fmt: skip
  devices = []
  for i, table in enumerate(_list(tables["device"], "device")):
    devices.append(_device(table, f"device {i}"))
  types = {
    name: _device_type(table, f"device_type.{name}")
    for name, table in _table(tables.get("device_type", {}), "device_type")
  }
  link_table = dict(_table(tables.get("link", {}), "link"))
  between = link_table.pop("between", [])
  if len(devices) > 1 or link_table:
    link = _link(link_table, "link")
  else:
    link = Cluster.link
  index = {device.name: i for i, device in enumerate(devices)}
  links = {}
  for i, table in enumerate(_list(between, "link.between")):
    where = f"link.between {i}"
    _check_keys(table, where, {"devices", "latency_us", "bytes_per_us"}, set())
    names = _list(table["devices"], f"{where}: devices", dict_items=False)
    for name in names:
      if name not in index:
        raise ValueError(
          f"{where}: unknown device {name!r}; the devices are"
          f" {', '.join(index)}"
        )
    if len(set(names)) != len(names) or len(names) < 2:
      raise ValueError(f"{where}: devices must be two or more different ones")
    ends = sorted(index[name] for name in names)
    rest = {k: v for k, v in table.items() if k != "devices"}
    for position, a in enumerate(ends):
      for b in ends[position + 1 :]:
        links[a, b] = _link(rest, where)
  return Cluster(
    devices=tuple(devices),
    link=link,
    links=links,
    channel=tables.get("channel", "full_duplex"),
    device_types=types,
  )


def _device(table: Mapping[str, Any], where: str) -> Device:
  _check_keys(table, where, {"name", "memory"}, {"type"})
  name = table["name"]
  if not isinstance(name, str) or not name:
    raise ValueError(f"{where}: name must be a non-empty string")
  try:
    memory_bytes = parse_bytes(table["memory"])
  except ValueError as error:
    raise ValueError(f"{where} ({name}): memory: {error}") from None
  kind = re.search(r"(CPU|GPU|TPU)(:\d+)?$", name, re.IGNORECASE)
  default = kind[1].upper() if kind else "CPU"
  return Device(name, str(table.get("type", default)), memory_bytes)


def _device_type(table: Mapping[str, Any], where: str) -> DeviceType:
  required = {"kind", "cores", "frequency_mhz", "bytes_per_us"}
  optional = {"architecture", "flops_per_cycle", "launch_us"}
  _check_keys(table, where, required, optional)
  if table["kind"] not in ("CPU", "GPU"):
    raise ValueError(f'{where}: kind must be "CPU" or "GPU"')
  for key in ("cores", "frequency_mhz"):
    if type(table[key]) is not int:
      raise ValueError(f"{where}: {key} must be a whole number")
  flops_per_cycle = table.get("flops_per_cycle")
  if flops_per_cycle is not None:
    flops_per_cycle = _positive(
      flops_per_cycle, f"{where}: flops_per_cycle", _MAX_COUNT
    )
  cores, frequency_mhz = (
    int(_positive(table[key], f"{where}: {key}", _MAX_COUNT))
    for key in ("cores", "frequency_mhz")
  )
  return DeviceType(
    kind=table["kind"],
    cores=cores,
    frequency_mhz=frequency_mhz,
    bytes_per_us=_bandwidth(table, where),
    architecture=str(table.get("architecture", "")),
    flops_per_cycle=flops_per_cycle,
    launch_us=_time_us(table.get("launch_us", 1.0), f"{where}: launch_us"),
  )


def _link(table: Mapping[str, Any], where: str) -> Link:
  _check_keys(table, where, {"latency_us", "bytes_per_us"}, set())
  return Link(
    latency_us=_time_us(table["latency_us"], f"{where}: latency_us"),
    bytes_per_us=_bandwidth(table, where),
  )


def _time_us(value: Any, where: str) -> float:
  _check_number(value, where)
  if not 0 <= value <= MAX_TIME_US:  # NaN is not
    raise ValueError(
      f"{where} must be from 0 to {MAX_TIME_US:g}, got {shown(value)}"
    )
  return float(value)


def _positive(value: Any, where: str, most: float) -> float:
  _check_number(value, where)
  if not 0 < value <= most:
    raise ValueError(
      f"{where} must be > 0 and at most {most:g}, got {shown(value)}"
    )
  return float(value)


def _bandwidth(table: Mapping[str, Any], where: str) -> float:
  value, where = table["bytes_per_us"], f"{where}: bytes_per_us"
  _check_number(value, where)
  # An infinite one costs only its link's latency.
  if not (MIN_BYTES_PER_US <= value <= MAX_BYTES or value == math.inf):
    raise ValueError(
      f"{where} must be from {MIN_BYTES_PER_US:g} to {MAX_BYTES:,}, or inf, got"
      f" {shown(value)}"
    )
  return float(value)


def _check_number(value: Any, where: str) -> None:
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise ValueError(f"{where} must be a number, got {shown(value)}")


def _table(value: Any, where: str):
  if not isinstance(value, Mapping):
    raise ValueError(f"{where} must be a table")
  return value.items()


def _list(value: Any, where: str, dict_items: bool = True) -> list:
  item = Mapping if dict_items else str
  if not isinstance(value, list) or not all(isinstance(x, item) for x in value):
    what = f"tables: [[{where}]]" if dict_items else "strings"
    raise ValueError(f"{where} must be a list of {what}")
  return value


def _check_keys(table, where, required, optional) -> None:
  if not isinstance(table, Mapping):
    raise ValueError(f"{where} must be a table, got {shown(table)}")
  for key in sorted(required - table.keys()):
    raise ValueError(f"{where}: {key!r} is missing")
  for key in sorted(table.keys() - required - optional):
    raise ValueError(
      f"{where}: unknown key {key!r}; known keys are"
      f" {', '.join(sorted(required | optional))}"
    )
