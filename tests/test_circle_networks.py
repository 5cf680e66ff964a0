r"""Networks on the circle (theory section 11; Sec. 5.1, App. A.1 and H).

The oracles: a plain NumPy network, sample by sample, whose gradients agree with finite differences; kernel gradient
descent on the same samples with the network's own initial kernel, which a network follows up to O(gamma); the kernel
of infinite width, up to O(1/N) and the noise of seeds; sums over cosines.
"""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest

import scalefield as sf
from scalefield import _ensemble as ensemble
from scalefield._native import circle_steps, rng
from scalefield._threads import single_threaded_blas
from scalefield.errors import DivergenceError, InsufficientMemoryError, Interrupted, ScalefieldError
from scalefield.figures import figure_5
from scalefield.networks import CircleTask, LossSpike, MultilayerTraining, circle, circle_training, train_multilayer
from scalefield.scaling import time_exponent

TASK = CircleTask(1.0, n_modes=40)
SMALL = {"depth": 2, "width": 16, "batch_size": 8, "n_steps": 40, "n_test": 64, "seed": 3}


class PlainNetwork:
    """The same network in plain NumPy: a list of matrices, one sample at a time."""

    def __init__(self, weights: list[np.ndarray], gamma: float, power: float) -> None:
        self.weights, self.gamma, self.power = weights, gamma, power
        # E relu(z)^2q by quadrature.
        z = np.linspace(0.0, 40.0, 400_001)
        self.c = np.trapezoid(z ** (2 * power) * np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi), z) ** -0.5

    def signals(self, theta: float) -> list[np.ndarray]:
        x = np.array([math.cos(theta), math.sin(theta)])
        signals = [self.weights[0] @ x]
        for w in self.weights[1:-1]:
            signals.append(w @ self.phi(signals[-1]) / math.sqrt(w.shape[1]))
        return signals

    def phi(self, h: np.ndarray) -> np.ndarray:
        return self.c * np.where(h > 0.0, np.abs(h) ** self.power, 0.0)

    def slope(self, h: np.ndarray) -> np.ndarray:
        return self.c * self.power * np.where(h > 0.0, np.abs(h) ** (self.power - 1.0), 0.0)

    def output(self, theta: float) -> float:
        readout = self.weights[-1]
        return float(readout @ self.phi(self.signals(theta)[-1])) / (self.gamma * readout.size)

    def gradient(self, theta: float) -> list[np.ndarray]:
        """dF/dW of all matrices."""
        signals = self.signals(theta)
        readout = self.weights[-1]
        scale = 1.0 / (self.gamma * readout.size)
        gradients = [scale * self.phi(signals[-1])]
        back = scale * readout * self.slope(signals[-1])
        for layer in range(len(signals) - 1, 0, -1):
            w = self.weights[layer]
            gradients.append(np.outer(back, self.phi(signals[layer - 1])) / math.sqrt(w.shape[1]))
            back = (back @ w) / math.sqrt(w.shape[1]) * self.slope(signals[layer - 1])
        gradients.append(np.outer(back, [math.cos(theta), math.sin(theta)]))
        return gradients[::-1]

    def flat_gradient(self, theta: float) -> np.ndarray:
        return np.concatenate([part.ravel() for part in self.gradient(theta)])


def make_worker(**arguments) -> circle_training.CircleWorker:
    """The engine with the network of run 0, ready to train."""
    defaults = {
        "task": TASK, "depth": 2, "width": 16, "activation_power": 1.0, "gamma": 1.0, "learning_rate": 0.05,
        "batch_size": 8, "n_steps": 40, "n_seeds": 1, "seed": 3, "record": "log", "kernel_points": None,
        "kernel_steps": None, "n_test": 64, "dtype": "float64",
    }  # fmt: skip
    plan = circle._plan(**{**defaults, **arguments})
    worker = circle_training.Training(plan, None)._worker()
    with single_threaded_blas():
        assert worker.start(0)
    return worker


def plain_copy(worker: circle_training.CircleWorker) -> PlainNetwork:
    weights = [worker.first.copy(), *(layer.copy() for layer in worker.hidden), worker.readout.copy()]
    return PlainNetwork([w.astype(np.float64) for w in weights], worker.plan.gamma, worker.plan.activation_power)


def angles(seed: int, step: int, size: int, run: int = 0) -> np.ndarray:
    """Angles of a step, from the words of the generator."""
    key = rng.stream_key(seed, rng.ANGLES)
    words = [
        word
        for block in range((size + 3) // 4)
        for word in rng.philox(*key, *(np.uint64(c) for c in (block, 0, step, run)))
    ]
    return 2.0 * math.pi * (np.array(words[:size], dtype=np.float64) + 0.5) / 2.0**32


@pytest.mark.parametrize(("exponent", "n_modes"), [(0.75, 16383), (1.75, 100), (1.0, 1), (1.0, 7)])
def test_target_is_its_fourier_series(exponent, n_modes):
    task = CircleTask(exponent, n_modes, mean_square=2.0)
    k = np.arange(1, n_modes + 1)
    raw = k**-exponent
    raw *= math.sqrt(2.0 * 2.0 / (raw**2).sum())
    theta = np.concatenate((np.random.default_rng(0).uniform(-20.0, 20.0, 60), [0.0, 1e-9, math.pi, 2.0 * math.pi]))
    direct = np.array([np.sum(raw * np.cos(k * angle)) for angle in theta])
    # The promised accuracy; a sum of 16,383 terms near its peak of 50 is itself uncertain by 1e-12.
    np.testing.assert_allclose(task(theta.reshape(4, -1)).ravel(), direct, rtol=0.0, atol=1e-11)
    grid, rest = task.on_grid(1024)
    assert np.mean(grid**2) + rest == pytest.approx(2.0, rel=1e-12)


def test_exponents_and_spectrum_of_a_task():
    task = CircleTask(1.75)
    assert task.source_exponent() == 1.25
    assert task.source_exponent(3.0) == pytest.approx(2.5 / 6.0)
    spectrum = CircleTask(1.75, n_modes=63).spectrum(2.0, depth=2)
    assert spectrum.total_target_power == pytest.approx(1.0, rel=1e-12)
    assert spectrum.n_modes == 126


@pytest.mark.parametrize(("depth", "power"), [(1, 1.0), (2, 1.0), (2, 2.0), (3, 2.5), (3, 3.0)])
def test_a_step_is_that_of_plain_numpy_and_of_finite_differences(depth, power):
    gamma, eta, size = 0.7, 0.3, 6
    worker = make_worker(depth=depth, width=7, activation_power=power, gamma=gamma, learning_rate=eta, batch_size=size)
    plain = plain_copy(worker)
    theta = angles(3, 0, size)
    with single_threaded_blas():
        assert worker.advance(0, 0, 1)[:2] == (circle_steps.OK, 1)
    loss, typical = worker.buffers
    # f = 0 before the first step, to the target's 1e-11.
    y = TASK(theta)
    np.testing.assert_allclose(loss[0], np.mean(y**2), rtol=1e-10)
    np.testing.assert_allclose(typical[0], np.exp(np.mean(np.log(y**2))), rtol=1e-9)
    per_sample = [plain.gradient(angle) for angle in theta]
    moved = [worker.first, *worker.hidden, worker.readout]
    for index, (before, after) in enumerate(zip(plain.weights, moved, strict=True)):
        gradient = sum(value * parts[index] for value, parts in zip(y, per_sample, strict=True)) / size
        np.testing.assert_allclose(after - before, eta * gamma**2 * 7 * gradient, rtol=1e-9, atol=1e-11)
    # The oracle's own gradients, by central differences of step 1e-6: 1e-9 of rounding and 1e-12 of curvature.
    for index, weights in enumerate(plain.weights):
        for place in [(0,), (3,)] if weights.ndim == 1 else [(0, 0), (3, 1), (6, weights.shape[1] - 1)]:
            kept, values = weights[place], []
            for shift in (1e-6, -1e-6):
                weights[place] = kept + shift
                values.append(plain.output(theta[0]))
            weights[place] = kept
            difference = (values[0] - values[1]) / 2e-6
            assert difference == pytest.approx(per_sample[0][index][place], rel=1e-6, abs=2e-9)


def test_many_steps_are_those_of_plain_numpy():
    # Rounding, and 1e-11 of the target, may grow a little in 12 steps.
    worker = make_worker(depth=2, width=9, gamma=1.3, learning_rate=0.2, batch_size=5, seed=8)
    plain = plain_copy(worker)
    initial = PlainNetwork([w.copy() for w in plain.weights], plain.gamma, 1.0)
    with single_threaded_blas():
        assert worker.advance(0, 0, 12)[:2] == (circle_steps.OK, 12)
    for step in range(12):
        theta = angles(8, step, 5)
        residual = TASK(theta) - [plain.output(a) - initial.output(a) for a in theta]
        total = [np.zeros_like(w) for w in plain.weights]
        for e, a in zip(residual, theta, strict=True):
            for part, gradient in zip(total, plain.gradient(a), strict=True):
                part += e * gradient
        for w, part in zip(plain.weights, total, strict=True):
            w += 0.2 * 1.3**2 * 9 / 5 * part
    for found, expected in zip((worker.first, worker.hidden[0], worker.readout), plain.weights, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0.0, atol=1e-9)
    values = np.empty(64)
    assert worker.evaluate(worker.test_angles, values)
    expected = [plain.output(a) for a in worker.test_angles]
    np.testing.assert_allclose(values, expected, rtol=0.0, atol=1e-9)


def test_interpolated_centre_is_close():
    # Between 2^14 angles, where gamma N >= 100: largest error 2 pi/2^14 w c a/(4 gamma N) at a kink, with w a up to 8.
    tabulated, exact = make_worker(width=128, batch_size=512), make_worker(width=128, batch_size=512)
    assert tabulated.initial.size > 0
    exact.initial = np.zeros(0)
    exact.first_initial, exact.hidden_initial, exact.readout_initial = (
        exact.first.copy(), exact.hidden.copy(), exact.readout.copy()
    )  # fmt: skip
    with single_threaded_blas():
        for worker in (tabulated, exact):
            worker.advance(0, 0, 1)
    # What is left of the residual.
    difference = np.abs(tabulated.batch[4] - exact.batch[4])
    assert 0.0 < difference.max() < 1e-5


def test_test_loss_is_the_mean_over_the_circle():
    # Against 2^14 angles and every frequency; the grid of 512 leaves out products of frequencies above 256, of which
    # the network after 60 steps has learned about eta t lambda_k < 3 x 256^-2 = 5e-5.
    task = CircleTask(1.0, n_modes=4000)
    worker = make_worker(task=task, width=32, n_test=512, n_steps=60)
    with single_threaded_blas():
        worker.advance(0, 0, 60)
        loss = worker.test_loss()
        theta = 2.0 * math.pi / 2**14 * np.arange(2**14)
        values, initial = np.empty(theta.size), np.empty(theta.size)
        assert worker.evaluate(theta, values)
        assert worker.start(0)
        assert worker.evaluate(theta, initial)
    fine = np.mean((task(theta) - (values - initial)) ** 2)
    assert 0.1 < fine < 0.6
    assert loss == pytest.approx(fine, rel=1e-4)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_lazy_networks_follow_kernel_descent_on_the_same_samples(power):
    # With the network's own initial kernel K_0 (explicit gradients): f(x) += eta/B sum_b K_0(x, x_b) e_b. Networks
    # deviate by O(gamma): halving gamma halves the deviation, for smooth slopes; where units of relu change their sign
    # at a sample it jumps, so that only its size is compared. No randomness is left.
    n_steps, size, eta = 25, 6, 0.1 / power
    steps = np.arange(n_steps + 1)
    deviations = []
    for gamma in (4e-3, 2e-3):
        worker = make_worker(
            width=20, gamma=gamma, learning_rate=eta, batch_size=size, n_steps=n_steps, activation_power=power
        )
        plain = plain_copy(worker)
        theta = np.concatenate([worker.test_angles, *(angles(3, step, size) for step in range(n_steps))])
        kernel = sf.kernels.empirical_ntk([plain.flat_gradient(a) for a in theta], scale=gamma**2 * 20)
        y, rest = TASK.on_grid(64)
        f, expected = np.zeros(theta.size), []
        for step in range(n_steps + 1):
            expected.append(np.mean((y - f[:64]) ** 2) + rest)
            if step < n_steps:
                batch = slice(64 + step * size, 64 + (step + 1) * size)
                f += eta / size * kernel[:, batch] @ (TASK(theta[batch]) - f[batch])
        training = train_multilayer(
            TASK, width=20, gamma=gamma, learning_rate=eta, batch_size=size, n_steps=n_steps, n_test=64, seed=3,
            record=steps, kernel_points=32, kernel_steps=[0], activation_power=power,
        )  # fmt: skip
        assert expected[-1] < 0.7 * expected[0]
        deviations.append(training.loss[0] - expected)
        # The kernel that is recorded, on points of its own.
        points = 2.0 * math.pi / 32 * np.arange(32)
        own = sf.kernels.empirical_ntk([plain.flat_gradient(a) for a in points], scale=gamma**2 * 20)
        np.testing.assert_allclose(training.kernels[0, 0], own, rtol=1e-10, atol=1e-10)
    assert np.abs(deviations[1]).max() < 4e-3
    assert np.abs(deviations[1]).max() < np.abs(deviations[0]).max()
    if power > 1.0:
        largest = np.argmax(np.abs(deviations[0]))
        # The next order is smaller by gamma times the change of weights: a few per cent.
        assert deviations[0][largest] / deviations[1][largest] == pytest.approx(2.0, abs=0.2)


def test_wide_lazy_networks_follow_the_kernel_of_infinite_width():
    # Batches are large and steps small: SGD noise eta tr K/(2 B) = 6e-4, steps eta lambda_1/2 = 1e-2 of the rate at
    # first. Kernels of width N scatter by about 3/sqrt(N) around one within 3/N of the infinite one, which the spread
    # over 6 seeds measures. 4 standard errors (t with 5 degrees of freedom: 1% a point) plus 3% for the biases.
    task = CircleTask(1.0, n_modes=31)
    record = [0, 20, 60, 150, 250]
    training = train_multilayer(
        task, width=128, gamma=1e-2, learning_rate=0.03, batch_size=64, n_steps=250, n_seeds=6, n_test=128, seed=1,
        record=record, kernel_points=16, kernel_steps=[0],
    )  # fmt: skip
    flow = sf.solve_gradient_flow(sf.Model(task.spectrum()), training.times)
    assert flow.loss[-1] < 0.2
    for found, error, expected in zip(training.mean, training.standard_error, flow.loss, strict=True):
        assert abs(found - expected) < 4.0 * error + 0.03 * expected
    assert training.standard_error[-1] < 0.1 * training.mean[-1]
    kernel = sf.kernels.InfiniteWidthKernel("relu", depth=2)
    theta = 2.0 * math.pi / 16 * np.arange(16)
    expected = kernel.angular_profile(np.abs(theta - 2.0 * math.pi * (theta > math.pi)))
    found = training.kernels[:, 0].mean(axis=0)
    shifted = np.array([np.roll(found[i], -i) for i in range(16)])
    # One entry scatters by about 3 sqrt(2/N)/sqrt(6) = 0.15; averages over the 16 places much less.
    np.testing.assert_allclose(shifted.mean(axis=0), expected, atol=0.3)


def test_lazy_and_rich_share_their_first_steps():
    # The first step moves f by the same amount, whatever gamma; weights then differ by O(gamma eta).
    curves = {
        gamma: train_multilayer(
            TASK, width=256, gamma=gamma, learning_rate=0.02, batch_size=64, n_steps=40, n_test=128, seed=2,
            record="all",
        ).loss[0]
        for gamma in (1e-3, 0.5, 1.0)
    }  # fmt: skip
    learned = curves[1e-3][0] - curves[1e-3]
    differences = {gamma: np.abs(curves[gamma] - curves[1e-3]) for gamma in (0.5, 1.0)}
    assert learned[1] > 0.01
    assert differences[1.0][1] < 0.02 * learned[1]
    assert differences[1.0][3] < 0.05 * learned[3]
    # Later they part, the richer one the more.
    assert differences[1.0][40] > differences[0.5][40] > 0.0
    assert differences[1.0][40] > 5.0 * differences[1.0][3]


def test_rich_kernels_align_with_the_task_and_lazy_ones_stay():
    settings = {**SMALL, "width": 64, "n_steps": 300, "kernel_points": 24, "kernel_steps": [0, 300]}
    rich = train_multilayer(TASK, gamma=2.0, **settings)
    lazy = train_multilayer(TASK, gamma=0.01, **settings)
    assert rich.kernel_distance[0, 1] > 0.02 > 1e-3 > lazy.kernel_distance[0, 1]
    assert rich.kernel_change[0, 1] > 0.1 > 0.02 > lazy.kernel_change[0, 1]
    assert rich.kernel_alignment[0, 1] > rich.kernel_alignment[0, 0] + 0.01
    np.testing.assert_allclose(lazy.kernel_alignment[0, 1], lazy.kernel_alignment[0, 0], atol=5e-3)
    assert rich.kernel_distance[0, 0] == rich.kernel_change[0, 0] == 0.0


def test_linearised_loss_is_descent_with_the_first_kernel():
    training = train_multilayer(TASK, gamma=0.1, **{**SMALL, "kernel_points": 32, "kernel_steps": [0]}, record="all")
    y, rest = TASK.on_grid(32)
    f, expected = np.zeros(32), []
    for _ in range(SMALL["n_steps"] + 1):
        expected.append(np.mean((y - f) ** 2) + rest)
        f = f + training.learning_rate * training.kernels[0, 0] @ (y - f) / 32
    np.testing.assert_allclose(training.linearised_loss()[0], expected, rtol=1e-10)


def test_numbers_do_not_depend_on_threads_or_on_other_runs(monkeypatch):
    found = []
    for threads in ("1", "2"):
        monkeypatch.setenv("SCALEFIELD_NUM_THREADS", threads)
        found.append(train_multilayer(TASK, n_seeds=3, **SMALL, kernel_points=8))
    for name in ("loss", "batch_loss", "typical_batch_loss", "kernels"):
        np.testing.assert_array_equal(getattr(found[0], name), getattr(found[1], name))
    alone = train_multilayer(TASK, n_seeds=1, **SMALL, record="all")
    np.testing.assert_array_equal(alone.batch_loss[0], found[0].batch_loss[0])
    np.testing.assert_array_equal(alone.loss[0, found[0].steps], found[0].loss[0])
    longer = train_multilayer(TASK, n_seeds=1, **{**SMALL, "n_steps": 60})
    np.testing.assert_array_equal(longer.batch_loss[:, :40], alone.batch_loss)
    other = train_multilayer(TASK, n_seeds=1, **{**SMALL, "seed": 4})
    assert not np.array_equal(other.batch_loss, alone.batch_loss)
    assert len(np.unique(found[0].loss[:, -1])) == 3


def test_wider_networks_keep_the_weights_of_narrow_ones():
    narrow, wide = make_worker(width=6, depth=3), make_worker(width=11, depth=3)
    np.testing.assert_array_equal(wide.first[:6], narrow.first)
    np.testing.assert_array_equal(wide.hidden[:, :6, :6], narrow.hidden)
    np.testing.assert_array_equal(wide.readout[:6], narrow.readout)
    # 11 x 2 + 2 x 121 + 11 = 275 deviates: mean and variance within 4 standard errors (1e-4 false alarms).
    everything = np.concatenate([wide.first.ravel(), wide.hidden.ravel(), wide.readout])
    assert np.unique(everything).size == everything.size == 275
    assert abs(everything.mean()) < 4.0 / math.sqrt(275)
    assert abs(everything.var() - 1.0) < 4.0 * math.sqrt(2.0 / 275)


def test_single_precision_is_close():
    double, single = (train_multilayer(TASK, **{**SMALL, "width": 64}, dtype=dtype) for dtype in ("float64", "float32"))
    # Activities are rounded by 6e-8, sums of 64 terms by ten times that; measured 1e-7 to 1e-6.
    np.testing.assert_allclose(single.loss, double.loss, rtol=1e-5)
    assert not np.array_equal(single.loss, double.loss)


def test_results_are_saved_and_frozen(tmp_path):
    training = train_multilayer(TASK, n_seeds=2, **SMALL, kernel_points=6)
    path = tmp_path / "training.npz"
    training.save(path)
    loaded = MultilayerTraining.load(path)
    for name in ("steps", "loss", "batch_loss", "typical_batch_loss", "kernel_steps", "kernels"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(training, name))
        assert getattr(loaded, name).dtype == getattr(training, name).dtype
    for name in ("task", "depth", "width", "gamma", "learning_rate", "batch_size", "seed", "n_test", "dtype"):
        assert getattr(loaded, name) == getattr(training, name)
    assert repr(loaded) == repr(training)
    with pytest.raises(ValueError, match="read-only"):
        training.loss[0, 0] = 0.0
    np.testing.assert_allclose(training.standard_error, np.abs(np.diff(training.loss, axis=0)[0]) / 2.0)
    sf.solve_gradient_flow(sf.Model(sf.PowerLawSpectrum(1.5, 0.5)), [0.0, 1.0]).save(path)
    with pytest.raises(ScalefieldError, match="holds FlowSolution"):
        MultilayerTraining.load(path)


def test_exponents_are_those_of_the_window():
    steps = np.unique(np.rint(np.geomspace(1, 1000, 40)).astype(np.int64))
    loss = np.vstack([steps**-0.7, 1.1 * steps**-0.6])
    nothing = np.ones((2, 1000), dtype=np.float32)
    training = MultilayerTraining(TASK, 2, 8, 1.0, 1.0, 0.05, 4, 0, 64, "float64", steps, loss, nothing, nothing)
    fit = training.measured_exponent()
    assert fit.window[0] >= 100
    assert 0.6 < fit.exponent < 0.7
    assert training.predicted_exponent() == time_exponent(0.5, True) == pytest.approx(2.0 / 3.0)
    assert training.predicted_exponent(rich=False) == 0.5
    with pytest.raises(ValueError, match="at least three recorded steps"):
        training.measured_exponent((900.0, 905.0))
    with pytest.raises(ScalefieldError, match="no kernels were recorded"):
        _ = training.kernel_alignment


def test_spikes_are_found_and_noise_is_not():
    # Batches scatter by a factor e; medians of 129 by 11%: 2 is 6 standard deviations away.
    generator = np.random.default_rng(0)
    smooth = (1.0 + np.arange(3000)) ** -0.5 * np.exp(generator.normal(size=(2, 3000)))
    smooth[1, 1500:1700] *= 5.0
    smooth[1, 2990] *= 1e3
    typical = smooth.astype(np.float32)
    training = MultilayerTraining(
        TASK, 2, 8, 1.0, 1.0, 0.05, 128, 0, 64, "float64", np.array([0, 3000]), np.ones((2, 2)), typical, typical
    )
    spikes = training.spikes()
    assert [type(spike) for spike in spikes] == [LossSpike]
    assert spikes[0].run == 1
    assert spikes[0].start == pytest.approx(1500, abs=40)
    assert spikes[0].stop == pytest.approx(1700, abs=40)
    assert spikes[0].ratio == pytest.approx(5.0, rel=0.4)
    with pytest.raises(ValueError, match="factor must be"):
        training.spikes(1.0)


def test_too_fast_training_diverges_and_keeps_what_was_before():
    with pytest.raises(DivergenceError, match="smaller learning rate") as caught:
        train_multilayer(TASK, **{**SMALL, "n_steps": 400}, n_seeds=2, learning_rate=40.0, record="all")
    partial = caught.value.partial
    assert partial.loss.shape == partial.batch_loss.shape == (2, caught.value.step)
    assert np.isfinite(partial.batch_loss).all()


def test_too_wide_networks_are_refused():
    with pytest.raises(InsufficientMemoryError, match="training 1 network"):
        train_multilayer(TASK, width=10**7)


def test_interrupted_training_keeps_finished_runs(monkeypatch):
    monkeypatch.setenv("SCALEFIELD_NUM_THREADS", "1")
    monkeypatch.setattr(ensemble, "_POLL_SECONDS", 0.002)
    call = {**SMALL, "n_steps": 400, "n_seeds": 3, "kernel_points": 5}
    whole = train_multilayer(TASK, **call)
    # The last run waits for Ctrl-C.
    advance, interrupted = circle_training.CircleWorker.advance, threading.Event()

    def wait(self, run, t_first, *arguments):
        if run == 2 and t_first > 0:
            assert interrupted.wait(60.0)
        return advance(self, run, t_first, *arguments)

    def progress(done, total):
        if done > 800:
            interrupted.set()
            raise KeyboardInterrupt

    monkeypatch.setattr(circle_training.CircleWorker, "advance", wait)
    with pytest.raises(Interrupted, match="2 of 3 runs finished") as caught:
        train_multilayer(TASK, **call, progress=progress)
    for name in ("loss", "batch_loss", "typical_batch_loss", "kernels"):
        np.testing.assert_array_equal(getattr(caught.value.partial, name), getattr(whole, name)[:2])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"task": 1.0}, TypeError, "task must be a CircleTask"),
        ({"depth": 0}, ValueError, "depth must be an integer of at least 1"),
        ({"width": 1}, ValueError, "width must be an integer of at least 2"),
        ({"activation_power": 0.5}, ValueError, "activation_power must be a finite number at least 1"),
        ({"gamma": 0.0}, ValueError, "gamma must be a finite number greater than 0"),
        ({"learning_rate": -1.0}, ValueError, "learning_rate must be"),
        ({"batch_size": 2.5}, ValueError, "batch_size must be an integer"),
        ({"n_steps": 2**32}, ValueError, "n_steps must be below"),
        ({"n_seeds": "3"}, TypeError, "n_seeds must be an integer"),
        ({"record": "some"}, ValueError, "record must be 'log', 'all' or increasing steps, got 'some'"),
        ({"record": [0, 99]}, ValueError, "record must increase"),
        ({"kernel_steps": [0]}, ValueError, "kernel_steps goes with kernel_points"),
        ({"kernel_points": 2}, ValueError, "kernel_points must be an integer of at least 3"),
        ({"n_test": 3}, ValueError, "n_test must be an integer of at least 4"),
        ({"dtype": "float16"}, ValueError, "dtype must be one of float64, float32"),
        ({"checkpoint": 3}, TypeError, "checkpoint must be a path"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        train_multilayer(**{"task": TASK, **SMALL, **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0.5,), ValueError, "exponent must be"),
        ((1.0, 0), ValueError, "n_modes must be"),
        ((1.0, 10, 0.0), ValueError, "mean_square must be"),
    ],
)
def test_bad_tasks(arguments, error, message):
    with pytest.raises(error, match=message):
        CircleTask(*arguments)
    with pytest.raises(ValueError, match="theta must be finite"):
        TASK([0.0, math.nan])
    with pytest.raises(TypeError, match="theta must be an array of real numbers"):
        TASK(["a"])


def test_figure_5(monkeypatch, tmp_path):
    # The figure at a hundredth of its size: structure, not exponents.
    calls = []

    def train(task, **settings):
        calls.append((task.exponent, settings["activation_power"], settings["gamma"], settings["learning_rate"]))
        settings |= {"width": 16, "n_steps": 100, "n_seeds": 2, "batch_size": 16, "n_test": 64, "kernel_points": 8}
        if settings["kernel_steps"] is not None:
            settings["kernel_steps"] = [0, 100]
        return train_multilayer(task, **settings)

    monkeypatch.setattr(figure_5, "train_multilayer", train)
    monkeypatch.setattr(figure_5, "CircleTask", lambda exponent: CircleTask(exponent, n_modes=255))
    done = []
    data = figure_5.compute(quick=True, progress=lambda part, total: done.append(part / total))
    assert len(set(calls)) == 8
    assert done[-1] == 1.0
    assert sorted(done) == done

    def interrupt(part, total):
        if part >= 0.4 * total:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        figure_5.compute(quick=True, progress=interrupt, checkpoints=tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    again = figure_5.compute(quick=True, progress=lambda part, total: done.append(part / total), checkpoints=tmp_path)
    assert again.csv() == data.csv()
    with monkeypatch.context() as patch:
        patch.setattr(ensemble.Ensemble, "_work", lambda self: pytest.fail("all has been trained"))
        assert figure_5.compute(quick=True, checkpoints=tmp_path).csv() == data.csv()
    # eta in proportion to 1/K(0), K(0) = sum_l (p^2/(2 p - 1))^l, a quarter of it for p > 1, and 0.4 if beta < 1/2.
    rates = {call[:3]: call[3] for call in calls}
    assert rates[1.0, 1.0, 1.0] == rates[1.75, 1.0, 0.01] == pytest.approx(0.05)
    assert rates[0.75, 1.0, 1.0] == pytest.approx(0.02)
    assert rates[1.75, 2.0, 1.0] == pytest.approx(0.25 * 0.15 / (1 + 4 / 3 + 16 / 9))
    assert rates[1.75, 3.0, 1.0] == pytest.approx(0.4 * 0.25 * 0.15 / (1 + 9 / 5 + 81 / 25))
    assert [curve.kind for curve in data.panel("a")].count("simulation") == 4
    assert [curve.kind for curve in data.panel("b")].count("simulation") == 3
    hard = next(curve for curve in data.panel("a") if curve.parameters.get("q") == 1.0)
    assert hard.predicted_exponent == pytest.approx(2.0 / 3.0)
    assert hard.window[0] >= 10.0
    assert hard.window[1] == 100.0
    guide = [curve for curve in data.panel("a") if curve.kind == "guide"][1]
    assert math.log(guide.y[1] / guide.y[0]) / math.log(guide.x[1] / guide.x[0]) == pytest.approx(-2.0 / 3.0)
    figure = figure_5.draw(data)
    assert len(figure.axes) == 6
    figure.savefig(tmp_path / "figure.png", dpi=40)
