"""Checkpoints of a simulation: written whole or not at all, refused unless they belong to the very same call."""

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
from scalefield.errors import CheckpointWarning, ScalefieldError
from scalefield.simulation.plan import Plan

__all__ = ["Checkpoint", "RunState", "stored_seed"]

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]

# Raised when the meaning of the stored arrays changes.
_FORMAT = 1


@dataclass(frozen=True)
class RunState:
    """Where a run stands: its next step, and the arrays of the engine."""

    step: int
    arrays: Mapping[str, NDArray[Any]]


class Checkpoint:
    """A file that a simulation writes now and then, and goes on from."""

    def __init__(self, path: str | os.PathLike[str], seconds: float, plan: Plan) -> None:
        from scalefield import __version__

        self.path, self.seconds = Path(path), seconds
        settings = {
            "class": "Checkpoint",
            "format": _FORMAT,
            "version": __version__,
            "model": plan.model.describe(),
            "n_steps": plan.n_steps,
            "n_runs": plan.n_runs,
            "seed": plan.seed,
            "method": plan.method,
            "record": plan.record_steps.tolist(),
            "dtype": plan.dtype.name,
            "features": plan.features if isinstance(plan.features, str) else _name(plan.features),
            "statistics": list(plan.statistics),
            "modes": None if plan.modes is None else plan.modes.tolist(),
            "replacement": plan.replacement,
        }
        # As the file gives them back.
        self._settings: dict[str, Any] = json.loads(json.dumps(settings))

    def exists(self) -> bool:
        """Whether there is a file to go on from."""
        return self.path.exists()

    def restore(
        self, loss_out: Array, records_out: Mapping[str, Array], finished_out: NDArray[np.bool_]
    ) -> dict[int, RunState]:
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
        if not self.exists():
            # A folder that cannot be written to is told before any work.
            self._write(loss_out, records_out, finished_out, {})
            return {}
        settings, arrays = read_archive(self.path)
        runs = settings.pop("under_way", None)
        if settings.get("class") != "Checkpoint" or settings.get("format") != _FORMAT or runs is None:
            raise ScalefieldError(f"{self.path}: not a checkpoint of this version of scalefield")
        for name, value in self._settings.items():
            if settings.get(name) != value:
                raise ScalefieldError(
                    f"{self.path}: checkpoint of another simulation, with {name} {_short(settings.get(name))} "
                    f"instead of {_short(value)}; give another path, or remove the file to start anew"
                )
        try:
            states: dict[int, RunState] = {}
            for run, step in runs:
                prefix = f"state_{run}_"
                parts = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
                states[int(run)] = RunState(int(step), parts)
            loss, finished = arrays["loss"], arrays["finished"]
            records = {name: arrays[f"record_{name}"] for name in records_out}
        except (KeyError, TypeError, ValueError) as error:
            raise ScalefieldError(f"{self.path}: not a checkpoint of this version of scalefield ({error})") from error
        loss_out[...], finished_out[...] = loss, finished
        for name, array in records.items():
            records_out[name][...] = array
        logger.info("%s: %d runs finished, %d under way", self.path, int(finished.sum()), len(states))
        if not finished.all():
            # Told before any work: a folder that cannot be written to any more.
            self._write(loss_out, records_out, finished_out, states)
        return states

    def write(
        self,
        loss: Array,
        records: Mapping[str, Array],
        finished: NDArray[np.bool_],
        states: Mapping[int, RunState],
    ) -> None:
        """Replace the file; if that fails the old one stays, a warning is given and the simulation goes on."""
        try:
            self._write(loss, records, finished, states)
        except OSError as error:
            logger.warning("checkpoint %s not written: %s", self.path, error)
            warnings.warn(f"checkpoint {self.path} not written: {error}", CheckpointWarning, stacklevel=2)

    def _write(
        self,
        loss: Array,
        records: Mapping[str, Array],
        finished: NDArray[np.bool_],
        states: Mapping[int, RunState],
    ) -> None:
        arrays: dict[str, NDArray[Any]] = {"loss": loss, "finished": finished}
        arrays |= {f"record_{name}": array for name, array in records.items()}
        for run, state in states.items():
            arrays |= {f"state_{run}_{name}": array for name, array in state.arrays.items()}
        under_way = [[run, state.step] for run, state in states.items()]
        write_archive(self.path, self._settings | {"under_way": under_way}, arrays, compressed=False)


def stored_seed(path: str | os.PathLike[str]) -> int | None:
    """The seed of a checkpoint; None if there is no such file, or nothing of the kind in it."""
    if not os.path.exists(path):
        return None
    seed = read_archive(path)[0].get("seed")
    return seed if isinstance(seed, int) else None


def _name(function: Any) -> str:
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', repr(function))}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
