"""Hypothesis strategies: spectra and models of every kind, small enough for brute force."""

import math

from hypothesis import strategies as st

import scalefield as sf

__all__ = ["explicit_spectra", "mode_lists", "models", "power_laws", "tasks"]


def power_laws(*, max_modes: int = 200, infinite: bool = True) -> st.SearchStrategy[sf.PowerLawSpectrum]:
    """Power laws of 1 to max_modes modes (any alpha > 0) and, if `infinite`, infinite ones (alpha > 1)."""
    betas = st.floats(0.05, 4.0)
    finite = st.builds(
        sf.PowerLawSpectrum, alpha=st.floats(0.3, 4.0), beta=betas, n_modes=st.integers(1, max_modes)
    )
    if not infinite:
        return finite
    return finite | st.builds(sf.PowerLawSpectrum, alpha=st.floats(1.05, 4.0), beta=betas)


@st.composite
def mode_lists(draw, *, max_modes: int = 30) -> tuple[list[float], list[float]]:
    """Eigenvalues and target coefficients in any order, with ties and zeros, at least one eigenvalue > 0."""
    pool = draw(st.lists(st.floats(1e-8, 100.0), min_size=1, max_size=max_modes))
    # Drawn from a pool with zero: ties and null modes are common.
    eigenvalues = draw(st.lists(st.sampled_from([0.0, *pool]), max_size=max_modes - 1))
    eigenvalues.insert(draw(st.integers(0, len(eigenvalues))), pool[0])
    coefficient = st.just(0.0) | st.floats(1e-8, 100.0) | st.floats(-100.0, -1e-8)
    coefficients = draw(st.lists(coefficient, min_size=len(eigenvalues), max_size=len(eigenvalues)))
    return eigenvalues, coefficients


def explicit_spectra(*, max_modes: int = 30) -> st.SearchStrategy[sf.Spectrum]:
    """Explicit spectra as `mode_lists` draws them."""
    return mode_lists(max_modes=max_modes).map(lambda modes: sf.Spectrum(*modes))


def tasks(*, max_modes: int = 30, infinite: bool = True) -> st.SearchStrategy[sf.PowerLawSpectrum | sf.Spectrum]:
    """Power laws and explicit spectra."""
    return power_laws(max_modes=max_modes, infinite=infinite) | explicit_spectra(max_modes=max_modes)


@st.composite
def models(draw, *, spectra: st.SearchStrategy | None = None, rich: bool = True, stable: bool = False) -> sf.Model:
    """Models on tasks of finitely many modes (or on `spectra`), of any width and batch size.

    With `stable`, the learning rate is at most 0.8 of the lazy stability bound.
    """
    sizes = st.just(math.inf) | st.integers(1, 200)
    model = sf.Model(
        draw(tasks(infinite=False) if spectra is None else spectra),
        width=draw(sizes),
        gamma=draw(st.just(0.0) | st.floats(0.01, 3.0)) if rich else 0.0,
        batch_size=draw(sizes),
        label_noise=draw(st.just(0.0) | st.floats(0.01, 1.0)),
    )
    if stable:
        return model.replace(learning_rate=draw(st.floats(0.01, 0.8)) * model.stability_bound)
    return model.replace(learning_rate=draw(st.floats(0.01, 1.0)))
