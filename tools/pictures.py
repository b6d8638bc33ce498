"""Pictures: the same figure is the same file, and text in it stays text."""

import os

import matplotlib

matplotlib.use("Agg")  # draws files, and needs no display
matplotlib.rcParams["svg.fonttype"] = "none"
matplotlib.rcParams["svg.hashsalt"] = "byzantine"

import matplotlib.pyplot as plt  # noqa: E402  after the line above

# Okabe and Ito's colours, told apart by the colour-blind; and the markers too.
COLORS = (
  "#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7"
)  # fmt: skip
MARKERS = "osD^vPX"


def save(figure: plt.Figure, path: str) -> None:
  """Writes a figure, in a folder that is made if need be, and closes it."""
  os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
  figure.savefig(path, metadata={"Date": None})
  plt.close(figure)
