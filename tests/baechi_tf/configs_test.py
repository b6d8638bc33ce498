import math
import pathlib

import pytest

from baechi_tf.cluster import read_cluster
from tests.tensorflow_setup import tf

FILES = sorted(
  (pathlib.Path(__file__).parents[2] / "configs/clusters").glob("*.toml")
)
MUST_HAVE = (
  "2_cpus",
  "2_hosts_10gbe",
  "4_cpus",
  "4_rtx2080",
  "4_v100_nvlink",
  "4_v100_pcie",
)


def test_the_promised_clusters_are_there():
  assert {x.stem for x in FILES} >= set(MUST_HAVE)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_cluster_file_is_sound(path):
  cluster = read_cluster(path)
  count = int(path.stem.partition("_")[0])
  assert cluster.num_devices == count
  for name in cluster.device_names:
    device = tf.DeviceSpec.from_string(name)
    # Complete and canonical, so that it equals what TensorFlow reports.
    assert device.to_string() == name
    assert None not in (device.job, device.task, device.device_index)
  for kind, device in zip(cluster.types, cluster.devices, strict=True):
    properties = cluster.device_types[kind]
    assert properties.kind in device.name
    if properties.kind == "GPU":
      assert float(properties.architecture) >= 7
  assert math.isfinite(cluster.us_per_byte.max())
  off_diagonal = cluster.latency_us[cluster.latency_us > 0]
  assert len(off_diagonal) == count * (count - 1)


# Single-precision peaks of the vendor's data sheets, in TFLOPS.
@pytest.mark.parametrize(
  ("name", "device_type", "teraflops"),
  [
    ("4_v100_pcie", "V100", 14),
    ("4_v100_nvlink", "V100", 15.7),
    ("4_rtx2080", "RTX2080", 10.1),
    ("2_hosts_10gbe", "V100", 14),
  ],
)
def test_gpu_peak_equals_the_data_sheet(name, device_type, teraflops):
  (path,) = (x for x in FILES if x.stem == name)
  properties = read_cluster(path).device_types[device_type]
  # 64 cores a multiprocessor, a multiply-add each cycle.
  peak = properties.cores * 64 * 2 * properties.frequency_mhz * 1e6
  assert peak / 1e12 == pytest.approx(teraflops, rel=0.02)
