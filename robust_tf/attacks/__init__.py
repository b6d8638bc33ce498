"""What Byzantine workers send instead of their updates.

`ATTACKS` is the table of attacks on updates: functions `attack(updates,
byzantine, seed, ...)` of what all n workers would send, `[n, d]`, that return
what the server receives. `label_flip` is an attack on a worker's data.
"""

from collections.abc import Callable

from robust_tf.attacks.a_little_is_enough import a_little_is_enough
from robust_tf.attacks.a_little_is_enough import derived_z
from robust_tf.attacks.byzantine import Byzantine
from robust_tf.attacks.dimensional import bit_flip
from robust_tf.attacks.dimensional import gambler
from robust_tf.attacks.gaussian import gaussian
from robust_tf.attacks.inner_product import inner_product
from robust_tf.attacks.label_flip import flip_labels
from robust_tf.attacks.label_flip import label_flip
from robust_tf.attacks.mimic import mimic
from robust_tf.attacks.non_finite import non_finite
from robust_tf.attacks.omniscient import omniscient
from robust_tf.attacks.sign_flip import sign_flip
from robust_tf.attacks.worst_case import worst_case

ATTACKS: dict[str, Callable] = {
  "a_little_is_enough": a_little_is_enough,
  "bit_flip": bit_flip,
  "gambler": gambler,
  "gaussian": gaussian,
  "inner_product": inner_product,
  "mimic": mimic,
  "non_finite": non_finite,
  "omniscient": omniscient,
  "sign_flip": sign_flip,
  "worst_case": worst_case,
}

# By attack, the arguments that follow from the numbers of workers and of
# Byzantine ones where they are not given, and how.
DERIVED: dict[str, dict[str, Callable[[int, int], float]]] = {
  "a_little_is_enough": {"z": derived_z},
}

__all__ = [
  "ATTACKS",
  "Byzantine",
  "flip_labels",
  "label_flip",
  *ATTACKS,
]
