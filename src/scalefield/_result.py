"""What every result shares: it remembers its model and settings, and saves to one .npz file."""

from __future__ import annotations

import dataclasses
import os
from typing import Any, Self

import numpy as np

from scalefield._files import read_archive, write_archive
from scalefield.errors import ScalefieldError
from scalefield.model import Model

__all__ = ["Result"]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Result:
    """Base of solutions and simulations: frozen, with exact save and load.

    Array fields (None if absent) are stored as arrays, every other field but the model as JSON.
    """

    model: Model

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
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

        settings: dict[str, Any] = {
            "class": type(self).__name__,
            "version": __version__,
            "model": self.model.describe(),
        }
        arrays = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                arrays[field.name] = value
            elif field.name != "model":
                settings[field.name] = value
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
            model = Model.from_description(settings.pop("model"))
            return cls(model=model, **settings, **arrays)
        except (KeyError, TypeError, ValueError) as error:
            raise ScalefieldError(f"{os.fspath(path)}: written by another version ({error})") from error
