"""The training job: from flags to a trained model and its report."""
