"""Training: `Trainer`, losses, optimizers, schedules, metrics, callbacks and checkpoints."""

from onward.autodiff import Clip, GradientTransform, Weighted
from onward.passes.lora import LoRA
from onward.train.averaging import EMA, SWA, Averaging, averaging_named
from onward.train.callbacks import (
    Callback,
    Checkpoints,
    CSVLog,
    EarlyStopping,
    EpochLines,
    StopOnNaN,
    TensorBoardLog,
)
from onward.train.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from onward.train.distillation import Distillation
from onward.train.history import History
from onward.train.label_metrics import LabelScore
from onward.train.losses import (
    L1,
    MSE,
    BinaryCrossEntropy,
    CrossEntropy,
    FunctionLoss,
    Huber,
    KLDivergence,
    Loss,
    balanced_class_weights,
    loss_named,
)
from onward.train.metrics import FunctionMetric, Metric, available_metrics, create_metric
from onward.train.optimizers import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Group,
    Optimizer,
    RMSprop,
    optimizer_named,
)
from onward.train.pruning import Pruning
from onward.train.rate_finder import RateFinding
from onward.train.schedules import (
    Constant,
    Cosine,
    Exponential,
    ReduceOnPlateau,
    Schedule,
    Step,
    schedule_named,
)
from onward.train.stored_loss import StoredLoss
from onward.train.task import Task, infer_task, metric_for
from onward.train.trackers import CSVTracker, MLflowTracker, Tracker, Tracking
from onward.train.trainer import Trainer
from onward.train.training_info import StoredTraining

__all__ = [
    "EMA",
    "L1",
    "MSE",
    "SGD",
    "SWA",
    "Adagrad",
    "Adam",
    "AdamW",
    "Averaging",
    "BinaryCrossEntropy",
    "CSVLog",
    "CSVTracker",
    "Callback",
    "Checkpoint",
    "Checkpoints",
    "Clip",
    "Constant",
    "Cosine",
    "CrossEntropy",
    "Distillation",
    "EarlyStopping",
    "EpochLines",
    "Exponential",
    "FunctionLoss",
    "FunctionMetric",
    "GradientTransform",
    "Group",
    "History",
    "Huber",
    "KLDivergence",
    "LabelScore",
    "LoRA",
    "Loss",
    "MLflowTracker",
    "Metric",
    "Optimizer",
    "Pruning",
    "RMSprop",
    "RateFinding",
    "ReduceOnPlateau",
    "Schedule",
    "Step",
    "StopOnNaN",
    "StoredLoss",
    "StoredTraining",
    "Task",
    "TensorBoardLog",
    "Tracker",
    "Tracking",
    "Trainer",
    "Weighted",
    "available_metrics",
    "averaging_named",
    "balanced_class_weights",
    "create_metric",
    "infer_task",
    "loss_named",
    "metric_for",
    "optimizer_named",
    "read_checkpoint",
    "schedule_named",
    "write_checkpoint",
]
