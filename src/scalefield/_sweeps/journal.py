"""The journal of a sweep: one record a finished point, appended as it arrives, each with a checksum.

A sweep's folder holds `sweep.json` (what the sweep is), `results.journal` (what has come of it), `results.nc` (the data
set, made from the journal) and `lock`. The journal only grows: whatever ends the process, records that were written
stay, and one that was cut short is seen by its checksum and cut off when the sweep goes on. Each record is handed to
the operating system whole as soon as there is one, so that no kill can lose it; against loss of power it is flushed to
the disk about once a second.

A record is an 8-byte mark, the length of its content (uint64, little endian), the 16-byte BLAKE2b digest of it, and the
content: the length of a JSON header (uint32), the header, and the arrays' bytes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
import struct
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from scalefield._files import atomic_write
from scalefield._sweeps.calls import Outcome
from scalefield._sweeps.identity import tell_difference
from scalefield._sweeps.records import Record, Variable
from scalefield.errors import CheckpointWarning, ScalefieldError

__all__ = ["DATASET", "Journal", "read_store", "stored_identity"]

logger = logging.getLogger(__name__)

IDENTITY, JOURNAL, DATASET, LOCK = "sweep.json", "results.journal", "results.nc", "lock"

_MARK = b"\x93SFPOINT"
_PREFIX = struct.Struct("<8sQ16s")
_HEADER = struct.Struct("<I")
# Seconds between flushes to the disk.
_FLUSH_SECONDS = 1.0


class Journal:
    """The folder of a sweep, held by one process at a time.

    Parameters
    ----------
    folder : path
        Made if absent.
    identity : dict
        Of the sweep; another one is refused.

    Raises
    ------
    ScalefieldError
        If the folder holds another sweep or something else, or is in use.
    OSError
        If it cannot be read or written.
    """

    def __init__(self, folder: str | os.PathLike[str], identity: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        foreign = sorted(entry.name for entry in self.folder.iterdir() if not _is_ours(entry.name))
        if foreign and not (self.folder / IDENTITY).exists():
            raise ScalefieldError(
                f"{self.folder}: holds {foreign[0]!r} and no sweep; give the folder of a sweep, or a new one"
            )
        self._lock = _Lock(self.folder / LOCK)
        try:
            for left in self.folder.glob(".*.part"):
                # What a process that was killed while it wrote has left.
                with suppress(OSError):
                    left.unlink()
            stored = stored_identity(self.folder)
            if stored is None:
                if (self.folder / JOURNAL).exists():
                    raise ScalefieldError(f"{self.folder}: has a {JOURNAL}, but no {IDENTITY} that tells what it is of")
                with atomic_write(self.folder / IDENTITY) as stream:
                    stream.write((json.dumps(dict(identity), indent=1) + "\n").encode())
            else:
                difference = tell_difference(stored, identity)
                if difference is not None:
                    raise ScalefieldError(
                        f"{self.folder}: store of another sweep, with {difference}; give another folder, or remove "
                        "this one to start anew"
                    )
            path = self.folder / JOURNAL
            self.outcomes, self._end = _read(path)
            # Unbuffered: what is written is the operating system's at once.
            path.touch()
            self._stream = open(path, "r+b", buffering=0)  # noqa: SIM115 (closed by close)
        except BaseException:
            self._lock.release()
            raise
        self._pending: list[bytes] = []
        self._told = False
        self._flushed = time.monotonic()
        try:
            self._stream.truncate(self._end)
        except BaseException:
            self.close()
            raise

    def append(self, outcome: Outcome) -> None:
        """Keep an outcome; if it cannot be written a warning is given, and it is tried again with the next one."""
        self._pending.append(_encode(outcome))
        try:
            while self._pending:
                self._write(self._pending[0])
                del self._pending[0]
            if time.monotonic() - self._flushed > _FLUSH_SECONDS:
                self.flush()
        except OSError as error:
            logger.warning("%s not written: %s", self._stream.name, error)
            if not self._told:
                self._told = True
                warnings.warn(
                    f"{self._stream.name} not written: {error}; the sweep goes on", CheckpointWarning, stacklevel=2
                )

    def _write(self, content: bytes) -> None:
        view = memoryview(content)
        self._stream.seek(self._end)
        try:
            while view:
                view = view[self._stream.write(view) :]
        except BaseException:
            # No half of a record stays between others.
            with suppress(OSError):
                self._stream.truncate(self._end)
            raise
        self._end += len(content)

    def flush(self) -> None:
        """Have the disk hold what was written."""
        os.fsync(self._stream.fileno())
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flush, and let others have the folder."""
        try:
            with suppress(OSError):
                self.flush()
            self._stream.close()
        finally:
            self._lock.release()


class _Lock:
    """A lock that dies with its process and is not inherited by the processes it starts.

    That is the kind of `lockf`; workers that outlive a killed process would go on to hold a lock of `flock`. It does
    not tell two parts of one process apart, so that a list does.
    """

    _held: ClassVar[set[str]] = set()
    _guard = threading.Lock()

    def __init__(self, path: Path) -> None:
        self._name = os.path.realpath(path)
        in_use = ScalefieldError(f"{path.parent}: is in use by another sweep")
        with self._guard:
            if self._name in self._held:
                raise in_use
            self._stream = open(path, "ab")  # noqa: SIM115 (closed by release)
            try:
                import fcntl

                fcntl.lockf(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except ImportError:
                logger.info("%s: no locks here; use it from one process only", path)
            except OSError as error:
                self._stream.close()
                raise in_use from error
            self._held.add(self._name)

    def release(self) -> None:
        with self._guard:
            self._stream.close()
            self._held.discard(self._name)


def _is_ours(name: str) -> bool:
    return name == LOCK or name.endswith(".part")


def stored_identity(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What the sweep in a folder is; None if there is none."""
    path = Path(folder) / IDENTITY
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ScalefieldError(f"{path}: does not tell what the sweep is ({error})") from error
    if not isinstance(found, dict) or not isinstance(found.get("grid"), dict):
        raise ScalefieldError(f"{path}: does not tell what the sweep is")
    return found


def read_store(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[int, Outcome]]:
    """Identity and outcomes in a folder, also while a sweep goes on there.

    Raises
    ------
    FileNotFoundError
        If there is no sweep.
    ScalefieldError
        If it is not of this version.
    """
    identity = stored_identity(folder)
    if identity is None:
        raise FileNotFoundError(f"{os.fspath(folder)}: no sweep there, {IDENTITY} is missing")
    return identity, _read(Path(folder) / JOURNAL)[0]


def _read(path: Path) -> tuple[dict[int, Outcome], int]:
    """Outcomes by point, later ones in place of earlier ones, and where the last whole record ends."""
    outcomes: dict[int, Outcome] = {}
    end = damaged = 0
    if not path.exists() or path.stat().st_size == 0:
        return outcomes, 0
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for start, stop, outcome in _records(content):
            damaged += start > end
            outcomes[outcome.point] = outcome
            end = stop
        left = len(content) - end
    if damaged:
        logger.warning("%s: damaged in %d place(s); the points recorded there are computed again", path, damaged)
    if left:
        logger.info("%s: the last %d bytes are no whole record", path, left)
    return outcomes, end


def _records(content: mmap.mmap) -> Iterator[tuple[int, int, Outcome]]:
    """Start, stop and outcome of every whole record; damaged ones are passed over."""
    start = 0
    while True:
        start = content.find(_MARK, start)
        if start < 0 or start + _PREFIX.size > len(content):
            return
        _, length, digest = _PREFIX.unpack_from(content, start)
        first = start + _PREFIX.size
        if first + length <= len(content):
            body = content[first : first + length]
            if _digest(body) == digest:
                yield start, first + length, _decode(body)
                start = first + length
                continue
        start += 1


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).digest()


def _encode(outcome: Outcome) -> bytes:
    record = outcome.record or Record()
    arrays = []
    parts = []
    for kind, entries in (("variable", record.variables), ("coordinate", record.coordinates)):
        for name, entry in entries.items():
            values, dims = (entry.values, entry.dims) if isinstance(entry, Variable) else (entry, (name,))
            arrays.append([kind, name, list(dims), values.dtype.str, list(values.shape)])
            parts.append(values.tobytes())
    header = {
        "point": outcome.point,
        "finished": outcome.record is not None,
        "failure": outcome.failure,
        "details": outcome.details,
        "arrays": arrays,
    }
    text = json.dumps(header).encode()
    body = b"".join([_HEADER.pack(len(text)), text, *parts])
    return _PREFIX.pack(_MARK, len(body), _digest(body)) + body


def _decode(body: bytes) -> Outcome:
    (length,) = _HEADER.unpack_from(body)
    offset = _HEADER.size + length
    header = json.loads(body[_HEADER.size : offset])
    record = Record()
    for kind, name, dims, dtype, shape in header["arrays"]:
        # A copy, which stays when the file is closed.
        count = int(np.prod(shape, dtype=np.int64))
        values = np.frombuffer(body, dtype=dtype, count=count, offset=offset).reshape(shape).copy()
        offset += values.nbytes
        if kind == "variable":
            record.variables[name] = Variable(tuple(dims), values)
        else:
            record.coordinates[name] = values
    finished = header["finished"]
    return Outcome(header["point"], record if finished else None, header["failure"], header["details"])
