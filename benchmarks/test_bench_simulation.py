"""The simulation against plain NumPy, and its normal deviates against NumPy's.

One run; the package and NumPy's BLAS use the threads they find (one deviate after the other is drawn on one thread by
both). What a run makes once, A(0) or its reduction, is made beforehand. Every entry of a group does the same amount of
work, so the numbers in brackets are the ratios; `extra_info` has milliseconds a step and million deviates a second.

The plain versions: "numpy" is Eq. 4 with A(t) itself, "numpy, G" keeps A(t) = G(t) A(0), the cheaper form of the same
step, and "numpy, reduced" is section 8. From "numpy, G" to "numpy, reduced" is the gain of the algorithm, from there to
the package that of the kernels.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pytest

import scalefield as sf
from cases_simulation import LITERAL, LITERAL_OFFLINE, N_DEVIATES, REDUCED, SEED, SETUP
from reference_offline import data_set
from reference_simulation import REDUCED as REDUCED_STREAM
from reference_simulation import REST as REST_STREAM
from reference_simulation import initial_projection, losses, normals, stream_key, train
from scalefield._native import rng
from scalefield._threads import single_threaded_blas, thread_count
from scalefield.simulation.literal import Literal
from scalefield.simulation.offline import LiteralOffline
from scalefield.simulation.plan import Plan
from scalefield.simulation.reduced import Reduced
from scalefield.simulation.reduction import Reduction, reduce_projection
from scalefield.simulation.samples import batches_of

Draw = Callable[[int], tuple[np.ndarray, np.ndarray]]


class Package:
    """One run, made ready, whose steps are taken from the start again and again."""

    def __init__(self, model: sf.Model, n_steps: int, method: str, dtype: str) -> None:
        plan = Plan(model, n_steps, 1, SEED, method, np.arange(n_steps + 1), np.dtype(dtype))
        literal = LiteralOffline if model.is_offline else Literal
        shared = {"literal": literal, "reduced": Reduced}[method](plan, np.zeros(1, dtype=np.uint8))
        shared.allocate()
        self.worker, self.n_steps = shared.worker(), n_steps
        with single_threaded_blas():
            assert self.worker.start(0)
        self.initial = {name: array.copy() for name, array in self.worker.state.items()}

    def train(self, *, observed: bool = False) -> np.ndarray:
        """The steps in one call, or with the train loss of each."""
        for name, array in self.worker.state.items():
            array[...] = self.initial[name]
        loss = np.empty(self.n_steps)
        if observed:
            for t in range(self.n_steps):
                self.worker.observe()
                assert self.worker.advance(0, t, t + 1, loss[t:]) == (0, t + 1)
            return loss
        status, step = self.worker.advance(0, 0, self.n_steps, loss)
        assert (status, step) == (0, self.n_steps)
        return loss


class PlainNumPy:
    """Eq. 4 with A(t) itself and NumPy's generator."""

    def __init__(self, model: sf.Model, n_steps: int) -> None:
        self.model, self.n_steps = model, n_steps
        self.eigenvalues, self.target = model.spectrum.modes(0, model.spectrum.n_modes)
        self.projection = initial_projection(SEED, 0, model.width, model.spectrum.n_modes)

    def draws(self) -> Draw:
        generator, roots, batch = np.random.default_rng(SEED), np.sqrt(self.eigenvalues), self.model.batch_size
        return lambda step: (roots * generator.standard_normal((batch, roots.size)), np.zeros(batch))

    def start(self) -> Iterator[float]:
        """The run up to its first loss: A(t) is a copy of A(0), which is no part of a step."""
        model = self.model
        curve = train(
            self.eigenvalues,
            self.target,
            self.projection,
            model.learning_rate,
            model.gamma,
            self.draws(),
            self.n_steps,
        )
        next(curve)
        return curve

    def train(self, curve: Iterator[float]) -> None:
        """Take n_steps steps, each with the loss after it."""
        for _ in range(self.n_steps):
            next(curve)


class PlainMixing(PlainNumPy):
    """The same step with A(t) = G(t) A(0): two passes over A(0), none of them writing."""

    def start(self) -> None:
        """Nothing: G is made with the run."""

    def train(self, _: None = None) -> np.ndarray:
        model, a, draw = self.model, self.projection, self.draws()
        w, g, curve = np.zeros(model.width), np.eye(model.width), []
        for step in range(self.n_steps):
            v0 = self.target - a.T @ (g.T @ w / model.width)
            curve.append(np.sum(self.eigenvalues * v0**2))
            psi, noise = draw(step)
            v2 = a @ (psi.T @ (psi @ v0 + noise) / noise.size)
            w, g = advance(model, w, g, v2)
        return np.array(curve)


def advance(model: sf.Model, w: np.ndarray, g: np.ndarray, v2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """w + eta G v2 and G + (eta gamma/N) w v2^T, in place; G = 1 if lazy."""
    if model.gamma == 0.0:
        return w + model.learning_rate * v2, g
    step = model.learning_rate * (g @ v2)
    g += np.outer((model.learning_rate * model.gamma / model.width) * w, v2)
    return w + step, g


class PlainReduced:
    """Section 8 with NumPy's generator, or the package's streams."""

    def __init__(self, model: sf.Model, n_steps: int, reduction: Reduction, dtype: str) -> None:
        self.model, self.n_steps, self.dtype, self.rest = model, n_steps, np.dtype(dtype).type, reduction.rest
        self.root, self.c = np.sqrt(reduction.eigenvalues).astype(dtype), reduction.c.astype(dtype)

    def draws(self) -> Draw:
        generator, shape = np.random.default_rng(SEED), (self.model.batch_size, self.root.size)
        return lambda step: (
            generator.standard_normal(shape, dtype=self.dtype),
            generator.standard_normal(shape[0], dtype=self.dtype),
        )

    def streams(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The deviates of the package's run 0."""
        batch = self.model.batch_size
        z = normals(stream_key(SEED, REDUCED_STREAM), self.root.size, np.arange(batch), step, 0)
        return z, normals(stream_key(SEED, REST_STREAM), batch, 0, step, 0)

    def train(self, draw: Draw | None = None) -> np.ndarray:
        model, root, n = self.model, self.root, self.root.size
        draw = self.draws() if draw is None else draw
        w, g = np.zeros(n, dtype=self.dtype), np.eye(n if model.gamma > 0.0 else 0, dtype=self.dtype)
        rest, curve = self.dtype(self.rest), []
        for step in range(self.n_steps):
            theta = (g.T @ w if model.gamma > 0.0 else w) / self.dtype(model.width)
            d = self.c - root * theta
            curve.append(d @ d + rest**2)
            z, xi = draw(step)
            v2 = root * (z.T @ (z @ d + rest * xi)) / self.dtype(model.batch_size)
            w, g = advance(model, w, g, v2)
        return np.array(curve)


def time_training(benchmark, runner, n_steps: int, rounds: int = 5) -> None:
    benchmark.pedantic(runner.train, rounds=rounds, warmup_rounds=1)
    if benchmark.stats is not None:
        benchmark.extra_info["ms_per_step"] = round(1e3 * benchmark.stats.stats.min / n_steps, 4)
        benchmark.extra_info["threads"] = thread_count()


@pytest.mark.parametrize("engine", ["package", "numpy", "numpy, G"])
@pytest.mark.parametrize("case", LITERAL)
def test_literal_step(benchmark, case, engine):
    model, n_steps = LITERAL[case]
    if engine == "package":
        runner = Package(model, n_steps, "literal", "float64")
        # Both train the same model: same numbers in, same curve out, before anything is timed.
        np.testing.assert_allclose(runner.train()[:4], losses(model, SEED, 0, 3), rtol=1e-10)
    else:
        runner = {"numpy": PlainNumPy, "numpy, G": PlainMixing}[engine](model, n_steps)
    benchmark.group = f"{n_steps} literal steps, {case}"
    if engine == "package":
        time_training(benchmark, runner, n_steps)
    else:
        benchmark.pedantic(runner.train, setup=lambda: ((runner.start(),), {}), rounds=5, warmup_rounds=1)


class PlainOffline(PlainMixing):
    """The run of the package: all samples, or its batches of them."""

    def __init__(self, model: sf.Model, n_steps: int) -> None:
        super().__init__(model, n_steps)
        self.samples, noise = data_set(SEED, model.n_samples, self.eigenvalues)
        self.noise = model.label_noise * noise
        plan = Plan(model, n_steps, 1, SEED, "literal", np.arange(n_steps + 1), np.dtype(np.float64))
        self.batches = batches_of(plan, 0, 0, n_steps)

    def draws(self) -> Draw:
        if self.batches.size == 0:
            return lambda step: (self.samples, self.noise)
        return lambda step: (self.samples[self.batches[step]], self.noise[self.batches[step]])


@pytest.mark.parametrize("engine", ["package", "package, one thread", "package, train loss", "numpy, G"])
@pytest.mark.parametrize("case", LITERAL_OFFLINE)
def test_literal_offline_step(benchmark, monkeypatch, case, engine):
    """With the train loss of every step as well, which at B = inf the step itself needs."""
    model, n_steps = LITERAL_OFFLINE[case]
    plain = PlainOffline(model, n_steps)
    benchmark.group = f"{n_steps} literal steps offline, {case}"
    if engine == "numpy, G":
        time_training(benchmark, plain, n_steps)
        return
    if engine == "package, one thread":
        monkeypatch.setenv("SCALEFIELD_NUM_THREADS", "1")
    package, observed = Package(model, n_steps, "literal", "float64"), engine == "package, train loss"
    np.testing.assert_allclose(package.train(observed=observed), plain.train(), rtol=1e-10)
    with single_threaded_blas():
        benchmark.pedantic(package.train, kwargs={"observed": observed}, rounds=5, warmup_rounds=1)
    if benchmark.stats is not None:
        benchmark.extra_info["ms_per_step"] = round(1e3 * benchmark.stats.stats.min / n_steps, 4)
        benchmark.extra_info["threads"] = package.worker.shared.threads_per_run


@cache
def reduced_package(case: str) -> Package:
    model, n_steps, dtype, _ = REDUCED[case]
    return Package(model, n_steps, "reduced", dtype)


@pytest.mark.parametrize(
    ("case", "engine"),
    [
        pytest.param(case, engine, id=f"{case}-{engine}")
        for case, (_, _, _, naive) in REDUCED.items()
        for engine in ("package", "numpy, reduced", *(["numpy, G"] if naive else []))
    ],
)
def test_reduced_step(benchmark, case, engine):
    model, n_steps, dtype, _ = REDUCED[case]
    package = reduced_package(case)
    reduced = PlainReduced(model, n_steps, package.worker.reduction, dtype)
    if engine == "package":
        # The streams' deviates cost NumPy a second a million: three steps. Single precision rounds the weights.
        start = PlainReduced(model, 3, package.worker.reduction, dtype)
        expected = start.train(start.streams)
        np.testing.assert_allclose(package.train()[:3], expected, rtol=1e-9 if dtype == "float64" else 1e-4)
    runner = {"package": package, "numpy, reduced": reduced}.get(engine)
    benchmark.group = f"{n_steps} reduced steps, {case}"
    if runner is None:
        runner = PlainMixing.__new__(PlainMixing)
        runner.model, runner.n_steps = model, n_steps
        runner.eigenvalues, runner.target = model.spectrum.modes(0, model.spectrum.n_modes)
        # The reference's deviates would take minutes.
        runner.projection = np.random.default_rng(SEED).standard_normal((model.width, model.spectrum.n_modes))
    time_training(benchmark, runner, n_steps, rounds=1 if engine == "numpy, G" else 5)


def plain_setup(spectrum: sf.PowerLawSpectrum, width: int) -> tuple[np.ndarray, np.ndarray]:
    """S = A(0) Lambda A(0)^T and its eigenvalues, in blocks too, with NumPy's generator."""
    generator, covariance = np.random.default_rng(SEED), np.zeros((width, width))
    for first in range(0, spectrum.n_modes, 4096):
        eigenvalues, _ = spectrum.modes(first, min(first + 4096, spectrum.n_modes))
        rows = np.sqrt(eigenvalues)[:, None] * generator.standard_normal((eigenvalues.size, width))
        covariance += rows.T @ rows
    return np.linalg.eigh(covariance)


@pytest.mark.parametrize("engine", ["package", "numpy"])
@pytest.mark.parametrize("case", SETUP)
def test_setup(benchmark, case, engine):
    """What a reduced run makes once, and the memory it takes at its most."""
    spectrum, width = SETUP[case]

    def package() -> np.ndarray:
        with single_threaded_blas():
            none, stop = np.zeros(0, dtype=np.int64), np.zeros(1, dtype=np.uint8)
            return reduce_projection(spectrum, width, SEED, 0, thread_count(), none, stop).eigenvalues

    function = package if engine == "package" else lambda: plain_setup(spectrum, width)[0][::-1]
    benchmark.group = f"set-up, {case}"
    tracemalloc.start()
    try:
        eigenvalues = benchmark.pedantic(function, rounds=1)
        benchmark.extra_info["peak_megabytes"] = round(tracemalloc.get_traced_memory()[1] / 1e6)
    finally:
        tracemalloc.stop()
    # tr S = sum_k lambda_k |a_k|^2, of mean N sum lambda and variance 2 N sum lambda^2: within 5 standard errors.
    lam, _ = spectrum.modes(0, spectrum.n_modes)
    assert abs(eigenvalues.sum() - width * lam.sum()) < 5.0 * np.sqrt(2.0 * width * (lam**2).sum())


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
