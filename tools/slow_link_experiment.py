"""What the processes of `tools.slow_links` tell each other."""

import dataclasses

EXPERIMENT_FILE = "experiment.json"
MEASUREMENTS_FILE = "measurements.json"
PROGRESS = "done: "  # how a worker's line begins that is to be shown


def rate_title(bits_per_s: float | None) -> str:
  """Returns a link's rate for people; None is a link that is not shaped."""
  return "no limit" if bits_per_s is None else f"{bits_per_s / 1e6:g} Mbit/s"


@dataclasses.dataclass(frozen=True)
class Experiment:
  """What is to be run.

  Attributes:
    data: a name or a path, see `robust_tf.training.data`.
    hidden: sizes of the hidden layers.
    batch_size: of each worker.
    learning_rate: of all methods.
    target_loss: a run on a shaped link ends when the loss is no more.
    num_steps: after which a run ends.
    evaluate_every: steps between evaluations.
    seed: of the data's split and order, and of the initial model.
    methods: names.
    rates: of the links in bits per second; None is a link that is not shaped.
    links: each worker's `Link`, as a dict.
  """

  data: str
  hidden: list[int]
  batch_size: int
  learning_rate: float
  target_loss: float
  num_steps: int
  evaluate_every: int
  seed: int
  methods: list[str]
  rates: list[float | None]
  links: list[dict]


@dataclasses.dataclass(frozen=True)
class Measurement:
  """What one method did on one kind of link.

  Attributes:
    method: its name.
    rate: of the links in bits per second; None if they were not shaped.
    num_parameters: of the model.
    compute_s: a step's time with one worker's model alone, while all do so.
    step_s: a step's time.
    sent_bytes: through a worker's interface, by step; mean over the workers.
    counted_bytes: what the optimizer says that it sent, by step; None if it
      does not count.
    curve: (step, seconds, training loss) of each evaluation.
    test_accuracy: of the mean model at the end.
  """

  method: str
  rate: float | None
  num_parameters: int
  compute_s: float
  step_s: float
  sent_bytes: float
  counted_bytes: float | None
  curve: list[tuple[int, float, float]]
  test_accuracy: float
