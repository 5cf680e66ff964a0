"""Tasks: the eigenvalues of a kernel and the target's coefficients in its eigenbasis (theory section 1)."""

from __future__ import annotations

import csv
import math
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalefield._files import atomic_write
from scalefield._validate import as_count, as_float, as_vector
from scalefield.errors import SpectrumFileError
from scalefield.quadrature import SpectralNodes, check_quadrature_arguments, exact_nodes, power_law_nodes

if TYPE_CHECKING:
    from scalefield.kernels.from_kernel import KernelSpectrum

__all__ = ["PowerLawSpectrum", "Spectrum", "Task"]

Array = NDArray[np.float64]

_COLUMNS = ("eigenvalue", "target_coefficient")


class Task(ABC):
    """What is learned: modes with eigenvalues lambda_k and target coefficients w*_k.

    The common base of `Spectrum` and `PowerLawSpectrum`; use those.
    """

    @property
    @abstractmethod
    def n_modes(self) -> int | None:
        """Number of modes; None for infinitely many."""

    @property
    @abstractmethod
    def total_target_power(self) -> float:
        """sum_k lambda_k w*_k^2, the loss before training."""

    @abstractmethod
    def modes(self, start: int, stop: int) -> tuple[Array, Array]:
        """Eigenvalues and target coefficients of modes start..stop-1, counted from 0, decreasing.

        Raises
        ------
        ValueError
            If not 0 <= start <= stop <= n_modes.
        """

    @abstractmethod
    def quadrature(self, rtol: float = 1e-10, horizon: float = 1e12) -> SpectralNodes:
        """Nodes for sums over all modes."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return plain values from which `from_description` makes an equal object."""

    @staticmethod
    def from_description(description: dict[str, Any]) -> Task:
        """Inverse of `describe`."""
        settings = dict(description)
        kind = settings.pop("kind")
        if kind == "power law":
            return PowerLawSpectrum(**settings)
        if kind == "explicit":
            return Spectrum(**settings)
        raise ValueError(f"kind of spectrum must be 'power law' or 'explicit', got {kind!r}")

    def _check_range(self, start: int, stop: int) -> None:
        last = math.inf if self.n_modes is None else self.n_modes
        if not 0 <= start <= stop <= last:
            raise ValueError(f"start and stop must satisfy 0 <= start <= stop <= {last}, got {start}, {stop}")


@dataclass(frozen=True)
class PowerLawSpectrum(Task):
    r"""Power-law task of capacity alpha and source beta.

    .. math:: \lambda_k = k^{-\alpha}, \qquad \lambda_k w_k^{*2} = k^{-(\alpha\beta+1)}, \qquad k = 1, 2, \ldots

    Tasks are hard for beta < 1 (target outside the RKHS), easy for 1 < beta < 2 - 1/alpha and super-easy
    beyond.

    Parameters
    ----------
    alpha : float
        Capacity exponent, positive; greater than 1 for an infinite spectrum (trace class).
    beta : float
        Source exponent, positive.
    n_modes : int, optional
        Number of modes M; None (default) for infinitely many.

    Raises
    ------
    ValueError
        For alpha <= 0, beta <= 0, n_modes < 1, or alpha <= 1 with an infinite spectrum.

    References
    ----------
    Bordelon, Atanasov & Pehlevan, arXiv:2409.17858, Eq. 6.

    Examples
    --------
    >>> import scalefield as sf
    >>> spectrum = sf.PowerLawSpectrum(alpha=2.0, beta=0.5, n_modes=3)
    >>> spectrum.modes(0, 3)[0]
    array([1.        , 0.25      , 0.11111111])
    """

    alpha: float
    beta: float
    n_modes: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", as_float("alpha", self.alpha, minimum=0.0, exclusive=True))
        object.__setattr__(self, "beta", as_float("beta", self.beta, minimum=0.0, exclusive=True))
        if self.n_modes is not None:
            object.__setattr__(self, "n_modes", as_count("n_modes", self.n_modes))
        elif self.alpha <= 1.0:
            raise ValueError(
                "alpha must be greater than 1 for an infinite spectrum (sum of eigenvalues finite), "
                f"got {self.alpha!r}; give n_modes for a finite one"
            )

    @property
    def total_target_power(self) -> float:
        """sum_k k^-(alpha beta + 1), the loss before training."""
        # By nodes, since a difference of zeta functions has no digits where alpha beta is small.
        return self.quadrature(rtol=1e-13).total_target_power

    def modes(self, start: int, stop: int) -> tuple[Array, Array]:
        """Eigenvalues and target coefficients of modes start..stop-1, counted from 0."""
        self._check_range(start, stop)
        k = np.arange(start + 1, stop + 1, dtype=np.float64)
        return k**-self.alpha, k ** (0.5 * (self.alpha - self.alpha * self.beta - 1.0))

    def quadrature(self, rtol: float = 1e-10, horizon: float = 1e12) -> SpectralNodes:
        r"""Nodes for sums over all modes, however many.

        .. math:: \sum_k f(\lambda_k, \lambda_k w_k^{*2}) \approx \sum_q c_q f(\lambda_q, p_q)

        Parameters
        ----------
        rtol : float
            Accuracy of the sums relative to the sum of absolute values, 1e-13 to 0.1.
        horizon : float
            Largest tau (learning rate x steps x kernel scale, dimensionless) for which functions of
            lambda * tau are resolved.

        Returns
        -------
        SpectralNodes
            Some 100-400 nodes: eigenvalues, target_power, weights.

        Raises
        ------
        ValueError
            If rtol or horizon is out of range.

        Notes
        -----
        O(log(horizon) log(1/rtol)) in time and memory, milliseconds. Theory section 5.

        Examples
        --------
        >>> import scalefield as sf
        >>> nodes = sf.PowerLawSpectrum(2.0, 0.5).quadrature()
        >>> bool(abs(nodes.trace - 3.141592653589793**2 / 6) < 1e-12)
        True
        """
        rtol, horizon = check_quadrature_arguments(rtol, horizon)
        return power_law_nodes(self.alpha, self.beta, self.n_modes, rtol, horizon)

    def describe(self) -> dict[str, Any]:
        """Return plain values from which `from_description` makes an equal object."""
        return {"kind": "power law", "alpha": self.alpha, "beta": self.beta, "n_modes": self.n_modes}


@dataclass(frozen=True, eq=False)
class Spectrum(Task):
    """An explicit list of modes, such as a spectrum measured on data.

    Parameters
    ----------
    eigenvalues : array_like, shape (M,)
        lambda_k >= 0, in any order; stored in decreasing order.
    target_coefficients : array_like, shape (M,)
        w*_k, the target's coefficient in the eigenbasis of features with variance lambda_k: the target is
        y = sum_k w*_k psi_k, so mode k carries the power lambda_k w*_k^2.

    Raises
    ------
    TypeError
        If an argument is not an array of real numbers.
    ValueError
        For entries that are NaN or infinite, negative eigenvalues, shapes that differ, or no positive
        eigenvalue.

    Examples
    --------
    >>> import scalefield as sf
    >>> spectrum = sf.Spectrum([0.5, 1.0], [2.0, 1.0])
    >>> spectrum.eigenvalues
    array([1. , 0.5])
    >>> spectrum.target_power
    array([1., 2.])
    """

    eigenvalues: Array
    target_coefficients: Array

    def __post_init__(self) -> None:
        eigenvalues = as_vector("eigenvalues", self.eigenvalues, minimum=0.0)
        coefficients = as_vector("target_coefficients", self.target_coefficients)
        if eigenvalues.shape != coefficients.shape:
            raise ValueError(
                "eigenvalues and target_coefficients must have the same length, got "
                f"{eigenvalues.size} and {coefficients.size}"
            )
        if not (eigenvalues > 0.0).any():
            raise ValueError("eigenvalues must have at least one positive entry, got zeros only")
        # Ties are ordered by coefficient, so that the order given never matters.
        order = np.lexsort((coefficients, -eigenvalues))
        for name, array in (("eigenvalues", eigenvalues), ("target_coefficients", coefficients)):
            ordered = array[order]
            ordered.setflags(write=False)
            object.__setattr__(self, name, ordered)

    def __repr__(self) -> str:
        return (
            f"Spectrum({self.n_modes} modes, eigenvalues {self.eigenvalues[-1]:.3g} to "
            f"{self.eigenvalues[0]:.3g}, trace {self.eigenvalues.sum():.4g}, "
            f"target power {self.target_power.sum():.4g})"
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Spectrum):
            return NotImplemented
        return np.array_equal(self.eigenvalues, other.eigenvalues) and np.array_equal(
            self.target_coefficients, other.target_coefficients
        )

    def __hash__(self) -> int:
        return hash((self.eigenvalues.tobytes(), self.target_coefficients.tobytes()))

    @property
    def n_modes(self) -> int:
        """Number of modes M."""
        return self.eigenvalues.size

    @property
    def target_power(self) -> Array:
        """lambda_k w*_k^2, shape (M,); its sum is the loss before training."""
        power: Array = self.eigenvalues * self.target_coefficients**2
        return power

    @property
    def total_target_power(self) -> float:
        """sum_k lambda_k w*_k^2, the loss before training."""
        return float(self.target_power.sum())

    def modes(self, start: int, stop: int) -> tuple[Array, Array]:
        """Eigenvalues and target coefficients of modes start..stop-1, counted from 0."""
        self._check_range(start, stop)
        return self.eigenvalues[start:stop], self.target_coefficients[start:stop]

    def quadrature(self, rtol: float = 1e-10, horizon: float = 1e12) -> SpectralNodes:
        """Every mode with a positive eigenvalue as its own node: the sums are exact.

        The arguments are those of `PowerLawSpectrum.quadrature`; nothing depends on them here.

        Examples
        --------
        >>> import scalefield as sf
        >>> len(sf.Spectrum([1.0, 0.5, 0.0], [1.0, 1.0, 1.0]).quadrature())
        2
        """
        check_quadrature_arguments(rtol, horizon)
        return exact_nodes(self.eigenvalues, self.target_power)

    def describe(self) -> dict[str, Any]:
        """Return plain values from which `from_description` makes an equal object."""
        return {
            "kind": "explicit",
            "eigenvalues": self.eigenvalues.tolist(),
            "target_coefficients": self.target_coefficients.tolist(),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the spectrum to a .npz or .csv file, whole or not at all.

        Both hold the float64 values exactly; a .csv has the columns eigenvalue and target_coefficient.

        Raises
        ------
        ValueError
            If the path ends in neither .npz nor .csv.
        OSError
            If the file cannot be written.
        """
        suffix = _file_kind(path)
        with atomic_write(path) as stream:
            if suffix == ".npz":
                np.savez(stream, eigenvalues=self.eigenvalues, target_coefficients=self.target_coefficients)
            else:
                rows = zip(self.eigenvalues.tolist(), self.target_coefficients.tolist(), strict=True)
                text = "\n".join([",".join(_COLUMNS), *(f"{a!r},{b!r}" for a, b in rows)]) + "\n"
                stream.write(text.encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Spectrum:
        """Read a spectrum from a .npz or .csv file.

        A .npz needs the arrays eigenvalues and target_coefficients; a .csv a header line with the columns
        eigenvalue and target_coefficient (others are ignored, as are blank lines and lines that begin
        with #).

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        SpectrumFileError
            If the file is malformed (a ValueError); the message names the row and column.
        ValueError
            If the path ends in neither .npz nor .csv.
        """
        suffix = _file_kind(path)
        name = os.fspath(path)
        if suffix == ".csv":
            eigenvalues, coefficients = _read_csv(Path(path))
        else:
            try:
                # Opened here, since numpy leaves a file that is not an archive open.
                with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
                    missing = {"eigenvalues", "target_coefficients"} - set(archive.files)
                    if missing:
                        raise SpectrumFileError(f"{name}: no array named {' or '.join(sorted(missing))}")
                    eigenvalues, coefficients = archive["eigenvalues"], archive["target_coefficients"]
            except (FileNotFoundError, SpectrumFileError):
                raise
            except Exception as error:  # numpy raises half a dozen unrelated classes for broken archives
                raise SpectrumFileError(f"{name}: not a readable .npz archive ({error})") from error
        try:
            return cls(eigenvalues, coefficients)
        except (TypeError, ValueError) as error:
            raise SpectrumFileError(f"{name}: {error}") from error

    @classmethod
    def from_kernel(
        cls, K: ArrayLike, y: ArrayLike, *, center: bool = True, normalize: bool = False, n_modes: int | None = None
    ) -> KernelSpectrum:
        r"""Measure the spectrum of a kernel on data, and a target's coefficients in its eigenbasis.

        .. math::
            K/n = U \mathrm{diag}(\lambda) U^T, \qquad \lambda_k w_k^{*2} = \frac{1}{n} \sum_c (U^T y_c)_k^2,
            \qquad w^*_k \ge 0

        so that the features psi_k = sqrt(n lambda_k) U_k have variance lambda_k over the n samples, and the target
        is sum_k w*_k psi_k.

        Parameters
        ----------
        K : array_like, shape (n, n)
            Gram matrix K(x_mu, x_nu), symmetric and positive semidefinite, of any real dtype; a mapped file
            (numpy.memmap) serves as well.
        y : array_like, shape (n,) or (n, outputs)
            Target. The power of several outputs is summed: losses of outputs that share a kernel add up. At gamma = 0
            that is exact; in rich training the outputs share the kernel's growth, as one target of the same power
            would.
        center : bool
            Centre kernel and target over the samples, H K H with H = I - 1 1^T/n, and y less its mean (default): the
            model's features have mean 0. The constant mode is then null.
        normalize : bool
            Divide eigenvalues by the largest and multiply coefficients by its square root (default False): the unit of
            learning rate x steps changes, the target does not.
        n_modes : int, optional
            Leading modes to compute, by Lanczos; all by default up to n = 10,000, and 500 beyond.

        Returns
        -------
        KernelSpectrum
            A Spectrum that also tells n_samples, scale, rank and tail. Modes that are not computed are represented:
            their number and the sum of their eigenvalues are exact and follow a power law, and the target's power on
            them sits on the nodes of Gauss rules, exact for polynomials of degree 95. `tail_bias` and `resolved_time`
            say what that leaves open.

        Warns
        -----
        KernelWarning
            For entries that differ from their mirror images by more than 1e-6 of the largest ((K + K^T)/2 is used),
            eigenvalues that are negative beyond rounding (set to 0), and target power beyond 1e-6 outside the range of
            a kernel of lower rank (kept as a mode that is never learned).

        Raises
        ------
        TypeError
            If K or y are not arrays of real numbers.
        ValueError
            For NaN or infinite entries, shapes that do not agree, a target that is constant (0 without centring), an
            asymmetry beyond 1e-2, or negative eigenvalues beyond 1e-2 of the sum of absolute ones.
        InsufficientMemoryError
            If the matrices do not fit.

        Notes
        -----
        Dense: 4/3 n^3 operations and two matrices of memory, since eigenvectors of K are not formed; n = 4,000 takes
        about half as long as ``scipy.linalg.eigh``. Lanczos: some 3 n_modes products with K. Eigenvalues are right to
        the rounding of K times the largest, and their last digits depend on the LAPACK library and its threads.

        The expectation is over these n samples. Of the distribution they come from, the sum of eigenvalues is
        estimated without bias, but mode k is off by about k/n: see `kernels.fit_source_capacity`, which corrects
        exponents for it.

        References
        ----------
        Bordelon, Atanasov & Pehlevan, arXiv:2409.17858, Sec. 5, App. A; theory sections 1 and 11.

        Examples
        --------
        >>> import numpy as np
        >>> import scalefield as sf
        >>> features = np.random.default_rng(0).standard_normal((200, 300)) * np.arange(1, 301) ** -0.75
        >>> spectrum = sf.Spectrum.from_kernel(features @ features.T, features[:, :20].sum(axis=1))
        >>> spectrum.n_modes, spectrum.n_samples
        (199, 200)
        """
        from scalefield.kernels.from_kernel import spectrum_from_kernel

        return spectrum_from_kernel(K, y, center=center, normalize=normalize, n_modes=n_modes)


def _file_kind(path: str | os.PathLike[str]) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in (".npz", ".csv"):
        raise ValueError(f"path of a spectrum must end in .npz or .csv, got {os.fspath(path)!r}")
    return suffix


def _read_csv(path: Path) -> tuple[Array, Array]:
    """Columns eigenvalue and target_coefficient; errors name the line (counted from 1) and the column."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpectrumFileError(f"{path}: not a text file ({error})") from error
    # Comments are blanked first: a quote in one must not swallow the lines after it.
    lines = ("" if line.lstrip().startswith("#") else line for line in text.split("\n"))
    reader = csv.reader(lines)
    header: list[str] | None = None
    values: list[list[float]] = []
    try:
        for row in reader:
            fields = [field.strip() for field in row]
            if not any(fields):
                continue
            if header is None:
                header = fields
                missing = [column for column in _COLUMNS if column not in header]
                if missing:
                    raise SpectrumFileError(
                        f"{path}: row {reader.line_num}: header must name the columns {' and '.join(_COLUMNS)}, "
                        f"{' and '.join(missing)} not found in {','.join(fields)!r}"
                    )
                continue
            where = f"{path}: row {reader.line_num}"
            values.append([_csv_number(where, column, fields, header.index(column)) for column in _COLUMNS])
    except csv.Error as error:
        raise SpectrumFileError(f"{path}: row {reader.line_num}: {error}") from error
    if not values:
        raise SpectrumFileError(f"{path}: no modes in the file")
    table = np.array(values)
    return table[:, 0], table[:, 1]


def _csv_number(where: str, column: str, fields: list[str], position: int) -> float:
    if position >= len(fields) or fields[position] == "":
        raise SpectrumFileError(f"{where}, column {column}: no value")
    try:
        number = float(fields[position])
    except ValueError:
        raise SpectrumFileError(f"{where}, column {column}: not a number: {fields[position]!r}") from None
    if not math.isfinite(number) or (column == "eigenvalue" and number < 0.0):
        expected = "a finite number" + (" of at least 0" if column == "eigenvalue" else "")
        raise SpectrumFileError(f"{where}, column {column}: expected {expected}, got {number!r}")
    return number
