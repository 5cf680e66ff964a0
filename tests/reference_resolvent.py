r"""The deterministic equivalent in 100 digits: kappa from its equation, resolvents, learning curves of lazy models."""

import mpmath
import numpy as np

import scalefield as sf


def modes_of(spectrum):
    """Eigenvalues and u^2 of all modes with positive eigenvalue."""
    if isinstance(spectrum, sf.Spectrum):
        positive = spectrum.eigenvalues > 0.0
        return spectrum.eigenvalues[positive], spectrum.target_power[positive]
    eigenvalues, coefficients = spectrum.modes(0, spectrum.n_modes)
    return eigenvalues, eigenvalues * coefficients**2


def cubed_uniform(seed, last):
    """Eigenvalues u^3 of 61 drawn u, the last one as it is or `last` times the largest, and w* = 1."""
    eigenvalues = np.random.default_rng(seed).random(61) ** 3
    if last is not None:
        eigenvalues[-1] = last * eigenvalues.max()
    return sf.Spectrum(eigenvalues, np.ones(61))


def precise_resolvents(equivalent, points):
    """Source and trace resolvents in 100 digits: Newton's method on z(kappa) = z from the rounded root.

    The root is the only one with Im kappa > 0 where Im z > 0, and with z'(kappa) > 0 at kappa > 0 where z > 0.
    """
    lam, power = modes_of(equivalent.spectrum)
    with mpmath.workdps(100):
        lam, power = [mpmath.mpf(float(x)) for x in lam], [mpmath.mpf(float(x)) for x in power]
        width = mpmath.mpf(float(equivalent.width))
        result = []
        for point in points:
            rounded = complex(point) if point.imag else float(point.real)
            z, kappa = mpmath.mpmathify(point), mpmath.mpmathify(equivalent.kappa(rounded))
            for _ in range(100):
                learned = [x / (kappa + x) for x in lam]
                slope = 1 - mpmath.fsum(f * f for f in learned) / width
                step = (kappa * (1 - mpmath.fsum(learned) / width) - z) / slope
                kappa -= step
                if abs(step) <= mpmath.mpf(10) ** -60 * abs(kappa):
                    break
            else:
                raise AssertionError(f"no root at z = {point}")
            assert kappa.imag > 0 if point.imag else (kappa.real > 0 and slope.real > 0)
            inverse = [1 / (kappa + x) for x in lam]
            source = kappa / z * mpmath.fsum(u * f for u, f in zip(power, inverse, strict=True))
            trace = kappa / z * mpmath.fsum(inverse) - max(len(lam) - width, 0) / z
            result.append((source, trace))
        return result


def precise_learning_curve(equivalent, tau, n_points=28):
    """mu(e^{-2 s tau}), the loss of lazy flow, by Talbot's contour: right to 10^(-0.6 n_points) of the total."""
    with mpmath.workdps(100):
        angle = [(2 * j + 1) * mpmath.pi / n_points for j in range(n_points // 2)]
        a, b, c = mpmath.mpf("0.5017"), mpmath.mpf("0.6407"), mpmath.mpf("0.2645")
        shape = [n_points * mpmath.mpc(a * u * mpmath.cot(b * u) - mpmath.mpf("0.6122"), c * u) for u in angle]
        slope = [mpmath.mpc(a * (mpmath.cot(b * u) - b * u / mpmath.sin(b * u) ** 2), c) for u in angle]
        curve = []
        for time in (2.0 * np.asarray(tau)).tolist():
            # mu(f) = (1/(2 pi i)) int e^{z time} R(z) dz
            resolvents = precise_resolvents(equivalent, [w / time for w in shape])
            terms = [mpmath.im(mpmath.exp(w) * r[0] * u) for w, r, u in zip(shape, resolvents, slope, strict=True)]
            curve.append(float(2 * mpmath.fsum(terms) / time))
        return curve
