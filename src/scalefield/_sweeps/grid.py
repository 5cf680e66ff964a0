"""Grids: named axes, the points of their product, and a seed for each point."""

from __future__ import annotations

import hashlib
import json
import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["RESERVED", "Axis", "Grid", "as_grid", "point_seed"]

# Names of the data set's own variables.
RESERVED = ("status", "failure")
# Integers beyond it are not floats.
_EXACT_INTEGERS = 2**53


@dataclass(frozen=True, eq=False)
class Axis:
    """One name and its values; `labels` are the coordinate, `values` what functions get."""

    name: str
    values: tuple[Any, ...]
    labels: NDArray[Any]

    @property
    def is_labelled(self) -> bool:
        """Whether the values are objects with labels of their own."""
        return self.labels.dtype.kind == "U" and not all(isinstance(value, str) for value in self.values)


@dataclass(frozen=True, eq=False)
class Grid:
    """The product of some axes; points are counted with the last axis fastest."""

    axes: tuple[Axis, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the axes."""
        return tuple(axis.name for axis in self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return tuple(len(axis.values) for axis in self.axes)

    @property
    def size(self) -> int:
        """Number of points."""
        return math.prod(self.shape)

    def place(self, point: int) -> tuple[int, ...]:
        """Position of a point on each axis."""
        return tuple(int(i) for i in np.unravel_index(point, self.shape))

    def values(self, point: int) -> dict[str, Any]:
        """What a function gets at a point."""
        return {axis.name: axis.values[i] for axis, i in zip(self.axes, self.place(point), strict=True)}

    def labels(self, point: int) -> dict[str, Any]:
        """The coordinates of a point, as plain Python values."""
        return {axis.name: axis.labels[i].item() for axis, i in zip(self.axes, self.place(point), strict=True)}

    def points(self) -> Iterator[int]:
        """All points in order."""
        return iter(range(self.size))


def as_grid(name: str, value: Any) -> Grid:
    """Return a mapping from names to values as a grid."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a mapping from names to values, got {value!r} of type {type(value).__name__}")
    if not value:
        raise ValueError(f"{name} must have at least one axis, got none")
    return Grid(tuple(_as_axis(name, axis, values) for axis, values in value.items()))


def _as_axis(grid: str, name: Any, values: Any) -> Axis:
    if not isinstance(name, str):
        raise TypeError(f"names of {grid} must be strings, got {name!r} of type {type(name).__name__}")
    if not name.isidentifier() or name in RESERVED:
        raise ValueError(
            f"names of {grid} must be those of arguments, and not {' or '.join(map(repr, RESERVED))}, got {name!r}"
        )
    where = f"{grid}[{name!r}]"
    if isinstance(values, Mapping):
        labels, found = list(values), list(values.values())
        if not all(isinstance(label, str) for label in labels):
            raise TypeError(f"{where} must have strings for labels, got {labels!r}")
    else:
        if hasattr(values, "__array__"):
            values = np.asarray(values)
            if values.ndim != 1:
                raise ValueError(f"{where} must have one dimension, got shape {values.shape}")
        elif isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
            raise TypeError(
                f"{where} must be a sequence of values, or a mapping from labels to values, got {values!r} of type "
                f"{type(values).__name__}; what is the same at all points belongs into settings"
            )
        found = [value.item() if isinstance(value, np.generic) else value for value in values]
        labels = found
    if not found:
        raise ValueError(f"{where} must have at least one value, got none")
    coordinate = _as_labels(where, labels)
    _, counts = np.unique(coordinate, return_counts=True)
    if (counts > 1).any():
        raise ValueError(f"{where} must have distinct values, got {labels!r}")
    return Axis(name, tuple(found), coordinate)


def _as_labels(where: str, labels: list[Any]) -> NDArray[Any]:
    if all(isinstance(label, bool) for label in labels):
        return np.array(labels, dtype=np.bool_)
    if all(isinstance(label, str) for label in labels):
        return np.array(labels, dtype=np.str_)
    if not all(isinstance(label, numbers.Real) and not isinstance(label, bool) for label in labels):
        kinds = sorted({type(label).__name__ for label in labels})
        raise TypeError(
            f"{where} must hold numbers, or strings, or booleans, got {', '.join(kinds)}; give other objects as a "
            "mapping from labels to values"
        )
    if any(math.isnan(label) for label in labels):
        raise ValueError(f"{where} must not hold nan, got {labels!r}")
    if all(isinstance(label, numbers.Integral) for label in labels):
        if not all(-(2**63) <= label < 2**63 for label in labels):
            raise ValueError(f"{where} must hold integers of 64 bits, got {labels!r}")
        return np.array(labels, dtype=np.int64)
    return np.array(labels, dtype=np.float64)


def point_seed(seed: int, labels: Mapping[str, Any]) -> int:
    """Seed in [0, 2^63) of a point: a hash of the sweep's seed and the point's names and labels.

    Neither the order of the names nor the rest of the grid plays a part, so that a point keeps its random numbers when
    a grid is refined or extended. Hashes of 63 bits: among n points two share one with probability n^2 / 2^64.
    """
    named = json.dumps([[name, _canonical(labels[name])] for name in sorted(labels)])
    digest = hashlib.blake2b(f"{seed}:{named}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _canonical(label: Any) -> str:
    """Text that is the same for equal numbers of any type."""
    if isinstance(label, (bool, str)):
        return json.dumps(label)
    if isinstance(label, float) and label.is_integer() and abs(label) < _EXACT_INTEGERS:
        return repr(int(label))
    return repr(label)
