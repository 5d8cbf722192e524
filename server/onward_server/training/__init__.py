"""Training jobs beside serving: their store, their processes, and the versions that come of them."""

from onward_server.training.requests import Start
from onward_server.training.service import TrainingService
from onward_server.training.store import Job, JobEvent, LineageRecord

__all__ = ["Job", "JobEvent", "LineageRecord", "Start", "TrainingService"]
