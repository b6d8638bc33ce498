"""Lets Keras load saved objects whose classes have not been imported.

A saved model names each of our classes, and Keras looks the name up among the
registered ones. A class registers when its module is imported, and that module
imports TensorFlow. Until then a stand-in is registered, which imports the
class when a saved object is loaded.
"""

import dataclasses
import importlib
from collections.abc import Iterable

import wrapt


@dataclasses.dataclass(frozen=True)
class _SavedClass:
  """Stands in for a class of robust_tf in the registry of Keras.

  Attributes:
    name: the class' public name in `robust_tf`.
  """

  name: str

  def from_config(self, config):
    """Returns the object that a config describes."""
    saved_class = getattr(importlib.import_module("robust_tf"), self.name)
    return saved_class.from_config(config)


def register(names: Iterable[str]) -> None:
  """Registers stand-ins with Keras, as soon as Keras is imported.

  Args:
    names: the public names of the classes.
  """

  def register_with(keras):
    custom_objects = keras.saving.get_custom_objects()
    for name in names:
      custom_objects.setdefault(f"robust_tf>{name}", _SavedClass(name))

  wrapt.register_post_import_hook(register_with, "keras")
