"""Training on slow links as text, as JSON and as a picture."""

import dataclasses
import json
import math
import os
from collections.abc import Sequence

from tools import markdown
from tools import pictures
from tools.slow_link_experiment import Experiment
from tools.slow_link_experiment import Measurement
from tools.slow_link_experiment import rate_title
from tools.slow_link_methods import METHODS

_BASELINE = "sync_sgd"
_GOAL_RATE, _GOAL_SPEED_UP, _GOAL_ACCURACY = 20e6, 10.0, 0.005
_COLUMNS = (
  *("method", "steps", "time s", "x sync", "step s", "compute s", "rest s"),
  *("sent kB", "counted kB"),
)


@dataclasses.dataclass(frozen=True)
class Results:
  """What was measured.

  Attributes:
    experiment: what was run.
    probed: bits per second over plain TCP, for each of its rates.
    measurements: of each method on each rate.
  """

  experiment: Experiment
  probed: Sequence[float]
  measurements: Sequence[Measurement]

  def of(self, method: str, rate: float | None) -> Measurement | None:
    """Returns the measurement of a method on a rate, None if not run."""
    for measurement in self.measurements:
      if (measurement.method, measurement.rate) == (method, rate):
        return measurement
    return None

  def time_to_target(self, method: str, rate: float | None):
    """Returns the step and the seconds when the loss was reached, or None."""
    measurement = self.of(method, rate)
    for step, seconds, loss in measurement.curve if measurement else ():
      if loss <= self.experiment.target_loss:
        return step, seconds
    return None

  def speed_up(self, method: str, rate: float | None) -> float | None:
    """Returns how many times faster a method was than synchronous SGD."""
    baseline = self.time_to_target(_BASELINE, rate)
    reached = self.time_to_target(method, rate)
    if baseline is None or reached is None or not reached[1]:
      return None
    return baseline[1] / reached[1]


def as_text(results: Results) -> str:
  """Returns tables in Markdown."""
  experiment = results.experiment
  first = results.measurements[0]
  lines = [
    f"{len(experiment.links)} workers, {first.num_parameters} parameters,"
    f" batches of {experiment.batch_size}, time to a training loss of"
    f" {experiment.target_loss:g}",
    "",
    _settings(results),
  ]
  for rate, probed in zip(experiment.rates, results.probed, strict=True):
    lines += [
      "",
      f"links: {rate_title(rate)} (plain TCP: {probed / 1e6:.1f} Mbit/s)",
      "",
      markdown.table(
        _COLUMNS, [_row(results, x, rate) for x in experiment.methods]
      ),
    ]
  return "\n".join([*lines, *_goal(results)])


def _goal(results: Results) -> list[str]:
  """Returns whether CSER is as fast and as good as it is meant to be."""
  found = results.of("cser", None), results.of(_BASELINE, None)
  if None in found or _GOAL_RATE not in results.experiment.rates:
    return []
  difference = found[0].test_accuracy - found[1].test_accuracy
  speed_up = results.speed_up("cser", _GOAL_RATE) or 0.0
  met = speed_up >= _GOAL_SPEED_UP and difference >= -_GOAL_ACCURACY
  return [
    "",
    f"goal: CSER at least {_GOAL_SPEED_UP:g} x as fast as synchronous SGD at"
    f" {rate_title(_GOAL_RATE)}, its accuracy at most"
    f" {100 * _GOAL_ACCURACY:g} % lower: {speed_up:.1f} x,"
    f" {100 * difference:+.2f} %: {'met' if met else 'missed'}",
  ]


def _settings(results: Results) -> str:
  """Returns a table of the methods, with their final accuracy."""
  rows = []
  baseline = results.of(_BASELINE, None)
  for name in results.experiment.methods:
    measurement = results.of(name, None)
    accuracy = measurement.test_accuracy
    difference = "-"
    if baseline:
      difference = f"{100 * (accuracy - baseline.test_accuracy):+.2f} %"
    loss = measurement.curve[-1][2]
    rows.append(
      [
        METHODS[name].title,
        METHODS[name].settings(),
        f"{loss:.3g}",
        f"{100 * accuracy:.2f} %",
        difference,
      ]
    )
  steps = results.experiment.num_steps
  columns = (
    *("method", "settings", f"loss after {steps} steps"),
    *("test accuracy", "to sync"),
  )
  return markdown.table(columns, rows, num_left=2)


def _row(results: Results, name: str, rate: float | None) -> list[str]:
  """Returns the cells of one method on one rate."""
  measurement = results.of(name, rate)
  reached = results.time_to_target(name, rate)
  speed_up = results.speed_up(name, rate)
  counted = measurement.counted_bytes
  step_s, compute_s = measurement.step_s, measurement.compute_s
  return [
    METHODS[name].title,
    str(reached[0]) if reached else f"> {measurement.curve[-1][0]}",
    f"{reached[1]:.2f}" if reached else f"> {measurement.curve[-1][1]:.2f}",
    f"{speed_up:.1f}" if speed_up is not None else "-",
    f"{step_s:.3f}",
    f"{compute_s:.3f}",
    f"{step_s - compute_s:.3f}",
    f"{measurement.sent_bytes / 1e3:.0f}",
    f"{counted / 1e3:.0f}" if counted is not None else "-",
  ]


def write_json(results: Results, path: str) -> None:
  """Writes all that was measured."""
  experiment = dataclasses.asdict(results.experiment)
  del experiment["links"]
  experiment["data"] = os.path.basename(experiment["data"])
  content = {
    "num_workers": len(results.experiment.links),
    **experiment,
    "settings": {x: METHODS[x].settings() for x in experiment["methods"]},
    "probed_bits_per_s": list(results.probed),
    "measurements": [_as_dict(results, x) for x in results.measurements],
  }
  os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
  with open(path, "w", encoding="utf-8") as file:
    json.dump(content, file, indent=1)
    file.write("\n")


def _as_dict(results: Results, measurement: Measurement) -> dict:
  key = (measurement.method, measurement.rate)
  reached = results.time_to_target(*key)
  return {
    **dataclasses.asdict(measurement),
    # JSON has no NaN and no infinity.
    "curve": [
      [step, seconds, loss if math.isfinite(loss) else None]
      for step, seconds, loss in measurement.curve
    ],
    "steps_to_target": reached[0] if reached else None,
    "seconds_to_target": reached[1] if reached else None,
    "speed_up": results.speed_up(*key),
  }


def draw(results: Results, path: str) -> None:
  """Draws the loss over time, a panel for each rate."""
  experiment = results.experiment
  figure, panels = pictures.plt.subplots(
    1,
    len(experiment.rates),
    figsize=(0.5 + 3.4 * len(experiment.rates), 3.6),
    sharey=True,
    squeeze=False,
    layout="constrained",
  )
  for axes, rate in zip(panels[0], experiment.rates, strict=True):
    for color, name in zip(pictures.COLORS, METHODS, strict=False):
      measurement = results.of(name, rate)
      if measurement:
        _, seconds, losses = zip(*measurement.curve, strict=True)
        axes.plot(seconds, losses, color=color, label=METHODS[name].title)
    axes.axhline(experiment.target_loss, color="grey", linestyle=":")
    axes.set(title=rate_title(rate), xlabel="seconds", yscale="log")
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
  panels[0, 0].set_ylabel("training loss")
  panels[0, -1].legend(fontsize="small")
  pictures.save(figure, path)
