"""A training method as plain data: which optimizer, and how much it sends."""

import dataclasses

MOMENTUM = 0.9


@dataclasses.dataclass(frozen=True)
class Method:
  """One way to train.

  Attributes:
    title: for tables and pictures.
    optimizer: the class' name in `robust_tf`, None for Keras' SGD.
    ratios: the ratio R of GRBS for each argument that is a compressor.
    sync_period: H, None if the method has none.
    released_code: CSER as in the authors' code.
  """

  title: str
  optimizer: str | None
  ratios: dict[str, float] = dataclasses.field(default_factory=dict)
  sync_period: int | None = None
  released_code: bool = False

  def settings(self) -> str:
    """Returns the settings, as in a call."""
    items = [f"{name}=GRBS({r:g})" for name, r in self.ratios.items()]
    if self.sync_period is not None:
      items.insert(0, f"sync_period={self.sync_period}")
    return ", ".join(items)

  @property
  def compression_ratio(self) -> float:
    """R_C, the bytes of whole gradients over those that it sends."""
    period = self.sync_period or 1
    at_each_step = self.ratios.get("gradient_compressor", float("inf"))
    at_sync = self.ratios.get(
      "reset_compressor", self.ratios.get("compressor", 1)
    )
    if self.released_code:  # which sends one or the other
      return 1 / ((1 - 1 / period) / at_each_step + 1 / (at_sync * period))
    return 1 / (1 / at_each_step + 1 / (at_sync * period))

  def make_optimizer(self, learning_rate, workers_per_replica=None):
    """Returns a new optimizer; to be called inside the strategy's scope.

    Args:
      learning_rate: a number or a schedule.
      workers_per_replica: for `VectorizedWorkers`; not for Keras' SGD.
    """
    # They import TensorFlow, which whoever only names methods does without.
    import keras

    import robust_tf
    from robust_tf.compressors import GRBS

    if self.optimizer is None:
      return keras.optimizers.SGD(
        learning_rate, momentum=MOMENTUM, nesterov=True
      )
    # With one seed for both, what one compressor draws the other would too.
    arguments = {
      name: GRBS(ratio, seed=seed)
      for seed, (name, ratio) in enumerate(self.ratios.items())
    }
    if self.sync_period is not None:
      arguments["sync_period"] = self.sync_period
    if self.released_code:
      arguments["released_code"] = True
    optimizer_type = getattr(robust_tf, self.optimizer)
    return optimizer_type(
      learning_rate,
      momentum=MOMENTUM,
      workers_per_replica=workers_per_replica,
      **arguments,
    )
