"""What a stored sweep belongs to: grid, function, settings and versions as plain values that can be compared."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
import math
import os
import textwrap
from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any

import numpy as np

from scalefield._sweeps.calls import Call
from scalefield._sweeps.grid import Grid
from scalefield.model import Model
from scalefield.spectrum import Task

__all__ = ["describe_value", "function_name", "identify", "tell_difference"]

# Raised when the meaning of what is stored changes.
_FORMAT = 1
# Arrays up to this size are told, larger ones by a digest.
_TOLD = 16


def identify(call: Call, grid: Grid, version: str | None) -> dict[str, Any]:
    """Everything that a sweep's results depend on, as far as it can be known."""
    from scalefield import __version__

    identity = {
        "format": _FORMAT,
        "scalefield": __version__,
        "function": function_name(call.function),
        "source": _describe_function(call.function),
        "settings": {name: describe_value(value) for name, value in call.settings.items()},
        "grid": {
            axis.name: {
                "labels": axis.labels.tolist(),
                **({"values": [describe_value(value) for value in axis.values]} if axis.is_labelled else {}),
            }
            for axis in grid.axes
        },
        "variables": None if call.variables is None else list(call.variables),
        "seed": call.seed,
        "version": version,
    }
    # As a file gives them back.
    plain: dict[str, Any] = json.loads(json.dumps(identity))
    return plain


def tell_difference(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """The first difference of two identities in words; None if there is none."""
    for key in ("format", "scalefield", "function", "grid", "settings", "variables", "seed", "version", "source"):
        there, here = stored.get(key), wanted.get(key)
        # Points are counted in the order of the axes.
        if there == here and (key != "grid" or list(there or ()) == list(here or ())):
            continue
        if key == "source":
            return f"another source of {wanted.get('function')}, whose text or captured values have changed"
        if key in ("grid", "settings") and isinstance(there, dict) and isinstance(here, dict):
            if list(there) != list(here):
                return f"{key} of {_short(', '.join(there))} instead of {_short(', '.join(here))}"
            name = next(name for name in here if there[name] != here[name])
            first, second = (
                side[name].get("labels", side[name]) if key == "grid" else side[name] for side in (there, here)
            )
            if first == second:
                return f"{key}[{name!r}] of other values behind the same labels"
            return f"{key}[{name!r}] {_short(first)} instead of {_short(second)}"
        return f"{key} {_short(there)} instead of {_short(here)}"
    return None


def function_name(function: Callable[..., Any]) -> str:
    """Where a function is from, such as scalefield.flow.solve_gradient_flow."""
    if isinstance(function, functools.partial):
        return f"partial of {function_name(function.func)}"
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{getattr(named, '__module__', '?')}.{getattr(named, '__qualname__', '?')}"


def _describe_function(function: Any) -> Any:
    """A function by its name, its text, and the values it was made with; what it calls is not seen."""
    if isinstance(function, functools.partial):
        keywords = {name: describe_value(value) for name, value in function.keywords.items()}
        return [_describe_function(function.func), [describe_value(value) for value in function.args], keywords]
    wrapped = inspect.unwrap(function)
    if inspect.ismethod(wrapped):
        return [_describe_function(wrapped.__func__), describe_value(wrapped.__self__)]
    name = function_name(function)
    if name.startswith("scalefield."):
        # The version of the package stands for it.
        return name
    if inspect.isfunction(wrapped):
        made_with = [*(wrapped.__defaults__ or ()), *(wrapped.__kwdefaults__ or {}).values(), *_captured(wrapped)]
        return [name, _digest_source(wrapped), [describe_value(value) for value in made_with]]
    if isinstance(function, type) or inspect.isbuiltin(function):
        return [name, _digest_source(function), []]
    # An object that is called.
    return [name, _digest_source(type(function)), describe_value(getattr(function, "__dict__", None))]


def _captured(function: Any) -> list[Any]:
    found = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:
            # Not bound yet.
            found.append(None)
    return found


def _digest_source(thing: Any) -> str:
    """Of the text where it is to be had, else of the byte code."""
    try:
        text = textwrap.dedent(inspect.getsource(thing))
    except (OSError, TypeError):
        code = getattr(thing, "__code__", None)
        text = repr(_plain_code(code)) if isinstance(code, CodeType) else ""
    return _digest(text.encode())


def _plain_code(code: CodeType) -> tuple[Any, ...]:
    constants = tuple(_plain_code(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts)
    return (code.co_code.hex(), code.co_names, code.co_varnames, constants)


def describe_value(value: Any) -> Any:
    """A value as plain ones that are equal if and only if it is, as far as its kind allows."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        # JSON knows no nan.
        return "nan" if isinstance(value, float) and math.isnan(value) else value
    if isinstance(value, complex):
        return ["complex", repr(value)]
    if isinstance(value, np.ndarray) and value.dtype.kind != "O":
        if value.size <= _TOLD and value.dtype.kind in "biuf":
            return ["array", value.dtype.str, list(value.shape), [describe_value(v) for v in value.ravel()]]
        return ["array", value.dtype.str, list(value.shape), _digest(np.ascontiguousarray(value).tobytes())]
    if isinstance(value, (bytes, bytearray)):
        return ["bytes", _digest(bytes(value))]
    if isinstance(value, (Model, Task)):
        return [type(value).__name__, _compact(value.describe())]
    if isinstance(value, Mapping):
        return {str(name): describe_value(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe_value(entry) for entry in value]
    if isinstance(value, (set, frozenset)):
        return ["set", sorted(json.dumps(describe_value(entry)) for entry in value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: describe_value(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return [type(value).__name__, fields]
    if callable(value):
        return _describe_function(value)
    # Of other objects nothing is known but their class.
    return [f"{type(value).__module__}.{type(value).__qualname__}"]


def _compact(description: Any) -> Any:
    """Long lists, such as the modes of a spectrum, by a digest."""
    if isinstance(description, dict):
        return {name: _compact(entry) for name, entry in description.items()}
    if isinstance(description, list) and len(description) > _TOLD:
        return ["list", len(description), _digest(json.dumps(description).encode())]
    return description


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 120 else f"{text[:80]} ... {text[-37:]}"
