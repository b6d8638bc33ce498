import numpy as np
import pytest

from baechi_tf.placers.families import find_families
from tests import contracts
from tests.contracts import make_graph


@pytest.mark.parametrize("seed", range(20))
def test_families_are_the_ops_with_equal_inputs(seed):
  rng = np.random.default_rng(seed)
  graph = contracts.random_graph(rng, 30, density=0.05, group_share=0.2)
  families = find_families(graph)
  alone = np.bincount(graph.group)[graph.group] == 1
  by_inputs = {}
  for op in graph.order.tolist():
    inputs = tuple(sorted(graph.edge_tensor[graph.edge_op == op].tolist()))
    key = inputs if alone[op] else (inputs, op)
    by_inputs.setdefault(key, []).append(op)
  found = np.split(families.members, families.offsets[1:-1])
  assert sorted(x.tolist() for x in found) == sorted(by_inputs.values())
  for family, members in enumerate(found):
    assert set(families.of_op[members]) == {family}
    for tensor in range(len(graph.tensor_op)):
      first, last = families.consumer_offsets[tensor : tensor + 2]
      consumed = graph.edge_op[graph.edge_tensor == tensor]
      expected = np.isin(members, consumed).any()
      assert (family in families.consumers[first:last]) == expected
  np.testing.assert_array_equal(families.members[families.position], range(30))


def test_families_of_nothing_are_none():
  families = find_families(make_graph([]))
  assert families.offsets.tolist() == [0]
