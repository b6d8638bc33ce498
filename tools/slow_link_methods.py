"""The training methods that are compared on slow links, and their settings.

All have the same learning rate and Nesterov momentum. Ratios and periods are
chosen so that the three that compress send about the same.
"""

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
  """

  title: str
  optimizer: str | None
  ratios: dict[str, float] = dataclasses.field(default_factory=dict)
  sync_period: int | None = None

  def settings(self) -> str:
    """Returns the settings, as in a call."""
    items = [f"{name}=GRBS({r:g})" for name, r in self.ratios.items()]
    if self.sync_period is not None:
      items.insert(0, f"sync_period={self.sync_period}")
    return ", ".join(items)

  def make_optimizer(self, learning_rate: float):
    """Returns a new optimizer; to be called inside the strategy's scope."""
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
    optimizer_type = getattr(robust_tf, self.optimizer)
    return optimizer_type(learning_rate, momentum=MOMENTUM, **arguments)


METHODS = {
  "sync_sgd": Method("synchronous SGD", None),
  "ef_sgd": Method("EF-SGD", "ErrorFeedbackSGD", {"compressor": 64}),
  "qsparse": Method("QSparse", "QSparseLocalSGD", {"compressor": 16}, 4),
  "local_sgd": Method("local SGD", "LocalSGD", sync_period=8),
  "cser": Method(
    "CSER", "CSER", {"reset_compressor": 16, "gradient_compressor": 128}, 8
  ),
}
