"""Each algorithm over gRPC is what NumPy makes of the order of its events."""

import numpy as np
import pytest

from tests.robust_tf import federated_replay as replay
from tests.robust_tf import oracles

pytestmark = [pytest.mark.slow, pytest.mark.process]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
  """Returns what was recorded, a function of its name."""
  folder = tmp_path_factory.mktemp("cluster")
  replay.run_module("tests.robust_tf.federated_cluster", folder, timeout_s=240)
  return lambda name: replay.Recording.load(folder / f"{name}.pickle")


def test_fed_async_is_replayed(recordings):
  recording = recordings("fed_async")
  replay.assert_replayed(recording, replay.fed_async(recording))
  assert len(recording.models) == 61
  # Otherwise nothing was asynchronous.
  assert max(event.staleness for event in recording.accepted()) > 0
  for event in recording.accepted():
    assert event.staleness == event.server_version - 1 - event.version


@pytest.mark.parametrize(
  ("name", "rule", "mixing"),
  [
    ("option_1", lambda v, x, t: oracles.mean(v), 0.8),
    ("option_2", lambda v, x, t: oracles.trimmed_mean(v, 1), 0.8),
    ("first_of", lambda v, x, t: oracles.median(v), 1.0),
    ("zeno", replay.zeno, 1.0),
  ],
)
def test_rounds_are_replayed(recordings, name, rule, mixing):
  recording = recordings(name)
  replay.assert_replayed(recording, replay.slsgd(recording, rule, mixing))
  assert len(recording.models) == 9


def test_zeno_plus_plus_is_replayed(recordings):
  recording = recordings("zeno_plus_plus")
  replay.assert_replayed(recording, replay.zeno_plus_plus(recording))
  assert {event.kind for event in recording.events} >= {"accepted", "refused"}


@pytest.mark.parametrize("trim", [0, 20])
def test_hundred_devices_on_four_workers_equal_one_process(recordings, trim):
  remote = recordings(f"hundred_{trim}_remote")
  here = recordings(f"hundred_{trim}_here")
  assert len(remote.models) == 5
  assert len(remote.accepted()) == 400
  for version, model in here.models.items():
    np.testing.assert_allclose(
      remote.models[version], model, rtol=0, atol=replay.TOLERANCE
    )
