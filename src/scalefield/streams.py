"""Image data too large for memory: parts of .npz files mapped or read in order, and folders of pictures."""

from __future__ import annotations

import math
import os
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from scalefield._validate import as_count, as_seed
from scalefield.errors import BackendUnavailableError, DatasetError

__all__ = ["ImageStream", "open_image_folder", "open_parts"]

# Samples held for shuffling what can only be read in order, and read at a time from it.
_BUFFER = 65_536
_CHUNK = 4_096
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".ppm", ".webp")


class _Part(ABC):
    """One source of images with their labels."""

    labels: NDArray[np.int64]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    name: str

    def __len__(self) -> int:
        return int(self.labels.size)

    @abstractmethod
    def take(self, index: NDArray[np.int64]) -> NDArray[Any]:
        """Images at increasing positions, as stored."""

    # Whether `take` reads no more than what it returns.
    has_random_access: bool = True


@dataclass(frozen=True, eq=False)
class ImageStream:
    """Labelled images on disk, read as they are asked for.

    What `datasets.load_mnist1m`, `load_cifar5m` and `load_image_folder` return.

    Attributes
    ----------
    parts : tuple
        The files, or folder, that it reads.
    shape : tuple of int
        Shape of one image, such as (32, 32, 3).
    dtype : numpy.dtype
        Of the pixels as stored.
    classes : tuple of str
        Names of the classes; labels are positions in it.
    """

    parts: tuple[_Part, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.shape))
        return f"ImageStream({len(self)} images of {shape}, {len(self.classes)} classes, {len(self.parts)} parts)"

    @property
    def labels(self) -> NDArray[np.int64]:
        """All labels, shape (n,)."""
        return np.concatenate([part.labels for part in self.parts])

    def take(self, index: Any) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Read images by position.

        Parameters
        ----------
        index : array_like of int, shape (m,)
            Positions in 0..n-1, in any order.

        Returns
        -------
        images : ndarray of float64, shape (m,) + shape
            Pixels; those stored as 8-bit integers are divided by 255.
        labels : ndarray of int64, shape (m,)

        Raises
        ------
        IndexError
            If a position is out of range.
        DatasetError
            If pixels are NaN or infinite.
        """
        wanted = np.asarray(index, dtype=np.int64).ravel()
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"index must lie in 0..{len(self) - 1}, got {wanted.min()} to {wanted.max()}")
        images = np.empty((wanted.size, *self.shape))
        labels = np.empty(wanted.size, dtype=np.int64)
        start = 0
        for part in self.parts:
            here = np.flatnonzero((wanted >= start) & (wanted < start + len(part)))
            if here.size:
                positions = wanted[here] - start
                unique, inverse = np.unique(positions, return_inverse=True)
                images[here] = _as_floats(part.take(unique), part.name)[inverse]
                labels[here] = part.labels[positions]
            start += len(part)
        return images, labels

    def sample(self, n: int, seed: int | None = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Read n different images drawn at random.

        Parameters
        ----------
        n : int
            At most len(self).
        seed : int or None
            Seed of the draw; None draws one.

        Returns
        -------
        images : ndarray of float64, shape (n,) + shape
        labels : ndarray of int64, shape (n,)
        """
        n = as_count("n", n)
        if n > len(self):
            raise ValueError(f"n must be at most {len(self)}, the number of images, got {n}")
        chosen = np.random.default_rng(as_seed("seed", seed)).choice(len(self), n, replace=False)
        return self.take(np.sort(chosen))

    def batches(
        self, batch_size: int, seed: int | None = None, *, epochs: int | None = 1, drop_last: bool = False
    ) -> Iterator[tuple[NDArray[np.float64], NDArray[np.int64]]]:
        """Iterate over the images in batches.

        Parameters
        ----------
        batch_size : int
            Images a batch.
        seed : int, optional
            Shuffle, anew each epoch and the same for the same seed; in order if None. Mapped files and folders are
            permuted as a whole. Compressed files can only be read from their beginning: there the parts are permuted,
            and images within a buffer of 65,536 that moves along.
        epochs : int or None
            Passes over the data; None goes on for ever.
        drop_last : bool
            Leave out a last batch of an epoch that is smaller.

        Yields
        ------
        images : ndarray of float64, shape (batch_size,) + shape
        labels : ndarray of int64, shape (batch_size,)

        Notes
        -----
        Holds a batch, and the buffer where there are compressed files.
        """
        batch_size = as_count("batch_size", batch_size)
        number = math.inf if epochs is None else as_count("epochs", epochs)
        generator = None if seed is None else np.random.default_rng(as_seed("seed", seed))
        return self._batches(batch_size, generator, number, drop_last)

    def _batches(
        self, batch_size: int, generator: np.random.Generator | None, epochs: float, drop_last: bool
    ) -> Iterator[tuple[NDArray[np.float64], NDArray[np.int64]]]:
        epoch = 0
        while epoch < epochs:
            if all(part.has_random_access for part in self.parts):
                order = np.arange(len(self)) if generator is None else generator.permutation(len(self))
                last = len(self) - len(self) % batch_size if drop_last else len(self)
                for start in range(0, last, batch_size):
                    yield self.take(order[start : min(start + batch_size, last)])
            else:
                yield from _rebatched(self._chunks(generator), batch_size, drop_last)
            epoch += 1

    def _chunks(self, generator: np.random.Generator | None) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
        """All images once, read in order part by part; with a generator, through a buffer from which they are drawn."""
        parts = list(self.parts)
        if generator is None:
            for part in parts:
                yield from _in_order(part)
            return
        parts = [parts[i] for i in generator.permutation(len(parts))]
        images, labels = np.empty((0, *self.shape), dtype=self.dtype), np.empty(0, dtype=np.int64)
        for part in parts:
            for more, their_labels in _in_order(part):
                images, labels = np.concatenate([images, more]), np.concatenate([labels, their_labels])
                if labels.size > _BUFFER:
                    order = generator.permutation(labels.size)
                    out, kept = order[:_CHUNK], order[_CHUNK:]
                    yield images[out], labels[out]
                    images, labels = images[kept], labels[kept]
        order = generator.permutation(labels.size)
        for start in range(0, labels.size, _CHUNK):
            yield images[order[start : start + _CHUNK]], labels[order[start : start + _CHUNK]]


def _in_order(part: _Part) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
    if isinstance(part, _CompressedPart):
        yield from part.chunks()
        return
    for start in range(0, len(part), _CHUNK):
        index = np.arange(start, min(start + _CHUNK, len(part)))
        yield part.take(index), part.labels[index]


def _rebatched(
    chunks: Iterator[tuple[NDArray[Any], NDArray[np.int64]]], batch_size: int, drop_last: bool
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.int64]]]:
    waiting: list[tuple[NDArray[Any], NDArray[np.int64]]] = []
    held = 0
    for chunk in chunks:
        waiting.append(chunk)
        held += chunk[1].size
        if held < batch_size:
            continue
        images, labels = (np.concatenate([c[i] for c in waiting]) for i in (0, 1))
        last = held - held % batch_size
        for start in range(0, last, batch_size):
            yield _as_floats(images[start : start + batch_size]), labels[start : start + batch_size]
        waiting, held = [(images[last:], labels[last:])], held - last
    if held and not drop_last:
        images, labels = (np.concatenate([c[i] for c in waiting]) for i in (0, 1))
        yield _as_floats(images), labels


def _as_floats(images: NDArray[Any], name: str = "") -> NDArray[np.float64]:
    result = images.astype(np.float64)
    if images.dtype == np.uint8:
        result /= 255.0
    elif not np.isfinite(result).all():
        raise DatasetError(f"{name or 'images'}: pixels must be finite, got NaN or infinity")
    return result


# ------------------------------------------------------------------------------------------------------ .npz


class _ArrayPart(_Part):
    """Images in memory, or mapped from a file."""

    def __init__(self, name: str, images: NDArray[Any], labels: NDArray[np.int64], shape: tuple[int, ...]) -> None:
        self.name, self.labels, self.shape, self.dtype = name, labels, shape, images.dtype
        self._images = images

    def take(self, index: NDArray[np.int64]) -> NDArray[Any]:
        return np.asarray(self._images[index]).reshape(index.size, *self.shape)


class _CompressedPart(_Part):
    """Images in a compressed member of a .npz, which can only be read from its beginning."""

    has_random_access = False

    def __init__(
        self, path: Path, member: str, labels: NDArray[np.int64], shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self.name, self.labels, self.shape, self.dtype = f"{path}", labels, shape, dtype
        self._path, self._member = path, member

    def chunks(self) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
        size = math.prod(self.shape) * self.dtype.itemsize
        with zipfile.ZipFile(self._path) as archive, archive.open(self._member) as stream:
            _read_header(stream, f"{self._path}")
            for start in range(0, len(self), _CHUNK):
                count = min(_CHUNK, len(self) - start)
                try:
                    data = stream.read(count * size)
                except (zipfile.BadZipFile, EOFError, OSError) as error:
                    raise DatasetError(f"{self._path}: {self._member} is damaged ({error})") from error
                if len(data) != count * size:
                    raise DatasetError(f"{self._path}: {self._member} ends after {start} of {len(self)} images")
                images = np.frombuffer(data, dtype=self.dtype).reshape(count, *self.shape)
                yield images, self.labels[start : start + count]

    def take(self, index: NDArray[np.int64]) -> NDArray[Any]:
        images = np.empty((index.size, *self.shape), dtype=self.dtype)
        done, start = 0, 0
        for chunk, labels in self.chunks():
            stop = int(np.searchsorted(index, start + labels.size))
            images[done:stop] = chunk[index[done:stop] - start]
            done, start = stop, start + labels.size
            if done == index.size:
                break
        return images


def open_parts(
    paths: Sequence[Path],
    names: Sequence[tuple[str, str]],
    shape: tuple[int, ...],
    classes: tuple[str, ...],
    *,
    integers_only: bool,
) -> ImageStream:
    """Open .npz files as one stream; `names` lists the pairs of names that images and labels may have.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    DatasetError
        If a file is not a readable .npz, or arrays have other names, shapes, dtypes or labels than expected.
    """
    parts = tuple(_open_part(path, names, shape, len(classes), integers_only) for path in paths)
    dtypes = {part.dtype for part in parts}
    if len(dtypes) > 1:
        raise DatasetError(
            f"{paths[0].parent}: parts must have one dtype, got {', '.join(sorted(str(d) for d in dtypes))}"
        )
    return ImageStream(parts, shape, parts[0].dtype, classes)


def _open_part(
    path: Path, names: Sequence[tuple[str, str]], shape: tuple[int, ...], n_classes: int, integers_only: bool
) -> _Part:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}
            pair = next((pair for pair in names if set(pair) <= set(members)), None)
            if pair is None:
                wanted = " or ".join(f"{images} and {labels}" for images, labels in names)
                raise DatasetError(f"{path}: must hold arrays {wanted}, got {', '.join(sorted(members)) or 'none'}")
            info = archive.getinfo(members[pair[0]])
            with archive.open(info) as stream:
                stored, fortran, dtype = _read_header(stream, f"{path}: {pair[0]}")
                header = stream.tell()
            with archive.open(members[pair[1]]) as stream:
                raw = np.lib.format.read_array(stream, allow_pickle=False)
    except (FileNotFoundError, IsADirectoryError, PermissionError, DatasetError):
        raise
    except Exception as error:  # zipfile, zlib and numpy raise half a dozen classes for broken archives
        raise DatasetError(f"{path}: not a readable .npz archive ({error})") from error
    if dtype != np.uint8 and (integers_only or dtype.kind != "f"):
        raise DatasetError(f"{path}: {pair[0]} must be uint8{'' if integers_only else ' or floats'}, got {dtype}")
    # Flat images and an axis of length 1 are the same bytes.
    fits = stored[1:] == (math.prod(shape),) or _without_ones(stored[1:]) == _without_ones(shape)
    if not stored or not fits:
        raise DatasetError(f"{path}: {pair[0]} must have shape (n, {', '.join(map(str, shape))}), got {stored}")
    if stored[0] == 0:
        raise DatasetError(f"{path}: {pair[0]} holds no images")
    labels = _as_labels(raw, f"{path}: {pair[1]}", stored[0], n_classes)
    if info.compress_type != zipfile.ZIP_STORED:
        if fortran:
            raise DatasetError(f"{path}: {pair[0]} is compressed in Fortran order, which cannot be streamed")
        return _CompressedPart(path, members[pair[0]], labels, shape, dtype)
    with open(path, "rb") as stream:
        # A local header has lengths of its own, which may differ from those of the directory at the end.
        stream.seek(info.header_offset + 26)
        lengths = np.frombuffer(stream.read(4), dtype="<u2")
    offset = info.header_offset + 30 + int(lengths.sum()) + header
    if offset + math.prod(stored) * dtype.itemsize > os.path.getsize(path):
        raise DatasetError(f"{path}: {pair[0]} is cut off")
    images = np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=stored, order="F" if fortran else "C")
    return _ArrayPart(f"{path}", images, labels, shape)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(length for length in shape if length != 1)


def _read_header(stream: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise DatasetError(f"{name}: .npy format {version} is not known")
    if dtype.hasobject:
        raise DatasetError(f"{name} holds Python objects, which are not loaded")
    return tuple(shape), bool(fortran), dtype


def _as_labels(raw: NDArray[Any], name: str, n: int, n_classes: int) -> NDArray[np.int64]:
    if raw.dtype.kind not in "iuf" or (raw.dtype.kind == "f" and not np.array_equal(raw, np.round(raw))):
        raise DatasetError(f"{name} must be integers, got dtype {raw.dtype}")
    if raw.ndim > 1 and raw.size == raw.shape[0]:
        raw = raw.ravel()
    if raw.shape != (n,):
        raise DatasetError(f"{name} must have a label for each of the {n} images, got shape {raw.shape}")
    labels = raw.astype(np.int64)
    if labels.min() < 0 or labels.max() >= n_classes:
        raise DatasetError(f"{name} must lie in 0..{n_classes - 1}, got {labels.min()} to {labels.max()}")
    return labels


# --------------------------------------------------------------------------------------------------- folders


class _FolderPart(_Part):
    """Pictures in files, decoded when they are asked for."""

    def __init__(
        self, folder: Path, files: list[Path], labels: NDArray[np.int64], mode: str, size: tuple[int, int] | None
    ) -> None:
        self.name, self.labels = f"{folder}", labels
        self._files, self._mode, self._size = files, mode, size
        self.dtype = np.dtype(np.uint8)
        self.shape = self._read(files[0]).shape

    def take(self, index: NDArray[np.int64]) -> NDArray[Any]:
        images = np.empty((index.size, *self.shape), dtype=np.uint8)
        for row, position in enumerate(index):
            path = self._files[int(position)]
            image = self._read(path)
            if image.shape != self.shape:
                raise DatasetError(
                    f"{path}: has shape {image.shape}, others {self.shape}; give size=(height, width) to rescale all"
                )
            images[row] = image
        return images

    def _read(self, path: Path) -> NDArray[np.uint8]:
        try:
            from PIL import Image, UnidentifiedImageError
        except ImportError as error:  # it comes with matplotlib, but not by name
            raise BackendUnavailableError("reading pictures needs Pillow: pip install pillow") from error
        try:
            with Image.open(path) as picture:
                image = picture.convert(self._mode)
                if self._size is not None:
                    image = image.resize(self._size[::-1], Image.Resampling.BILINEAR)
                return np.asarray(image, dtype=np.uint8)
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise DatasetError(f"{path}: not a readable picture ({error})") from error


def open_image_folder(folder: Path, grayscale: bool, size: tuple[int, int] | None) -> ImageStream:
    """Open a folder with a subfolder of pictures per class."""
    if not folder.is_dir():
        raise FileNotFoundError(2, "no such folder", str(folder))
    classes: list[str] = []
    files: list[Path] = []
    labels: list[int] = []
    for subfolder in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        pictures = sorted(path for path in subfolder.iterdir() if path.suffix.lower() in _SUFFIXES)
        if pictures:
            files += pictures
            labels += [len(classes)] * len(pictures)
            classes.append(subfolder.name)
    if not files:
        raise DatasetError(f"{folder}: must hold a subfolder of pictures ({', '.join(_SUFFIXES)}) per class, got none")
    part = _FolderPart(folder, files, np.array(labels, dtype=np.int64), "L" if grayscale else "RGB", size)
    return ImageStream((part,), part.shape, part.dtype, tuple(classes))
