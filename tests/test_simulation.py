"""The simulation against plain NumPy and closed forms.

The reference trains A(t) itself by Eq. 4 with the same random numbers, so agreement also checks that A(t) =
G(t) A(0). Both sides take sums of up to 10^3 terms in different orders over at most 60 steps of a stable
iteration, which leaves some 1e-13; 1e-10 is asked for.
"""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import scalefield as sf
from reference_simulation import batches, initial_projection, losses, train
from scalefield import _ensemble as ensemble
from scalefield import _memory
from scalefield._native import literal_steps
from scalefield.errors import (
    DivergenceError,
    InsufficientMemoryError,
    Interrupted,
    ScalefieldError,
    StabilityWarning,
)
from scalefield.simulation import literal
from scalefield.simulation.plan import Plan

# What this file is about; reduced runs have their own.
simulate = partial(sf.simulate, method="literal", record="all")

TASK = sf.PowerLawSpectrum(1.5, 0.5, n_modes=150)


def make(**changes) -> sf.Model:
    settings = {"width": 24, "gamma": 1.0, "learning_rate": 0.2, "batch_size": 16, **changes}
    return sf.Model(settings.pop("spectrum", TASK), **settings)


@pytest.mark.parametrize("gamma", [0.0, 0.7, 3.0])
@pytest.mark.parametrize("batch_size", [1, 7, 16, math.inf])
@pytest.mark.parametrize("label_noise", [0.0, 0.5])
def test_against_explicit_projection(gamma, batch_size, label_noise):
    model = make(gamma=gamma, batch_size=batch_size, label_noise=label_noise, learning_rate=0.05)
    simulation = simulate(model, 60, n_runs=2, seed=3)
    for run in range(2):
        np.testing.assert_allclose(simulation.loss[run], losses(model, 3, run, 60), rtol=1e-10)


@pytest.mark.parametrize(
    ("n_modes", "width", "batch_size"),
    [(1, 1, 1), (3, 2, 2), (5, 9, 4), (1023, 5, 6), (1024, 4, 5), (1025, 3, 3), (2500, 33, 9), (1025, 7, math.inf)],
)
def test_sizes(n_modes, width, batch_size):
    """Every remainder of the loops over features, modes, samples and blocks of modes."""
    model = make(
        spectrum=sf.PowerLawSpectrum(1.4, 0.6, n_modes=n_modes),
        width=width,
        batch_size=batch_size,
        learning_rate=0.02,
        label_noise=0.1,
    )
    np.testing.assert_allclose(simulate(model, 20, seed=1).loss[0], losses(model, 1, 0, 20), rtol=1e-10)


def test_explicit_spectrum():
    """An explicit spectrum in any order, with a mode that carries no variance."""
    spectrum = sf.Spectrum([0.3, 0.0, 1.0, 0.2], [1.0, 2.0, -0.5, 0.1])
    model = make(spectrum=spectrum, width=6, batch_size=5)
    np.testing.assert_allclose(simulate(model, 30, seed=5).loss[0], losses(model, 5, 0, 30), rtol=1e-10)


def test_infinite_width_population_lazy_closed_form():
    """L(t) = sum_k lambda_k w*_k^2 (1 - eta lambda_k)^{2t}; t products of factors in (0, 1): rounding 1e-13."""
    model = make(width=math.inf, batch_size=math.inf, gamma=0.0)
    eigenvalues, target = TASK.modes(0, 150)
    t = np.arange(501)
    expected = (eigenvalues * target**2) @ (1.0 - 0.2 * eigenvalues[:, None]) ** (2 * t)
    np.testing.assert_allclose(simulate(model, 500, seed=0).loss[0], expected, rtol=1e-12)


def test_finite_width_population_lazy_closed_form():
    """Lazy descent is linear: v0(t) = (1 - eta A^T A Lambda / N)^t w*."""
    model = make(batch_size=math.inf, gamma=0.0)
    eigenvalues, target = TASK.modes(0, 150)
    a = initial_projection(9, 1, 24, 150)
    kernel = np.sqrt(eigenvalues)[:, None] * (a.T @ a / 24) * np.sqrt(eigenvalues)
    s, vectors = np.linalg.eigh(kernel)
    coefficients = vectors.T @ (np.sqrt(eigenvalues) * target)
    expected = coefficients**2 @ (1.0 - 0.2 * s[:, None]) ** (2 * np.arange(101))
    np.testing.assert_allclose(simulate(model, 100, n_runs=2, seed=9).loss[1], expected, rtol=1e-10)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("batch_size", [9, math.inf])
def test_infinite_width(gamma, batch_size):
    """The limit is the finite-width step with N = M and A(0)/sqrt(N) replaced by an orthogonal matrix."""
    model = make(width=math.inf, gamma=gamma, batch_size=batch_size, label_noise=0.3)
    eigenvalues, target = TASK.modes(0, 150)
    draw = None if batch_size == math.inf else batches(4, 0, 9, eigenvalues, 0.3)
    random = np.random.default_rng(0).standard_normal((150, 150))
    projection = np.sqrt(150) * np.linalg.qr(random)[0]
    expected = list(train(eigenvalues, target, projection, 0.2, gamma, draw, 40))
    np.testing.assert_allclose(simulate(model, 40, seed=4).loss[0], expected, rtol=1e-10)


def test_infinite_width_is_the_limit_of_finite_width():
    """Population descent at N = 1000 against N = inf, after 30 steps.

    Samples: 8 runs. Bias: of order tr(Lambda)/N of the loss in each of ~10 effective steps (eta lambda t), below
    2%. The deviation beyond it is a Student variable with 7 degrees of freedom; 8 standard errors: false-alarm
    rate 9e-5. The seed is fixed.
    """
    task = sf.PowerLawSpectrum(1.5, 0.5, n_modes=40)
    model = make(spectrum=task, width=1000, batch_size=math.inf)
    wide = simulate(model, 30, n_runs=8, seed=2)
    limit = simulate(model.replace(width=math.inf), 30, seed=2).mean[30]
    assert abs(wide.mean[30] - limit) < 8.0 * wide.standard_error[30] + 0.02 * limit


def test_kept_and_regenerated_batches_are_identical(monkeypatch):
    model = make(spectrum=sf.PowerLawSpectrum(1.4, 0.6, n_modes=2500), width=8, batch_size=11, label_noise=0.1)
    kept = simulate(model, 10, seed=1)
    monkeypatch.setattr(literal, "_KEPT_BATCH_BYTES", 0)
    assert literal._Sizes.of(model, 2500).features == (4 * literal_steps.LANES, literal_steps.MODE_BLOCK)
    np.testing.assert_array_equal(simulate(model, 10, seed=1).loss, kept.loss)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
@pytest.mark.parametrize("batch_size", [6, math.inf])
def test_chunks_of_steps_do_not_matter(monkeypatch, gamma, batch_size):
    model = make(batch_size=batch_size, gamma=gamma)
    whole = simulate(model, 30, seed=1)
    for work in (0.0, 7 * literal._Sizes.of(model, 150).work_per_step):
        monkeypatch.setattr(ensemble, "_CHUNK_WORK", work)
        np.testing.assert_array_equal(simulate(model, 30, seed=1).loss, whole.loss)


def test_same_seed_same_numbers(monkeypatch):
    """Whatever the number of threads, of runs and of steps."""
    model = make()
    monkeypatch.setenv("SCALEFIELD_NUM_THREADS", "1")
    first = simulate(model, 40, n_runs=5, seed=17)
    for threads in ("2", "3"):
        monkeypatch.setenv("SCALEFIELD_NUM_THREADS", threads)
        np.testing.assert_array_equal(simulate(model, 40, n_runs=5, seed=17).loss, first.loss)
    for n_runs in (1, 3):
        np.testing.assert_array_equal(simulate(model, 40, n_runs=n_runs, seed=17).loss, first.loss[:n_runs])
    np.testing.assert_array_equal(simulate(model, 13, n_runs=5, seed=17).loss, first.loss[:, :14])
    assert len(np.unique(first.loss[:, 5])) == 5
    assert not np.array_equal(simulate(model, 40, seed=18).loss[0], first.loss[0])


def test_concurrent_calls(monkeypatch):
    """simulate may itself be called from many threads."""
    monkeypatch.setenv("SCALEFIELD_NUM_THREADS", "2")
    model = make()
    expected = simulate(model, 30, n_runs=3, seed=1).loss
    results: list[np.ndarray] = []
    threads = [
        threading.Thread(target=lambda: results.append(simulate(model, 30, n_runs=3, seed=1).loss))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6
    for result in results:
        np.testing.assert_array_equal(result, expected)


def test_drawn_seed_is_told_and_reproduces():
    first = simulate(make(), 5)
    assert isinstance(first.seed, int)
    np.testing.assert_array_equal(simulate(make(), 5, seed=first.seed).loss, first.loss)
    assert simulate(make(), 5).seed != first.seed


def test_result():
    simulation = simulate(make(), 20, n_runs=4, seed=0)
    assert (simulation.n_runs, simulation.n_steps) == (4, 20)
    np.testing.assert_array_equal(simulation.steps, np.arange(21))
    np.testing.assert_array_equal(simulation.mean, simulation.loss.mean(axis=0))
    expected = np.sqrt(((simulation.loss - simulation.mean) ** 2).sum(axis=0) / 3 / 4)
    np.testing.assert_allclose(simulation.standard_error, expected, rtol=1e-12, atol=1e-15)
    text = repr(simulation)
    for part in ("Simulation(", "width 24", "gamma 1", "seed 0", "4 run", "20 steps", f"{simulation.mean[-1]:.6g}"):
        assert part in text
    with pytest.raises(ValueError, match="read-only"):
        simulation.loss[0, 0] = 1.0


def test_single_run_has_no_standard_error():
    simulation = simulate(make(), 3, seed=0)
    assert simulation.standard_error.shape == (4,)
    assert np.isnan(simulation.standard_error).all()
    assert "±" not in repr(simulation)


def test_save_and_load(tmp_path):
    simulation = simulate(make(batch_size=math.inf, label_noise=0.25), 7, n_runs=2, seed=2**62 + 1)
    simulation.save(tmp_path / "runs.npz")
    loaded = sf.Simulation.load(tmp_path / "runs.npz")
    assert (loaded.model, loaded.seed) == (simulation.model, simulation.seed)
    for name in ("steps", "loss"):
        before, after = getattr(simulation, name), getattr(loaded, name)
        np.testing.assert_array_equal(after, before)
        assert after.dtype == before.dtype
    np.testing.assert_array_equal(simulate(loaded.model, 7, n_runs=2, seed=loaded.seed).loss, simulation.loss)


def test_progress():
    calls: list[tuple[int, int]] = []
    callers = set()

    def progress(done: int, total: int) -> None:
        calls.append((done, total))
        callers.add(threading.current_thread())

    simulate(make(), 40, n_runs=3, seed=0, progress=progress)
    assert calls[0] == (0, 120)
    assert calls[-1] == (120, 120)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert {total for _, total in calls} == {120}
    assert callers == {threading.current_thread()}


# About half a second a run, so that an interruption finds some finished and some not.
LONG = sf.Model(sf.PowerLawSpectrum(1.5, 0.5, n_modes=2000), width=64, gamma=1.0, batch_size=32)


def test_interruption_keeps_finished_runs(monkeypatch):
    monkeypatch.setenv("SCALEFIELD_NUM_THREADS", "2")

    def progress(done: int, total: int) -> None:
        if done > 0.3 * total:
            interrupted_at.append(time.perf_counter())
            raise KeyboardInterrupt

    interrupted_at: list[float] = []
    with pytest.raises(Interrupted, match=r"[1-9] of 12 runs finished") as caught:
        simulate(LONG, 300, n_runs=12, seed=0, progress=progress)
    assert time.perf_counter() - interrupted_at[0] < 1.0
    partial = caught.value.partial
    assert isinstance(partial, sf.Simulation)
    assert 1 <= partial.n_runs < 12
    assert np.isfinite(partial.loss).all()
    # The finished runs are those of an undisturbed simulation; with two threads each starts in order.
    whole = simulate(LONG, 300, n_runs=partial.n_runs + 1, seed=0)
    for curve in partial.loss:
        assert (whole.loss == curve).all(axis=1).any()
    assert threading.active_count() == 1 or not any(
        thread.name.startswith("scalefield") for thread in threading.enumerate()
    )


def test_interruption_before_any_run_is_finished():
    def progress(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="0 of 2 runs finished") as caught:
        simulate(make(), 10, n_runs=2, seed=0, progress=progress)
    assert caught.value.partial is None
    assert isinstance(caught.value, KeyboardInterrupt)


def test_large_step_is_interrupted_within_a_second():
    """Each step takes seconds (a batch of 10^5 samples), so the kernel itself has to stop."""
    model = make(spectrum=sf.PowerLawSpectrum(1.5, 0.5, n_modes=4000), batch_size=100_000)
    start: list[float] = []

    def progress(done: int, total: int) -> None:
        start.append(time.perf_counter())
        if len(start) == 3:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        simulate(model, 5, seed=0, progress=progress)
    assert time.perf_counter() - start[-1] < 1.0


def test_error_in_progress_stops_the_workers():
    def progress(done: int, total: int) -> None:
        if done:
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        simulate(LONG, 300, n_runs=8, seed=0, progress=progress)
    assert not any(thread.name.startswith("scalefield") for thread in threading.enumerate())


@pytest.mark.parametrize("threads", ["1", "3"])
def test_divergence(monkeypatch, threads):
    """The earliest step of all runs, whatever the threads, with every run up to the step before."""
    monkeypatch.setenv("SCALEFIELD_NUM_THREADS", threads)
    model = make(learning_rate=3.0, gamma=0.0)
    message = r"run \d+ diverged at step \d+"
    with pytest.warns(StabilityWarning), pytest.raises(DivergenceError, match=message) as caught:
        simulate(model, 3000, n_runs=4, seed=0)
    step, partial = caught.value.step, caught.value.partial
    assert partial.loss.shape == (4, step)
    assert partial.n_steps == step - 1
    with pytest.warns(StabilityWarning):
        np.testing.assert_array_equal(simulate(model, step - 1, n_runs=4, seed=0).loss, partial.loss)
    initial = partial.loss[0, 0]
    # One step short of the threshold in every run, and beyond it in the one named.
    assert (partial.loss <= 1e12 * initial).all()
    run = int(str(caught.value).split("run ")[1].split()[0])
    assert losses(model, 0, run, step)[step] > 1e12 * initial
    assert f"step {step}" in str(caught.value)


def test_divergence_beyond_the_finite_range():
    """A step that jumps to inf or nan is caught as well."""
    model = make(learning_rate=1e160, batch_size=math.inf)
    with pytest.warns(StabilityWarning), pytest.raises(DivergenceError) as caught:
        simulate(model, 5, seed=0)
    assert caught.value.step == 1
    assert caught.value.partial.n_steps == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": 3}, TypeError, "model must be a Model, got 3"),
        ({"n_steps": 0}, ValueError, "n_steps must be an integer of at least 1, got 0"),
        ({"n_steps": 2.5}, ValueError, "n_steps must be an integer"),
        ({"n_steps": "5"}, TypeError, "n_steps must be an integer, got '5'"),
        ({"n_steps": 2**32}, ValueError, "n_steps must be below 2\\*\\*32"),
        ({"n_runs": 0}, ValueError, "n_runs must be an integer of at least 1, got 0"),
        ({"n_runs": True}, TypeError, "n_runs must be an integer, got True"),
        ({"seed": -1}, ValueError, "seed must be an integer of at least 0, got -1"),
        ({"seed": 2**63}, ValueError, "seed must be an integer below 2\\*\\*63"),
        ({"seed": "x"}, TypeError, "seed must be an integer, got 'x'"),
        (
            {"model": sf.Model(sf.PowerLawSpectrum(1.5, 0.5), width=8)},
            ValueError,
            "finitely many modes.*got infinitely many; give n_modes",
        ),
        ({"model": make(batch_size=2**33)}, ValueError, "model.batch_size must be below 2\\*\\*32"),
    ],
)
def test_bad_input(arguments, error, message):
    settings = {"model": make(), "n_steps": 5, "n_runs": 1, "seed": 0, **arguments}
    with pytest.raises(error, match=message):
        simulate(**settings)


def test_request_beyond_memory_is_refused():
    model = make(spectrum=sf.PowerLawSpectrum(1.5, 0.5, n_modes=10**9), width=10**6)
    message = r"needs about 3\.56 PiB of memory, but only .* available"
    with pytest.raises(InsufficientMemoryError, match=message) as caught:
        simulate(model, 5)
    assert isinstance(caught.value, MemoryError)
    assert isinstance(caught.value, ScalefieldError)


def test_little_memory_means_fewer_threads(monkeypatch, caplog):
    model = make()
    sizes = literal._Sizes.of(model, 150)
    expected = simulate(model, 10, n_runs=3, seed=0).loss
    monkeypatch.setenv("SCALEFIELD_NUM_THREADS", "3")
    monkeypatch.setattr(ensemble, "available_memory", lambda: int(2.5 * sizes.bytes_per_worker + 10_000))
    with caplog.at_level(logging.INFO, logger="scalefield"):
        result = simulate(model, 10, n_runs=3, seed=0)
    assert "on 2 thread(s)" in caplog.text
    np.testing.assert_array_equal(result.loss, expected)


def test_estimate_of_memory():
    """The estimate is what is allocated."""
    for model in (make(), make(batch_size=math.inf), make(width=math.inf), make(gamma=0.0)):
        sizes = literal._Sizes.of(model, 150)
        plan = Plan(model, 1, 1, 0, "literal", np.arange(2), np.dtype(np.float64))
        arrays = vars(literal.Literal(plan, np.zeros(1, np.uint8)).worker()).values()
        assert sizes.bytes_per_worker == sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))


def test_import_does_not_load_numba():
    code = "import sys, scalefield; sys.exit('numba' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_units_of_memory():
    values = {0: "0 B", 1023: "1023 B", 1024: "1.00 KiB", 1536 * 2**20: "1.50 GiB", 2**70: "1024.00 EiB"}
    for n_bytes, text in values.items():
        assert _memory.format_bytes(n_bytes) == text


@pytest.mark.parametrize("version", [1, 2])
def test_memory_limits_of_control_groups(monkeypatch, tmp_path, version):
    """The tightest limit of the group and its ancestors counts, less what is used and cannot be dropped."""
    top = tmp_path / "memory" if version == 1 else tmp_path
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }[version]
    for folder, limit in ((top / "job", "5000000"), (top / "job" / "task", "9000000" if version == 1 else "max")):
        folder.mkdir(parents=True)
        (folder / names[0]).write_text(f"{limit}\n")
        (folder / names[1]).write_text("3000000\n")
        (folder / "memory.stat").write_text(f"anon 5\n{names[2]} 1000000\n")
    table = "4:memory:/job/task\n" if version == 1 else "0::/job/task\n"
    real = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda path, **kw: table if str(path) == "/proc/self/cgroup" else real(path, **kw)
    )
    monkeypatch.setattr(_memory, "_CGROUP_ROOT", tmp_path)
    assert _memory.available_memory() == 3_000_000
    with pytest.raises(InsufficientMemoryError, match=r"a thing needs about 2\.86 MiB .* only 2\.86 MiB is available"):
        _memory.require_memory(3_000_001, "a thing")
    _memory.require_memory(3_000_000, "a thing")


@pytest.mark.parametrize(
    ("gamma", "batch_size", "width"), [(1.0, 6, 24), (0.0, 6, 24), (1.0, math.inf, 24), (1.0, 6, math.inf)]
)
def test_a_single_run_shared_among_threads(monkeypatch, gamma, batch_size, width):
    """Passes shared by two, three or eight threads, bit for bit; 2,500 modes in three blocks, also drawn twice."""
    model = make(
        spectrum=sf.PowerLawSpectrum(1.4, 0.6, n_modes=2500 if width == 24 else 60),
        width=width,
        gamma=gamma,
        batch_size=batch_size,
        label_noise=0.1,
        learning_rate=0.05,
    )
    monkeypatch.setenv("SCALEFIELD_NUM_THREADS", "1")
    expected = simulate(model, 12, seed=1).loss
    if width == 24:
        np.testing.assert_allclose(expected[0], losses(model, 1, 0, 12), rtol=1e-10)
    monkeypatch.setattr(literal, "_SHARED_WORK", 0.0)
    for threads in ("2", "3", "8"):
        monkeypatch.setenv("SCALEFIELD_NUM_THREADS", threads)
        np.testing.assert_array_equal(simulate(model, 12, seed=1).loss, expected)
    monkeypatch.setattr(literal, "_KEPT_BATCH_BYTES", 0)
    np.testing.assert_array_equal(simulate(model, 12, seed=1).loss, expected)


def test_interruption_and_divergence_of_a_shared_run(monkeypatch):
    monkeypatch.setattr(literal, "_SHARED_WORK", 0.0)
    monkeypatch.setenv("SCALEFIELD_NUM_THREADS", "2")

    def progress(done: int, total: int) -> None:
        if done > 0:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="0 of 1 runs finished"):
        simulate(LONG, 3000, seed=0, progress=progress)
    model = make(learning_rate=3.0, gamma=0.0)
    with pytest.warns(StabilityWarning), pytest.raises(DivergenceError) as caught:
        simulate(model, 3000, seed=0)
    monkeypatch.setenv("SCALEFIELD_NUM_THREADS", "1")
    with pytest.warns(StabilityWarning), pytest.raises(DivergenceError) as alone:
        simulate(model, 3000, seed=0)
    assert caught.value.step == alone.value.step
    assert not any(thread.name.startswith("scalefield") for thread in threading.enumerate())
