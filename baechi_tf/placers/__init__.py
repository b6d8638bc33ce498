"""Placers: functions from an OpGraph and a Cluster to a Placement."""

from baechi_tf.placers import contiguous
from baechi_tf.placers import m_etf
from baechi_tf.placers import m_sct
from baechi_tf.placers import m_topo
from baechi_tf.placers import single_device

# In the order in which the portfolio tries them: of two that are equally good,
# the first is kept.
PLACERS = {
  "single_device": single_device.place,
  "contiguous": contiguous.place,
  "m_topo": m_topo.place,
  "m_etf": m_etf.place,
  "m_sct": m_sct.place,
}
