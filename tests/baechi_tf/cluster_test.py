import math
import textwrap

import numpy as np
import pytest

from baechi_tf.cluster import Cluster
from baechi_tf.cluster import Device
from baechi_tf.cluster import Link
from baechi_tf.cluster import read_cluster
from baechi_tf.tables import parse_bytes

GOOD = """
channel = "half_duplex"

[[device]]
name = "/device:GPU:0"
type = "V100"
memory = "16 GiB"

[[device]]
name = "/device:GPU:1"
memory = 1024

[[device]]
name = "/device:CPU:0"
memory = "1.5 MB"
processor = "host"

[link]
latency_us = 10
bytes_per_us = 12000
send_us_per_byte = 0.25
receive_us = 20

[[link.between]]
devices = ["/device:CPU:0", "/device:GPU:0"]
latency_us = 2.5
bytes_per_us = 4
send_us = 1
receive_us_per_byte = 0.5
dispatch_us = 300

[device_type.V100]
kind = "GPU"
cores = 80
frequency_mhz = 1380
bytes_per_us = 900000
architecture = "7.0"
launch_us = 4
"""


def read(tmp_path, text):
  path = tmp_path / "cluster.toml"
  path.write_text(textwrap.dedent(text))
  return read_cluster(path)


def test_read_cluster_reads_every_field(tmp_path):
  cluster = read(tmp_path, GOOD)
  assert cluster.channel == "half_duplex"
  assert cluster.devices == (
    Device("/device:GPU:0", "V100", 16 * 2**30),
    Device("/device:GPU:1", "GPU", 1024),
    Device("/device:CPU:0", "CPU", 1_500_000, "host"),
  )
  assert cluster.link == Link(
    10.0, 12000.0, send_us_per_byte=0.25, receive_us=20.0
  )
  assert cluster.links == {
    (0, 2): Link(
      2.5, 4.0, send_us=1.0, receive_us_per_byte=0.5, dispatch_us=300.0
    )
  }
  v100 = cluster.device_types["V100"]
  assert (v100.kind, v100.cores, v100.frequency_mhz) == ("GPU", 80, 1380)
  assert (v100.bytes_per_us, v100.launch_us) == (900000.0, 4.0)
  assert v100.architecture == "7.0"


def test_matrices_are_symmetric_with_free_diagonal(tmp_path):
  cluster = read(tmp_path, GOOD)
  np.testing.assert_array_equal(
    cluster.latency_us, [[0, 10, 2.5], [10, 0, 10], [2.5, 10, 0]]
  )
  slow, fast = 1 / 4, 1 / 12000
  np.testing.assert_array_equal(
    cluster.us_per_byte, [[0, fast, slow], [fast, 0, fast], [slow, fast, 0]]
  )
  np.testing.assert_array_equal(
    cluster.send_us, [[0, 0, 1], [0, 0, 0], [1, 0, 0]]
  )
  np.testing.assert_array_equal(
    cluster.send_us_per_byte, [[0, 0.25, 0], [0.25, 0, 0.25], [0, 0.25, 0]]
  )
  np.testing.assert_array_equal(
    cluster.receive_us, [[0, 20, 0], [20, 0, 20], [0, 20, 0]]
  )
  np.testing.assert_array_equal(
    cluster.receive_us_per_byte, [[0, 0, 0.5], [0, 0, 0], [0.5, 0, 0]]
  )
  np.testing.assert_array_equal(cluster.dispatch_us, [0, 0, 300])


@pytest.mark.parametrize(
  ("names", "processors"),
  [
    (["/task:0/device:CPU:0", "/task:0/device:CPU:1"], [0, 0]),
    (["/task:0/device:CPU:0", "/task:1/device:CPU:0"], [0, 1]),
    (["/task:0/device:CPU:0", "/task:1/device:CPU:1"], [0, 1]),
    (["/task:0/device:GPU:0", "/task:0/device:GPU:1"], [0, 1]),
    (["/cpu:1", "/gpu:0", "/cpu:0", "/task:1/cpu:0"], [0, 1, 0, 2]),
    (["a", "b"], [0, 1]),
    # What the file says counts.
    (["/cpu:0 mine", "/cpu:1", "/gpu:0 mine", "/cpu:2 own"], [0, 1, 0, 2]),
  ],
)
def test_read_cluster_cpus_of_a_process_share_its_processor(
  tmp_path, names, processors
):
  text = "[link]\nlatency_us = 1\nbytes_per_us = 1\ndispatch_us = 7\n"
  for name in names:
    name, _, processor = name.partition(" ")
    text += f'[[device]]\nname = "{name}"\nmemory = 1\n'
    text += f'processor = "{processor}"\n' if processor else ""
  cluster = read(tmp_path, text)
  assert cluster.processor.tolist() == processors
  assert cluster.num_processors == max(processors) + 1
  # The client is the first device's processor: nothing is dispatched to it.
  assert cluster.dispatch_us.tolist() == [7.0 * (k > 0) for k in processors]


def test_devices_made_in_python_have_processors_of_their_own():
  devices = [Device(f"/cpu:{k}", "CPU", 1) for k in range(3)]
  assert Cluster(tuple(devices)).processor.tolist() == [0, 1, 2]


def test_link_between_many_devices_joins_every_pair(tmp_path):
  text = GOOD.replace(
    '["/device:CPU:0", "/device:GPU:0"]',
    '["/device:GPU:1", "/device:CPU:0", "/device:GPU:0"]',
  )
  assert set(read(tmp_path, text).links) == {(0, 1), (0, 2), (1, 2)}


def test_read_cluster_needs_no_default_where_every_pair_has_its_link(tmp_path):
  devices = """
    [[device]]
    name = "a"
    memory = 1
    [[device]]
    name = "b"
    memory = 1
    [[device]]
    name = "c"
    memory = 1
    [[link.between]]
    latency_us = 2
    bytes_per_us = 3
  """
  path = tmp_path / "cluster.toml"
  path.write_text(devices + 'devices = ["a", "b", "c"]')
  assert set(read_cluster(path).links.values()) == {Link(2.0, 3.0)}
  path.write_text(devices + 'devices = ["a", "c"]')
  with pytest.raises(ValueError, match="link: 'bytes_per_us' is missing"):
    read_cluster(path)


def test_read_cluster_one_device_needs_no_link(tmp_path):
  cluster = read(tmp_path, '[[device]]\nname = "d"\nmemory = 1\n')
  assert cluster.num_devices == 1
  assert cluster.channel == "full_duplex"
  assert cluster.us_per_byte.tolist() == [[0.0]]


@pytest.mark.parametrize(
  ("value", "expected"),
  [
    (1, 1),
    ("17", 17),
    ("17 B", 17),
    ("2kB", 2000),
    ("2 KiB", 2048),
    ("1.5 MiB", 3 * 2**19),
    ("16 GiB", 2**34),
    ("16 gb", 16 * 10**9),
    ("1 TB", 10**12),
    (" 2 TiB ", 2**41),
  ],
)
def test_parse_bytes_units_are_powers_of_1000_and_1024(value, expected):
  assert parse_bytes(value) == expected


@pytest.mark.parametrize("value", [0, -1, "0 GiB", "0.2 B"])
def test_parse_bytes_not_positive_is_an_error(value):
  with pytest.raises(ValueError, match="not a positive size"):
    parse_bytes(value)


@pytest.mark.parametrize(
  "value", ["", "GiB", "1.2.3 GiB", "-1 GiB", "16 GB/s", "16 XiB", True, "."]
)
def test_parse_bytes_no_size_is_an_error(value):
  with pytest.raises(ValueError, match='not a size; write .* "16 GiB"'):
    parse_bytes(value)


@pytest.mark.parametrize(
  ("old", "new", "message"),
  [
    ("channel =", "chanel =", "cluster file: unknown key 'chanel'; known"),
    ("half_duplex", "duplex", "channel is 'duplex', must be one of half_dup"),
    ('"half_duplex"', "3", "channel is 3, must be one of"),
    ('type = "V100"', 'kind = "V100"', "device 0: unknown key 'kind'"),
    ("memory = 1024\n", "", "device 1: 'memory' is missing"),
    ("memory = 1024", "memory = -5", "GPU:1.*memory: -5 is not a positive"),
    ('"16 GiB"', '"16 Gigs"', "GPU:0.*memory: '16 Gigs' is not a size"),
    ('"16 GiB"', "true", "memory: True is not a size"),
    ('name = "/device:GPU:1"\n', "", "device 1: 'name' is missing"),
    ('name = "/device:GPU:1"', 'name = ""', "device 1: name must be a non"),
    ('name = "/device:GPU:1"', "name = 1", "device 1: name must be a non"),
    (
      'name = "/device:GPU:1"',
      'name = "/device:GPU:0"',
      "device '/device:GPU:0' is listed twice",
    ),
    ('"host"', '""', "CPU:0.*processor must be a non-empty string"),
    ('"host"', "3", "CPU:0.*processor must be a non-empty string"),
    ("send_us = 1\n", "send_us = -1\n", "0: send_us must be from 0 to 1e.15"),
    ("receive_us = 20", "receive_us = inf", "link: receive_us must be from 0"),
    ("dispatch_us = 300", "dispatch_us = nan", "0: dispatch_us must be from 0"),
    ("e = 0.25", "e = 1e7", "link: send_us_per_byte must be from 0 to 1e.06"),
    ("e = 0.5", "e = '1'", "0: receive_us_per_byte must be a number, got '1'"),
    ("latency_us = 10\n", "", "link: 'latency_us' is missing"),
    ("latency_us = 10", "latency_us = -1", "link: latency_us must be from 0 t"),
    ("latency_us = 10", "latency_us = nan", "must be from 0 to 1e.15, got nan"),
    ("latency_us = 10", "latency_us = inf", "must be from 0 to 1e.15, got inf"),
    ("latency_us = 10", "latency_us = 1e20", "from 0 to 1e.15, got 1e.20"),
    ("latency_us = 10", "latency_us = true", "latency_us must be a number, g"),
    ("_us = 12000", "_us = 0", "link: bytes_per_us must be from 1e-06 .*got 0"),
    ("_us = 12000", "_us = 1e-100", "bytes_per_us must be .*, got 1e-100"),
    (
      "_us = 12000",
      f"_us = {10**400}",
      r"_us must be .*, got 10*\.{3}",
    ),
    ("_us = 12000", "_us = 0x" + "f" * 9999, "got a int that is too large to"),
    ("memory = 1024", f"memory = {2**63}", "GPU:1.*2036854775808 is more than"),
    (
      '"16 GiB"',
      f'"{"9" * 400} GiB"',
      r"memory: '9*\.\.\. is more than",
    ),
    ('"16 GiB"', "nan", "GPU:0.*memory: nan is not a size"),
    ('channel = "half_duplex"', "x = " + "[" * 5000, "TOML: nested too deeply"),
    ("memory = 1024", "memory = " + "9" * 5000, "not TOML: .*4300 digits"),
    ("cores = 80", f"cores = {10**30}", "cores must be > 0 and at most 1e.09"),
    ("_us = 12000", '_us = "12 GB"', "bytes_per_us must be a number, got '12"),
    ("_us = 12000", "_us = 12\nspeed = 1", "link: unknown key 'speed'"),
    (
      '"/device:CPU:0", "/device:GPU:0"',
      '"/device:CPU:0", "/device:GPU:7"',
      "link.between 0: unknown device '/device:GPU:7'; the devices are /dev",
    ),
    ('"/device:CPU:0", "/dev', '"/device:GPU:0", "/dev', "two or more differ"),
    ('["/device:CPU:0", ', "[", "link.between 0: devices must be two or more"),
    ('["/device:CPU:0", ', "[1, ", "devices must be a list of strings"),
    ("latency_us = 2.5\n", "", "link.between 0: 'latency_us' is missing"),
    ("latency_us = 2.5\n", "latency_us = 2.5\nx = 1\n", "0: unknown key 'x'"),
    ("[[link.between]]", "[link.between]", "list of tables: .*link.between"),
    ('kind = "GPU"', 'kind = "FPGA"', "device_type.V100: kind must be"),
    ("cores = 80", "cores = 80.5", "cores must be a whole number"),
    ("cores = 80", "cores = 0", "cores must be > 0"),
    ("cores = 80\n", "", "device_type.V100: 'cores' is missing"),
    (
      "launch_us = 4",
      "launch_us = -4",
      "launch_us must be .*, got -4",
    ),
    ("launch_us = 4", "launch = 4", "unknown key 'launch'"),
    ("[[device]]", "[[devices]]", "'device' is missing"),
    ("[link]", "[link", "not TOML"),
  ],
)
def test_read_cluster_broken_file_error_says_what_is_wrong(
  tmp_path, old, new, message
):
  assert old in GOOD
  with pytest.raises(ValueError, match=message) as caught:
    read(tmp_path, GOOD.replace(old, new))
  assert "cluster.toml" in str(caught.value)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("device = 3\n", "device must be a list of tables"),
    ("device = []\n", "at least one device"),
    ('device_type = 3\n[[device]]\nname = "d"\nmemory = 1', "must be a table"),
    ('link = 3\n[[device]]\nname = "d"\nmemory = 1', "link must be a table"),
    ("", "'device' is missing"),
    (
      '[device_type]\nV100 = "fast"\n[[device]]\nname = "d"\nmemory = 1',
      "device_type.V100 must be a table, got 'fast'",
    ),
  ],
)
def test_read_cluster_wrong_kind_of_value_is_an_error(tmp_path, text, message):
  with pytest.raises(ValueError, match=message):
    read(tmp_path, text)


def test_read_cluster_two_devices_without_link_is_an_error(tmp_path):
  text = '[[device]]\nname = "a"\nmemory = 1\n'
  text += '[[device]]\nname = "b"\nmemory = 1\n'
  with pytest.raises(ValueError, match="link: 'bytes_per_us' is missing"):
    read(tmp_path, text)


def test_read_cluster_several_unknown_keys_names_the_first(tmp_path):
  text = GOOD.replace("channel =", "b = 1\na = 1\nc = 1\nchannel =")
  with pytest.raises(ValueError, match="unknown key 'a'"):
    read(tmp_path, text)


def test_read_cluster_binary_file_is_an_error(tmp_path):
  path = tmp_path / "cluster.toml"
  path.write_bytes(b"\xff\xfe\x00")
  with pytest.raises(ValueError, match="not TOML"):
    read_cluster(path)


def test_read_cluster_missing_file_is_an_os_error(tmp_path):
  with pytest.raises(FileNotFoundError):
    read_cluster(tmp_path / "none.toml")


def test_with_memory_fraction_scales_every_memory():
  cluster = Cluster((Device("a", "CPU", 1000), Device("b", "CPU", 3)))
  assert cluster.with_memory_fraction(0.5).memory_bytes.tolist() == [500, 1]
  assert cluster.with_memory_fraction(1.0).memory_bytes.tolist() == [1000, 3]


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.01, math.nan])
def test_with_memory_fraction_out_of_range_is_an_error(fraction):
  cluster = Cluster((Device("a", "CPU", 1000),))
  with pytest.raises(ValueError, match=r"is not in \(0, 1\]"):
    cluster.with_memory_fraction(fraction)
