"""Files are written whole or not at all; archives come back unchanged or are refused with one class of error."""

import json
import math
import os
import stat
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalefield import _files
from scalefield._files import atomic_write, read_archive, write_archive
from scalefield.errors import ScalefieldError

OLD = b"what was there before"


class Unexpected(BaseException):
    """Not even an Exception, like KeyboardInterrupt."""


def _fail(error):
    def raise_error(*_args, **_kwargs):
        raise error

    return raise_error


@pytest.fixture(params=[True, False], ids=["over an old file", "new file"])
def target(request, tmp_path):
    path = tmp_path / "result.npz"
    if request.param:
        path.write_bytes(OLD)
    yield path
    # Whatever the test did: nothing but the file itself is left, and that is old.
    assert os.listdir(tmp_path) == (["result.npz"] if request.param else [])
    if request.param:
        assert path.read_bytes() == OLD


@pytest.mark.parametrize("error", [ValueError("no"), OSError("disk full"), KeyboardInterrupt(), Unexpected()])
@pytest.mark.parametrize("written", [b"", b"half", b"x" * 1_000_000])
def test_an_error_inside_the_block_leaves_no_trace(target, error, written):
    with pytest.raises(type(error)) as caught, atomic_write(target) as stream:  # noqa: PT012
        stream.write(written)
        raise error
    assert caught.value is error


@pytest.mark.parametrize("function", ["fsync", "chmod", "replace"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_error_while_finishing_leaves_no_trace(target, function, error, monkeypatch):
    monkeypatch.setattr(_files.os, function, _fail(error))
    with pytest.raises(type(error)) as caught, atomic_write(target) as stream:
        stream.write(b"all of it")
    assert caught.value is error


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_leaves_no_trace(target, monkeypatch):
    """A real ENOSPC, seen at flush: the temporary file's stream is put on /dev/full."""
    fdopen = os.fdopen

    def full(handle, mode):
        os.close(handle)
        return fdopen(os.open("/dev/full", os.O_WRONLY), mode)

    monkeypatch.setattr(_files.os, "fdopen", full)
    with pytest.raises(OSError, match="No space left"), atomic_write(target) as stream:
        stream.write(b"a little")


def test_an_unwritable_place_is_an_os_error(tmp_path):
    missing = tmp_path / "missing" / "result.npz"
    with pytest.raises(FileNotFoundError), atomic_write(missing):
        pytest.fail("the block must not run")
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(OSError), atomic_write(folder) as stream:  # noqa: PT011 (class differs by system)
        stream.write(b"x")
    assert os.listdir(tmp_path) == ["folder"]
    assert os.listdir(folder) == []


@pytest.mark.parametrize("as_text", [True, False])
def test_atomic_write_replaces_at_the_end_only(tmp_path, as_text):
    path = tmp_path / "result.csv"
    path.write_bytes(OLD)
    with atomic_write(str(path) if as_text else path) as stream:
        stream.write(b"new")
        stream.flush()
        assert path.read_bytes() == OLD
        # On the same file system, or the last step could not be atomic.
        assert len(os.listdir(tmp_path)) == 2
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["result.csv"]


def test_atomic_write_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with atomic_write("plain.txt") as stream:
        stream.write(b"new")
    assert (tmp_path / "plain.txt").read_bytes() == b"new"


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX modes")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_get_the_mode_of_an_ordinary_file(tmp_path, umask):
    old = os.umask(umask)
    try:
        with atomic_write(tmp_path / "atomic") as stream:
            stream.write(b"x")
        (tmp_path / "ordinary").write_bytes(b"x")
        assert os.umask(umask) == umask  # left as it was
    finally:
        os.umask(old)
    modes = {stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("atomic", "ordinary")}
    assert modes == {0o666 & ~umask}


SETTINGS = {"seed": 2**63 - 1, "width": math.inf, "note": 'quotes " and ünïcode', "nested": {"a": [1, None, 0.1]}}
ARRAYS = {
    "loss": np.random.default_rng(0).standard_normal((3, 5)),
    "steps": np.arange(5),
    "triangle": np.asfortranarray(np.tril(np.ones((3, 3)))),
    "special": np.array([np.inf, -np.inf, -0.0, 5e-324]),
    "empty": np.zeros((0, 4)),
    "flags": np.array([True, False]),
}


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "archive.npz"
    write_archive(path, SETTINGS, ARRAYS)
    return path


def test_archive_round_trip_is_exact(archive):
    settings_back, arrays = read_archive(archive)
    assert settings_back == SETTINGS
    assert list(arrays) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        assert arrays[name].shape == array.shape
        assert arrays[name].tobytes() == array.tobytes()
    # Plain numpy can read it, too.
    with np.load(archive) as plain:
        assert set(plain.files) == {*ARRAYS, "settings"}


def test_a_failed_archive_leaves_the_old_one(archive):
    before = archive.read_bytes()
    with pytest.raises(TypeError):
        write_archive(archive, {"not json": object()}, ARRAYS)
    assert archive.read_bytes() == before
    assert os.listdir(archive.parent) == [archive.name]


def _refused(path, reason="not a scalefield archive"):
    with pytest.raises(ScalefieldError, match=reason) as caught:
        read_archive(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


def test_a_missing_archive_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_archive(tmp_path / "nowhere.npz")


def test_a_truncated_archive_is_refused(archive):
    whole = archive.read_bytes()
    # Within the first magic bytes, headers, compressed data and the central directory; and one byte short.
    for length in [0, 1, 3, 4, 5, 8, 30, 64, *range(100, len(whole), 97), len(whole) - 30, len(whole) - 1]:
        archive.write_bytes(whole[:length])
        _refused(archive)


@pytest.mark.parametrize(
    "content",
    [b"", b"PK", b"PK\x03\x04 but nothing else", b"eigenvalue,target_coefficient\n1,1\n", bytes(range(256)) * 8],
    ids=["empty", "magic only", "bad zip", "text", "binary"],
)
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "other.npz"
    path.write_bytes(content)
    _refused(path)


def test_a_single_array_is_refused(tmp_path):
    path = tmp_path / "array.npz"
    with path.open("wb") as stream:
        np.save(stream, np.ones(3))
    _refused(path)


def test_a_folder_is_refused(tmp_path):
    _refused(tmp_path)


def _save(path, **arrays):
    with path.open("wb") as stream:
        np.savez(stream, **arrays)


@pytest.mark.parametrize(
    "stored",
    [None, "not json", "{", "[1, 2]", "3", "null", '"text"'],
    ids=["absent", "words", "half", "list", "number", "null", "string"],
)
def test_wrong_settings_are_refused(tmp_path, stored):
    path = tmp_path / "archive.npz"
    _save(path, loss=np.ones(3), **({} if stored is None else {"settings": np.array(stored)}))
    message = _refused(path)
    assert stored is not None or "settings" in message


def test_pickles_are_refused(tmp_path):
    path = tmp_path / "archive.npz"
    _save(path, settings=np.array("{}"), loss=np.array([object()], dtype=object))
    _refused(path)


def test_zip_without_arrays_is_refused(tmp_path):
    path = tmp_path / "archive.npz"
    with zipfile.ZipFile(path, "w") as bundle:
        bundle.writestr("settings.json", json.dumps(SETTINGS))
    _refused(path)


@settings(max_examples=150)
@given(data=st.data())
def test_a_damaged_archive_is_refused_or_reads_the_same(tmp_path_factory, data):
    """One byte changed: zip's checksums see it in the data; elsewhere it may not matter, but never a stray error."""
    path = tmp_path_factory.mktemp("damaged") / "archive.npz"
    write_archive(path, SETTINGS, {"loss": ARRAYS["loss"], "steps": ARRAYS["steps"]})
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        settings_back, arrays = read_archive(path)
    except ScalefieldError as error:
        assert str(error).startswith(f"{path}: ")  # noqa: PT017 (both outcomes are right)
    else:
        assert settings_back == SETTINGS
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, ARRAYS[name])
