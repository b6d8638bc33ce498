"""Private parts of TensorFlow and Keras: one use of them a file.

Nothing outside this package names anything private. Each file finds what it
needs with `private`, so that a version without it is one clear error that names
the hook, and no wrong gradient. Some files have a `change()`, which changes
TensorFlow or Keras for the whole process, and leaves all that has nothing to do
with them as it was: `install` calls it.
"""

from types import ModuleType

from robust_tf.distribute.hooks import private

_installed: set[str] = set()


def install(*hooks: ModuleType) -> None:
  """Changes TensorFlow and Keras as hooks say, once in a process.

  Args:
    *hooks: modules of this package that have a `change()`.

  Raises:
    ValueError: Keras does not run on TensorFlow, or one of the two is a version
      without what a hook needs.
  """
  private.check_backend()
  for hook in hooks:
    if hook.__name__ not in _installed:
      hook.change()
      _installed.add(hook.__name__)
