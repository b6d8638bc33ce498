"""The training methods that are compared on slow links, and their settings.

All have the same learning rate and Nesterov momentum. Ratios and periods are
chosen so that the three that compress send about the same.
"""

from tools.training_method import Method

METHODS = {
  "sync_sgd": Method("synchronous SGD", None),
  "ef_sgd": Method("EF-SGD", "ErrorFeedbackSGD", {"compressor": 64}),
  "qsparse": Method("QSparse", "QSparseLocalSGD", {"compressor": 16}, 4),
  "local_sgd": Method("local SGD", "LocalSGD", sync_period=8),
  "cser": Method(
    "CSER", "CSER", {"reset_compressor": 16, "gradient_compressor": 128}, 8
  ),
}
