"""Lower bounds: how far from optimal a plan can be, and what no plan can do."""

from baechi_tf.bounds.lower_bound import lower_bound
from baechi_tf.bounds.memory import check_memory
from baechi_tf.bounds.relaxations import LowerBound

__all__ = ["LowerBound", "check_memory", "lower_bound"]
