"""What results share: they are frozen, remember their settings, and save to and load from one .npz file."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from scalefield._files import read_archive, write_archive
from scalefield.errors import ScalefieldError
from scalefield.model import Model

__all__ = ["Archived", "Averaged", "Result", "standard_error"]

Array = NDArray[np.float64]


class Archived:
    """Base of frozen dataclasses with exact save and load.

    Array fields (None if absent) are stored as arrays, those that can `describe` themselves by their description, every
    other field as JSON.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                value.setflags(write=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to a compressed .npz file, whole or not at all.

        Parameters
        ----------
        path : path
            Name of the file, used as it is.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        from scalefield import __version__

        settings: dict[str, Any] = {"class": type(self).__name__, "version": __version__}
        arrays = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                arrays[field.name] = value
            elif hasattr(value, "describe"):
                settings[field.name] = value.describe()
            else:
                settings[field.name] = dict(value) if isinstance(value, Mapping) else value
        write_archive(path, settings, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read back what `save` wrote, unchanged.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ScalefieldError
            If the file is not an archive of this class.
        """
        settings, arrays = read_archive(path)
        kind = settings.pop("class", None)
        if kind != cls.__name__:
            raise ScalefieldError(f"{os.fspath(path)}: holds {kind or 'something else'}, not a {cls.__name__}")
        try:
            settings.pop("version")
            return cls(**cls._restored(settings), **arrays)
        except (KeyError, TypeError, ValueError) as error:
            raise ScalefieldError(f"{os.fspath(path)}: written by another version ({error})") from error

    @classmethod
    def _restored(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Fields from what was stored in place of them."""
        return settings


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Result(Archived):
    """Base of solutions and simulations of a model."""

    model: Model

    @classmethod
    def _restored(cls, settings: dict[str, Any]) -> dict[str, Any]:
        return {**settings, "model": Model.from_description(settings["model"])}


class Averaged:
    """Results of several runs, with `loss` of shape (n_runs, T)."""

    loss: Array

    @property
    def n_runs(self) -> int:
        """Number of runs."""
        return int(self.loss.shape[0])

    @property
    def mean(self) -> Array:
        """Loss averaged over runs, shape (T,)."""
        average: Array = self.loss.mean(axis=0)
        return average

    @property
    def standard_error(self) -> Array:
        """Standard error of `mean`, from the sample variance over runs; nan for a single run."""
        return standard_error(self.loss)


def standard_error(samples: Array) -> Array:
    """Standard error of the mean over the first axis; nan for a single sample."""
    if samples.shape[0] < 2:
        return np.full(samples.shape[1:], np.nan)
    error: Array = samples.std(axis=0, ddof=1) / math.sqrt(samples.shape[0])
    return error
