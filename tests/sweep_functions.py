"""Functions that sweeps call in other processes: importable, and observable by what they write to a log."""

from __future__ import annotations

import os
import signal
import time

import numpy as np


def note(log: str, line: str) -> None:
    """Append a line, whole, whatever happens to the process afterwards."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def lines(log) -> list[str]:
    """What was noted so far."""
    return log.read_text().splitlines() if log.exists() else []


def curve(x: float, y: float, seed: int = 0, scale: float = 1.0) -> dict:
    """A number, an integer, and a curve with its coordinate; raises where x = y."""
    if x == y:
        raise ZeroDivisionError(f"x and y are both {x}")
    t = np.arange(4.0)
    deviates = np.random.default_rng(seed).standard_normal(4)
    return {"ratio": scale / (x - y), "count": int(x), "t": ("t", t), "path": ("t", deviates + x * t)}


def slow_square(x: int, log: str = "", seconds: float = 0.0) -> float:
    """x^2, some time after its start was noted."""
    if log:
        note(log, str(x))
    time.sleep(seconds)
    return float(x) ** 2


def deadly_square(x: int, log: str, deadly: int) -> float:
    """x^2, but one x kills the process that computes it."""
    note(log, str(x))
    if x == deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    return float(x) ** 2
