"""Exceptions and warnings raised by scalefield.

Wrong arguments raise the built-in `ValueError` or `TypeError`; the classes here mark what can go wrong
with correct arguments, and carry the work that was finished before it did.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "AccuracyWarning",
    "BackendUnavailableError",
    "CheckpointWarning",
    "DatasetError",
    "DivergenceError",
    "InsufficientMemoryError",
    "Interrupted",
    "KernelWarning",
    "ScalefieldError",
    "SpectrumFileError",
    "StabilityWarning",
    "SweepError",
]


class ScalefieldError(Exception):
    """Base class of the package's own exceptions."""


class BackendUnavailableError(ScalefieldError, RuntimeError):
    """The device asked for cannot be used here; the message says what is missing. Nothing else is used instead."""


class DivergenceError(ScalefieldError, ArithmeticError):
    """A learning curve left the finite range.

    Attributes
    ----------
    step : int
        First step whose loss is not finite (or exceeds the divergence threshold).
    partial : result or None
        What was computed before that step.
    """

    def __init__(self, message: str, step: int, partial: Any = None) -> None:
        super().__init__(message)
        self.step = step
        self.partial = partial


class InsufficientMemoryError(ScalefieldError, MemoryError):
    """The request needs more memory than is available; nothing was allocated."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a long computation, with what was finished by then.

    A `KeyboardInterrupt`, so code that does not know of it behaves as usual.

    Attributes
    ----------
    partial : result or None
        What was computed before the interruption.
    """

    def __init__(self, message: str, partial: Any = None) -> None:
        super().__init__(message)
        self.partial = partial


class SpectrumFileError(ScalefieldError, ValueError):
    """A spectrum file cannot be read; the message names the file, row and column."""


class SweepError(ScalefieldError, RuntimeError):
    """A sweep ended before its last point, because its executor broke or was shut down.

    Attributes
    ----------
    partial : xarray.Dataset
        What was finished by then.
    """

    def __init__(self, message: str, partial: Any = None) -> None:
        super().__init__(message)
        self.partial = partial


class DatasetError(ScalefieldError, ValueError):
    """A file of images cannot be read, or holds something else; the message names the file and array."""


class StabilityWarning(UserWarning):
    """The learning rate exceeds the stability bound of the lazy dynamics."""


class AccuracyWarning(UserWarning):
    """The accuracy asked for is out of reach; the message says what was reached."""


class KernelWarning(UserWarning):
    """A kernel matrix is not quite one, or its spectrum no power law; the message says how far and what was done."""


class CheckpointWarning(UserWarning):
    """A checkpoint could not be written; the simulation goes on, and the last one stays."""
