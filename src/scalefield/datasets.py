"""Real data: handwritten digits and their spectrum, shipped with the package, and larger sets of images on disk."""

from __future__ import annotations

import os
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalefield._validate import as_count
from scalefield.errors import DatasetError
from scalefield.spectrum import Spectrum
from scalefield.streams import ImageStream, open_image_folder, open_parts

__all__ = [
    "class_targets",
    "digits",
    "digits_spectrum",
    "load_cifar5m",
    "load_image_folder",
    "load_mnist1m",
    "preprocess",
]

Array = NDArray[np.float64]

_CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR_PARTS = 6
_DIGITS = tuple("0123456789")


def digits_spectrum() -> Spectrum:
    r"""Spectrum of a neural tangent kernel on handwritten digits; the target tells even from odd.

    Data: the n = 1,797 images of D = 64 pixels of scikit-learn's ``load_digits``. The mean image is
    subtracted, then each image is scaled to norm :math:`\sqrt{D}`. Target: +1 for an even digit and -1 for
    an odd one, less the mean.

    Kernel: the infinite-width NTK :math:`\Theta = \Theta^2` of a bias-free ReLU network with two hidden
    layers, standard normal weights and He-normalised activations :math:`\sqrt{2} \max(h, 0)`,

    .. math::
        \rho^0 = \Theta^0 = x \cdot x' / D, \quad \rho^{l+1} = \kappa_1(\rho^l), \quad
        \Theta^{l+1} = \kappa_1(\rho^l) + \kappa_0(\rho^l) \Theta^l,

    .. math::
        \kappa_0(\rho) = 1 - \frac{\arccos \rho}{\pi}, \qquad
        \kappa_1(\rho) = \rho \, \kappa_0(\rho) + \frac{\sqrt{1 - \rho^2}}{\pi}.

    Modes: with :math:`H = I - 1 1^T / n`, which makes the features' means 0,

    .. math::
        H \Theta H / n = U \mathrm{diag}(\lambda) U^T, \qquad
        w^*_k = \frac{|(U^T y)_k|}{\sqrt{n \lambda_k}} .

    The features :math:`\psi_k(x_\mu) = \pm \sqrt{n \lambda_k} U_{\mu k}` have variance
    :math:`\lambda_k` over the images; their signs are chosen so that :math:`w^*_k \ge 0`. Finally all
    eigenvalues are divided by the largest, 0.1604, and coefficients multiplied by its square root, which
    leaves the target unchanged and sets the unit of learning rate times steps.

    Returns
    -------
    Spectrum
        1,796 modes, eigenvalues 1 to 4.4e-4 of trace 14.10, target power 0.99993, the variance of the
        target. One mode, the constant, is numerically null (below n times the rounding unit) and left
        out; the target has no power on it (4e-28).

    Notes
    -----
    The expectation is over the images themselves. Compared with fresh images from the same source, 1,797
    samples bend the spectrum down, so slopes depend on the window: eigenvalues fall as k^-1.19 and the
    target's tail sums as k^-0.53 (beta 0.45) over modes 10 to 100, but as k^-1.12 and k^-0.78 over 50 to
    500.

    Written by ``tools/measure_digits_spectrum.py`` of the source repository; the file's first lines repeat
    this account.

    References
    ----------
    E. Alpaydin & C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository
    (1998), doi:10.24432/C50P49 (CC BY 4.0).
    Y. Cho & L. K. Saul, Kernel Methods for Deep Learning, NeurIPS 22 (2009): the arc-cosine functions.
    A. Jacot, F. Gabriel & C. Hongler, Neural Tangent Kernel, arXiv:1806.07572.

    Examples
    --------
    >>> import scalefield as sf
    >>> sf.datasets.digits_spectrum()
    Spectrum(1796 modes, eigenvalues 0.000437 to 1, trace 14.1, target power 0.9999)
    """
    with as_file(files("scalefield") / "data" / "digits_spectrum.csv") as path:
        return Spectrum.load(path)


def digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Handwritten digits: the images from which `digits_spectrum` was measured.

    Returns
    -------
    images : ndarray of uint8, shape (1797, 8, 8)
        Pixels from 0 to 16.
    labels : ndarray of int64, shape (1797,)
        0 to 9.

    References
    ----------
    E. Alpaydin & C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository
    (1998), doi:10.24432/C50P49, CC BY 4.0: the test set, as scikit-learn's ``load_digits`` has it.

    Examples
    --------
    >>> import scalefield as sf
    >>> images, labels = sf.datasets.digits()
    >>> images.shape, labels[:5].tolist()
    ((1797, 8, 8), [0, 1, 2, 3, 4])
    """
    with as_file(files("scalefield") / "data" / "digits_images.npz") as path, np.load(path) as archive:
        return archive["images"], archive["labels"].astype(np.int64)


def preprocess(images: ArrayLike) -> Array:
    r"""Flatten images, subtract their mean image, and scale each to norm sqrt(D), as kernels of networks expect.

    Then x.x'/D is the cosine of an angle, as for `digits_spectrum`.

    Parameters
    ----------
    images : array_like, shape (n, ...)
        Real numbers.

    Returns
    -------
    ndarray of float64, shape (n, D)

    Raises
    ------
    ValueError
        If there are fewer than two images, or one equals the mean image.

    Examples
    --------
    >>> import scalefield as sf
    >>> x = sf.datasets.preprocess(sf.datasets.digits()[0])
    >>> x.shape, float((x[0] @ x[0] / 64).round(12))
    ((1797, 64), 1.0)
    """
    raw = np.asarray(images)
    if raw.dtype.kind not in "iufb":
        raise TypeError(f"images must be an array of real numbers, got dtype {raw.dtype}")
    if raw.ndim < 2 or raw.shape[0] < 2:
        raise ValueError(f"images must have shape (n, ...) with n of at least 2, got {raw.shape}")
    x = raw.reshape(raw.shape[0], -1).astype(np.float64)
    x -= x.mean(axis=0)
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    if not norms.min() > 0.0:
        raise ValueError(f"images must differ from their mean image, got none at index {int(norms.argmin())}")
    x *= np.sqrt(x.shape[1]) / norms
    return x


def class_targets(labels: ArrayLike, kind: str = "one-hot", n_classes: int | None = None) -> Array:
    """Targets for regression on class labels.

    Parameters
    ----------
    labels : array_like of int, shape (n,)
    kind : {"one-hot", "parity"} or str
        "one-hot": an output per class, 1 for its own and 0 for others; "parity": +1 for even labels, -1 for odd ones;
        a number such as "3": +1 for this class, -1 for others.
    n_classes : int, optional
        Outputs of "one-hot"; the largest label + 1 by default.

    Returns
    -------
    ndarray of float64, shape (n, n_classes) or (n,)

    Examples
    --------
    >>> import scalefield as sf
    >>> sf.datasets.class_targets([0, 1, 2], "parity")
    array([ 1., -1.,  1.])
    """
    values = np.asarray(labels)
    if values.dtype.kind not in "iu" or values.ndim != 1 or values.size == 0:
        raise ValueError(f"labels must be a vector of integers, got dtype {values.dtype}, shape {values.shape}")
    if values.min() < 0:
        raise ValueError(f"labels must be at least 0, got {values.min()}")
    if kind == "one-hot":
        count = int(values.max()) + 1 if n_classes is None else as_count("n_classes", n_classes)
        if values.max() >= count:
            raise ValueError(f"labels must be below n_classes = {count}, got {values.max()}")
        return np.asarray(np.eye(count)[values])
    if kind == "parity":
        return np.where(values % 2 == 0, 1.0, -1.0)
    if kind.isdecimal():
        return np.where(values == int(kind), 1.0, -1.0)
    raise ValueError(f"kind must be 'one-hot', 'parity' or the number of a class, got {kind!r}")


def load_mnist1m(path: str | os.PathLike[str] | list[str | os.PathLike[str]], split: str = "train") -> ImageStream:
    """Open MNIST-1M, or any set of 28 x 28 digits in .npz files, as a stream.

    MNIST-1M is a million digits drawn from a diffusion model (Pearce 2022); its files have no one layout. Arrays may be
    called X and Y, images and labels, x and y, or X_train and y_train with X_test and y_test (in any capitals that are
    usual); images are uint8 from 0 to 255 or floats, of shape (n, 28, 28), (n, 28, 28, 1), (n, 1, 28, 28) or (n, 784).

    Parameters
    ----------
    path : path or list of paths
        A .npz file, several, or a folder whose .npz files are taken in the order of their names.
    split : {"train", "test"}
        Which of them, where a file has both.

    Returns
    -------
    ImageStream
        Mapped into memory where the file is not compressed, else read in order.

    Raises
    ------
    FileNotFoundError
        If there is no such file, or no .npz file in the folder.
    DatasetError
        For other names, shapes, dtypes or labels, and for broken files; the message says what was expected.

    References
    ----------
    T. Pearce, Conditional Diffusion MNIST (2022); J. Ho, A. Jain & P. Abbeel, arXiv:2006.11239. Used in Bordelon,
    Atanasov & Pehlevan, arXiv:2409.17858, Sec. 5.2.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    names = [("X_" + split, "y_" + split), ("x_" + split, "y_" + split), (split + "_images", split + "_labels")]
    if split == "train":
        names += [("X", "Y"), ("X", "y"), ("x", "y"), ("images", "labels"), ("data", "labels")]
    return open_parts(_npz_files(path), names, (28, 28), _DIGITS, integers_only=False)


def load_cifar5m(folder: str | os.PathLike[str], parts: Any = None) -> ImageStream:
    """Open CIFAR-5M, or some of its parts, as a stream.

    Files cifar5m_part0.npz to cifar5m_part5.npz (or part0.npz, ...) with X, uint8 of shape (n, 32, 32, 3), and Y,
    integers from 0 to 9 of shape (n,); n is 1,000,448 in the original, 6 x 3.1 GB.

    Parameters
    ----------
    folder : path
        Where the files are; one file is accepted as well.
    parts : sequence of int, optional
        Which parts; all that are there by default.

    Returns
    -------
    ImageStream
        Mapped into memory, as the original files are not compressed.

    Raises
    ------
    FileNotFoundError
        If there is no part, or one asked for is missing.
    DatasetError
        For other names, shapes, dtypes or labels, and for broken files.

    References
    ----------
    P. Nakkiran, B. Neyshabur & H. Sedghi, The Deep Bootstrap Framework, arXiv:2010.08127.
    """
    place = Path(folder)
    if place.is_dir():
        found = {}
        for part in range(_CIFAR_PARTS):
            for name in (f"part{part}.npz", f"cifar5m_part{part}.npz"):
                if (place / name).is_file():
                    found[part] = place / name
        wanted = sorted(found) if parts is None else [as_count("parts", part, minimum=0) for part in parts]
        missing = [f"cifar5m_part{part}.npz" for part in wanted if part not in found]
        if missing or not wanted:
            raise FileNotFoundError(2, "no such file", str(place / (missing[0] if missing else "cifar5m_part0.npz")))
        paths = [found[part] for part in wanted]
    else:
        paths = [place]
    return open_parts(paths, [("X", "Y")], (32, 32, 3), _CIFAR_CLASSES, integers_only=True)


def load_image_folder(
    path: str | os.PathLike[str], *, grayscale: bool = False, size: tuple[int, int] | None = None
) -> ImageStream:
    """Open a folder of pictures as a stream: a subfolder per class, whose names in order are the classes.

    Parameters
    ----------
    path : path
        The folder.
    grayscale : bool
        One channel, shape (height, width); else red, green and blue, shape (height, width, 3).
    size : (int, int), optional
        Height and width to rescale to (bilinear); all pictures must have one size if None.

    Returns
    -------
    ImageStream
        Files are decoded as they are asked for.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    DatasetError
        If there are no pictures, one cannot be read, or sizes differ.
    """
    if size is not None:
        size = (as_count("size[0]", size[0]), as_count("size[1]", size[1]))
    return open_image_folder(Path(path), bool(grayscale), size)


def _npz_files(path: str | os.PathLike[str] | list[str | os.PathLike[str]]) -> list[Path]:
    if isinstance(path, list):
        if not path:
            raise DatasetError("path must name at least one file, got an empty list")
        return [Path(item) for item in path]
    place = Path(path)
    if not place.is_dir():
        return [place]
    found = sorted(place.glob("*.npz"))
    if not found:
        raise FileNotFoundError(2, "no .npz file in this folder", str(place))
    return found
