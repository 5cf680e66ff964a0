"""Measure the spectrum that `scalefield.datasets.digits_spectrum` returns, and write it as a CSV file.

The steps, in the order of the functions below:

1. Images: scikit-learn's bundled `load_digits`, n = 1,797 images of D = 64 pixels. The mean image is
   subtracted, then each image is scaled to norm sqrt(D), so that x.x'/D is the cosine of their angle.
2. Kernel: the infinite-width NTK of a bias-free ReLU network (see `relu_ntk`), centred over the images:
   K <- H K H with H = I - 1 1^T / n. The model's features have mean 0, and so must these.
3. Modes: K / n = U diag(lambda) U^T. The features psi_k(x_mu) = sqrt(n lambda_k) U_{mu k} have mean 0 and
   variance lambda_k over the images, and the target y = sum_k w*_k psi_k has the coefficients
   w*_k = (U^T y)_k / sqrt(n lambda_k). The sign of an eigenvector is arbitrary; w*_k >= 0 fixes it.
4. Null modes (the constant is one) are dropped, eigenvalues divided by the largest and coefficients
   multiplied by its square root: the unit of time changes, the target does not.

The file is reproducible up to rounding: eigenvectors depend on the LAPACK library in the last digits.
Needs NumPy and scikit-learn. Takes a few seconds.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

Array = NDArray[np.float64]

N_HIDDEN_LAYERS = 2
OUT = Path(__file__).resolve().parents[1] / "src" / "scalefield" / "data" / "digits_spectrum.csv"


@dataclass(frozen=True)
class Measurement:
    """The spectrum of a target in the eigenbasis of a centred kernel.

    Attributes
    ----------
    eigenvalues, target_coefficients : ndarray, shape (M,)
        lambda_k, decreasing from 1, and w*_k >= 0.
    scale : float
        The largest eigenvalue of K / n before it was set to 1.
    n_dropped : int
        Number of numerically null modes left out.
    dropped_trace, dropped_power : float
        Sum of their absolute eigenvalues (relative to the largest) and the target power on them.
    """

    eigenvalues: Array
    target_coefficients: Array
    scale: float
    n_dropped: int
    dropped_trace: float
    dropped_power: float

    @property
    def target_power(self) -> Array:
        """lambda_k w*_k^2, shape (M,)."""
        return self.eigenvalues * self.target_coefficients**2


def digits_images_and_target() -> tuple[Array, Array]:
    """Return the images, shape (n, D), centred and of norm sqrt(D), and the target +-1, centred.

    The target is +1 for an even digit and -1 for an odd one, less its mean over the images.
    """
    images, labels = load_digits(return_X_y=True)
    images = images - images.mean(axis=0)
    images *= np.sqrt(images.shape[1]) / np.linalg.norm(images, axis=1, keepdims=True)
    target = np.where(labels % 2 == 0, 1.0, -1.0)
    return images, target - target.mean()


def relu_ntk(images: Array, n_hidden_layers: int = N_HIDDEN_LAYERS) -> Array:
    r"""Infinite-width NTK of a bias-free ReLU network on images of norm sqrt(D), shape (n, n).

    The network, with L hidden layers of width N and all weights iid standard normal, is

    .. math::
        h^1 = W^0 x / \sqrt{D}, \quad h^{l+1} = W^l \phi(h^l) / \sqrt{N}, \quad
        f = w \cdot \phi(h^L) / N, \quad \phi(h) = \sqrt{2} \max(h, 0),

    (mean-field readout, gradient step proportional to N; He normalisation of the activations) and the
    sum over all weights of N df/dW df'/dW tends to Theta^L in the recursion

    .. math::
        \rho^0 = \Theta^0 = x \cdot x' / D, \quad \rho^{l+1} = \kappa_1(\rho^l), \quad
        \Theta^{l+1} = \kappa_1(\rho^l) + \kappa_0(\rho^l) \Theta^l,

    with the arc-cosine functions :math:`\kappa_0(\rho) = 1 - \arccos(\rho) / \pi` and
    :math:`\kappa_1(\rho) = \rho \kappa_0(\rho) + \sqrt{1 - \rho^2} / \pi`. On the diagonal
    :math:`\rho^l = 1` and :math:`\Theta^L = L + 1`.
    """
    rho = np.clip(images @ images.T / images.shape[1], -1.0, 1.0)
    np.fill_diagonal(rho, 1.0)
    ntk = rho
    for _ in range(n_hidden_layers):
        kappa_0 = 1.0 - np.arccos(rho) / np.pi
        rho = rho * kappa_0 + np.sqrt(1.0 - rho**2) / np.pi
        # Rounding may put kappa_1 just above 1, outside the domain of the next layer.
        rho = np.minimum(rho, 1.0)
        ntk = rho + kappa_0 * ntk
    return ntk


def measure(kernel: Array, target: Array) -> Measurement:
    """Spectrum of a centred target in the eigenbasis of a kernel, which is centred here.

    Modes with eigenvalues below n eps times the largest are rounding errors and are dropped.
    """
    n = target.size
    row_means = kernel.mean(axis=0)
    centred = kernel - row_means[:, None] - row_means[None, :] + row_means.mean()
    eigenvalues, vectors = np.linalg.eigh(centred / n)
    eigenvalues, projections = eigenvalues[::-1], np.abs(vectors.T @ target)[::-1] / np.sqrt(n)
    scale = eigenvalues[0]
    kept = eigenvalues > n * np.finfo(np.float64).eps * scale
    return Measurement(
        eigenvalues=eigenvalues[kept] / scale,
        # w*_k sqrt(lambda_k) = |U^T y|_k / sqrt(n)
        target_coefficients=projections[kept] / np.sqrt(eigenvalues[kept] / scale),
        scale=float(scale),
        n_dropped=int(np.sum(~kept)),
        dropped_trace=float(np.sum(np.abs(eigenvalues[~kept])) / scale),
        dropped_power=float(np.sum(projections[~kept] ** 2)),
    )


def write_csv(path: Path, measurement: Measurement, n_images: int) -> None:
    """Write the modes under comment lines that say where they come from."""
    target_power = measurement.target_power.sum() + measurement.dropped_power
    comments = f"""\
Spectrum of the infinite-width ReLU NTK on handwritten digits; target: even digit or odd.
Data: load_digits of scikit-learn, {n_images} images of 8 x 8 pixels. Origin: E. Alpaydin & C. Kaynak, Optical
  Recognition of Handwritten Digits, UCI Machine Learning Repository (1998), doi:10.24432/C50P49, CC BY 4.0.
Images: mean image subtracted, then each image scaled to norm sqrt(64).
Kernel: NTK of a bias-free ReLU network with {N_HIDDEN_LAYERS} hidden layers (He normalisation, diagonal
  {N_HIDDEN_LAYERS + 1}), by the arc-cosine recursion; Gram matrix centred, divided by the number of images.
Target: +1 for an even digit, -1 for an odd one, less its mean; coefficients >= 0 by choice of sign.
Scale: eigenvalues divided by the largest, {measurement.scale:.10g}; coefficients times its square root.
Dropped: numerically null modes (below n eps times the largest; the constant is one): {measurement.n_dropped},
  carrying {measurement.dropped_power:.0e} of the target power {target_power:.10g}.
Written by tools/measure_digits_spectrum.py."""
    rows = zip(measurement.eigenvalues.tolist(), measurement.target_coefficients.tolist(), strict=True)
    lines = [*(f"# {line}" for line in comments.splitlines()), "eigenvalue,target_coefficient"]
    lines += [f"{eigenvalue!r},{coefficient!r}" for eigenvalue, coefficient in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def fitted_slopes(measurement: Measurement, first: int = 10, last: int = 100) -> tuple[float, float]:
    """Return alpha and alpha beta, by least squares at log-spaced k in the window.

    lambda_k ~ k^-alpha and sum_{l > k} lambda_l w*_l^2 ~ k^-(alpha beta).
    """
    k = np.unique(np.geomspace(first, last, 40).astype(int))
    tail = np.cumsum(measurement.target_power[::-1])[::-1]
    alpha = -np.polyfit(np.log(k), np.log(measurement.eigenvalues[k - 1]), 1)[0]
    alpha_beta = -np.polyfit(np.log(k), np.log(tail[k]), 1)[0]
    return float(alpha), float(alpha_beta)


def main() -> None:
    """Measure, write and print a summary."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=OUT, help="CSV file to write (default: %(default)s)")
    path = parser.parse_args().out

    images, target = digits_images_and_target()
    measurement = measure(relu_ntk(images), target)
    write_csv(path, measurement, n_images=target.size)

    eigenvalues = measurement.eigenvalues
    alpha, alpha_beta = fitted_slopes(measurement)
    print(f"{path}: {eigenvalues.size} modes of {target.size} images")
    print(f"dropped        {measurement.n_dropped}, target power {measurement.dropped_power:.1e}")
    print(f"eigenvalues    {np.array2string(eigenvalues[:6], precision=4)} ... {eigenvalues[-1]:.3g}")
    print(f"trace          {eigenvalues.sum():.6g} (unit: {measurement.scale:.6g})")
    print(f"target power   {measurement.target_power.sum():.12g} (variance of y {target.var():.12g})")
    print(f"slopes         alpha {alpha:.3f}, beta {alpha_beta / alpha:.3f} over modes 10-100")


if __name__ == "__main__":
    main()
