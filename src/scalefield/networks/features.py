r"""What a network's features have learned: distance of kernels, alignment with a task, power in the eigenbasis.

Definition A of feature learning asks whether the kernel has moved (`kernel_distance`), Definition B whether it has
moved towards the task (`kernel_alignment`, and `cumulative_power` at every rank), Appendix H of the reference. Neither
alone makes losses fall faster: the task has to be hard as well.

Kernels are Gram matrices K(x_a, x_b) on P points, of any network, that come from anywhere.

References
----------
Bordelon, Atanasov & Pehlevan, arXiv:2409.17858, Appendix H and Figure 8b. Kornblith et al., arXiv:1905.00414, and
Cortes, Mohri & Rostamizadeh, JMLR 13 (2012) 795, on alignments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalefield._validate import as_flag

__all__ = ["PowerDistribution", "cumulative_power", "kernel_alignment", "kernel_distance"]

Array = NDArray[np.float64]

# Entries of symmetric matrices may differ by rounding, in single precision.
_ASYMMETRY = 1e-5


@dataclass(frozen=True, eq=False)
class PowerDistribution:
    r"""How a target's power is spread over the eigenvectors of a kernel.

    Attributes
    ----------
    eigenvalues : ndarray, shape (P,)
        lambda_k of K/P, decreasing.
    power : ndarray, shape (P,)
        Share of the target's power along each eigenvector; the sum is 1.
    cumulative : ndarray, shape (P,)
        C(k), the share along the first k = 1, ..., P eigenvectors; C(P) = 1.
    """

    eigenvalues: Array
    power: Array
    cumulative: Array

    def __post_init__(self) -> None:
        for array in (self.eigenvalues, self.power, self.cumulative):
            array.setflags(write=False)


def kernel_distance(initial: ArrayLike, kernel: ArrayLike, *, centred: bool = False) -> float:
    r"""Distance of a kernel from the initial one, 1 - cosine (Definition A).

    .. math:: 1 - \frac{\mathrm{tr} K_0 K_t}{|K_0|_F |K_t|_F}

    Parameters
    ----------
    initial, kernel : array_like, shape (P, P)
        Symmetric Gram matrices on the same points.
    centred : bool
        Whether row and column means are removed first (centred kernel alignment); default no.

    Returns
    -------
    float
        0 for kernels that differ by a factor, 1 for orthogonal ones; of positive semi-definite kernels in [0, 1].

    Raises
    ------
    TypeError, ValueError
        If an argument is not a finite, symmetric matrix, has another shape, or vanishes.

    Notes
    -----
    O(P^2) time and memory. It is computed as half the squared distance of the normalised kernels, so small distances
    keep their digits.

    Examples
    --------
    >>> import numpy as np
    >>> from scalefield import networks
    >>> networks.kernel_distance(np.eye(2), 4.0 * np.eye(2))
    0.0
    >>> round(networks.kernel_distance(np.eye(2), [[1.0, 1.0], [1.0, 1.0]]), 6)
    0.292893
    """
    centred = as_flag("centred", centred)
    first, second = _as_kernel("initial", initial, centred), _as_kernel("kernel", kernel, centred)
    if first.shape != second.shape:
        raise ValueError(f"initial and kernel must have the same shape, got {first.shape} and {second.shape}")
    # 1 - <a, b> = |a - b|^2/2 of unit vectors
    difference = first / _norm("initial", first) - second / _norm("kernel", second)
    return 0.5 * float(np.vdot(difference, difference))


def kernel_alignment(kernel: ArrayLike, target: ArrayLike, *, centred: bool = False) -> float:
    r"""Alignment of a kernel with a task, the cosine between K and y y^T (Definition B: it grows).

    .. math:: \frac{y^T K y}{|K|_F |y|^2}, \qquad \text{for several outputs} \quad
        \frac{\mathrm{tr}\, Y^T K Y}{|K|_F |Y Y^T|_F}

    Parameters
    ----------
    kernel : array_like, shape (P, P)
        Symmetric Gram matrix.
    target : array_like, shape (P,) or (P, C)
        Targets on the same points, C outputs.
    centred : bool
        Whether row and column means are removed first; default no.

    Returns
    -------
    float
        1 for K = Y Y^T up to a factor, of positive semi-definite kernels at least 0.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described, or vanishes.

    Notes
    -----
    O(C P^2).

    Examples
    --------
    >>> import numpy as np
    >>> from scalefield import networks
    >>> y = np.array([1.0, -1.0, 2.0])
    >>> round(networks.kernel_alignment(np.outer(y, y), y), 12)
    1.0
    >>> round(networks.kernel_alignment(np.eye(3), y), 6)
    0.57735
    """
    centred = as_flag("centred", centred)
    gram = _as_kernel("kernel", kernel, centred)
    outputs = _as_target(target, gram.shape[0])
    if centred:
        outputs = outputs - outputs.mean(axis=0)
    # |Y Y^T|_F = |Y^T Y|_F
    scale = _norm("target", outputs.T @ outputs)
    return float(np.vdot(outputs, gram @ outputs)) / (_norm("kernel", gram) * scale)


def cumulative_power(kernel: ArrayLike, target: ArrayLike) -> PowerDistribution:
    r"""Share C(k) of the target's power in the first k eigenvectors of a kernel (Figure 8b).

    .. math:: C(k) = \sum_{j \le k} (e_j \cdot y)^2 / |y|^2, \qquad \tfrac{1}{P} K e_j = \lambda_j e_j

    The faster it reaches 1, the better kernel and task are aligned; for source and capacity exponents
    1 - C(k) ~ k^{-alpha beta}.

    Parameters
    ----------
    kernel : array_like, shape (P, P)
        Symmetric Gram matrix.
    target : array_like, shape (P,) or (P, C)
        Targets on the same points; powers of several outputs are added.

    Returns
    -------
    PowerDistribution

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described, or the target vanishes.

    Notes
    -----
    O(P^3) time, O(P^2) memory. Equal eigenvalues have eigenvectors in no order, so C(k) is determined only between
    them.

    Examples
    --------
    >>> from scalefield import networks
    >>> networks.cumulative_power([[2.0, 0.0], [0.0, 1.0]], [1.0, 2.0]).cumulative
    array([0.2, 1. ])
    """
    gram = _as_kernel("kernel", kernel, False)
    outputs = _as_target(target, gram.shape[0])
    total = float(np.vdot(outputs, outputs))
    _norm("target", outputs)
    eigenvalues, vectors = np.linalg.eigh(gram / gram.shape[0])
    power = np.sum((vectors.T @ outputs) ** 2, axis=1)[::-1] / total
    return PowerDistribution(eigenvalues[::-1].copy(), power, np.cumsum(power))


def _as_real(name: str, value: Any) -> Array:
    try:
        raw = np.asarray(value)
    except ValueError as error:
        raise TypeError(f"{name} must be an array of real numbers, got {type(value).__name__}") from error
    if raw.dtype.kind not in "iuf":
        raise TypeError(f"{name} must be an array of real numbers, got dtype {raw.dtype}")
    array = raw.astype(np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {array[~np.isfinite(array)][0]!r}")
    return array


def _as_kernel(name: str, value: Any, centred: bool) -> Array:
    kernel = _as_real(name, value)
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1] or kernel.size == 0:
        raise ValueError(f"{name} must be a square matrix, got shape {kernel.shape}")
    asymmetry = float(np.abs(kernel - kernel.T).max())
    if asymmetry > _ASYMMETRY * float(np.abs(kernel).max()):
        raise ValueError(f"{name} must be symmetric, got entries that differ by {asymmetry:.3g} from their transposes")
    if centred:
        kernel -= kernel.mean(axis=0)
        kernel -= kernel.mean(axis=1)[:, None]
    return kernel


def _as_target(value: Any, n_points: int) -> Array:
    target = _as_real("target", value)
    if target.ndim not in (1, 2) or target.shape[0] != n_points or target.size == 0:
        raise ValueError(
            f"target must have shape ({n_points},) or ({n_points}, C) like the kernel's points, got {target.shape}"
        )
    return target.reshape(n_points, -1)


def _norm(name: str, array: Array) -> float:
    norm = float(np.linalg.norm(array))
    if norm == 0.0:
        raise ValueError(f"{name} must not vanish, got zeros only")
    return norm
