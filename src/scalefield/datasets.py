"""Spectra measured on real data, shipped with the package."""

from __future__ import annotations

from importlib.resources import as_file, files

from scalefield.spectrum import Spectrum

__all__ = ["digits_spectrum"]


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
