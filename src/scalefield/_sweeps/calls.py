"""Calls at the points of a grid: the function, its fixed arguments, and how names become a model."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import math
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from scalefield._sweeps.grid import RESERVED, Grid, point_seed
from scalefield._sweeps.records import Record, as_record
from scalefield._threads import limited_threads, single_threaded_blas
from scalefield.model import Model
from scalefield.spectrum import PowerLawSpectrum, Task

__all__ = ["Call", "Outcome", "as_call", "evaluate"]

logger = logging.getLogger(__name__)

_MODEL_FIELDS = tuple(field.name for field in dataclasses.fields(Model))
_SPECTRUM_FIELDS = tuple(field.name for field in dataclasses.fields(PowerLawSpectrum))


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a point: its record, or why there is none."""

    point: int
    record: Record | None = None
    failure: str = ""
    details: str = ""


@dataclass(frozen=True, eq=False)
class Call:
    """A function as it is called at each point; travels to other processes.

    Attributes
    ----------
    function : callable
        Gets its arguments by name.
    settings : mapping
        Arguments that are the same at all points.
    makes_model : bool
        Whether the names of models and power laws are gathered into the argument `model`.
    passed : tuple of str
        Of those names, the ones that the function takes as well.
    variables : tuple of str or None
        What to keep.
    seed : int or None
        From which the argument `seed` of each point is made; None if it is not passed.
    n_threads : int or None
        Threads that an engine may use; None for its own choice.
    """

    function: Callable[..., Any]
    settings: Mapping[str, Any]
    makes_model: bool
    passed: tuple[str, ...]
    variables: tuple[str, ...] | None
    seed: int | None
    n_threads: int | None

    def arguments(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of the function for the values of a point."""
        arguments = {**self.settings, **values}
        if not self.makes_model:
            return arguments
        kept = {name: arguments[name] for name in self.passed}
        fields = {name: arguments.pop(name) for name in _MODEL_FIELDS if name in arguments}
        spectrum_fields = {name: arguments.pop(name) for name in _spectrum_fields(self.settings) if name in arguments}
        base = arguments.pop("model", None)
        if spectrum_fields:
            given = fields.get("spectrum", None if base is None else base.spectrum)
            fields["spectrum"] = _make_spectrum(given, spectrum_fields)
        model = Model(**fields) if base is None else base.replace(**fields)
        return {"model": model, **arguments, **kept}


def _spectrum_fields(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the parameters of the spectrum that is varied: those of a power law, unless another one is given."""
    given = settings.get("spectrum", getattr(settings.get("model"), "spectrum", None))
    if given is None or not dataclasses.is_dataclass(given):
        return _SPECTRUM_FIELDS
    return tuple(field.name for field in dataclasses.fields(given) if field.init)


def _make_spectrum(given: Any, fields: dict[str, Any]) -> Task:
    changes = dict(fields)
    if changes.get("n_modes") == math.inf:
        # Coordinates are numbers; power laws write None.
        changes["n_modes"] = None
    if given is None:
        return PowerLawSpectrum(**changes)
    names = {field.name for field in dataclasses.fields(given)} if dataclasses.is_dataclass(given) else set()
    if not changes.keys() <= names:
        raise ValueError(f"{', '.join(changes)} cannot be set of a {type(given).__name__}, which is no power law")
    spectrum: Task = dataclasses.replace(given, **changes)
    return spectrum


def as_call(
    function: Callable[..., Any],
    grid: Grid,
    settings: Mapping[str, Any],
    *,
    variables: tuple[str, ...] | None,
    seed: int | None,
    n_threads: int | None,
) -> Call:
    """Check that a function can be called on a grid, before anything is computed."""
    names = [*grid.names, *settings]
    twice = sorted(set(grid.names) & set(settings))
    if twice:
        raise ValueError(f"settings must not repeat the names of grid, got {', '.join(twice)} in both")
    if seed is not None:
        if "seed" in names:
            raise ValueError("seed must be left out where grid or settings have a 'seed' of their own")
        names.append("seed")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        # Some compiled functions tell nothing.
        return Call(function, dict(settings), False, (), variables, seed, n_threads)
    kinds = {name: parameter.kind for name, parameter in signature.parameters.items()}
    takes_any = any(kind is inspect.Parameter.VAR_KEYWORD for kind in kinds.values())
    named = {
        name
        for name, kind in kinds.items()
        if kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    }
    title = getattr(function, "__name__", type(function).__name__)
    makes_model = "model" in named
    own = (*_MODEL_FIELDS, *_spectrum_fields(settings)) if makes_model else ()
    unknown = [name for name in names if name not in named and name not in own and not takes_any]
    if unknown:
        known = sorted(named - {"progress"})
        also = f", the fields of Model ({', '.join(_MODEL_FIELDS)}) and of its spectrum" if makes_model else ""
        raise ValueError(
            f"grid and settings must name arguments of {title} ({', '.join(known)}){also}, got {', '.join(unknown)}"
        )
    if makes_model:
        _require_task(names, settings)
    required = {
        name
        for name, parameter in signature.parameters.items()
        if name in named and parameter.default is inspect.Parameter.empty
    }
    missing = sorted(required - set(names) - ({"model"} if makes_model else set()))
    if missing:
        raise ValueError(f"{title} needs {', '.join(missing)} as well: give grid or settings for it")
    positional = [name for name, kind in kinds.items() if kind is inspect.Parameter.POSITIONAL_ONLY]
    if positional:
        raise TypeError(f"{title} must take its arguments by name, got positional-only {', '.join(positional)}")
    passed = tuple(name for name in names if name in own and name in named)
    return Call(function, dict(settings), makes_model, passed, variables, seed, n_threads)


def _require_task(names: list[str], settings: Mapping[str, Any]) -> None:
    """There must be a task at all."""
    if "model" in settings and not isinstance(settings["model"], Model):
        value = settings["model"]
        raise TypeError(f"settings['model'] must be a Model, got {value!r} of type {type(value).__name__}")
    if not {"model", "spectrum"} & set(names) and not {"alpha", "beta"} <= set(names):
        raise ValueError(
            "grid and settings must tell the task: alpha and beta of a power law, a spectrum, or a model, got "
            f"{', '.join(names)}"
        )


def evaluate(call: Call, grid_point: tuple[int, Mapping[str, Any], Mapping[str, Any]]) -> Outcome:
    """Call a function at a point, and catch what it raises; runs where the executor puts it."""
    point, values, labels = grid_point
    try:
        arguments = call.arguments(values)
        if call.seed is not None:
            arguments["seed"] = point_seed(call.seed, labels)
        # The last digits of products depend on the threads of BLAS.
        with single_threaded_blas(), limited_threads(call.n_threads):
            record = as_record(call.function(**arguments), call.variables)
        dims = {dim for variable in record.variables.values() for dim in variable.dims}
        taken = (dims | set(record.variables)) & (set(labels) | set(RESERVED))
        if taken:
            raise ValueError(
                f"variables and dimensions must have other names than the grid and {' and '.join(RESERVED)}, got "
                f"{', '.join(sorted(taken))}"
            )
    except Exception as error:
        message = " ".join(str(error).split())
        failure = f"{type(error).__name__}: {message}" if message else type(error).__name__
        return Outcome(point, None, failure, traceback.format_exc())
    return Outcome(point, record)
