"""What the logs of epochs say was sent is what was sent."""

from tests.tensorflow_setup import tf  # isort: skip

import csv

import keras
import pytest

import robust_tf
from robust_tf import CommunicationReport
from robust_tf.compressors import GRBS
from tests.robust_tf.mirrored_fits import compiled
from tests.robust_tf.mirrored_fits import fit
from tests.robust_tf.mirrored_fits import network

SIZE = 3 * 4 + 4 + 4 * 2 + 2


def local_sgd():
  return robust_tf.LocalSGD(0.1, sync_period=2)


# Keras 3.15 reads variables through NumPy's old array protocol.
@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_logs_have_bytes_and_ratio(tmp_path):
  model = compiled(local_sgd)
  report = CommunicationReport()
  history = fit(
    model,
    epochs=3,
    callbacks=[
      report,
      keras.callbacks.CSVLogger(tmp_path / "log.csv"),
      keras.callbacks.TensorBoard(tmp_path),
    ],
  ).history
  # 4 steps an epoch; the whole model is sent at each second one.
  expected = [2 * 4 * SIZE, 4 * 4 * SIZE, 6 * 4 * SIZE]
  assert history["bytes_sent"] == expected
  assert history["compression_ratio"] == [2.0, 2.0, 2.0]
  with open(tmp_path / "log.csv", encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
  assert [float(row["bytes_sent"]) for row in rows] == expected
  tags = {
    value.tag
    for path in tmp_path.glob("train/*tfevents*")
    for event in tf.compat.v1.train.summary_iterator(str(path))
    for value in event.summary.value
  }
  assert {"epoch_bytes_sent", "epoch_compression_ratio"} <= tags


def test_ratio_is_that_of_the_paper():
  # R_C = 1 / (1 / R_2 + 1 / (R_1 H)), where blocks divide the coordinates.
  model = keras.Sequential([keras.layers.Input((8,)), keras.layers.Dense(8)])
  model.compile(
    robust_tf.CSER(
      0.1,
      sync_period=2,
      reset_compressor=GRBS(4, num_blocks=8, seed=1),
      gradient_compressor=GRBS(8, num_blocks=8),
      workers_per_replica=2,
    ),
    "mse",
  )
  optimizer = model.optimizer
  optimizer.build(model.trainable_variables)
  assert optimizer.compression_ratio == float("inf")
  gradients = [tf.ones((2, 8, 8)), tf.ones((2, 8))]
  for _ in range(4):
    optimizer.apply(gradients, model.trainable_variables)
  assert optimizer.bytes_sent == 4 * 72 * (4 / 8 + 2 / 4)
  assert optimizer.compression_ratio == 1 / (1 / 8 + 1 / (4 * 2))


def test_nothing_is_sent_before_training():
  assert local_sgd().bytes_sent == 0
  assert local_sgd().compression_ratio == float("inf")


def test_other_optimizer_is_an_error():
  model = network()
  model.compile("sgd", "mse")
  with pytest.raises(ValueError, match="is a SGD, which does not say what"):
    fit(model, callbacks=[CommunicationReport()])
