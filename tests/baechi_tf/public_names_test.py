"""The public names: all there, documented, and light to import."""

import subprocess
import sys

import pytest

import baechi_tf


@pytest.mark.parametrize("name", baechi_tf.__all__)
def test_public_name_is_there_and_documented(name):
  assert getattr(baechi_tf, name).__doc__
  assert name in dir(baechi_tf)


def test_unknown_name_is_an_attribute_error():
  with pytest.raises(AttributeError, match="no attribute 'plaice'"):
    baechi_tf.plaice  # noqa: B018


def test_planning_a_cost_graph_does_not_load_tensorflow():
  script = (
    "import sys, numpy, baechi_tf\n"
    "graph = baechi_tf.OpGraph.build(['a', 'b'], numpy.ones(2))\n"
    "device = baechi_tf.Device('x', 'CPU', 1)\n"
    "baechi_tf.plan(graph, baechi_tf.Cluster((device,)))\n"
    "baechi_tf.read_cost_graph\n"
    "sys.exit('tensorflow' in sys.modules)\n"
  )
  subprocess.run([sys.executable, "-c", script], check=True, timeout=300)
