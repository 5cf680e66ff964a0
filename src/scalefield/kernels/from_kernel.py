"""From a Gram matrix to a spectrum: eigenvalues under the data's distribution, and the target's power on them.

Dense matrices are brought to tridiagonal form Q T Q^T once; the target follows with Q^T y, and eigenvectors are those
of T only. Those of K, which take LAPACK more than half of its time and memory, are never formed. Of larger ones the top
is found by Lanczos; traces tell what the rest must add up to, and more Lanczos steps, from the target, how its power is
spread there.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import LinAlgError, eigh_tridiagonal, lapack
from scipy.optimize import brentq
from scipy.sparse.linalg import LinearOperator, eigsh

from scalefield._files import atomic_write, read_archive, write_archive
from scalefield._memory import require_memory
from scalefield._validate import as_count
from scalefield.errors import KernelWarning, SpectrumFileError
from scalefield.spectrum import Spectrum

__all__ = ["KernelSpectrum", "spectrum_from_kernel"]

Array = NDArray[np.float64]

# Up to this size every eigenvalue is computed unless fewer are asked for: 10,000 take minutes and 1.5 GiB.
_DENSE_LIMIT = 10_000
# Modes computed of larger matrices: enough for a window of two decades.
_LANCZOS_MODES = 500
# Lanczos steps for the target's power on all others.
_TAIL_STEPS = 48
_BLOCK = 1024
# Entries of K and K^T that differ by more than this, relative to the largest, are no rounding ...
_ASYMMETRY_WARNED = 1e-6
# ... and beyond this the matrix is something else than a kernel.
_ASYMMETRY_REFUSED = 1e-2
# Likewise the share of negative eigenvalues in the sum of absolute ones.
_NEGATIVE_REFUSED = 1e-2
# Eigenvalue, over the largest, of the mode that holds what the kernel cannot represent: not learned within any horizon.
_UNLEARNABLE = 1e-30
# Share of the target's power outside the kernel's range that is worth telling.
_NULL_POWER_WARNED = 1e-6
# Relative uncertainty of the lazy loss at which the tail counts as unresolved.
_TAIL_TOLERANCE = 0.01


@dataclass(frozen=True, eq=False, repr=False)
class KernelSpectrum(Spectrum):
    r"""A spectrum measured on n samples, which remembers how: what `Spectrum.from_kernel` returns.

    Attributes
    ----------
    eigenvalues, target_coefficients : ndarray, shape (M,)
        As in `Spectrum`.
    n_samples : int
        n, the size of the Gram matrix. Windows of fits stay well below it.
    n_outputs : int
        Outputs of the target, whose power is summed.
    scale : float
        What eigenvalues were divided by; 1 if they were not normalised.
    centred : bool
        Whether kernel and target were centred.
    n_resolved : int
        Leading modes that are eigenvalues of K/n; those after them stand for the tail.
    tail_trace, tail_power : float
        Sum of eigenvalues, and target power, of the modes after n_resolved: exact, 0 if dense.
    tail_bias : float
        Relative error of the tail's sum of squared eigenvalues, whose exact value is known too: 0 for a tail of the
        right shape; nan without tail.
    resolved_time : float
        tau up to which the lazy loss (infinite width, gradient flow) is known to 1% whatever the tail is, by Gauss and
        Gauss-Radau bounds; inf if dense.
    n_null : int
        Eigenvalues that are 0 to rounding (or negative) and left out.
    null_power : float
        Target power outside the kernel's range, which no training learns: kept as one last mode of eigenvalue 1e-30
        times the largest, unless it is rounding.
    asymmetry : float
        Largest difference of K and K^T relative to the largest entry; the mean of both was used.
    negative_share : float
        Sum of the negative eigenvalues over the sum of absolute values; they count as null.

    References
    ----------
    Bordelon, Atanasov & Pehlevan, arXiv:2409.17858, Sec. 5 and App. A.
    """

    n_samples: int = 0
    n_outputs: int = 1
    scale: float = 1.0
    centred: bool = True
    n_resolved: int = 0
    tail_trace: float = 0.0
    tail_power: float = 0.0
    tail_bias: float = math.nan
    resolved_time: float = math.inf
    n_null: int = 0
    null_power: float = 0.0
    asymmetry: float = 0.0
    negative_share: float = 0.0

    def __repr__(self) -> str:
        tail = "" if self.n_resolved >= self.n_modes - 1 else f", {self.n_resolved} resolved"
        return f"Kernel{super().__repr__()[:-1]}; {self.n_samples} samples{tail})"

    def _facts(self) -> dict[str, Any]:
        """Everything but the modes, as plain values."""
        return {field.name: getattr(self, field.name) for field in fields(self)[2:]}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a .npz, or a .csv with the measurement's facts as comments; `Spectrum.load` reads both.

        Raises
        ------
        ValueError
            If the path ends in neither .npz nor .csv.
        OSError
            If the file cannot be written.
        """
        if Path(path).suffix.lower() == ".npz":
            arrays = {"eigenvalues": self.eigenvalues, "target_coefficients": self.target_coefficients}
            write_archive(path, {"class": "KernelSpectrum", **self._facts()}, arrays, compressed=False)
        elif Path(path).suffix.lower() == ".csv":
            lines = ["# Spectrum of a kernel, measured by scalefield"]
            lines += [f"# {name}: {value!r}" for name, value in self._facts().items()]
            lines += ["eigenvalue,target_coefficient"]
            rows = zip(self.eigenvalues.tolist(), self.target_coefficients.tolist(), strict=True)
            lines += [f"{eigenvalue!r},{coefficient!r}" for eigenvalue, coefficient in rows]
            with atomic_write(path) as stream:
                stream.write(("\n".join(lines) + "\n").encode())
        else:
            super().save(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> KernelSpectrum:
        """Read back a .npz that `save` wrote, with all it knew.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ScalefieldError
            If the file is not an archive of a KernelSpectrum (`Spectrum.load` reads any spectrum, without its facts).
        """
        settings, arrays = read_archive(path)
        stored: dict[str, Any] = {**settings, **arrays}
        if stored.pop("class", None) != "KernelSpectrum":
            raise SpectrumFileError(f"{os.fspath(path)}: not the spectrum of a kernel; Spectrum.load reads others")
        try:
            return cls(**stored)
        except (TypeError, ValueError) as error:
            raise SpectrumFileError(f"{os.fspath(path)}: written by another version ({error})") from error


def spectrum_from_kernel(
    K: ArrayLike, y: ArrayLike, *, center: bool = True, normalize: bool = False, n_modes: int | None = None
) -> KernelSpectrum:
    """Measure a kernel's spectrum: `Spectrum.from_kernel`, which documents it."""
    for name, value in (("center", center), ("normalize", normalize)):
        if not isinstance(value, (bool, np.bool_)):
            raise TypeError(f"{name} must be True or False, got {value!r} of type {type(value).__name__}")
    kernel, rounding, asymmetry = _check_kernel(K)
    n = kernel.shape[0]
    target = _check_target(y, n, center)
    total = float(np.sum(target**2)) / n
    wanted = as_count("n_modes", n_modes) if n_modes is not None else _LANCZOS_MODES if n > _DENSE_LIMIT else n
    # ARPACK needs room for a space larger than what is sought.
    top = None if wanted >= n - 1 else _top(kernel, target, center, wanted)
    eigenvalues, power = _dense(kernel, target, center) if top is None else (top.eigenvalues, top.power)

    largest = float(eigenvalues[0])
    if not largest > 0.0:
        what = "centred K" if center else "K"
        raise ValueError(f"K must have a positive eigenvalue, got {largest:.3g} as the largest of {what}/n")
    threshold = n * rounding * largest
    negative_share = _negative_share(eigenvalues, threshold)
    kept = eigenvalues > threshold
    n_null = int(np.sum(~kept))
    eigenvalues, power = eigenvalues[kept], power[kept]
    n_resolved = eigenvalues.size

    rest_trace, rest_power = 0.0, max(0.0, total - float(power.sum()))
    null_power, tail_bias, resolved_time = rest_power, math.nan, math.inf
    if top is not None and n_null == 0:
        rest_trace = top.trace - float(eigenvalues.sum())
        n_rest = n - n_resolved - int(center)
        if rest_trace < -n * rounding * top.trace:
            raise ValueError(
                f"K must be positive semidefinite, got {n_resolved} eigenvalues whose sum exceeds the trace of K/n, "
                f"{top.trace:.6g}, by {-rest_trace:.2g}"
            )
        if rest_trace > n * rounding * top.trace and n_rest > 0:
            tail, tail_power = _tail(top, eigenvalues, n_rest, rest_trace)
            exact = max(top.squares - float(eigenvalues @ eigenvalues), float(np.finfo(np.float64).tiny))
            tail_bias = float(tail @ tail) / exact - 1.0
            resolved_time = top.target_tail.resolved_time(eigenvalues, power)
            eigenvalues, power = np.append(eigenvalues, tail), np.append(power, tail_power)
            null_power = 0.0
    tail_power = rest_power - null_power
    if null_power > n * rounding * total:
        if null_power > _NULL_POWER_WARNED * total:
            warnings.warn(
                f"K has rank {n_resolved} of {n}: {null_power / total:.2g} of the target's power is outside its range "
                "and will not be learned",
                KernelWarning,
                stacklevel=3,
            )
        eigenvalues, power = np.append(eigenvalues, _UNLEARNABLE * largest), np.append(power, null_power)
    scale = largest if normalize else 1.0
    eigenvalues = eigenvalues / scale
    return KernelSpectrum(
        eigenvalues=eigenvalues,
        target_coefficients=np.sqrt(power / eigenvalues),
        n_samples=n,
        n_outputs=target.shape[1],
        scale=scale,
        centred=bool(center),
        n_resolved=n_resolved,
        tail_trace=rest_trace / scale,
        tail_power=tail_power,
        tail_bias=tail_bias,
        resolved_time=resolved_time * scale,
        n_null=n_null,
        null_power=null_power,
        asymmetry=asymmetry,
        negative_share=negative_share,
    )


def _check_kernel(K: ArrayLike) -> tuple[NDArray[Any], float, float]:
    """The matrix as it came (it may be a file mapped into memory), its rounding unit, and its asymmetry."""
    kernel = np.asanyarray(K)
    if kernel.dtype.kind not in "iuf":
        raise TypeError(f"K must be a matrix of real numbers, got dtype {kernel.dtype}")
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1]:
        raise ValueError(f"K must be a square matrix, got shape {kernel.shape}")
    n = kernel.shape[0]
    if n < 2:
        raise ValueError(f"K must have at least 2 rows, got {n}")
    largest, difference = 0.0, 0.0
    for i in range(0, n, _BLOCK):
        for j in range(0, i + 1, _BLOCK):
            block = np.asarray(kernel[i : i + _BLOCK, j : j + _BLOCK], dtype=np.float64)
            mirrored = np.asarray(kernel[j : j + _BLOCK, i : i + _BLOCK], dtype=np.float64).T
            for part, row, column in ((block, i, j), (mirrored.T, j, i)):
                if not np.isfinite(part).all():
                    at = np.argwhere(~np.isfinite(part))[0]
                    where = f"row {row + at[0]}, column {column + at[1]}"
                    raise ValueError(f"K must be finite, got {float(part[tuple(at)])!r} at {where}")
            largest = max(largest, float(np.abs(block).max()), float(np.abs(mirrored).max()))
            difference = max(difference, float(np.abs(block - mirrored).max()))
    asymmetry = difference / largest if largest > 0.0 else 0.0
    if asymmetry > _ASYMMETRY_REFUSED:
        raise ValueError(
            f"K must be symmetric, got entries that differ from their mirror images by {asymmetry:.2g} of the largest"
        )
    if asymmetry > _ASYMMETRY_WARNED:
        warnings.warn(
            f"K is not symmetric: entries differ from their mirror images by up to {asymmetry:.2g} of the largest; "
            "(K + K^T)/2 is used",
            KernelWarning,
            stacklevel=4,
        )
    rounding = float(np.finfo(kernel.dtype).eps) if kernel.dtype.kind == "f" else np.finfo(np.float64).eps
    # An asymmetry shows how exact the entries are.
    return kernel, max(float(rounding), float(np.finfo(np.float64).eps), asymmetry / n), asymmetry


def _check_target(y: ArrayLike, n: int, center: bool) -> Array:
    raw = np.asarray(y)
    if raw.dtype.kind not in "iufb":
        raise TypeError(f"y must be an array of real numbers, got dtype {raw.dtype}")
    if raw.ndim not in (1, 2) or raw.size == 0:
        raise ValueError(f"y must have shape (n,) or (n, outputs), got {raw.shape}")
    if raw.shape[0] != n:
        raise ValueError(f"y must have a row for each of the {n} rows of K, got {raw.shape[0]}")
    target = np.array(raw.reshape(n, -1), dtype=np.float64)
    if not np.isfinite(target).all():
        at = np.argwhere(~np.isfinite(target))[0]
        raise ValueError(f"y must be finite, got {float(target[tuple(at)])!r} at row {at[0]}")
    size = float(np.abs(target).max())
    if center:
        target -= target.mean(axis=0)
    if not np.abs(target).max() > n * np.finfo(np.float64).eps * size:
        what = "constant, and centring leaves nothing to learn" if center and size > 0.0 else "0 everywhere"
        raise ValueError(f"y must vary over the samples, got a target that is {what}")
    return target


def _negative_share(eigenvalues: Array, threshold: float) -> float:
    negative = -float(eigenvalues[eigenvalues < 0.0].sum())
    absolute = float(np.abs(eigenvalues).sum())
    share = negative / absolute
    lowest = float(eigenvalues.min())
    if share > _NEGATIVE_REFUSED:
        raise ValueError(
            f"K must be positive semidefinite, got eigenvalues of K/n down to {lowest:.3g}; the negative ones make up "
            f"{share:.2g} of the sum of absolute values"
        )
    if lowest < -threshold:
        warnings.warn(
            f"K is indefinite: eigenvalues of K/n down to {lowest:.3g} (the largest: {float(eigenvalues.max()):.3g}); "
            f"the negative ones, {share:.2g} of the sum of absolute values, are set to 0",
            KernelWarning,
            stacklevel=4,
        )
    return share


def _dense(kernel: NDArray[Any], target: Array, center: bool) -> tuple[Array, Array]:
    """All eigenvalues of K/n, decreasing, and the target's power on each."""
    n = kernel.shape[0]
    require_memory(2 * 8 * n**2, f"the spectrum of a {n} x {n} kernel")
    matrix = np.array(kernel, dtype=np.float64, order="C")
    matrix += kernel.T
    matrix *= 0.5 / n
    if center:
        means = matrix.mean(axis=0)
        matrix -= means[:, None]
        matrix -= means
        matrix += means.mean()
    # K = Q T Q^T. The transpose of a symmetric matrix is the same one, in the order of columns that LAPACK wants.
    work = int(lapack.dsytrd_lwork(n, lower=1)[0].real)
    reflectors, diagonal, off_diagonal, tau, status = lapack.dsytrd(matrix.T, lower=1, lwork=work, overwrite_a=1)
    _check_lapack("dsytrd", status)
    rotated = np.asfortranarray(target)
    del matrix
    if n > 2:
        # Q leaves the first row alone; reflector i begins at row i + 1.
        reflectors = np.asfortranarray(reflectors[1:, :-1])
        rows = np.asfortranarray(rotated[1:])
        rotated[1:], _, status = lapack.dormqr("L", "T", reflectors, tau, rows, lwork=64 * max(1, rows.shape[1]))
        _check_lapack("dormqr", status)
    del reflectors
    try:
        eigenvalues, vectors = eigh_tridiagonal(diagonal, off_diagonal, lapack_driver="stemr", check_finite=False)
    except LinAlgError:
        # Rarely, relatively robust representations are not found; implicit QR always converges, at O(n^3).
        eigenvalues, vectors = eigh_tridiagonal(diagonal, off_diagonal, lapack_driver="stev", check_finite=False)
    power = np.sum((vectors.T @ rotated) ** 2, axis=1) / n
    return eigenvalues[::-1].copy(), power[::-1].copy()


def _check_lapack(routine: str, status: int) -> None:
    if status != 0:
        raise LinAlgError(f"{routine} failed with status {status}")


@dataclass(frozen=True)
class _Top:
    """Leading eigenvalues and powers; tr K/n and tr (K/n)^2 of the whole (centred) matrix; the target's tail."""

    eigenvalues: Array
    power: Array
    trace: float
    squares: float
    target_tail: _TargetTail


def _top(kernel: NDArray[Any], target: Array, center: bool, n_modes: int) -> _Top:
    n = kernel.shape[0]
    n_vectors = min(n, max(2 * n_modes + 1, 20))
    require_memory(8 * n * (n_vectors + n_modes), f"{n_modes} modes of a {n} x {n} kernel")

    def multiply(vectors: Array) -> Array:
        # A block of rows at a time: the matrix may be a mapped file, or in single precision.
        result = np.zeros(vectors.shape)
        for start in range(0, n, _BLOCK):
            rows = np.asarray(kernel[start : start + _BLOCK], dtype=np.float64)
            result[start : start + _BLOCK] += 0.5 * (rows @ vectors)
            result += 0.5 * (rows.T @ vectors[start : start + _BLOCK])
        return result

    def apply(vectors: Array) -> Array:
        if not center:
            return np.asarray(multiply(vectors) / n)
        result = multiply(vectors - vectors.mean(axis=0))
        return np.asarray((result - result.mean(axis=0)) / n)

    diagonal, frobenius, crossed = 0.0, 0.0, 0.0
    for start in range(0, n, _BLOCK):
        rows = np.asarray(kernel[start : start + _BLOCK], dtype=np.float64)
        columns = np.asarray(kernel[:, start : start + _BLOCK], dtype=np.float64).T
        diagonal += float(np.trace(rows[:, start:]))
        frobenius += float(np.sum(rows**2))
        crossed += float(np.sum(rows * columns))
    # Of (K + K^T)/2: |.|_F^2 = (|K|_F^2 + tr K^2)/2
    trace, squares = diagonal / n, 0.5 * (frobenius + crossed) / n**2
    if center:
        sums = multiply(np.ones(n))
        # tr HKH = tr K - 1^T K 1/n;  |HKH|_F^2 = |K|_F^2 - 2 |K 1|^2/n + (1^T K 1)^2/n^2
        trace -= float(sums.sum()) / n**2
        squares += (-2.0 * float(sums @ sums) / n + float(sums.sum()) ** 2 / n**2) / n**2
    operator = LinearOperator((n, n), matvec=lambda v: apply(v.ravel()), matmat=apply, dtype=np.float64)
    # The start decides the last digits only; a fixed one makes them repeatable.
    first = np.random.default_rng(0).standard_normal(n)
    eigenvalues, vectors = eigsh(operator, k=n_modes, which="LA", v0=first, ncv=n_vectors)
    order = np.argsort(-eigenvalues)
    power = np.sum((vectors.T @ target) ** 2, axis=1) / n
    # Of each tail node one mode is made, and most modes are to follow the trace.
    n_steps = max(1, min(_TAIL_STEPS, (n - n_modes) // (4 * target.shape[1])))
    tail = _target_tail(apply, vectors, target, n_steps)
    return _Top(eigenvalues[order], power[order], trace, squares, tail)


def _tail(top: _Top, eigenvalues: Array, n_rest: int, trace: float) -> tuple[Array, Array]:
    """Eigenvalues and powers of n_rest modes: the target's nodes, and others without power that complete the trace."""
    nodes, power = top.target_tail.nodes, top.target_tail.power
    n_others = n_rest - nodes.size
    others = trace - float(nodes.sum())
    if n_others < 1 or others <= 0.0:
        # A tail of few modes, or nearly none: the target's own mean eigenvalue is all that is kept of its nodes.
        shares = np.full(n_rest, 1.0 / n_rest)
        return trace * shares, float(power.sum()) * shares
    return np.append(nodes, _power_law_tail(eigenvalues, n_others, others)), np.append(power, np.zeros(n_others))


def _power_law_tail(eigenvalues: Array, n_rest: int, trace: float) -> Array:
    """Eigenvalues lambda_K (k/K)^-a of modes k = K+1, ..., K+n_rest, of the sum given."""
    log_k = np.log1p(np.arange(1, n_rest + 1) / eigenvalues.size)
    last = float(eigenvalues[-1])

    def excess(a: float) -> float:
        return last * float(np.exp(-a * log_k).sum()) - trace

    # No tail eigenvalue exceeds the last one found, so a >= 0 but for rounding.
    highest = 1.0
    while excess(highest) > 0.0:
        highest *= 2.0
    a = brentq(excess, 0.0, highest, xtol=1e-14) if excess(0.0) > 0.0 else 0.0
    tail = last * np.exp(-a * log_k)
    return np.asarray(tail * (trace / float(tail.sum())))


@dataclass(frozen=True)
class _TargetTail:
    """The target's power on unresolved modes, by Lanczos: nodes and masses of Gauss rules, and Gauss-Radau rules at 0.

    For e^{-2 lambda tau}, whose even derivatives are positive and odd ones negative, Gauss is a lower bound and Radau
    an upper one (Golub & Meurant, Matrices, Moments and Quadrature, 2010, chapter 6).
    """

    nodes: Array
    power: Array
    upper_nodes: Array
    upper_power: Array

    def resolved_time(self, eigenvalues: Array, power: Array) -> float:
        """First tau at which bounds of the lazy loss differ by more than `_TAIL_TOLERANCE`; inf if there is none."""
        times = np.geomspace(1e-3 / float(eigenvalues[0]), 1e12 / float(eigenvalues[0]), 1501)
        lower = np.exp(-2.0 * np.outer(times, self.nodes)) @ self.power
        upper = np.exp(-2.0 * np.outer(times, self.upper_nodes)) @ self.upper_power
        known = np.exp(-2.0 * np.outer(times, eigenvalues)) @ power
        unresolved = upper - lower > _TAIL_TOLERANCE * (known + lower)
        return float(times[int(np.argmax(unresolved))]) if unresolved.any() else math.inf


def _target_tail(apply: Callable[[Array], Array], vectors: Array, target: Array, n_steps: int) -> _TargetTail:
    """Lanczos from what `vectors` leave of each output, orthogonal to them; outputs share the products with K."""
    n, n_outputs = target.shape
    rest = target - vectors @ (vectors.T @ target)
    rest -= vectors @ (vectors.T @ rest)
    mass = np.sum(rest**2, axis=0) / n
    basis = np.zeros((n_outputs, n_steps + 1, n))
    diagonal, off_diagonal = np.zeros((n_steps, n_outputs)), np.zeros((n_steps, n_outputs))
    length = np.full(n_outputs, n_steps)
    norm = np.sqrt(np.sum(rest**2, axis=0))
    # An output that the resolved modes hold whole needs no tail.
    length[norm <= n * np.finfo(np.float64).eps * np.sqrt(np.sum(target**2, axis=0))] = 0
    current = rest / np.where(norm > 0.0, norm, 1.0)
    floor = 0.0
    for step in range(n_steps):
        basis[:, step] = current.T
        product = apply(current)
        diagonal[step] = np.sum(current * product, axis=0)
        floor = max(floor, n * np.finfo(np.float64).eps * float(diagonal[step].max()))
        # Twice, or what rounding leaves of the large modes grows back.
        for _ in range(2):
            product -= vectors @ (vectors.T @ product)
            for output in range(n_outputs):
                known = basis[output, : step + 1]
                product[:, output] -= known.T @ (known @ product[:, output])
        norm = np.sqrt(np.sum(product**2, axis=0))
        off_diagonal[step] = norm
        # The Krylov space is exhausted: the rule is exact.
        length = np.where((norm <= floor) & (length > step + 1), step + 1, length)
        current = product / np.where(norm > floor, norm, np.inf)
    rules: list[list[Array]] = [[], [], [], []]
    for output in range(n_outputs):
        m = int(length[output])
        if m == 0:
            continue
        middle, side = diagonal[:m, output], off_diagonal[:m, output]
        nodes, first = eigh_tridiagonal(middle, side[: m - 1])
        rules[0].append(np.maximum(nodes, floor))
        rules[1].append(mass[output] * first[0] ** 2)
        if side[-1] > floor and nodes[0] > 0.0:
            # Radau: the last diagonal entry that gives the (m+1)-matrix the eigenvalue 0, side^2 (T^-1)_mm
            last = side[-1] ** 2 * float(np.sum(first[-1] ** 2 / nodes))
            nodes, first = eigh_tridiagonal(np.append(middle, last), side)
        rules[2].append(np.maximum(nodes, 0.0))
        rules[3].append(mass[output] * first[0] ** 2)
    return _TargetTail(*(np.concatenate(rule) if rule else np.zeros(0) for rule in rules))
