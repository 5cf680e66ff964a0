"""Progress reporting: silent by default, called between chunks of work, never inside a kernel."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress"]


class Progress(Protocol):
    """Called with the units of work done so far and in total; both refer to the same unit."""

    def __call__(self, done: int, total: int, /) -> None:
        """Report that `done` of `total` units are finished."""
