r"""Reduced runs, other laws of features, records and statistics, against plain NumPy.

Theory (section 8). Gaussian data enter only through the N features A(0) psi and the label, so with S = A(0) Lambda
A(0)^T = U diag(e) U^T a batch is features U sqrt(e) z and labels z . c + rest xi + sigma eps.

The reference draws the same z, xi and eps but works with A(0), w and G themselves and sums the loss over modes; it
makes its own S and its own eigenvectors, whose signs are fixed by c >= 0. Near eigenvalues of S turn rounding errors of
1e-16 e_1 into errors 1e-16 e_1/(e_i - e_j) of the eigenvectors, 1e-13 here; 1e-9 is asked for.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest

import scalefield as sf
from reference_simulation import (
    DenseReduction,
    batches,
    initial_projection,
    reduced_losses,
    reduced_states,
    states,
    train,
    weight_statistics,
)
from scalefield import _ensemble as ensemble
from scalefield import _projection
from scalefield._native import rng
from scalefield.errors import DivergenceError, Interrupted, StabilityWarning
from scalefield.simulation import reduction
from scalefield.simulation.reduction import reduce_projection

simulate = partial(sf.simulate, method="reduced", record="all")
literal = partial(sf.simulate, method="literal", record="all")

TASK = sf.PowerLawSpectrum(1.5, 0.5, n_modes=150)
TASKS = {
    "power law": TASK,
    "easy": sf.PowerLawSpectrum(1.3, 1.4, n_modes=60),
    "ties and zeros": sf.Spectrum(
        [1.0, 1.0, 0.3, 0.3, 0.3, 0.05, 0.0, 0.0], [0.5, -0.2, 1.0, 0.0, 2.0, 3.0, 4.0, -1.0]
    ),
    "one mode": sf.Spectrum([0.7], [1.3]),
    "no target": sf.Spectrum([1.0, 0.5, 0.2], [0.0, 0.0, 0.0]),
    "five blocks of modes": sf.PowerLawSpectrum(1.2, 0.8, n_modes=4 * reduction.BLOCK + 77),
}
STATISTICS = ("weight_norm", "kernel_scale", "spike", "alignment")


def make(**changes) -> sf.Model:
    settings = {"width": 24, "gamma": 1.0, "learning_rate": 0.2, "batch_size": 16, **changes}
    return sf.Model(settings.pop("spectrum", TASK), **settings)


def reduce(model: sf.Model, seed: int, run: int, modes=()) -> reduction.Reduction:
    """The package's own."""
    chosen = np.array(modes, dtype=np.int64)
    return reduce_projection(model.spectrum, int(model.width), seed, run, 1, chosen, np.zeros(1, np.uint8))


def reference(model: sf.Model, seed: int, run: int) -> tuple[np.ndarray, DenseReduction]:
    """A(0) and its reduction with whole matrices, compared with the package's."""
    eigenvalues, target = model.spectrum.modes(0, model.spectrum.n_modes)
    projection = initial_projection(seed, run, model.width, eigenvalues.size)
    dense, found = DenseReduction.of(eigenvalues, target, projection), reduce(model, seed, run)
    # Sums of M terms in another order: eigenvalues to 1e-13 of the largest. c = U^T b/sqrt(e) divides by its root.
    np.testing.assert_allclose(found.eigenvalues, dense.e, rtol=1e-9, atol=1e-13 * dense.e[0])
    np.testing.assert_allclose(found.c, dense.c, rtol=1e-8, atol=1e-9 * np.linalg.norm(dense.c))
    # rest^2 is a difference from the target's power.
    assert found.rest**2 == pytest.approx(dense.rest**2, rel=1e-9, abs=1e-14 * model.spectrum.total_target_power)
    assert found.tail == 0.0
    return projection, dense


def expected_losses(model: sf.Model, seed: int, run: int, n_steps: int) -> np.ndarray:
    return reduced_losses(model, seed, run, *reference(model, seed, run), n_steps)


# ------------------------------------------------------------------------------------------------- the reduction


@pytest.mark.parametrize("width", [1, 2, 7, 8, 9, 40])
@pytest.mark.parametrize("task", TASKS)
def test_reduction_against_dense_matrices(task, width):
    model = make(spectrum=TASKS[task], width=width)
    projection, dense = reference(model, 5, 2)
    n_modes = TASKS[task].n_modes
    modes = np.unique([0, n_modes // 2, n_modes - 1])
    found = reduce(model, 5, 2, modes)
    # Projections of columns of A(0) on eigenvectors of positive eigenvalue; the others are free to turn.
    turned = projection[:, modes].T @ dense.vectors
    present = dense.e > 0.0
    np.testing.assert_allclose(found.modes[:, present], turned[:, present], atol=1e-7)


def test_modes_too_weak_to_be_resolved_stay_unlearned():
    """Eigenvalues below 1e-14 of the largest are lost in rounding: their power is rest, not lost."""
    spectrum = sf.Spectrum([1.0, 1e-17], [1.0, 3e8])
    model = make(spectrum=spectrum, width=3, batch_size=math.inf)
    found = reduce(model, 0, 0)
    # b has a part of 3e-9 of that mode.
    assert found.rest**2 == pytest.approx(0.9, rel=1e-7)
    losses = simulate(model, 5, seed=0).loss[0]
    assert losses[0] == pytest.approx(spectrum.total_target_power, rel=1e-12)
    np.testing.assert_allclose(losses, literal(model, 5, seed=0).loss[0], rtol=1e-9)


def test_zero_modes_leave_no_rest():
    """Fewer modes with variance than features, though more modes: the loss goes to 0."""
    model = make(spectrum=TASKS["ties and zeros"], width=7, batch_size=math.inf, gamma=0.0)
    assert reduce(model, 1, 0).rest == 0.0
    assert reduce(model.replace(width=5), 1, 0).rest > 0.0


def test_streaming_does_not_depend_on_threads(monkeypatch):
    model = make(spectrum=TASKS["five blocks of modes"])
    modes = np.array([3, 8000])
    stop = np.zeros(1, np.uint8)
    one = reduce_projection(model.spectrum, 24, 1, 0, 1, modes, stop)
    for threads in (2, 5):
        many = reduce_projection(model.spectrum, 24, 1, 0, threads, modes, stop)
        for name in ("eigenvalues", "c", "modes"):
            np.testing.assert_array_equal(getattr(many, name), getattr(one, name))
        assert (many.rest, many.tail) == (one.rest, one.tail)
    stop[0] = 1
    assert reduce_projection(model.spectrum, 24, 1, 0, 2, modes, stop) is None


# --------------------------------------------------------------------------------------------------- the training


@pytest.mark.parametrize("gamma", [0.0, 0.7, 3.0])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5, 7, 8, 16, 31, 32, 33, math.inf])
@pytest.mark.parametrize("label_noise", [0.0, 0.5])
def test_against_plain_numpy(gamma, batch_size, label_noise):
    model = make(gamma=gamma, batch_size=batch_size, label_noise=label_noise, learning_rate=0.05)
    simulation = simulate(model, 40, n_runs=2, seed=3)
    assert simulation.method == "reduced"
    for run in range(2):
        np.testing.assert_allclose(simulation.loss[run], expected_losses(model, 3, run, 40), rtol=1e-9)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
@pytest.mark.parametrize("width", [1, 2, 3, 5, 8, 9, 61])
@pytest.mark.parametrize("task", TASKS)
def test_tasks_and_widths(task, width, gamma):
    """More features than modes, one mode, ties, modes of no variance, several blocks of modes."""
    model = make(spectrum=TASKS[task], width=width, gamma=gamma, batch_size=6, label_noise=0.2, learning_rate=0.02)
    losses = simulate(model, 12, seed=8).loss[0]
    # The power that the features do not span is known to 1e-16 of the whole: 1e-12 of it at least.
    atol = 1e-12 * TASKS[task].total_target_power
    np.testing.assert_allclose(losses, expected_losses(model, 8, 0, 12), rtol=1e-9, atol=atol)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("width", [3, 24, 170])
def test_population_runs_are_the_literal_ones(width, gamma):
    """The same A(0): at infinite batch the two methods are one run."""
    model = make(width=width, gamma=gamma, batch_size=math.inf, learning_rate=0.1)
    options = {"n_steps": 200, "n_runs": 3, "seed": 12, "statistics": STATISTICS, "modes": [0, 5, 149]}
    one, other = simulate(model, **options), literal(model, **options)
    assert (one.method, other.method) == ("reduced", "literal")
    np.testing.assert_allclose(one.loss, other.loss, rtol=1e-9)
    for name in STATISTICS:
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-9, atol=1e-15, err_msg=name)
    np.testing.assert_allclose(one.mode_errors, other.mode_errors, rtol=1e-8, atol=1e-9)


def test_same_seed_same_numbers(monkeypatch):
    """Whatever the number of threads, of runs, of steps, and of steps in a call."""
    model = make(spectrum=sf.PowerLawSpectrum(1.5, 0.5, n_modes=5000), label_noise=0.1)
    options = {"seed": 17, "statistics": STATISTICS, "modes": [4999]}
    monkeypatch.setenv("SCALEFIELD_NUM_THREADS", "1")
    first = simulate(model, 30, n_runs=5, **options)

    def check(found):
        for name in ("loss", "mode_errors", *STATISTICS):
            expected = getattr(first, name)[: found.n_runs, : found.n_steps + 1]
            np.testing.assert_array_equal(getattr(found, name), expected, err_msg=name)

    for threads in ("1", "2", "3"):
        monkeypatch.setenv("SCALEFIELD_NUM_THREADS", threads)
        for n_runs in (1, 2, 5):
            check(simulate(model, 30, n_runs=n_runs, **options))
        check(simulate(model, 11, n_runs=5, **options))
    for work in (0.0, 4e4):
        monkeypatch.setattr(ensemble, "_CHUNK_WORK", work)
        check(simulate(model, 30, n_runs=2, **options))
    assert len(np.unique(first.loss[:, 5])) == 5
    assert not np.array_equal(simulate(model, 30, seed=18).loss[0], first.loss[0])


@pytest.mark.parametrize("gamma", [0.0, 1.0])
@pytest.mark.parametrize("batch_size", [1, 16, math.inf])
@pytest.mark.parametrize("method", ["literal", "reduced"])
def test_single_precision(method, batch_size, gamma):
    """The same numbers, rounded: 300 steps of a stable iteration lose 2e-5 of the loss at most.

    A step rounds every weight once, 6e-8 relative; errors of 300 steps add up to 300 x 6e-8 at worst. Between 1e-8 and
    1e-5 was measured.
    """
    model = make(batch_size=batch_size, gamma=gamma, label_noise=0.1, learning_rate=0.05)
    options = {"n_steps": 300, "n_runs": 2, "seed": 4, "method": method}
    double, single = sf.simulate(model, **options), sf.simulate(model, **options, dtype="float32")
    assert (double.dtype, single.dtype, single.loss.dtype) == ("float64", "float32", np.float64)
    error = np.abs(single.loss / double.loss - 1.0)
    assert 1e-9 < error.max() < 2e-5


# ------------------------------------------------------------------------------------------------------- far modes


def test_far_modes_law_against_streaming(monkeypatch):
    """What 8,128 modes add to S and b, by their law and summed one by one.

    1,500 runs each way, N = 4: 4 diagonal entries, 6 others and 4 of b. Mean and variance of both are compared with
    the exact moments, sum lambda on the diagonal, variances 2 sum lambda^2, sum lambda^2 and sum lambda^2 w*^2. No
    bias in the moments. A variance of n samples has the relative error sqrt((2 + excess)/n) with an excess of kurtosis
    below 12 sum lambda^4/(sum lambda^2)^2 < 0.3 here. 2 x 28 comparisons at 4.5 standard errors: false alarms 4e-4.
    """
    monkeypatch.setattr(_projection, "MOST_MODES", 64)
    monkeypatch.setattr(_projection, "HEAD", 64)
    spectrum, width, n_runs = sf.PowerLawSpectrum(1.2, 0.5, n_modes=8192), 4, 1500
    eigenvalues, target = spectrum.modes(64, 8192)
    assert 12.0 * (eigenvalues**4).sum() / (eigenvalues**2).sum() ** 2 < 0.3
    rows, columns = np.tril_indices(width)
    generator = np.random.default_rng(7)
    diagonal = rows == columns
    by_law, one_by_one = np.empty((2, n_runs, rows.size + width))
    for run in range(n_runs):
        covariance, b = np.zeros((width, width)), np.zeros(width)
        norm = _projection.add_far_modes(spectrum, 7, run, covariance, b)
        np.testing.assert_array_equal(covariance, covariance.T)
        by_law[run] = *covariance[rows, columns], *b
        a = generator.standard_normal((eigenvalues.size, width))
        one_by_one[run] = *((a.T * eigenvalues) @ a)[rows, columns], *((eigenvalues * target) @ a)
    mean = np.concatenate([np.where(diagonal, eigenvalues.sum(), 0.0), np.zeros(width)])
    square = (eigenvalues**2).sum()
    variance = np.where(diagonal, 2.0 * square, square)
    variance = np.concatenate([variance, np.full(width, (eigenvalues**2 * target**2).sum())])
    assert norm == pytest.approx(2.0 * np.sqrt(width * square), rel=1e-10)
    for sample, excess in ((by_law, 0.0), (one_by_one, 0.3)):
        z = (sample.mean(axis=0) - mean) / np.sqrt(variance / n_runs)
        assert np.abs(z).max() < 4.5, z
        z = (((sample - mean) ** 2).mean(axis=0) / variance - 1.0) / np.sqrt((2.0 + excess) / n_runs)
        assert np.abs(z).max() < 4.5, z
        # No correlations: 91 pairs, 4.5 standard errors, false alarms 6e-4 each way.
        white = (sample - mean) / np.sqrt(variance)
        off = np.triu_indices(white.shape[1], 1)
        assert np.abs((white.T @ white / np.sqrt(n_runs))[off]).max() < 4.5


@pytest.mark.parametrize("batch_size", [4, math.inf])
def test_far_modes_by_their_law_change_little(monkeypatch, batch_size):
    """2^18 modes one by one, and the first 2^12 of them with the rest by its law, in the same runs.

    The random part of the far modes moves eigenvalues of S by its norm at most, so the loss by `tail` of itself or a
    few times that.
    """
    model = make(spectrum=sf.PowerLawSpectrum(1.5, 0.5, n_modes=2**18), width=8, batch_size=batch_size)
    whole = simulate(model, 100, n_runs=3, seed=1)
    assert whole.tail == 0.0
    monkeypatch.setattr(_projection, "MOST_MODES", 2**12)
    monkeypatch.setattr(_projection, "HEAD", 2**12)
    split = simulate(model, 100, n_runs=3, seed=1)
    assert 0.0 < split.tail < 2e-3
    change = np.abs(split.loss / whole.loss - 1.0)
    assert 0.0 < change.max() < 3.0 * split.tail


def test_infinite_and_huge_spectra():
    """1e8 modes and infinitely many; beyond 1e8 lie 1e-4 of the eigenvalues' sum and 4e-7 of the target's power."""
    infinite = make(spectrum=sf.PowerLawSpectrum(1.5, 0.8), width=8, batch_size=8)
    huge = infinite.replace(spectrum=sf.PowerLawSpectrum(1.5, 0.8, n_modes=10**8))
    options = {"n_runs": 2, "seed": 6, "modes": [0, 10**5], "statistics": STATISTICS}
    first, second = (sf.simulate(model, 50, **options) for model in (infinite, huge))
    for simulation in (first, second):
        assert simulation.method == "reduced"
        assert np.isfinite(simulation.loss).all()
        assert np.isfinite(simulation.mode_errors).all()
        assert simulation.loss[0, 0] == pytest.approx(simulation.model.spectrum.total_target_power, rel=1e-12)
    # The same deviates stand for the far modes, whose eigenvalues differ in sum by 1e-4 of 2.6.
    np.testing.assert_allclose(second.loss, first.loss, rtol=1e-3)
    assert not np.array_equal(second.loss, first.loss)
    # 2 sqrt(N sum lambda^2) over the smallest eigenvalue
    far = sum(k**-3.0 for k in np.arange(2**18 + 1.0, 2**22).tolist()) + 0.5 * (2.0**22 - 0.5) ** -2.0
    smallest = min(reduce(infinite, 6, run).eigenvalues[-1] for run in range(2))
    assert first.tail == pytest.approx(2.0 * math.sqrt(8 * far) / smallest, rel=1e-6)
    assert second.tail == pytest.approx(first.tail, rel=1e-3)


def test_infinite_spectrum_of_many_runs_has_the_mean_of_the_theory():
    """Population descent at infinitely many modes against the two-time equations, N = 16.

    30 runs. Bias up to 2/N of the loss (tests/statistical). At step 0 both are exact; 3 comparisons at 5 standard
    errors, Student's law with 29 degrees of freedom: false alarms 8e-5.
    """
    model = make(spectrum=sf.PowerLawSpectrum(1.8, 0.5), width=16, batch_size=math.inf, learning_rate=0.3)
    steps = [0, 3, 10, 30]
    simulation = sf.simulate(model, 30, n_runs=30, seed=2, record=steps)
    theory = sf.solve_dmft(model, 30, "two-time").loss[steps]
    allowed = 5.0 * simulation.standard_error + 2.0 / 16 * theory
    assert (np.abs(simulation.mean - theory) <= allowed).all()
    assert simulation.tail > 0.0


def test_tail_is_saved_and_loaded(tmp_path):
    simulation = simulate(make(spectrum=sf.PowerLawSpectrum(1.5, 0.5), width=3), 5, seed=0)
    simulation.save(tmp_path / "runs.npz")
    loaded = sf.Simulation.load(tmp_path / "runs.npz")
    assert loaded.tail == simulation.tail > 0.0
    assert (loaded.method, loaded.dtype, loaded.features) == ("reduced", "float64", "gaussian")


# --------------------------------------------------------------------------------------------------------- records


@pytest.mark.parametrize("method", ["literal", "reduced"])
def test_records(method):
    model = make(width=6, batch_size=2)
    options = {"n_runs": 2, "seed": 3, "method": method, "statistics": ["weight_norm"], "modes": [1]}
    whole = sf.simulate(model, 3000, record="all", **options)
    np.testing.assert_array_equal(whole.steps, np.arange(3001))
    for record in ("log", [0], [3000], [0, 1, 2, 1500, 2999, 3000], np.array([7.0, 8.0])):
        found = sf.simulate(model, 3000, record=record, **options)
        if isinstance(record, str):
            assert found.steps.size == 201
            assert (found.steps[0], found.steps[1], found.steps[-1]) == (0, 1, 3000)
            assert (np.diff(found.steps) > 0).all()
            ratio = found.steps[101:] / found.steps[100:-1]
            assert ratio.max() < 1.1
        else:
            np.testing.assert_array_equal(found.steps, record)
        for name in ("loss", "weight_norm", "mode_errors"):
            np.testing.assert_array_equal(getattr(found, name), getattr(whole, name)[:, found.steps], err_msg=name)
    # Short runs are recorded whole.
    np.testing.assert_array_equal(sf.simulate(model, 1000, seed=0, method=method).steps, np.arange(1001))


def test_divergence_between_records():
    """The step is told exactly though few steps are recorded; what was recorded before comes with it."""
    model = make(learning_rate=3.0, gamma=0.0)
    with pytest.warns(StabilityWarning), pytest.raises(DivergenceError) as caught:
        simulate(model, 3000, n_runs=4, seed=0)
    step = caught.value.step
    for record in ([0, 1, step - 1, step, 3000], [0, step + 1]):
        with pytest.warns(StabilityWarning), pytest.raises(DivergenceError, match=f"step {step}") as again:
            simulate(model, 3000, n_runs=4, seed=0, record=record, statistics=["weight_norm"])
        steps = [t for t in record if t < step]
        np.testing.assert_array_equal(again.value.partial.steps, steps)
        np.testing.assert_array_equal(again.value.partial.loss, caught.value.partial.loss[:, steps])
        assert np.isfinite(again.value.partial.weight_norm).all()
    with pytest.warns(StabilityWarning), pytest.raises(DivergenceError) as nothing:
        simulate(model, 3000, seed=0, record=[3000])
    assert nothing.value.partial is None


def test_interruption_while_modes_are_streamed():
    model = make(spectrum=sf.PowerLawSpectrum(1.5, 0.5, n_modes=10**6), width=256)
    calls: list[int] = []

    def progress(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="0 of 2 runs finished"):
        simulate(model, 10, n_runs=2, seed=0, progress=progress)
    assert calls[-1] == 0


# ------------------------------------------------------------------------------------------------------ statistics


def reference_run(model: sf.Model, method: str, seed: int, n_steps: int):
    """A(0) and the states of a run."""
    eigenvalues, target = model.spectrum.modes(0, model.spectrum.n_modes)
    if method == "reduced":
        projection, dense = reference(model, seed, 0)
        return projection, reduced_states(model, seed, 0, projection, dense, n_steps)
    draw = None
    if model.batch_size < math.inf:
        draw = batches(seed, 0, model.batch_size, eigenvalues, model.label_noise)
    if model.width < math.inf:
        projection = initial_projection(seed, 0, model.width, eigenvalues.size)
    else:
        # The limit of infinite width: N = M and A(0)/sqrt(N) orthogonal.
        n = eigenvalues.size
        projection = np.sqrt(n) * np.linalg.qr(np.random.default_rng(0).standard_normal((n, n)))[0]
    return projection, states(eigenvalues, target, projection, model.learning_rate, model.gamma, draw, n_steps)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("batch_size", [5, math.inf])
@pytest.mark.parametrize(
    ("method", "width", "task"),
    [
        ("literal", 12, "easy"),
        ("literal", math.inf, "easy"),
        ("literal", 11, "ties and zeros"),
        ("reduced", 12, "easy"),
        ("reduced", 70, "easy"),
        ("reduced", 11, "ties and zeros"),
    ],
)
def test_statistics_against_their_definitions(method, width, task, batch_size, gamma):
    """From w, A(t) and A(0), with the tangent kernel as an M x M matrix; the same sums in other orders."""
    model = make(
        spectrum=TASKS[task], width=width, batch_size=batch_size, gamma=gamma, label_noise=0.1, learning_rate=0.05
    )
    modes = np.arange(0, model.spectrum.n_modes, 3)
    found = sf.simulate(model, 25, seed=9, method=method, statistics=STATISTICS, modes=modes)
    np.testing.assert_array_equal(found.modes, modes)
    projection, run = reference_run(model, method, 9, 25)
    for t, state in enumerate(run):
        assert found.loss[0, t] == pytest.approx(state.loss, rel=1e-9)
        for name, value in weight_statistics(model, projection, state).items():
            assert getattr(found, name)[0, t] == pytest.approx(value, rel=1e-8, abs=1e-13), (name, t)
        np.testing.assert_allclose(found.mode_errors[0, t], state.v0[modes], rtol=1e-8, atol=1e-8)


def test_only_what_was_asked_for_is_recorded():
    simulation = simulate(make(), 5, seed=0, statistics="spike")
    assert simulation.spike.shape == (1, 6)
    assert simulation.weight_norm is simulation.kernel_scale is simulation.alignment is None
    assert simulation.modes is simulation.mode_errors is None


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("method", ["literal", "reduced"])
def test_statistics_against_gradient_flow_of_the_same_projection(method, gamma):
    """Gradient descent of run 0 at learning rates eta and eta/2 against the flow of its A(0), tau = 0..6.

    Descent is the flow plus an error of first order in eta: below 2 eta of each curve's range (measured up to 0.6
    eta), and halved with eta; the flow itself is good to 1e-8. Errors of modes are those of v0 = (1 - y)(X).
    """
    seed, n_modes, width = 21, 40, 12
    model = make(spectrum=sf.PowerLawSpectrum(1.5, 0.5, n_modes=n_modes), width=width, gamma=gamma)
    model = model.replace(batch_size=math.inf)
    eigenvalues, target = model.spectrum.modes(0, n_modes)
    times = np.linspace(0.0, 6.0, 13)
    flow = sf.solve_gradient_flow(model, times, projection=seed)
    expected = {name: getattr(flow, name) for name in ("loss", "kernel_scale", "spike", "alignment")}
    root, a = np.sqrt(eigenvalues), initial_projection(seed, 0, width, n_modes)
    s, vectors = np.linalg.eigh(root[:, None] * (a.T @ a / width) * root)
    unlearned = 1.0 - flow.learned_fraction(np.where(s > 1e-10, s, 0.0))
    expected["mode_errors"] = (unlearned * (vectors.T @ (root * target))) @ vectors.T / root
    # q = n (a = 1) or (a - 1)/gamma
    if gamma > 0.0:
        expected["weight_norm"] = (flow.kernel_scale - 1.0) / gamma
    errors = []
    for steps in (1200, 2400):
        found = sf.simulate(
            model.replace(learning_rate=6.0 / steps),
            steps,
            n_runs=2,
            seed=seed,
            method=method,
            record=np.arange(0, steps + 1, steps // 12),
            statistics=STATISTICS,
            modes=np.arange(n_modes),
        )
        errors.append(
            {
                name: np.abs(getattr(found, name)[0] - value).max() / max(np.ptp(value), 1e-300)
                for name, value in expected.items()
                if np.ptp(value) > 1e-12
            }
        )
    for name, error in errors[1].items():
        assert error < 2.0 * 6.0 / 2400, (name, error)
        # First order: the ratio is 2 up to terms of order eta.
        assert errors[0][name] / error == pytest.approx(2.0, rel=0.02), name
    if gamma == 0.0:
        np.testing.assert_array_equal(found.kernel_scale, 1.0)
        np.testing.assert_array_equal(found.spike, 0.0)
        np.testing.assert_allclose(found.alignment[0], flow.alignment, rtol=1e-9)


# -------------------------------------------------------------------------------------------- other laws of features


def cubic(u):
    """A skew law of mean 0 and variance 1: (E - 1) of a standard exponential E."""
    return -np.log(u) - 1.0


@pytest.mark.parametrize("law", ["rademacher", "uniform", cubic])
@pytest.mark.parametrize(("width", "gamma"), [(12, 1.0), (12, 0.0), (math.inf, 1.0)])
@pytest.mark.parametrize("batch_size", [1, 6])
def test_features_of_other_laws(law, width, gamma, batch_size):
    """The same words, in every remainder of the loops: 150 modes in one block, 1025 in two."""
    for n_modes in (6, 150, 1025) if width < math.inf else (6, 150):
        spectrum = sf.PowerLawSpectrum(1.5, 0.5, n_modes=n_modes)
        model = make(
            spectrum=spectrum,
            width=width,
            gamma=gamma,
            batch_size=batch_size,
            label_noise=0.2,
            learning_rate=0.03,
        )
        eigenvalues, target = spectrum.modes(0, n_modes)
        found = literal(model, 15, n_runs=2, seed=4, features=law)
        assert found.features == (law if isinstance(law, str) else "callable")
        for run in range(2):
            draw = batches(4, run, batch_size, eigenvalues, 0.2, law)
            if width < math.inf:
                projection = initial_projection(4, run, width, n_modes)
            else:
                random = np.random.default_rng(0).standard_normal((n_modes, n_modes))
                projection = np.sqrt(n_modes) * np.linalg.qr(random)[0]
            expected = list(train(eigenvalues, target, projection, 0.03, gamma, draw, 15))
            np.testing.assert_allclose(found.loss[run], expected, rtol=1e-10)


@pytest.mark.parametrize("law", ["rademacher", "uniform", cubic])
def test_features_do_not_depend_on_threads_chunks_or_precision(law, monkeypatch):
    model = make(spectrum=sf.PowerLawSpectrum(1.4, 0.6, n_modes=1100), width=8, batch_size=11, label_noise=0.1)
    whole = literal(model, 10, n_runs=3, seed=1, features=law)
    single = literal(model, 10, n_runs=3, seed=1, features=law, dtype="float32")
    np.testing.assert_allclose(single.loss, whole.loss, rtol=2e-5)
    monkeypatch.setenv("SCALEFIELD_NUM_THREADS", "2")
    monkeypatch.setattr(ensemble, "_CHUNK_WORK", 0.0)
    np.testing.assert_array_equal(literal(model, 10, n_runs=3, seed=1, features=law).loss, whole.loss)
    np.testing.assert_array_equal(literal(model, 10, seed=1, features=law).loss, whole.loss[:1])


@pytest.mark.parametrize("kind", [rng.RADEMACHER, rng.UNIFORM, rng.PROBABILITY])
def test_moments_of_features(kind):
    """4e6 deviates of each law: means of x, x^2, x^3 and x^4 less the exact ones.

    Moments 0, 1, 0, m4 with m4 = 1 or 9/5 (of 2 sqrt(3) (u - 1/2) for probabilities). No bias (the lattice of 2^-32
    moves them by 1e-10); the law is bounded, so 4.5 standard errors taken from the sample are false alarms of 7e-6.
    """
    x = np.empty(4_000_000)
    rng.fill_features(kind, *rng.stream_key(5, rng.FEATURES), *(np.uint64(v) for v in (1, 2, 3, 0)), x)
    if kind == rng.PROBABILITY:
        assert 0.0 < x.min() < 1e-5
        assert 1.0 - 1e-5 < x.max() < 1.0
        x = 2.0 * np.sqrt(3.0) * (x - 0.5)
    moments = (0.0, 1.0, 0.0, 1.0 if kind == rng.RADEMACHER else 1.8)
    for power, moment in enumerate(moments, start=1):
        values = x**power
        deviation = abs(values.mean() - moment)
        assert deviation <= 4.5 * values.std() / np.sqrt(x.size) + 1e-9, power
    if kind == rng.RADEMACHER:
        assert set(np.unique(x)) == {-1.0, 1.0}
    # No correlation of neighbours, 4.5 standard errors.
    for lag in (1, 2, 3, 4):
        assert abs(x[lag:] @ x[:-lag]) / np.sqrt(x.size - lag) < 4.5


def test_fourth_moment_shows_in_training():
    """One mode, B = 1, one step: L(1) = lambda w*^2 (1 - eta a^2 psi^2/N)^2 knows the law of psi.

    Random signs make psi^2 = lambda exactly, so that all randomness is A(0).
    """
    model = make(spectrum=sf.Spectrum([1.0], [1.0]), width=4, batch_size=1, gamma=0.0, learning_rate=0.1)
    losses = literal(model, 1, n_runs=50, seed=0, features="rademacher").loss[:, 1]
    norms = np.array([(initial_projection(0, run, 4, 1) ** 2).sum() / 4 for run in range(50)])
    np.testing.assert_allclose(losses, (1.0 - 0.1 * norms) ** 2, rtol=1e-12)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda u: u[:, :-1], r"features must return real numbers of shape \(16, 150\), got shape \(16, 149\)"),
        (lambda u: u + 1j, r"features must return real numbers of shape \(16, 150\), got .* dtype complex128"),
        (lambda u: 1.0, r"features must return real numbers of shape \(16, 150\), got shape \(\)"),
    ],
)
def test_functions_that_return_something_else(function, message):
    with pytest.raises(ValueError, match=message):
        literal(make(), 5, seed=0, features=function)


def test_error_in_a_function_is_raised():
    def broken(u):
        raise ZeroDivisionError("no features today")

    with pytest.raises(ZeroDivisionError, match="no features today"):
        literal(make(), 5, n_runs=3, seed=0, features=broken)


# -------------------------------------------------------------------------------------------------------- bad input


INFINITE = sf.PowerLawSpectrum(1.5, 0.5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "exact"}, ValueError, "method must be one of 'auto', 'literal', 'reduced', got 'exact'"),
        ({"method": None}, TypeError, "method must be a string, got None of type NoneType"),
        ({"device": "gpu"}, ValueError, "device must be one of 'cpu', 'cuda', got 'gpu'"),
        ({"device": 0}, TypeError, "device must be a string, got 0 of type int"),
        ({"dtype": "float16"}, ValueError, "dtype must be one of 'float64', 'float32', got 'float16'"),
        ({"dtype": np.float32}, TypeError, "dtype must be a string, got <class 'numpy.float32'>"),
        (
            {"features": "cauchy"},
            ValueError,
            "features must be one of 'gaussian', 'rademacher', 'uniform', got 'cauchy'",
        ),
        ({"features": 3}, TypeError, "features must be a string or a function, got 3 of type int"),
        (
            {"model": make(spectrum=sf.PowerLawSpectrum(1.5, 0.5)), "modes": [0, 2**18]},
            ValueError,
            r"modes must be below 2\*\*18 for a spectrum whose far modes are not drawn",
        ),
        (
            {"features": "uniform", "method": "reduced"},
            ValueError,
            "features must be 'gaussian' for the reduced method",
        ),
        ({"features": np.exp, "method": "reduced"}, ValueError, "features must be 'gaussian' for the reduced method"),
        (
            {"features": "uniform", "model": make(batch_size=math.inf)},
            ValueError,
            "batch_size must be finite for features other than 'gaussian', got inf with 'uniform'",
        ),
        (
            {"features": "rademacher", "model": make(spectrum=INFINITE)},
            ValueError,
            "model.spectrum must have finitely many modes for the literal method, got infinitely many; give n_modes",
        ),
        ({"model": make(width=math.inf), "method": "reduced"}, ValueError, "width must be finite for the reduced"),
        (
            {"model": make(width=math.inf, spectrum=INFINITE)},
            ValueError,
            "model.spectrum must have finitely many modes for the literal method",
        ),
        ({"statistics": "loss"}, ValueError, "statistics must be one of 'weight_norm', .*, got 'loss'"),
        ({"statistics": ["spike", "norm"]}, ValueError, "statistics must be one of .*, got 'norm'"),
        ({"statistics": 3}, TypeError, "statistics must be a sequence of strings, got 3 of type int"),
        ({"statistics": [3]}, TypeError, "statistics must be a string, got 3 of type int"),
        ({"statistics": None}, TypeError, "statistics must be a sequence of strings, got None of type NoneType"),
        ({"modes": [0, 150]}, ValueError, "modes must be .* integers from 0 to 149, got"),
        ({"modes": [-1]}, ValueError, "modes must be .* integers from 0 to 149, got"),
        ({"modes": 3}, ValueError, "modes must be a one-dimensional array of integers from 0 to 149, got 3"),
        ({"modes": np.zeros((2, 2), int)}, ValueError, "modes must be a one-dimensional array"),
        ({"modes": np.zeros(0, int)}, ValueError, "modes must be a one-dimensional array"),
        ({"modes": [1.0]}, TypeError, "modes must be an array of integers, got dtype float64"),
        ({"modes": [True]}, TypeError, "modes must be an array of integers, got dtype bool"),
        ({"modes": [[1], [2, 3]]}, TypeError, "modes must be an array of integers, got list"),
        ({"modes": [2**32], "model": make(spectrum=INFINITE)}, ValueError, "integers from 0 to 4294967295, got"),
        ({"record": "some"}, ValueError, "record must be 'log', 'all' or increasing steps, got 'some'"),
        ({"record": [3, 3]}, ValueError, "record must increase from at least 0 to at most n_steps = 5"),
        ({"record": [4, 6]}, ValueError, "record must increase from at least 0 to at most n_steps = 5"),
        ({"record": [-1, 4]}, ValueError, "record must increase from at least 0 to at most n_steps = 5"),
        ({"record": [0.5]}, ValueError, "record must be a one-dimensional array of whole numbers"),
        ({"record": [math.nan]}, ValueError, "record must be a one-dimensional array of whole numbers"),
        ({"record": []}, ValueError, "record must be a one-dimensional array of whole numbers"),
        ({"record": 3}, ValueError, "record must be a one-dimensional array of whole numbers"),
        ({"record": ["a"]}, TypeError, "record must be an array of integers, got dtype"),
        ({"record": [[1], [2, 3]]}, TypeError, "record must be an array of integers, got list"),
        ({"record": None}, TypeError, "record must be an array of integers, got dtype object"),
        ({"checkpoint": 3}, TypeError, "checkpoint must be a path, got 3 of type int"),
        ({"checkpoint_every": 0.0}, ValueError, "checkpoint_every must be a finite number greater than 0, got 0.0"),
        ({"checkpoint_every": math.inf}, ValueError, "checkpoint_every must be a finite number greater than 0"),
        ({"checkpoint_every": "1"}, TypeError, "checkpoint_every must be a real number, got '1'"),
        ({"n_steps": 2**32}, ValueError, r"n_steps must be below 2\*\*32"),
        ({"n_runs": 2**32}, ValueError, r"n_runs must be below 2\*\*32"),
        ({"model": make(batch_size=2**33)}, ValueError, r"model.batch_size must be below 2\*\*32"),
    ],
)
def test_bad_input(arguments, error, message):
    settings = {"model": make(), "n_steps": 5, "n_runs": 1, "seed": 0, **arguments}
    with pytest.raises(error, match=message):
        sf.simulate(**settings)


def test_auto_takes_the_cheaper_method():
    """By a count of operations: long runs pay for the diagonalisation, short ones of few modes do not."""
    assert sf.simulate(make(), 300, seed=0).method == "reduced"
    assert (
        sf.simulate(make(width=100, spectrum=sf.PowerLawSpectrum(1.5, 0.5, n_modes=120)), 1, seed=0).method == "literal"
    )
    assert sf.simulate(make(width=math.inf), 3, seed=0).method == "literal"
    assert sf.simulate(make(), 300, seed=0, features="uniform").method == "literal"
    assert sf.simulate(make(spectrum=INFINITE, width=2), 1, seed=0).method == "reduced"
