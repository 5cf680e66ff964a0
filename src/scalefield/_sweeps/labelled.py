"""The data set of a sweep: outcomes of points put together over the grid, and its netCDF file."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scalefield._sweeps.calls import Outcome
from scalefield._sweeps.records import Record
from scalefield.errors import BackendUnavailableError

if TYPE_CHECKING:
    import xarray

__all__ = ["assemble", "require", "write_netcdf"]

_TAU = "tau = learning rate x step (dimensionless)"
# Meaning and unit of names that the package knows.
_MEANINGS = {
    "alpha": ("capacity exponent of the power law", "dimensionless"),
    "beta": ("source exponent of the power law", "dimensionless"),
    "n_modes": ("number of modes M", "modes"),
    "width": ("number of features N", "features"),
    "gamma": ("richness", "dimensionless"),
    "learning_rate": ("learning rate eta", "dimensionless"),
    "batch_size": ("batch size B", "samples"),
    "label_noise": ("standard deviation of the label noise", "dimensionless"),
    "n_samples": ("size P of the data set", "samples"),
    "n_steps": ("training steps", "steps"),
    "n_runs": ("independent runs", "runs"),
    "time": ("training time", _TAU),
    "times": ("training time", _TAU),
    "step": ("training step", "steps"),
    "earlier_step": ("earlier training step", "steps"),
    "mode": ("mode k, from 0", "modes"),
    "run": ("run", "runs"),
    "effective_time": ("time that components of the spectrum see", _TAU),
    "loss": ("test loss", "dimensionless"),
    "train_loss": ("train loss", "dimensionless"),
    "kernel_scale": ("factor by which the kernel has grown", "dimensionless"),
    "spike": ("strength of the kernel's rank-one part", "dimensionless"),
    "alignment": ("cosine between kernel and task", "dimensionless"),
    "local_exponent": ("-d log loss / d log time", "dimensionless"),
    "status": ("finished, failed or pending", None),
    "failure": ("why a point has no results", None),
}


def require(*modules: str) -> None:
    """Raise unless optional packages are there.

    Raises
    ------
    BackendUnavailableError
        If one is missing; the message names the extra that brings it.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise BackendUnavailableError(
                f"sweeps need the package {module}, which is not installed: pip install 'scalefield[sweep]' ({error})"
            ) from error


def assemble(
    axes: Mapping[str, NDArray[Any]], outcomes: Mapping[int, Outcome], attributes: Mapping[str, Any]
) -> xarray.Dataset:
    """Put outcomes together over a grid; points of which there are none are marked "pending".

    A dimension's coordinate labels it if every point's is a part of the longest one; else the dimension counts places,
    and the coordinate is a variable over the grid. What a point does not have is nan (or "").
    """
    import xarray

    shape = tuple(labels.size for labels in axes.values())
    status = np.full(shape, "pending", dtype="U8")
    failure = np.full(shape, "", dtype=object)
    records: dict[int, Record] = {}
    # In the order of the grid, so that the order of arrival plays no part.
    for point, outcome in sorted(outcomes.items()):
        place = np.unravel_index(point, shape)
        reason = outcome.failure
        if outcome.record is not None:
            reason = _mismatch(outcome.record, records)
            if not reason:
                records[point] = outcome.record
        status[place] = "failed" if reason else "finished"
        failure[place] = reason
    coordinates, data, slots = _dimensions(axes, records)
    for name, variable in next(iter(records.values()), Record()).variables.items():
        dims = tuple(slots[dim].name for dim in variable.dims)
        values = _gather(shape, {p: r.variables[name].values for p, r in records.items()}, variable.dims, slots)
        data[name] = ((*axes, *dims), values)
    data["status"] = (tuple(axes), status)
    data["failure"] = (tuple(axes), failure.astype(np.str_))
    dataset = xarray.Dataset(data, coordinates, dict(attributes))
    for key, array in dataset.variables.items():
        meaning = _MEANINGS.get(str(key))
        if meaning is not None:
            array.attrs["long_name"] = meaning[0]
            if meaning[1] is not None:
                array.attrs["units"] = meaning[1]
    return dataset


def _mismatch(record: Record, records: Mapping[int, Record]) -> str:
    """Why a record does not fit the first one; empty if it does."""
    if not records:
        return ""
    first = next(iter(records.values()))
    if record.variables.keys() != first.variables.keys():
        return (
            f"ValueError: returned the variables {', '.join(record.variables)}, and at other points "
            f"{', '.join(first.variables)}"
        )
    for name, variable in record.variables.items():
        dims = first.variables[name].dims
        if variable.dims != dims:
            return f"ValueError: variable {name!r} has the dimensions {variable.dims}, and at other points {dims}"
        kinds = {variable.values.dtype.kind, first.variables[name].values.dtype.kind}
        if "U" in kinds and len(kinds) > 1:
            return f"ValueError: variable {name!r} is text at some points, a number at others"
    return ""


@dataclass(frozen=True)
class _Slots:
    """A dimension of the data set: its name and length, and where a point's entries go (first ones, if not told)."""

    name: str
    size: int
    places: Mapping[int, NDArray[np.intp]]


def _dimensions(
    axes: Mapping[str, NDArray[Any]], records: Mapping[int, Record]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, _Slots]]:
    """Coordinates, variables that stand for coordinates that differ, and the slots of each dimension."""
    shape = tuple(labels.size for labels in axes.values())
    coordinates: dict[str, Any] = {name: ((name,), labels) for name, labels in axes.items()}
    data: dict[str, Any] = {}
    slots: dict[str, _Slots] = {}
    sizes: dict[str, dict[int, int]] = {}
    for point, record in records.items():
        for variable in record.variables.values():
            for dim, size in zip(variable.dims, variable.values.shape, strict=True):
                sizes.setdefault(dim, {})[point] = size
    for dim, lengths in sizes.items():
        given = {point: records[point].coordinates[dim] for point in lengths if dim in records[point].coordinates}
        slots[dim] = _Slots(dim, max(lengths.values()), {})
        if len(given) < len(lengths):
            continue
        labels = max(given.values(), key=len)
        places = _places(labels, given)
        if places is not None:
            slots[dim] = replace(slots[dim], places=places)
            coordinates[dim] = ((dim,), labels)
        else:
            slots[dim] = replace(slots[dim], name=f"{dim}_index")
            data[dim] = ((*axes, slots[dim].name), _gather(shape, given, (dim,), slots))
    return coordinates, data, slots


def _places(labels: NDArray[Any], given: Mapping[int, NDArray[Any]]) -> dict[int, NDArray[np.intp]] | None:
    """Places of each point's labels among the longest ones; None if some are not there, or are there twice."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    if (ordered[1:] == ordered[:-1]).any():
        return None
    places = {}
    for point, own in given.items():
        if own.shape == labels.shape and np.array_equal(own, labels):
            continue
        found = np.minimum(np.searchsorted(ordered, own), labels.size - 1)
        if not np.array_equal(ordered[found], own) or np.unique(own).size < own.size:
            return None
        places[point] = order[found]
    return places


def _gather(
    shape: tuple[int, ...],
    arrays: Mapping[int, NDArray[Any]],
    dims: tuple[str, ...],
    slots: Mapping[str, _Slots],
) -> NDArray[Any]:
    """One array over the grid from those of its points; what they leave open is nan, or an empty text."""
    sizes = tuple(slots[dim].size for dim in dims)
    dtype = np.result_type(*{array.dtype for array in arrays.values()})
    whole = len(arrays) == int(np.prod(shape)) and all(array.shape == sizes for array in arrays.values())
    if dtype.kind == "U":
        out = np.full(shape + sizes, "", dtype=dtype)
    elif whole:
        out = np.empty(shape + sizes, dtype=dtype)
    else:
        dtype = np.result_type(dtype, np.float64) if dtype.kind in "biu" else dtype
        out = np.full(shape + sizes, np.nan, dtype=dtype)
    for point, array in arrays.items():
        place = tuple(int(i) for i in np.unravel_index(point, shape))
        if array.shape == sizes and not any(point in slots[dim].places for dim in dims):
            out[place] = array
        else:
            where = [
                slots[dim].places.get(point, np.arange(size)) for dim, size in zip(dims, array.shape, strict=True)
            ]
            out[place][np.ix_(*where)] = array
    return out


def write_netcdf(dataset: xarray.Dataset, path: Path) -> None:
    """Write a data set to a netCDF file, whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        dataset.to_netcdf(part, engine="h5netcdf")
        with open(part, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise

