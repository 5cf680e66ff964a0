r"""The closure hierarchy: SGD on a spectral measure without memory of the past (theory sections 7b and 7c).

Order 0 keeps the balance law of gradient flow, O(Q) a step; order 1 its defect E between means, O(Q^2), exact at
infinite batch; order 2 also between means and noise, O(Q^2 + Q r^2) with r functions of a basis. What order 2 drops
is of second order in the SGD noise. All are exact for gamma = 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scalefield._threads import single_threaded_blas
from scalefield.spectral_measure import SpectralMeasure

__all__ = ["Closure", "ClosureRecords", "source_basis"]

Array = NDArray[np.float64]

# Steps at which the functions of the mean index are looked at for their basis: all of the first ones, in which high
# modes are learned and may oscillate, then so many a decade.
_FIRST_STEPS = 20
_STEPS_PER_DECADE = 16
_CHUNK = 10_000

# Relative accuracy eps of these functions over sqrt(rtol). Errors of stable runs were at most 2e-2 eps^2, over widths
# 8 to 512, batches 1 to 64, gamma 0.3 to 20, label noise 0 to 1, and power laws of several exponents.
_ACCURACY = 4.0


@dataclass(frozen=True, eq=False)
class ClosureRecords:
    """The curve at the recorded steps.

    Attributes
    ----------
    steps : ndarray of int64, shape (n,)
        Recorded steps, those before a divergence if there was one.
    loss : ndarray of float64, shape (n,)
        Test loss.
    growth : ndarray of float64, shape (n,)
        q = |w|^2/N.
    kernel_scale : ndarray of float64, shape (n,)
        1 + gamma q.
    effective_time : ndarray of float64, shape (n,)
        Sum of learning_rate (1 + gamma q) over the steps before.
    diverged_at : int or None
        Step whose loss left the finite range.
    """

    steps: NDArray[np.int64]
    loss: Array
    growth: Array
    kernel_scale: Array
    effective_time: Array
    diverged_at: int | None


class Closure:
    """State of a run, advanced by `run_to`.

    Parameters
    ----------
    measure : SpectralMeasure
        Source and trace nodes.
    order : int
        0, 1 or 2.
    learning_rate, gamma, inverse_batch, noise_power : float
        eta, gamma, 1/B and sigma^2.
    largest_loss : float
        A loss beyond it counts as divergence.
    basis : ndarray, shape (r, Q_source), optional
        For order 2 the functions of the mean index in which E is kept, orthonormal with weights mu_i s_i, from
        `source_basis`; default all functions, r = Q_source (4 r^2 Q bytes). Orders 0 and 1 need none.

    Attributes
    ----------
    order : int
        As given.
    step : int
        Steps done.
    diverged : bool
        Whether the loss has left the finite range, at `step`.
    run : ClosureRun
        Nodes, in blocks of LANES with nodes of mass 0 at the end, and settings, as kernels take them.
    """

    def __init__(
        self,
        measure: SpectralMeasure,
        *,
        order: int,
        learning_rate: float,
        gamma: float,
        inverse_batch: float = 0.0,
        noise_power: float = 0.0,
        largest_loss: float = np.inf,
        basis: Array | None = None,
    ) -> None:
        from scalefield._native.closure_steps import FIELD_WORK, LANES, LOSS, SCALARS, SOURCE_WORK, VV, ClosureRun

        self.order = order
        self.step = 0
        self.diverged = False

        s, mu = _padded(measure.source_eigenvalues, measure.source_power, LANES)
        x, rho = _padded(measure.eigenvalues, measure.weights, LANES)
        gain = mu * s
        self._n_source = measure.source_eigenvalues.size
        self.run = ClosureRun(
            learning_rate=float(learning_rate),
            gamma=float(gamma),
            inverse_batch=float(inverse_batch),
            noise_power=float(noise_power),
            atom=float(measure.atom),
            threshold=float(largest_loss),
            eigenvalues=s,
            power=mu,
            gain=gain,
            noise_eigenvalues=x,
            noise_weights=rho * x,
            noise_gain=rho * x**2,
        )
        self._variance = np.zeros(x.size)
        # p = 0 and v = 1
        self._scalars = np.zeros(SCALARS)
        self._scalars[LOSS], self._scalars[VV] = mu.sum() + measure.atom, gain.sum()
        # The defect stays 0 without feature learning, and its noise without noise.
        self._balanced = order == 0 or gamma == 0.0
        if self._balanced:
            self._means = (np.zeros(s.size), np.ones(s.size))
            return
        if order < 2 or inverse_batch == 0.0:
            basis = np.zeros((0, self._n_source))
        elif basis is None:
            basis = _whole_basis(gain[: self._n_source])
        r = len(basis)
        functions = np.zeros((r, s.size))
        functions[:, : self._n_source] = basis
        self._basis = (functions, functions * gain)
        self._means = (np.zeros(s.size), np.ones(s.size))
        self._product = np.zeros(s.size)
        self._defect = np.zeros((s.size, s.size))
        self._noise = (np.zeros((r, x.size)), np.zeros((r, x.size)), np.zeros((r * (r + 1) // 2, x.size)))
        self._work = (np.zeros((SOURCE_WORK, s.size)), np.zeros((FIELD_WORK, r)), np.zeros((2 + 3 * r, x.size)))

    @property
    def means(self) -> tuple[Array, Array]:
        """Mean pbar_i and residual 1 - s_i pbar_i at the source nodes."""
        p, v = (array[: self._n_source].copy() for array in self._means)
        if self._balanced:
            # Order 0 carries s pbar.
            p /= self.run.eigenvalues[: self._n_source]
        return p, v

    @property
    def balanced_state(self) -> tuple[Array, Array, float, float]:
        """Of order 0: 1 - y and V at the nodes of `run`, q, and the effective time."""
        from scalefield._native.closure_steps import GROWTH, TIME

        state = self._means[1].copy(), self._variance.copy()
        return *state, float(self._scalars[GROWTH]), float(self._scalars[TIME])

    @property
    def sharpness(self) -> float:
        r"""Learning rate times the largest eigenvalue of the kernel, after features have moved.

        .. math:: \eta\, \lambda_{max}\left( s^{1/2} (a + E + \kappa \bar p \bar p^T) s^{1/2} \right), \qquad
            a = 1 + \gamma q + \eta\gamma c

        with the mean of E for orders 1 and 2. Beyond 2, what was learned grows again from any small error, and the
        loss depends on rounding from a while later on. O(Q_source^3).
        """
        from scalefield._native.closure_steps import GROWTH, PV

        learning_rate, gamma, n = self.run.learning_rate, self.run.gamma, self._n_source
        s, gain = self.run.eigenvalues[:n], self.run.gain[:n]
        q, overlap = self._scalars[GROWTH], self._scalars[PV]
        # In the coordinates sqrt(k) x the inner product of means is the plain one.
        p = np.sqrt(gain) * self.means[0]
        moved = gamma / (1.0 + gamma * q) * np.outer(p, p)
        if not self._balanced:
            moved += np.sqrt(np.outer(gain, gain)) * self._defect[:n, :n]
        moved[np.diag_indices(n)] += 1.0 + gamma * (q + learning_rate * overlap)
        kernel = np.sqrt(np.outer(s, s)) * moved
        with single_threaded_blas():
            return learning_rate * float(np.linalg.eigvalsh(kernel)[-1])

    def run_to(self, step: int, record_steps: NDArray[np.int64]) -> ClosureRecords:
        """Advance to `step` and return what was found at `record_steps`, increasing from the present step on.

        A run done in several calls equals one done in a single call bit by bit. Each call costs microseconds
        besides its steps.
        """
        from scalefield._native.closure_steps import CURVES, DIVERGED, advance_balanced, advance_defect

        # A copy: kernels take writable arrays only.
        record_steps = np.array(record_steps, dtype=np.int64)
        records = np.zeros((len(CURVES), record_steps.size))
        if self._balanced:
            status, reached = advance_balanced(
                self.step,
                step,
                self.run[:],
                *self._means,
                self._variance,
                self._scalars,
                records,
                record_steps,
            )
        else:
            status, reached = advance_defect(
                self.step,
                step,
                self.run[:],
                *self._basis,
                *self._means,
                self._product,
                self._defect,
                self._variance,
                *self._noise,
                self._scalars,
                *self._work,
                records,
                record_steps,
            )
        self.step = reached
        self.diverged = status == DIVERGED
        kept = record_steps < reached if self.diverged else np.ones(record_steps.size, dtype=np.bool_)
        loss, growth, time = records[:, kept]
        return ClosureRecords(
            steps=record_steps[kept],
            loss=loss,
            growth=growth,
            kernel_scale=1.0 + self.run.gamma * growth,
            effective_time=time,
            diverged_at=reached if self.diverged else None,
        )


def source_basis(
    measure: SpectralMeasure,
    n_steps: int,
    *,
    learning_rate: float,
    gamma: float,
    inverse_batch: float = 0.0,
    noise_power: float = 0.0,
    largest_loss: float = np.inf,
    rtol: float = 1e-6,
) -> Array:
    r"""Functions of the mean index that represent a run of order 2 over `n_steps`.

    What E holds as a function of the mean index are combinations of pbar(t) and 1 - s pbar(t). A run of order 1
    shows them closely enough; the leading singular vectors are kept.

    Parameters
    ----------
    measure, learning_rate, gamma, inverse_batch, noise_power, largest_loss
        As for `Closure`.
    n_steps : int
        Horizon of the run.
    rtol : float
        Error of the loss aimed at, relative to it.

    Returns
    -------
    ndarray, shape (r, Q_source)
        Basis for `Closure`.

    Notes
    -----
    The cost is that of the steps of order 1, a quarter or less of those of order 2. Means are both what E acts on
    and what it is built of: its projection onto a space that contains them to a relative accuracy eps changes the
    loss by order eps^2 only, of what order 2 changes at all. Runs past `Closure.sharpness` 2 are as sensitive to it
    as to any small error.
    """
    closure = Closure(
        measure,
        order=1,
        learning_rate=learning_rate,
        gamma=gamma,
        inverse_batch=inverse_batch,
        noise_power=noise_power,
        largest_loss=largest_loss,
    )
    root_gain = np.sqrt(measure.source_eigenvalues * measure.source_power)
    present = root_gain > 0.0
    functions: list[Array] = []
    for step in _log_spaced_steps(n_steps):
        # In chunks of milliseconds, after which Ctrl-C is heard.
        while closure.step < step and not closure.diverged:
            closure.run_to(min(step, closure.step + _CHUNK), np.zeros(0, dtype=np.int64))
        if closure.diverged:
            break
        for function in closure.means:
            vector = root_gain * function
            size = np.linalg.norm(vector)
            if 0.0 < size < np.inf:
                functions.append(vector / size)
    basis = np.zeros((0, root_gain.size))
    if present.any() and functions:
        # One thread, so that results do not depend on their number.
        with single_threaded_blas():
            _, values, vectors = np.linalg.svd(np.array(functions)[:, present], full_matrices=False)
        kept = vectors[values > _ACCURACY * np.sqrt(rtol) * values[0]]
        basis = np.zeros((len(kept), root_gain.size))
        basis[:, present] = kept / root_gain[present]
    return basis


def _log_spaced_steps(n_steps: int) -> list[int]:
    count = int(_STEPS_PER_DECADE * np.log10(max(n_steps, 1))) + 2
    later = np.geomspace(1.0, max(n_steps, 1), count).round().astype(np.int64)
    return [int(step) for step in np.union1d(np.arange(min(_FIRST_STEPS, n_steps) + 1), later) if step <= n_steps]


def _padded(nodes: Array, masses: Array, multiple: int) -> tuple[Array, Array]:
    """Repeat the last node without mass until their number is a multiple."""
    missing = -nodes.size % multiple
    return np.pad(nodes, (0, missing), mode="edge"), np.pad(masses, (0, missing))


def _whole_basis(gain: Array) -> Array:
    """One function a source node, orthonormal with weights `gain`; nodes without mass have none."""
    present = gain > 0.0
    basis: Array = np.eye(gain.size)[present] / np.sqrt(gain[present])[:, None]
    return basis
