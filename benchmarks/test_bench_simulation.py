"""The simulation against plain NumPy, and its normal deviates against NumPy's.

One run on one thread, BLAS included. Every entry of a group does the same amount of work, so the numbers in
brackets are the ratios; `extra_info` has steps a second and million deviates a second.
"""

from __future__ import annotations

import numpy as np
import pytest

import scalefield as sf
from cases_simulation import MODELS, N_DEVIATES, SEED
from reference_simulation import initial_projection, losses, train
from scalefield._native import literal_steps, rng
from scalefield._threads import single_threaded_blas
from scalefield.simulation import literal


class Kernel:
    """One run of the kernel, continued call by call; A(0) is made beforehand."""

    def __init__(self, model: sf.Model, n_steps: int) -> None:
        sizes = literal._Sizes.of(model, model.spectrum.n_modes)
        self.ensemble = literal._Ensemble(model, n_steps, 1, SEED, sizes)
        self.space = literal._Workspace(sizes)
        key = rng.stream_key(SEED, rng.PROJECTION)
        literal_steps.fill_projection(*key, 0, 0, self.ensemble.stop, self.space.projection)

    def train(self) -> np.ndarray:
        self.space.reset()
        self.ensemble.train(0, self.space)
        return self.ensemble.loss[0]


class PlainNumPy:
    """Eq. 4 with A(t) itself and NumPy's generator."""

    def __init__(self, model: sf.Model, n_steps: int) -> None:
        self.model, self.n_steps = model, n_steps
        self.eigenvalues, self.target = model.spectrum.modes(0, model.spectrum.n_modes)
        self.projection = initial_projection(SEED, 0, model.width, model.spectrum.n_modes)

    def train(self) -> np.ndarray:
        model, generator = self.model, np.random.default_rng(SEED)
        roots = np.sqrt(self.eigenvalues)

        def draw(step: int) -> tuple[np.ndarray, np.ndarray]:
            return roots * generator.standard_normal((model.batch_size, roots.size)), np.zeros(model.batch_size)

        curve = train(
            self.eigenvalues, self.target, self.projection, model.learning_rate, model.gamma, draw, self.n_steps
        )
        return np.array(list(curve))


@pytest.mark.parametrize("engine", ["package", "numpy"])
@pytest.mark.parametrize("case", MODELS)
def test_training_step(benchmark, case, engine):
    model, n_steps = MODELS[case]
    # Both train the same model: same numbers in, same curve out, before anything is timed.
    np.testing.assert_allclose(sf.simulate(model, 4, seed=SEED).loss[0], losses(model, SEED, 0, 4), rtol=1e-10)
    runner = (PlainNumPy if engine == "numpy" else Kernel)(model, n_steps)
    benchmark.group = f"{n_steps} training steps, {case}"
    with single_threaded_blas():
        benchmark.pedantic(runner.train, rounds=5, warmup_rounds=1)
    if benchmark.stats is not None:
        benchmark.extra_info["steps_per_second"] = round(n_steps / benchmark.stats.stats.min, 1)


@pytest.mark.parametrize("engine", ["package", "numpy"])
@pytest.mark.parametrize("size", N_DEVIATES)
def test_normal_deviates(benchmark, size, engine):
    n = N_DEVIATES[size]
    out = np.empty(n)
    key = rng.stream_key(SEED, rng.FEATURES)
    words = [np.uint64(value) for value in (1, 2, 3, 0)]
    generator = np.random.default_rng(SEED)

    def package() -> None:
        rng.fill_normals(*key, *words, out)

    def numpy() -> None:
        generator.standard_normal(out=out)

    function = {"package": package, "numpy": numpy}[engine]
    function()
    # Different streams can only agree in law: mean and variance within 5 standard errors.
    assert abs(out.mean()) < 5.0 / np.sqrt(n)
    assert abs(out.var() - 1.0) < 5.0 * np.sqrt(2.0 / n)
    benchmark.group = f"normal deviates, {size}"
    benchmark(function)
    if benchmark.stats is not None:
        benchmark.extra_info["million_per_second"] = round(n / benchmark.stats.stats.min / 1e6, 1)
