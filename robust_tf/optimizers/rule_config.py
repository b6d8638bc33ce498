"""A chosen rule or attack as plain data, and back: what Keras files hold.

A choice is a callable: a function of a public table, a `functools.partial` of
one that fixes its parameters, or a user's own. The first two are written by
name, a user's own the way Keras writes callables, so a function or class that
is registered with `keras.saving` comes back by itself and any other through
`custom_objects`.
"""

import functools
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import keras

from robust_tf import aggregators
from robust_tf import attacks
from robust_tf.attacks.byzantine import Byzantine

# An attack may have the rule that it attacks as a parameter.
_ATTACKS_AND_RULES = {**aggregators.AGGREGATORS, **attacks.ATTACKS}


def rule_and_parameters(choice: Callable) -> tuple[Callable, dict[str, Any]]:
  """Returns a choice's function and the parameters it fixes.

  Raises:
    TypeError: it is no callable.
    ValueError: it fixes a parameter by position.
  """
  if not callable(choice):
    raise TypeError(
      f"{choice!r} is no callable: give a rule, as"
      " robust_tf.aggregators.median, or one with its parameters, as"
      " functools.partial(robust_tf.aggregators.trimmed_mean, trim=1)"
    )
  if not isinstance(choice, functools.partial):
    return choice, {}
  if choice.args:
    raise ValueError(
      f"functools.partial({choice.func.__name__}, ...) fixes {choice.args} by"
      " position, where the updates go: name the parameters"
    )
  return choice.func, dict(choice.keywords)


def to_config(choice: Callable, table: Mapping[str, Callable]) -> dict:
  """Returns a choice as data that JSON can hold.

  Args:
    choice: a function of the table, a partial of one, or any callable that
      Keras can write.
    table: functions by name.
  """
  rule, parameters = rule_and_parameters(choice)
  names = [name for name, function in table.items() if function is rule]
  return {
    "rule": names[0] if names else keras.saving.serialize_keras_object(rule),
    "parameters": {
      name: _parameter_to_config(value, table)
      for name, value in parameters.items()
    },
  }


def from_config(
  config: Mapping[str, Any],
  table: Mapping[str, Callable],
  custom_objects: Mapping[str, Any] | None = None,
) -> Callable:
  """Returns the choice that `to_config` wrote.

  Raises:
    ValueError: a name is not in the table, or the config is damaged.
  """
  rule = entry(config, "rule")
  if not isinstance(rule, str):
    rule = keras.saving.deserialize_keras_object(rule, custom_objects)
  elif rule in table:
    rule = table[rule]
  else:
    raise ValueError(
      f"rule {rule!r} is not known; known are {', '.join(sorted(table))}"
    )
  parameters = {
    name: _parameter_from_config(value, table, custom_objects)
    for name, value in entry(config, "parameters", Mapping).items()
  }
  return functools.partial(rule, **parameters) if parameters else rule


def entry(config: Mapping[str, Any], name: str, kind: type = object) -> Any:
  """Returns one entry of a saved config.

  Args:
    config: what a file holds.
    name: the entry's key.
    kind: the type that the entry must have.

  Raises:
    ValueError: the config has no such entry, or one of another type.
  """
  if not isinstance(config, Mapping) or name not in config:
    raise ValueError(f"a saved config is damaged: it has no {name!r}")
  if not isinstance(config[name], kind):
    raise ValueError(
      f"a saved config is damaged: its {name!r} is no {kind.__name__}"
    )
  return config[name]


def _parameter_to_config(value, table):
  if callable(value):
    return {"choice": to_config(value, table)}
  return keras.saving.serialize_keras_object(value)


def _parameter_from_config(value, table, custom_objects):
  if isinstance(value, Mapping) and set(value) == {"choice"}:
    return from_config(value["choice"], table, custom_objects)
  return keras.saving.deserialize_keras_object(value, custom_objects)


def byzantine_to_config(byzantine: Byzantine | None) -> dict | None:
  """Returns an attack and who attacks as data that JSON can hold."""
  if byzantine is None:
    return None
  return {
    "workers": list(byzantine.workers),
    "attack": to_config(byzantine.attack, _ATTACKS_AND_RULES),
    "start_step": byzantine.start_step,
    "seed": byzantine.seed,
  }


def byzantine_from_config(
  config: Mapping[str, Any] | None,
  custom_objects: Mapping[str, Any] | None = None,
) -> Byzantine | None:
  """Returns what `byzantine_to_config` wrote.

  Raises:
    ValueError: the config is damaged.
  """
  if config is None:
    return None
  attack = entry(config, "attack", Mapping)
  return Byzantine(
    workers=tuple(entry(config, "workers", list)),
    attack=from_config(attack, _ATTACKS_AND_RULES, custom_objects),
    start_step=entry(config, "start_step", int),
    seed=entry(config, "seed", int),
  )
