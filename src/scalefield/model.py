"""Models: what learns a task, and how (theory section 1)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy.optimize import brentq

from scalefield._validate import as_count, as_float
from scalefield.errors import StabilityWarning
from scalefield.spectrum import Task

__all__ = ["Model"]


@dataclass(frozen=True)
class Model:
    r"""A two-layer linear network on N random features of a task, trained by projected SGD.

    .. math::
        f = \tfrac{1}{N} w^T A \psi, \qquad
        w(t+1) = w(t) + \eta A(t) v_1(t), \qquad
        A(t+1) = A(t) + \eta\gamma\, w(t) \Big[\tfrac{1}{N} A(0)^T A(0) v_1(t)\Big]^T

    with v_1 = (1/B) sum_b psi_b (psi_b . v_0 + sigma eps_b) on a fresh batch each step, v_0 = w* - A^T w/N,
    A(0) standard normal and w(0) = 0. The test loss is L = sum_k lambda_k v_0k^2. Offline, at finite n_samples, the
    samples are P fixed ones: all of them each step at batch size inf, so that v_1 = (1/P) sum_mu psi_mu r_mu with the
    residuals r_mu = psi_mu . v_0 + sigma eps_mu, else batches drawn from them.

    Parameters
    ----------
    spectrum : PowerLawSpectrum or Spectrum
        The task.
    width : int or inf
        N, the number of features (default inf). Inf and whole numbers.
    gamma : float
        Richness gamma >= 0; 0 (default) is the lazy, random-feature limit.
    learning_rate : float
        eta > 0.
    batch_size : int or inf
        B, samples a step; inf (default) is population gradient descent, offline full-batch descent.
    label_noise : float
        Standard deviation sigma >= 0 of the noise on the labels (default 0).
    n_samples : int or inf
        P, the size of a data set that training reuses; inf (default) is online training on fresh samples.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If an argument is out of its range.

    References
    ----------
    Bordelon, Atanasov & Pehlevan, arXiv:2409.17858, Eqs. 2-5.

    Examples
    --------
    >>> import scalefield as sf
    >>> model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5), width=64, gamma=1.0, batch_size=32)
    >>> model.width, model.is_rich
    (64, True)
    """

    spectrum: Task
    width: float = math.inf
    gamma: float = 0.0
    learning_rate: float = 0.1
    batch_size: float = math.inf
    label_noise: float = 0.0
    n_samples: float = math.inf

    def __post_init__(self) -> None:
        if not isinstance(self.spectrum, Task):
            raise TypeError(
                "spectrum must be a PowerLawSpectrum or a Spectrum, "
                f"got {self.spectrum!r} of type {type(self.spectrum).__name__}"
            )
        object.__setattr__(self, "width", _as_size("width", self.width))
        object.__setattr__(self, "gamma", as_float("gamma", self.gamma, minimum=0.0))
        learning_rate = as_float("learning_rate", self.learning_rate, minimum=0.0, exclusive=True)
        object.__setattr__(self, "learning_rate", learning_rate)
        object.__setattr__(self, "batch_size", _as_size("batch_size", self.batch_size))
        object.__setattr__(self, "label_noise", as_float("label_noise", self.label_noise, minimum=0.0))
        object.__setattr__(self, "n_samples", _as_size("n_samples", self.n_samples))

    @property
    def is_offline(self) -> bool:
        """Whether a fixed data set is reused (n_samples finite)."""
        return not math.isinf(self.n_samples)

    @property
    def is_rich(self) -> bool:
        """Whether features are learned (gamma > 0)."""
        return self.gamma > 0.0

    @property
    def inverse_width(self) -> float:
        """1/N, 0 at infinite width."""
        return 0.0 if math.isinf(self.width) else 1.0 / self.width

    @property
    def inverse_batch_size(self) -> float:
        """1/B, 0 for the population gradient."""
        return 0.0 if math.isinf(self.batch_size) else 1.0 / self.batch_size

    @property
    def inverse_n_samples(self) -> float:
        """1/P, 0 online."""
        return 1.0 / self.n_samples if self.is_offline else 0.0

    @cached_property
    def largest_eigenvalue(self) -> float:
        r"""Upper edge s_max of the spectrum of Lambda^{1/2} A(0)^T A(0) Lambda^{1/2}/N; lambda_1 if N = inf.

        With D(kappa) = sum_k lambda_k/(kappa - lambda_k), the minimum of kappa (1 + D(kappa)/N) over
        kappa > lambda_1 (theory section 6). Population gradient descent is stable for eta s_max < 2. Offline, the
        covariance Lambda is that of the samples, and the minimum of kappa (1 + D/N) (1 + D/P) takes its place
        (theory section 7d).
        """
        return _StabilityEdge(self).at(math.inf)

    @cached_property
    def stability_bound(self) -> float:
        r"""Largest stable learning rate of the lazy dynamics.

        Below it the mean-field loss of the lazy model stays bounded:

        .. math:: \eta_{max} = 2 / [\kappa (1 + D(\kappa)/N)], \qquad
            D(\kappa) = \sum_k \lambda_k / (\kappa - \lambda_k),

        at kappa > lambda_1 the larger of the solution of D(kappa) = B and the minimiser of
        kappa (1 + D(kappa)/N). The minimiser is the condition eta s_max < 2 (`largest_eigenvalue`); D = B is
        where the SGD noise of one step feeds as much loss into the later ones as it took. Feature learning
        raises the kernel's scale, so for gamma > 0 the true bound is lower. Derived from theory section 6
        (lazy SGD formula and the explicit kappa parametrisation). Offline there is a factor (1 + D/P) beside
        (1 + D/N); for full batches that is the condition eta s_max < 2, for batches drawn from the samples D = B is
        an estimate.
        """
        return 2.0 / _StabilityEdge(self).at(self.batch_size)

    @property
    def largest_loss(self) -> float:
        """A test loss beyond this counts as divergence: 1e12 times the initial loss plus label_noise^2."""
        scale = self.spectrum.total_target_power + self.label_noise**2
        return 1e12 * (scale if scale > 0.0 else 1.0)

    def replace(self, **changes: Any) -> Model:
        """Return a copy with some parameters changed."""
        return replace(self, **changes)

    def warn_if_unstable(self) -> None:
        """Warn with `StabilityWarning` if the learning rate is beyond `stability_bound`."""
        if self.learning_rate > self.stability_bound:
            warnings.warn(
                f"learning_rate {self.learning_rate:g} is beyond the stability bound "
                f"{self.stability_bound:.6g} of the lazy dynamics: the loss will diverge",
                StabilityWarning,
                stacklevel=3,
            )

    def summary(self) -> str:
        """One line with the training parameters, for the representations of results."""
        noise = f", label noise {self.label_noise:g}" if self.label_noise else ""
        samples = f", {self.n_samples:g} samples" if self.is_offline else ""
        return (
            f"width {self.width:g}, gamma {self.gamma:g}, learning rate {self.learning_rate:g}, "
            f"batch {self.batch_size:g}{samples}{noise}"
        )

    def describe(self) -> dict[str, Any]:
        """Return plain values from which `from_description` makes an equal model."""
        return {
            "spectrum": self.spectrum.describe(),
            "width": self.width,
            "gamma": self.gamma,
            "learning_rate": self.learning_rate,
            "batch_size": self.batch_size,
            "label_noise": self.label_noise,
            "n_samples": self.n_samples,
        }

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> Model:
        """Inverse of `describe`."""
        settings = dict(description)
        return cls(spectrum=Task.from_description(settings.pop("spectrum")), **settings)


def _as_size(name: str, value: Any) -> float:
    """Return a positive integer as int, or inf."""
    if isinstance(value, (float, np.floating)) and math.isinf(value) and value > 0:
        return math.inf
    return as_count(name, value)


class _StabilityEdge:
    """kappa (1 + D/N) (1 + D/P) where stability ends; D(kappa) = sum_k lambda_k/(kappa - lambda_k)."""

    def __init__(self, model: Model) -> None:
        nodes = model.spectrum.quadrature()
        self.eigenvalues, self.weights = nodes.eigenvalues, nodes.weights
        self.inverse_width, self.inverse_n_samples = model.inverse_width, model.inverse_n_samples
        self.top = float(self.eigenvalues.max())

    def degrees(self, kappa: float) -> float:
        return float(self.weights @ (self.eigenvalues / (kappa - self.eigenvalues)))

    def slope(self, kappa: float) -> float:
        # d/dkappa [kappa (1 + D/N)] = 1 - (1/N) sum_k lambda_k^2/(kappa - lambda_k)^2, likewise with P; the product of
        # both: each slope times the other factor, less (1 + D/N) (1 + D/P), which both contain
        squares = float(self.weights @ (self.eigenvalues / (kappa - self.eigenvalues)) ** 2)
        if self.inverse_width == 0.0 or self.inverse_n_samples == 0.0:
            return 1.0 - max(self.inverse_width, self.inverse_n_samples) * squares
        degrees = self.degrees(kappa)
        features, samples = 1.0 + self.inverse_width * degrees, 1.0 + self.inverse_n_samples * degrees
        return (
            (1.0 - self.inverse_width * squares) * samples
            + (1.0 - self.inverse_n_samples * squares) * features
            - features * samples
        )

    def at(self, batch_size: float) -> float:
        """kappa (1 + D/N) (1 + D/P) at the larger kappa of slope = 0 and D = batch_size."""
        kappa = self.top
        if self.inverse_width > 0.0 or self.inverse_n_samples > 0.0:
            kappa = self._root(self.slope)
        if batch_size < math.inf:
            kappa = max(kappa, self._root(lambda value: batch_size - self.degrees(value)))
        if kappa == self.top:
            return self.top
        degrees = self.degrees(kappa)
        return kappa * (1.0 + self.inverse_width * degrees) * (1.0 + self.inverse_n_samples * degrees)

    def _root(self, function: Callable[[float], float]) -> float:
        """Zero of a function that increases on (lambda_1, inf), in the variable log(kappa/lambda_1 - 1)."""
        low, high = math.log(1e-14), 0.0
        while function(self.top * (1.0 + math.exp(high))) < 0.0:
            high += 1.0
        if function(self.top * (1.0 + math.exp(low))) >= 0.0:
            return self.top
        x = brentq(lambda u: function(self.top * (1.0 + math.exp(u))), low, high, xtol=1e-13)
        return self.top * (1.0 + math.exp(x))
