"""The job's models, and that its flag offers just them."""

import keras
import numpy as np
import pytest

from robust_tf.training import job_flags
from robust_tf.training.models import cnn
from robust_tf.training.models import mlp
from robust_tf.training.models import MODELS
from tests.tensorflow_setup import tf

IMAGE = (8, 8, 1)


def test_the_flag_offers_every_model():
  assert tuple(MODELS) == job_flags.MODELS


@pytest.mark.parametrize("name", MODELS)
def test_logits_of_each_class_are_returned(name):
  model = MODELS[name](IMAGE, 7, seed=0)
  logits = model(np.ones((3, *IMAGE), np.float32))
  assert logits.shape == (3, 7)
  # Logits, not probabilities.
  assert not np.allclose(tf.reduce_sum(logits, axis=1), 1)


def test_mlp_has_one_hidden_layer():
  # 64-32-10: 64 * 32 + 32 + 32 * 10 + 10.
  assert mlp(IMAGE, 10, seed=0).count_params() == 2410
  assert mlp((5,), 3, seed=0, hidden=4).count_params() == 5 * 4 + 4 + 4 * 3 + 3


@pytest.mark.parametrize("name", MODELS)
def test_weights_follow_from_the_seed_alone(name):
  keras.utils.set_random_seed(1)
  first = MODELS[name](IMAGE, 10, seed=3).get_weights()
  keras.utils.set_random_seed(2)
  again = MODELS[name](IMAGE, 10, seed=3).get_weights()
  other = MODELS[name](IMAGE, 10, seed=4).get_weights()
  for a, b, c in zip(first, again, other, strict=True):
    np.testing.assert_array_equal(a, b)
    assert not a.any() or (a != c).any()


@pytest.mark.parametrize("name", MODELS)
def test_kernels_have_hes_deviation_and_are_not_alike(name):
  kernels = [
    layer.kernel.numpy()
    for layer in MODELS[name]((28, 28, 1), 10, seed=0).layers
    if hasattr(layer, "kernel")
  ]
  for kernel in kernels:
    fan_in = np.prod(kernel.shape[:-1])
    # Ten deviations of the estimate from so many weights.
    error = 10 / np.sqrt(2 * kernel.size)
    assert kernel.std() * np.sqrt(fan_in / 2) == pytest.approx(1, abs=error)
  starts = {round(float(x.ravel()[0] * np.sqrt(x.size)), 6) for x in kernels}
  assert len(starts) == len(kernels)


@pytest.mark.parametrize("shape", [(64,), (3, 8, 1), (8, 8)])
def test_cnn_refuses_what_is_no_image(shape):
  with pytest.raises(ValueError, match="cnn needs images .* take mlp"):
    cnn(shape, 10, seed=0)
