"""Pictures of a run: who holds which examples, and how training went."""

from collections.abc import Mapping
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_ATTACK_COLOR = "tab:red"


def draw_partition(
  parts: Sequence[np.ndarray],
  labels: np.ndarray,
  path: str,
  who: str = "worker",
) -> None:
  """Draws how many examples of each class each worker holds.

  Args:
    parts: each worker's examples, indices into the labels.
    labels: class of each example, `[num_examples]`.
    path: where the picture goes.
    who: what to call those who hold them.
  """
  num_classes = int(labels.max()) + 1
  counts = np.array(
    [np.bincount(labels[x], minlength=num_classes) for x in parts]
  )
  ends = counts.cumsum(axis=1)
  figure = Figure(figsize=(7, 1.5 + 0.18 * len(parts)), layout="constrained")
  axes = figure.subplots()
  colors = matplotlib.colormaps["tab20"].colors
  for label in range(num_classes):
    axes.barh(
      np.arange(len(parts)),
      counts[:, label],
      left=ends[:, label] - counts[:, label],
      color=colors[label % len(colors)],
      label=str(label),
    )
  axes.set(xlabel="examples", ylabel=who, ylim=(len(parts) - 0.5, -0.5))
  axes.yaxis.get_major_locator().set_params(integer=True)
  if num_classes <= len(colors):
    figure.legend(title="class", loc="outside right upper")
  figure.savefig(path, dpi=100)


def draw_participation(
  report: Mapping[str, object],
  num_devices: int,
  byzantine: Sequence[int],
  path: str,
) -> None:
  """Draws how stale accepted pushes were, and how many each device sent.

  Args:
    report: of a run, see `FederatedReport.to_json`.
    num_devices: n.
    byzantine: devices that are shown apart.
    path: where the picture goes.
  """
  figure = Figure(figsize=(7, 6), layout="constrained")
  upper, lower = figure.subplots(2)
  staleness = {int(k): v for k, v in report["staleness"].items()}
  upper.bar([*staleness], [*staleness.values()], width=0.9)
  upper.set(xlabel="staleness, in versions", ylabel="accepted pushes")
  pushes = np.zeros(num_devices, int)
  for device, count in report["pushes_per_device"].items():
    pushes[int(device)] = count
  colors = [
    _ATTACK_COLOR if i in byzantine else "tab:blue" for i in range(num_devices)
  ]
  lower.bar(np.arange(num_devices), pushes, width=0.9, color=colors)
  lower.set(xlabel="device", ylabel="pushes")
  for axis in (upper.xaxis, upper.yaxis, lower.xaxis, lower.yaxis):
    axis.get_major_locator().set_params(integer=True)
  if byzantine:
    lower.set_title("Byzantine devices in red", fontsize="medium")
  figure.savefig(path, dpi=100)


def draw_curves(
  evaluations: Sequence[Mapping[str, float]],
  attack_step: int | None,
  title: str,
  path: str,
) -> None:
  """Draws accuracy and loss on the test examples over the steps.

  Args:
    evaluations: each with `step`, `test_accuracy` and `test_loss`; values that
      are not finite are left out.
    attack_step: where the attack begins, None without one.
    title: of the picture.
    path: where it goes.
  """
  figure = Figure(figsize=(7, 6), layout="constrained")
  upper, lower = figure.subplots(2, sharex=True)
  _draw_curve(upper, evaluations, "test_accuracy", attack_step)
  _draw_curve(lower, evaluations, "test_loss", attack_step)
  upper.set_title(title, fontsize="medium", wrap=True)
  upper.set(ylim=(-0.02, 1.02))
  lower.set(xlabel="step")
  figure.savefig(path, dpi=100)


def _draw_curve(
  axes: Axes,
  evaluations: Sequence[Mapping[str, float]],
  name: str,
  attack_step: int | None,
) -> None:
  steps = [x["step"] for x in evaluations]
  values = np.array([x[name] for x in evaluations], float)
  values[~np.isfinite(values)] = np.nan
  axes.plot(steps, values, marker="o", markersize=3)
  axes.set(ylabel=name.replace("_", " "))
  axes.grid(alpha=0.3)
  positive = values[np.isfinite(values)]
  if name.endswith("loss") and (positive > 0).all() and len(positive):
    # A loss that is thousands of times another is what attacks are for.
    if positive.max() > 1000 * positive.min():
      axes.set_yscale("log")
  if attack_step is not None:
    axes.axvline(attack_step, color=_ATTACK_COLOR, linestyle="--")
    axes.annotate(
      "attack",
      (attack_step, 1),
      (3, -3),
      xycoords=("data", "axes fraction"),
      textcoords="offset points",
      va="top",
      color=_ATTACK_COLOR,
    )
