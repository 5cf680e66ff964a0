"""Checkpoints of training runs: written whole or not at all, refused unless they belong to the very same call."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalefield._files import read_archive, write_archive
from scalefield._validate import as_float
from scalefield.errors import CheckpointWarning, ScalefieldError

__all__ = ["Checkpoint", "CheckpointFile", "RunState", "seed_or_stored"]

logger = logging.getLogger(__name__)

# Raised when the meaning of the stored arrays changes.
_FORMAT = 2
_FINISHED = "finished"


@dataclass(frozen=True)
class RunState:
    """Where a run stands: its next step, and the arrays from which it goes on."""

    step: int
    arrays: Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class CheckpointFile:
    """The arguments `checkpoint` and `checkpoint_every` of public functions, checked."""

    path: Path
    seconds: float

    @classmethod
    def checked(cls, checkpoint: str | os.PathLike[str] | None, checkpoint_every: float) -> CheckpointFile | None:
        """None if none is asked for.

        Raises
        ------
        TypeError, ValueError
            If it is not a path, or the seconds not positive.
        """
        seconds = as_float("checkpoint_every", checkpoint_every, minimum=0.0, exclusive=True)
        if checkpoint is None:
            return None
        if not isinstance(checkpoint, (str, os.PathLike)):
            raise TypeError(f"checkpoint must be a path, got {checkpoint!r} of type {type(checkpoint).__name__}")
        return cls(Path(checkpoint), seconds)


def seed_or_stored(seed: int | None, file: CheckpointFile | None) -> int | None:
    """The seed; where none is given that of the file, so that the same call goes on with what was drawn first."""
    if seed is not None or file is None or not file.path.exists():
        return seed
    stored = read_archive(file.path)[0].get("seed")
    return stored if isinstance(stored, int) else None


class Checkpoint:
    """A file that training writes now and then, and goes on from.

    It holds arrays of what was recorded, whose first axis counts runs, among them "finished"; and the states of runs
    that are under way. Runs do not depend on their number: more may be asked for than a file holds, not fewer.

    Parameters
    ----------
    file : CheckpointFile
        Where, and how often.
    kind : str
        What makes it, for messages.
    settings : mapping
        What the numbers depend on, less the number of runs: JSON, or arrays. Files with others are refused.
    """

    def __init__(self, file: CheckpointFile, kind: str, settings: Mapping[str, Any]) -> None:
        from scalefield import __version__

        self.path, self.seconds, self.kind = file.path, file.seconds, kind
        plain = {name: value for name, value in settings.items() if not isinstance(value, np.ndarray)}
        head = {"class": "Checkpoint", "format": _FORMAT, "kind": kind, "version": __version__}
        # As the file gives them back.
        self._settings: dict[str, Any] = json.loads(json.dumps(head | plain))
        self._arrays = {name: value for name, value in settings.items() if isinstance(value, np.ndarray)}

    def restore(self, arrays_out: Mapping[str, NDArray[Any]]) -> dict[int, RunState]:
        """Fill in what was recorded, and return the states of the runs that were under way.

        Raises
        ------
        ScalefieldError
            If the file is damaged, or belongs to another call; nothing is changed then.
        OSError
            If it cannot be read, or its folder not be written to.
        """
        # What a process that was killed while it wrote has left.
        for left in self.path.parent.glob(f".{self.path.name}.*.part"):
            with suppress(OSError):
                left.unlink()
        if not self.path.exists():
            # A folder that cannot be written to is told before any work.
            self._write(arrays_out, {})
            return {}
        settings, arrays = read_archive(self.path)
        runs = settings.pop("under_way", None)
        if settings.get("class") != "Checkpoint" or settings.get("format") != _FORMAT or runs is None:
            raise self._error("not a checkpoint of this version of scalefield")
        for name, value in self._settings.items():
            self._require(name, settings.get(name), value)
        try:
            for name, expected in self._arrays.items():
                stored = arrays[f"setting_{name}"]
                if not np.array_equal(stored, expected):
                    self._require(name, stored.tolist(), expected.tolist())
            records = {name: arrays[f"record_{name}"] for name in arrays_out}
            states: dict[int, RunState] = {}
            for run, step in runs:
                prefix = f"state_{run}_"
                parts = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
                states[int(run)] = RunState(int(step), parts)
            for name, array in records.items():
                if array.shape[1:] != arrays_out[name].shape[1:] or array.dtype != arrays_out[name].dtype:
                    raise ValueError(f"{name} of shape {array.shape}")
        except (KeyError, TypeError, ValueError) as error:
            raise self._error(f"not a checkpoint of this version of scalefield ({error})") from error
        finished = records[_FINISHED]
        if finished.size > arrays_out[_FINISHED].size:
            raise self._error(
                f"checkpoint of {finished.size} runs, {arrays_out[_FINISHED].size} are asked for; ask for at least as "
                "many, or give another path"
            )
        for name, array in records.items():
            arrays_out[name][: len(array)] = array
        logger.info("%s: %d runs finished, %d under way", self.path, int(finished.sum()), len(states))
        if not arrays_out[_FINISHED].all():
            # Told before any work: a folder that cannot be written to any more.
            self._write(arrays_out, states)
        return states

    def write(self, arrays: Mapping[str, NDArray[Any]], states: Mapping[int, RunState]) -> None:
        """Replace the file; if that fails the old one stays, a warning is given and training goes on."""
        try:
            self._write(arrays, states)
        except OSError as error:
            logger.warning("checkpoint %s not written: %s", self.path, error)
            warnings.warn(f"checkpoint {self.path} not written: {error}", CheckpointWarning, stacklevel=2)

    def _write(self, arrays: Mapping[str, NDArray[Any]], states: Mapping[int, RunState]) -> None:
        payload: dict[str, NDArray[Any]] = {f"setting_{name}": array for name, array in self._arrays.items()}
        payload |= {f"record_{name}": array for name, array in arrays.items()}
        for run, state in states.items():
            payload |= {f"state_{run}_{name}": array for name, array in state.arrays.items()}
        under_way = [[run, state.step] for run, state in states.items()]
        write_archive(self.path, self._settings | {"under_way": under_way}, payload, compressed=False)

    def _require(self, name: str, stored: Any, wanted: Any) -> None:
        if isinstance(stored, dict) and isinstance(wanted, dict) and stored.keys() == wanted.keys():
            # The one setting that differs, rather than all.
            for part, value in wanted.items():
                self._require(f"{name}.{part}", stored[part], value)
        elif stored != wanted:
            raise self._error(
                f"checkpoint of another {self.kind}, with {name} {_short(stored)} instead of {_short(wanted)}; give "
                "another path, or remove the file to start anew"
            )

    def _error(self, text: str) -> ScalefieldError:
        return ScalefieldError(f"{self.path}: {text}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
