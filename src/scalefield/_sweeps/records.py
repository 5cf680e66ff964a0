"""What a function returns at a point, as named arrays with labelled dimensions."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalefield._result import Result

__all__ = ["Record", "Variable", "as_record"]

# Kinds of arrays that are kept: booleans, integers, real and complex numbers, text.
_KINDS = "biufcU"


@dataclass(frozen=True, eq=False)
class Variable:
    """An array and the names of its dimensions."""

    dims: tuple[str, ...]
    values: NDArray[Any]


@dataclass(frozen=True, eq=False)
class Record:
    """The variables of a point, and the coordinates of their dimensions."""

    variables: dict[str, Variable] = field(default_factory=dict)
    coordinates: dict[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Layout:
    """Dimensions of the arrays of a kind of result: curves, and those that are kept only when named."""

    dimension: str
    coordinate: str
    curves: Mapping[str, tuple[str, ...]]
    on_demand: Mapping[str, tuple[str, ...]]
    scalars: tuple[str, ...]


def _along(dims: Sequence[str], names: str) -> dict[str, tuple[str, ...]]:
    return dict.fromkeys(names.split(), tuple(dims))


# By the name of the class, whose module need not be loaded.
_LAYOUTS = {
    "FlowSolution": _Layout(
        "time",
        "times",
        _along(["time"], "loss kernel_scale spike alignment local_exponent effective_time train_loss"),
        _along(["time"], "generalization_gap"),
        ("quadrature_error",),
    ),
    "DMFTSolution": _Layout(
        "step",
        "steps",
        _along(
            ["step"],
            "loss kernel_scale population_loss bias feature_variance sgd_variance data_variance noise_variance "
            "train_loss",
        ),
        _along(["step"], "generalization_gap")
        | _along(["step", "earlier_step"], "C_0 C_1 C_2 C_w P H_w R_13 R_22 K C_r C_g R_0 R_r"),
        ("quadrature_error", "closure_error"),
    ),
    "Simulation": _Layout(
        "step",
        "steps",
        _along(["run", "step"], "loss train_loss weight_norm kernel_scale spike alignment")
        | _along(["run", "step", "mode"], "mode_errors"),
        _along(["step"], "mean standard_error train_mean train_standard_error")
        | _along(["run", "step"], "generalization_gap"),
        ("tail",),
    ),
}


def as_record(value: Any, variables: tuple[str, ...] | None) -> Record:
    """Return what a function returned as a record, with the variables asked for (None: those kept by default).

    Raises
    ------
    TypeError, ValueError
        If it is none of what functions may return, or has no such variables.
    """
    if isinstance(value, Result):
        record = _of_result(value, variables)
    else:
        record = _of_plain(value)
    if variables is not None:
        missing = [name for name in variables if name not in record.variables]
        if missing:
            raise ValueError(
                f"variables must be among {', '.join(record.variables)}, got {', '.join(missing)}, which the function "
                "did not return"
            )
        record = Record({name: record.variables[name] for name in variables}, record.coordinates)
    used = {dim for variable in record.variables.values() for dim in variable.dims}
    return Record(record.variables, {dim: array for dim, array in record.coordinates.items() if dim in used})


def _of_result(result: Result, variables: tuple[str, ...] | None) -> Record:
    layout = _LAYOUTS.get(type(result).__name__)
    if layout is None:
        raise TypeError(
            f"a function must return numbers, arrays, or solutions of the engines, got {type(result).__name__}; return "
            "a mapping from names to arrays"
        )
    known = {**layout.curves, **layout.on_demand, **dict.fromkeys(layout.scalars, ())}
    names = (*layout.curves, *layout.scalars) if variables is None else variables
    found: dict[str, Variable] = {}
    for name in names:
        array = getattr(result, name, None) if name in known else None
        if array is not None:
            found[name] = Variable(known[name], np.asarray(array))
        elif variables is not None:
            present = ", ".join(name for name in known if getattr(result, name, None) is not None)
            raise ValueError(f"variables must be among {present}, got {name!r}")
    instants = np.asarray(getattr(result, layout.coordinate))
    coordinates = {layout.dimension: instants, f"earlier_{layout.dimension}": instants}
    modes = getattr(result, "modes", None)
    if modes is not None:
        coordinates["mode"] = np.asarray(modes)
    return Record(found, coordinates)


def _of_plain(value: Any) -> Record:
    xarray = sys.modules.get("xarray")
    if xarray is not None and isinstance(value, xarray.DataArray):
        value = value.to_dataset(name=value.name or "value")
    if xarray is not None and isinstance(value, xarray.Dataset):
        found = {
            str(name): Variable(tuple(map(str, array.dims)), _as_array(str(name), array.values))
            for name, array in value.data_vars.items()
        }
        labels = {str(dim): _as_array(str(dim), value[dim].values) for dim in value.dims if dim in value.coords}
        return Record(found, labels)
    if not isinstance(value, Mapping):
        value = {"value": value}
    found = {}
    for name, entry in value.items():
        if not isinstance(name, str):
            raise TypeError(f"variables must have strings for names, got {name!r} of type {type(name).__name__}")
        found[name] = _as_variable(name, entry)
    # As in xarray, a variable along the dimension of its own name labels it.
    labels = {name: variable.values for name, variable in found.items() if variable.dims == (name,)}
    found = {name: variable for name, variable in found.items() if name not in labels}
    if not found:
        raise ValueError("a function must return at least one variable, got none")
    dims = {dim for variable in found.values() for dim in variable.dims}
    if dims & found.keys():
        raise ValueError(f"variables and dimensions must have different names, got {', '.join(dims & found.keys())}")
    return Record(found, labels)


def _as_variable(name: str, entry: Any) -> Variable:
    if isinstance(entry, tuple) and len(entry) == 2 and _are_dims(entry[0]):
        dims = (entry[0],) if isinstance(entry[0], str) else tuple(entry[0])
        array = _as_array(name, entry[1])
        if len(dims) != array.ndim:
            raise ValueError(f"variable {name!r} must have the dimensions {dims}, got shape {array.shape}")
        return Variable(dims, array)
    array = _as_array(name, entry)
    return Variable(tuple(f"{name}_{axis}" for axis in range(array.ndim)), array)


def _are_dims(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(isinstance(dim, str) for dim in value)
    return isinstance(value, str)


def _as_array(name: str, value: Any) -> NDArray[Any]:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise TypeError(f"variable {name!r} must be a number or an array, got {type(value).__name__}") from error
    if array.dtype.kind not in _KINDS:
        raise TypeError(
            f"variable {name!r} must be a number, text, or an array of them, got {type(value).__name__} of dtype "
            f"{array.dtype}"
        )
    return array
