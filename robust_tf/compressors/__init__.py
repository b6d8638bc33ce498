"""What a worker sends of a vector, instead of all of it.

A compressor C is delta-approximate where E ||C(v) - v||^2 <= (1 - delta)
||v||^2 for all v. There are two families. With `all_reduce` every worker keeps
the coordinates `support(size, step)`, and a plain all-reduce carries them;
without, a worker sends `encode(vector, step, worker)`, and the others `decode`
it. `compress` gives what arrives in either.

Compressors are plain values: equal arguments make equal compressors, and
`dataclasses.asdict` gives their arguments.
"""

from robust_tf.compressors.grbs import GRBS
from robust_tf.compressors.identity import Identity
from robust_tf.compressors.qsgd import QSGD
from robust_tf.compressors.random_k import RandomK
from robust_tf.compressors.scaled_sign import ScaledSign
from robust_tf.compressors.top_k import TopK
from robust_tf.compressors.zero import Zero

COMPRESSORS: dict[str, type] = {
  "identity": Identity,
  "zero": Zero,
  "grbs": GRBS,
  "random_k": RandomK,
  "top_k": TopK,
  "scaled_sign": ScaledSign,
  "qsgd": QSGD,
}

__all__ = [
  "COMPRESSORS",
  "GRBS",
  "Identity",
  "QSGD",
  "RandomK",
  "ScaledSign",
  "TopK",
  "Zero",
]
