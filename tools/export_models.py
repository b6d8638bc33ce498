r"""Exports training steps of the benchmark models as SavedModels.

A step is forward, backward and the optimizer's update, from one batch to its
loss: the signature "train". "serving_default" is the forward pass alone.
Widths, depths and batch are flags; `--preset=tiny` is small enough for tests:

    python -m tools.export_models --model=inception --preset=tiny OUT
    python -m tools.export_models --model=gnmt --width=8 --vocabulary=50 \
        --batch=2 OUT    # as many ops as the full model, little work in each
"""

from absl import app
from absl import flags
from absl import logging

from tools import benchmark_models
from tools.benchmark_models import PRESETS
from tools.training_step import export
from tools.training_step import OPTIMIZERS
from tools.training_step import TrainingStep

_MODEL = flags.DEFINE_enum(
  "model", "inception", tuple(PRESETS["full"]), "Which model."
)
_PRESET = flags.DEFINE_enum(
  "preset", "full", tuple(PRESETS), "The sizes that no flag overrides."
)
_OPTIMIZER = flags.DEFINE_enum(
  "optimizer",
  "fused_adam",
  tuple(OPTIMIZERS),
  "Adam of one op a variable, or one of Keras' own.",
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the weights.")
_SIZES = {
  name: flags.DEFINE_integer(name, None, f"{meaning}; else the preset's.")
  for name, meaning in {
    "batch": "Examples in a step",
    "image_size": "Pixels on a side (inception)",
    "classes": "Classes (inception)",
    "layers": "Layers of encoder and of decoder (gnmt, transformer)",
    "width": "LSTM units or model width (gnmt, transformer)",
    "heads": "Attention heads (transformer)",
    "length": "Tokens in a sentence (gnmt, transformer)",
    "vocabulary": "Distinct tokens (gnmt, transformer)",
  }.items()
}


def main(argv: list[str]) -> None:
  """Exports the model that the flags describe."""
  if len(argv) != 2:
    raise app.UsageError("one argument: the directory to write")
  logging.set_verbosity(logging.WARNING)  # of TensorFlow's saver
  overrides = {
    name: flag.value for name, flag in _SIZES.items() if flag.value is not None
  }
  try:
    sizes = benchmark_models.sizes_for(_MODEL.value, _PRESET.value, **overrides)
    benchmark = benchmark_models.build(sizes, _SEED.value)
    step = TrainingStep(benchmark, _OPTIMIZER.value)
    export(step, argv[1])
  except ValueError as error:
    raise app.UsageError(str(error)) from error
  print(f"{argv[1]}: a training step of {sizes} with {_OPTIMIZER.value}")


if __name__ == "__main__":
  app.run(main)
