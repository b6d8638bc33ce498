import pytest

from baechi_tf.placement import InfeasiblePlacementError
from baechi_tf.placers import m_etf
from baechi_tf.shortage import memory_by_kind
from baechi_tf.shortage import Shortage
from baechi_tf.shortage import shortage_message
from tests.contracts import make_cluster
from tests.contracts import make_graph
from tests.contracts import Op


def error_of(graph, cluster):
  with pytest.raises(InfeasiblePlacementError) as caught:
    m_etf.place(graph, cluster)
  return str(caught.value)


def test_error_counts_inputs_that_would_be_received():
  # `b` fits d1, but not beside the copy of its input: 4 + 1,000 bytes. On d0
  # the input is held already.
  graph = make_graph(
    [Op("a", 1.0, (1000,), group="d0"), Op("b", 1.0, (4,))],
    [("a", 0, "b")],
  )
  message = error_of(graph, make_cluster(2, memory=[1003, 1002]))
  assert message == (
    "op 'b' fits on no device: d0 would need 4 bytes (4 outputs) and has 3"
    " left; d1 would need 1,004 bytes (4 outputs + 1,000 received inputs) and"
    " has 1,002 left. A smaller batch, more memory or another device would help"
  )


def test_error_says_which_device_a_group_is_bound_to():
  # `a` takes its group to d0, where `b` finds 8 bytes; d1 has 100, in vain.
  graph = make_graph(
    [
      Op("a", 1.0, (2,), group="g"),
      Op("b", 1.0, (9,), group="g", persistent=1),
    ],
    [("a", 0, "b")],
  )
  message = error_of(graph, make_cluster(2, memory=[11, 100]))
  assert message.startswith(
    "op 'b' (with 1 ops that must share its device) fits on no device: d0 would"
    " need 9 bytes (9 outputs) and has 8 left; not on d1: its group is on d0."
  )


def test_error_of_a_groups_first_op_counts_its_largest_op():
  graph = make_graph(
    [
      Op("a", 1.0, (2,), persistent=3, group="g"),
      Op("b", 1.0, (4,), temporary=5, persistent=1, group="g"),
    ],
    [("a", 0, "b")],
  )
  message = error_of(graph, make_cluster(1, memory=12))
  assert "d0 would need 13 bytes (4 persistent + 4 outputs + 5 temp" in message


def test_message_for_many_devices_names_the_nearest_and_counts_the_rest():
  cluster = make_cluster(64)
  needed = memory_by_kind(persistent=100, outputs=0, temporary=20)
  shortages = [Shortage(k, needed, 110 - k) for k in range(56)]
  shortages += [Shortage(k, excluded="of x") for k in range(56, 64)]
  message = shortage_message(cluster, shortages[::-1])
  assert message == (
    "d0 would need 120 bytes (100 persistent + 20 temporary) and has 110 left;"
    " d1 would need 120 bytes (100 persistent + 20 temporary) and has 109 left;"
    " d2 would need 120 bytes (100 persistent + 20 temporary) and has 108 left;"
    " d3 would need 120 bytes (100 persistent + 20 temporary) and has 107 left;"
    " 52 more devices lack no less; not on d63, d62, d61, d60 and 4 more: of x."
    " A smaller batch, more memory or another device would help"
  )
