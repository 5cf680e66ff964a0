"""Coercion and rejection of arguments: the only place where values are checked.

Each function returns the value in its canonical type or raises `TypeError` (wrong type) or `ValueError`
(wrong value or shape) with the argument's name, what was expected and what came.
"""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

__all__ = ["as_count", "as_counter", "as_flag", "as_float", "as_seed", "as_vector"]


def as_float(
    name: str,
    value: Any,
    *,
    minimum: float = -math.inf,
    exclusive: bool = False,
    allow_inf: bool = False,
) -> float:
    """Return `value` as a float not below `minimum` (strictly above it if `exclusive`)."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a real number, got {value!r} of type {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf if cast(Any, value) > 0 else -math.inf
    bound = "" if minimum == -math.inf else f" {'greater than' if exclusive else 'at least'} {minimum:g}"
    kind = "a number" if allow_inf else "a finite number"
    too_small = number <= minimum if exclusive else number < minimum
    if math.isnan(number) or too_small or (math.isinf(number) and not allow_inf):
        raise ValueError(f"{name} must be {kind}{bound}, got {value!r}")
    return number


def as_count(name: str, value: Any, *, minimum: int = 1) -> int:
    """Return `value` as an int not below `minimum`; integral floats such as 1e6 are accepted."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an integer, got {value!r} of type bool")
    try:
        number = operator.index(value)
    except TypeError:
        if not isinstance(value, (float, np.floating)):
            raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}") from None
        if not math.isfinite(value) or value != int(value):
            raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}") from None
        number = int(value)
    if number < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}")
    return number


def as_counter(name: str, value: Any) -> int:
    """Return a count from 1 on that is a word of the random generator's counter: below 2^32."""
    count = as_count(name, value)
    if count >= 2**32:
        raise ValueError(f"{name} must be below 2**32, got {value!r}")
    return count


def as_flag(name: str, value: Any) -> bool:
    """Return `value` as a bool; only bools are accepted, since any other value would pass for True unnoticed."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r} of type {type(value).__name__}")
    return bool(value)


def as_seed(name: str, value: Any) -> int:
    """Return a seed in [0, 2^63); None draws one from the operating system."""
    if value is None:
        return int(np.random.SeedSequence().generate_state(1, np.uint64)[0] >> np.uint64(1))
    seed = as_count(name, value, minimum=0)
    if seed >= 2**63:
        raise ValueError(f"{name} must be an integer below 2**63, got {value!r}")
    return seed


def as_vector(name: str, value: Any, *, minimum: float = -math.inf) -> NDArray[np.float64]:
    """Return a new contiguous one-dimensional float64 array of finite entries not below `minimum`."""
    try:
        raw = np.asarray(value)
        if raw.dtype.kind not in "iuf":
            raise TypeError(f"{name} must be an array of real numbers, got dtype {raw.dtype}")
    except ValueError as error:
        raise TypeError(f"{name} must be an array of real numbers, got {type(value).__name__}") from error
    if raw.ndim != 1:
        raise ValueError(f"{name} must have one dimension, got shape {raw.shape}")
    if raw.size == 0:
        raise ValueError(f"{name} must have at least one entry, got none")
    vector: NDArray[np.float64] = np.array(raw, dtype=np.float64, order="C")
    bad = ~np.isfinite(vector) | (vector < minimum)
    if bad.any():
        index = int(np.argmax(bad))
        bound = "" if minimum == -math.inf else f" and at least {minimum:g}"
        raise ValueError(f"{name} must be finite{bound}, got {float(vector[index])!r} at index {index}")
    # -0.0 becomes 0.0, so that equal arrays have equal bytes.
    return vector + 0.0
