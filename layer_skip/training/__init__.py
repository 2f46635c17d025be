"""Training of small early-exit models: the LayerSkip recipe on a CPU.

`train(TrainingConfig(...), output_dir)` is the way in. Nothing here is needed to run a model.
"""

from layer_skip.training.checkpoint import CheckpointError
from layer_skip.training.config import TrainingConfig
from layer_skip.training.result import TrainingResult
from layer_skip.training.trainer import TrainingInterrupted, train

__all__ = ["CheckpointError", "TrainingConfig", "TrainingInterrupted", "TrainingResult", "train"]
