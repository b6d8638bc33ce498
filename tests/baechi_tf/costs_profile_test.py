import types

import pytest
import tensorflow as tf
from tensorflow.core.grappler.costs import op_performance_data_pb2

from baechi_tf.costs import profile as profiles
from baechi_tf.costs.profile import OpCost

MATMUL = OpCost("MatMul", 12.345, 64, 0, (1024, 8))
PROFILE = {
  "CPU": {"a": MATMUL, "b": OpCost("VarHandleOp", 0.5, 0, 4096, (0,), "a/c")},
  "V100": {"a": OpCost("MatMul", 1.0, 0, 0, (1024, 8))},
}


def item_of(**op_types):
  graph_def = tf.compat.v1.GraphDef()
  for name, op in op_types.items():
    graph_def.node.add(name=name, op=op)
  return types.SimpleNamespace(
    graph_def=graph_def, op_names=tuple(op_types), source="some model"
  )


def test_profile_survives_the_file(tmp_path):
  path = tmp_path / "p.pb"
  profiles.write_profile(path, PROFILE)
  assert profiles.read_profile(path) == PROFILE


def test_profile_file_is_an_op_performance_list(tmp_path):
  path = tmp_path / "p.pb"
  profiles.write_profile(path, PROFILE)
  entries = op_performance_data_pb2.OpPerformanceList.FromString(
    path.read_bytes()
  ).op_performance
  assert [x.op.device.type for x in entries] == ["CPU", "CPU", "V100"]
  assert entries[0].node == "a"
  assert entries[0].op.op == "MatMul"
  assert entries[0].compute_cost == 12345
  assert list(entries[0].op_memory.output_memory) == [1024, 8]
  assert entries[0].op_memory.temp_memory == 64
  assert entries[1].op_memory.persistent_memory == 4096
  assert [dict(x.op.attr).keys() for x in entries] == [
    set(),
    {"_fused_into"},
    set(),
  ]


def test_write_twice_gives_the_same_bytes(tmp_path):
  profiles.write_profile(tmp_path / "p", PROFILE)
  profiles.write_profile(tmp_path / "q", PROFILE)
  assert (tmp_path / "p").read_bytes() == (tmp_path / "q").read_bytes()


def test_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / "p.pb"
  profiles.write_profile(path, PROFILE)
  before = path.read_bytes()

  def full(descriptor):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(profiles.os, "fsync", full)
  with pytest.raises(OSError, match="No space left"):
    profiles.write_profile(path, {"CPU": {"a": MATMUL}})
  assert path.read_bytes() == before
  assert [x.name for x in tmp_path.iterdir()] == ["p.pb"]


@pytest.mark.parametrize(
  "content", [b"\xff\xff\xff garbage", b"PK\x03\x04 not a protobuf at all"]
)
def test_read_corrupt_file_names_it(tmp_path, content):
  path = tmp_path / "broken.pb"
  path.write_bytes(content)
  with pytest.raises(ValueError, match=r"broken\.pb: .*profile"):
    profiles.read_profile(path)


def test_read_truncated_file_is_refused(tmp_path):
  path = tmp_path / "p.pb"
  profiles.write_profile(path, PROFILE)
  path.write_bytes(path.read_bytes()[:-5])
  with pytest.raises(ValueError, match="not a profile"):
    profiles.read_profile(path)


def test_read_empty_file_is_refused(tmp_path):
  path = tmp_path / "p.pb"
  path.write_bytes(b"")
  with pytest.raises(ValueError, match="holds no ops"):
    profiles.read_profile(path)


def test_read_negative_cost_is_refused(tmp_path):
  path = tmp_path / "p.pb"
  profiles.write_profile(path, {"CPU": {"a": OpCost("MatMul", -1.0)}})
  with pytest.raises(ValueError, match="'a' has a negative cost"):
    profiles.read_profile(path)


@pytest.mark.parametrize(
  ("cost", "message"),
  [
    (OpCost("MatMul", 2e15), r"'a' takes 2e\+15 us, more than 1e\+15"),
    (OpCost("MatMul", 1.0, 2**62), "'a' has 4,611,686,018,.* bytes, more than"),
    (OpCost("MatMul", 1.0, 0, 2**53 + 1), "'a' has 9,007,.* bytes, more than"),
    (OpCost("MatMul", 1.0, 0, 0, (1, 2**60)), "'a' has 1,152,.* bytes, more"),
  ],
)
def test_read_cost_beyond_the_limits_is_refused(tmp_path, cost, message):
  path = tmp_path / "p.pb"
  profiles.write_profile(path, {"CPU": {"a": cost}})
  with pytest.raises(ValueError, match=f"p.pb: op {message}"):
    profiles.read_profile(path)


def test_read_nameless_device_type_is_refused(tmp_path):
  path = tmp_path / "p.pb"
  profiles.write_profile(path, {"": {"a": MATMUL}})
  with pytest.raises(ValueError, match="entry 0 lacks"):
    profiles.read_profile(path)


def test_merge_puts_device_types_side_by_side_first_wins():
  other = {"CPU": {"a": OpCost("MatMul", 99.0), "c": OpCost("Relu", 1.0)}}
  merged = profiles.merge(PROFILE, other)
  assert list(merged) == ["CPU", "V100"]
  assert merged["CPU"]["a"] == MATMUL
  assert merged["CPU"]["c"] == OpCost("Relu", 1.0)
  assert merged["V100"] == PROFILE["V100"]


def test_complete_fills_and_counts():
  item = item_of(a="MatMul", b="VarHandleOp", c="Relu")
  estimates = {"CPU": {x: OpCost("?", 7.0) for x in "abc"}}
  known = {"CPU": PROFILE["CPU"]}
  costs, coverage = profiles.complete(known, item, ["CPU", "CPU"], estimates)
  assert costs == {"CPU": {**PROFILE["CPU"], "c": OpCost("?", 7.0)}}
  assert coverage == (profiles.Coverage("CPU", 2, 1),)


def test_complete_without_any_cost_names_op_and_cure():
  item = item_of(a="MatMul", b="VarHandleOp", c="Relu")
  with pytest.raises(
    ValueError, match=r"1 of 3 ops .* 'CPU', first 'c'.*device_type\.CPU"
  ):
    profiles.complete({"CPU": PROFILE["CPU"]}, item, ["CPU"], {})


def test_check_other_op_type_is_another_model():
  item = item_of(a="Conv2D", b="VarHandleOp")
  with pytest.raises(
    ValueError, match="another model: op 'a' is a MatMul .* a Conv2D"
  ):
    profiles.check_profile(PROFILE, item)


def test_check_mostly_unknown_ops_is_another_model():
  item = item_of(a="MatMul", p="Relu", q="Relu")
  with pytest.raises(
    ValueError, match="'V100', 2 of 3 ops of some model unknown, first 'p'"
  ):
    profiles.check_profile({"V100": PROFILE["V100"]}, item)


def test_check_half_known_passes():
  profiles.check_profile(
    {"V100": PROFILE["V100"]}, item_of(a="MatMul", p="Relu")
  )
