"""Whether models without their errors are one model while CSER trains.

Xie et al., CSER, NeurIPS 2020, Lemma 1: x_i - e_i is the same on all workers,
whatever the compressors are. GRBS needs no e_i; top-k does.
"""

import keras
import numpy as np
import tensorflow as tf

import robust_tf
from robust_tf.compressors import TopK
from robust_tf.training.batches import WorkerBatches
from robust_tf.training.data import Dataset
from tools.compression_tables import NUM_WORKERS
from tools.worker_examples import worker_examples

_BATCH_SIZE = 16


def common_model_spread(
  model: keras.Model,
  data: Dataset,
  parts,
  learning_rate: float,
  num_steps: int,
) -> float:
  """Returns the largest difference between two x_i - e_i at any step.

  Args:
    model: of logits; it is trained.
    data: what is learnt.
    parts: the examples of each worker.
    learning_rate: eta.
    num_steps: after each of which all x_i - e_i are compared.
  """
  optimizer = robust_tf.CSER(
    learning_rate,
    sync_period=4,
    reset_compressor=TopK(8),
    gradient_compressor=TopK(32),
    workers_per_replica=NUM_WORKERS,
  )
  workers = robust_tf.VectorizedWorkers(model, NUM_WORKERS)
  workers.compile(
    optimizer,
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    jit_compile=False,
  )
  batches = WorkerBatches(data, parts, _BATCH_SIZE, seed=0)
  examples = worker_examples(batches, num_steps).reshape(num_steps, -1)
  spread = _Spread(optimizer)
  workers.fit(
    tf.data.Dataset.from_tensor_slices(
      (data.x_train[examples], data.y_train[examples])
    ),
    callbacks=[spread],
    shuffle=False,
    verbose=0,
  )
  return spread.largest


class _Spread(keras.callbacks.Callback):
  def __init__(self, optimizer):
    super().__init__()
    self._optimizer = optimizer
    self.largest = 0.0

  def on_train_batch_end(self, batch, logs=None):
    models = self._optimizer.local_models()
    errors = self._optimizer.local_state("error")
    for x, e in zip(
      zip(*models, strict=True), zip(*errors, strict=True), strict=True
    ):
      common = np.subtract(x, e)
      spread = float(np.max(common.max(axis=0) - common.min(axis=0)))
      # A NaN is no spread to be below of.
      self.largest = max(self.largest, spread) if spread == spread else np.inf
