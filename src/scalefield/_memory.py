"""How much memory is left, so that a request that cannot fit is refused before anything is allocated."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from scalefield.errors import InsufficientMemoryError

__all__ = ["available_memory", "format_bytes", "require_memory"]

_CGROUP_ROOT = Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Bytes this process can still allocate without swapping; None where the system does not tell.

    The lowest of the machine's available memory and what is left of every control group's limit that holds
    for this process (containers, batch jobs).
    """
    left = [value for value in (_machine_memory(), *_cgroup_memory()) if value is not None]
    return max(0, min(left)) if left else None


def require_memory(needed: int, what: str) -> None:
    """Raise `InsufficientMemoryError` if `needed` bytes for `what` exceed `available_memory()`."""
    available = available_memory()
    if available is not None and needed > available:
        raise InsufficientMemoryError(
            f"{what} needs about {format_bytes(needed)} of memory, but only {format_bytes(available)} is available"
        )


def format_bytes(n_bytes: int) -> str:
    """Return a number of bytes in binary units, such as '1.50 GiB'."""
    if n_bytes < 1024:
        return f"{n_bytes} B"
    power = min((n_bytes.bit_length() - 1) // 10, 6)
    return f"{n_bytes / 1024**power:.2f} {'KMGTPE'[power - 1]}iB"


def _machine_memory() -> int | None:
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    # Without /proc (macOS), free pages where they are told, else all pages: too high rather than refusing
    # what would have fitted.
    for pages in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"):
        with suppress(AttributeError, OSError, ValueError):
            count = os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
            if count > 0:
                return count
    return None


def _cgroup_memory() -> Iterator[int]:
    """Bytes left under each memory limit of this process's control group and the groups above it."""
    lines: list[str] = []
    with suppress(OSError):
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, limit, usage, inactive = _CGROUP_ROOT, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            top, limit, usage, inactive = (
                _CGROUP_ROOT / "memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
        else:
            continue
        group = top / path.lstrip("/")
        # In a container the path may be the host's, absent here; the ancestors that exist still count.
        for folder in (group, *group.parents):
            with suppress(OSError, ValueError):
                # "max" means no limit here and is not an integer.
                ceiling = int((folder / limit).read_text(encoding="ascii"))
                used = int((folder / usage).read_text(encoding="ascii"))
                yield ceiling - used + _reclaimable(folder, inactive)
            if folder == top:
                break


def _reclaimable(folder: Path, field: str) -> int:
    # Cached files count as used, but the kernel drops them when memory is asked for.
    with suppress(OSError, ValueError):
        for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(" ")
            if name == field:
                return int(value)
    return 0
