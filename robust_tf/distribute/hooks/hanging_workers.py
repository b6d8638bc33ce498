"""A coordinator that does not wait for all workers when it frees something.

TensorFlow tells every worker that a function is gone, and waits, also for one
that hangs.
"""

from robust_tf.distribute.hooks import private


def change() -> None:
  """Keeps this process from waiting for all workers when it frees something.

  Functions stay until the process ends. And each op's thread waits for what an
  executor has still to do, which may be a tensor to free on another's worker;
  an executor that is not asynchronous has nothing else.
  """
  context = private.find(__name__, "tensorflow.python.eager.context.Context")
  # TensorFlow 2.21: `AtomicFunction.__del__` calls it, in whatever thread.
  private.find(
    __name__,
    "tensorflow.python.eager.context.Context.remove_function",
    ("self", "name"),
  )
  executor = private.find(__name__, "tensorflow.python.eager.executor.Executor")
  stock_delete = private.find(
    __name__,
    "tensorflow.python.eager.executor.Executor.__del__",
    ("self",),
  )
  delete_executor = private.find(
    __name__, "tensorflow.python.pywrap_tfe.TFE_DeleteExecutor"
  )

  def delete(self):
    if self.is_async():
      stock_delete(self)
    else:
      delete_executor(self.handle())

  context.remove_function = lambda self, name: None
  executor.__del__ = delete
