"""Files written whole or not at all, and arrays with their settings in one .npz file."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from scalefield.errors import ScalefieldError

__all__ = ["atomic_write", "read_archive", "write_archive"]

_SETTINGS = "settings"


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` that replaces it when the block ends without an error."""
    target = Path(path)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes files private; give this one the mode an ordinary open() would.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def write_archive(
    path: str | os.PathLike[str],
    settings: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
    *,
    compressed: bool = True,
) -> None:
    """Write `arrays` and the JSON-able `settings` to one .npz file, whole or not at all."""
    payload: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    payload[_SETTINGS] = np.array(json.dumps(settings))
    with atomic_write(path) as stream:
        (np.savez_compressed if compressed else np.savez)(stream, **payload)


def read_archive(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read what `write_archive` wrote: the settings and the arrays."""
    try:
        # Opened here, since numpy leaves a file that is not an archive open.
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
            # An array that a damaged header makes smaller would be read without its checksum.
            damaged = archive.zip.testzip()
            if damaged is not None:
                raise ValueError(f"{damaged} is damaged: another checksum")
            arrays = {name: archive[name] for name in archive.files}
        settings = json.loads(str(arrays.pop(_SETTINGS)))
        if not isinstance(settings, dict):
            raise ValueError(f"settings are {settings!r}")
    except FileNotFoundError:
        raise
    except Exception as error:  # numpy and zlib raise half a dozen unrelated classes for broken archives
        raise ScalefieldError(f"{os.fspath(path)}: not a scalefield archive ({error})") from error
    return settings, arrays
