"""Backends in child processes: the same contract, where a crash or a hang costs one target only."""

from hal.worker.backend import Deadlines, WorkerBackend, WorkerExecutable

__all__ = ["Deadlines", "WorkerBackend", "WorkerExecutable"]
