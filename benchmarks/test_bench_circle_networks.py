"""Training steps of networks on the circle against plain NumPy: relu, two hidden layers, batches of 128.

NumPy's version is what one would write: matrices by BLAS, the target interpolated from a table, the same arithmetic in
the same precision. All on one thread. `extra_info` has steps a second.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from scalefield._threads import single_threaded_blas
from scalefield.networks import CircleTask
from scalefield.networks.circle import _plan
from scalefield.networks.circle_training import CircleWorker, Training

TASK = CircleTask(1.0)
BATCH, ETA, N_STEPS = 128, 0.05, 50
WIDTHS = [pytest.param(256, id="256"), pytest.param(512, id="512")]


class PlainNumPy:
    """The same network and steps, F_0 and target interpolated from 2^16 points."""

    def __init__(self, worker: CircleWorker) -> None:
        self.first, self.hidden, self.readout = worker.first.copy(), worker.hidden[0].copy(), worker.readout.copy()
        self.dtype = self.first.dtype
        self.n = self.readout.size
        self.grid = np.linspace(0.0, 2.0 * math.pi, 2**16 + 1)
        self.target = TASK(self.grid)
        self.initial = np.interp(self.grid, np.arange(2**14 + 1) * 2 * math.pi / 2**14, np.append(worker.initial, 0.0))
        self.generator = np.random.default_rng(0)

    def train(self) -> float:
        n, c = self.n, self.dtype.type(math.sqrt(2.0))
        root = self.dtype.type(math.sqrt(n))
        loss = 0.0
        for _ in range(N_STEPS):
            theta = self.generator.uniform(0.0, 2.0 * math.pi, BATCH)
            z = np.stack([np.cos(theta), np.sin(theta)]).astype(self.dtype)
            h1 = self.first @ z
            phi1 = c * np.maximum(h1, 0)
            h2 = self.hidden @ phi1 / root
            phi2 = c * np.maximum(h2, 0)
            output = self.readout @ phi2 / n - np.interp(theta, self.grid, self.initial)
            error = (np.interp(theta, self.grid, self.target) - output).astype(self.dtype)
            loss = float(np.mean(error**2))
            delta2 = np.where(h2 > 0, c, 0).astype(self.dtype) * self.readout[:, None] * error
            delta1 = np.where(h1 > 0, c, 0).astype(self.dtype) * (self.hidden.T @ delta2) / root
            rate = self.dtype.type(ETA / BATCH)
            self.readout += rate * (phi2 @ error)
            self.hidden += rate / root * (delta2 @ phi1.T)
            self.first += rate * (delta1 @ z.T)
        return loss


class Package:
    def __init__(self, worker: CircleWorker) -> None:
        self.worker, self.step = worker, 0

    def train(self) -> float:
        end, chunk = self.step + N_STEPS, self.worker.plan.chunk
        while self.step < end:
            status, self.step, _ = self.worker.advance(0, self.step, min(end, self.step + chunk))
            assert status == 0
        return float(self.worker.arrays["batch_loss"][0, end - 1])


def make_worker(width: int, dtype: str) -> CircleWorker:
    plan = _plan(TASK, 2, width, 1.0, 1.0, ETA, BATCH, 10**6, 1, 0, "log", None, None, 4096, dtype)
    worker = Training(plan, None)._worker()
    assert worker.start(0)
    return worker


@pytest.mark.parametrize("engine", ["package", "numpy"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("width", WIDTHS)
def test_steps(benchmark, width, dtype, engine):
    with single_threaded_blas():
        run = {"package": Package, "numpy": PlainNumPy}[engine](make_worker(width, dtype))
        benchmark.group = f"{N_STEPS} steps, width {width}, {dtype}"
        benchmark.pedantic(run.train, rounds=5, warmup_rounds=2)
        if benchmark.disabled:
            return
        losses = [run.train() for _ in range(20)]
    # Both learn the same, in the mean over a thousand steps of noise of about a factor two each.
    assert 0.03 < np.mean(losses) < 0.5
    benchmark.extra_info["steps_per_second"] = round(N_STEPS / benchmark.stats.stats.min)


@pytest.mark.parametrize("engine", ["package", "cosines"])
def test_target(benchmark, engine):
    """The target at one batch of angles, 16,383 frequencies: spread from 14 points each, or every cosine."""
    theta = np.random.default_rng(1).uniform(0.0, 2.0 * math.pi, BATCH)
    k = np.arange(1, TASK.n_modes + 1)
    call = {
        "package": lambda: TASK(theta),
        "cosines": lambda: np.cos(theta[:, None] * k) @ TASK.coefficients,
    }[engine]
    benchmark.group = "target at 128 angles"
    result = benchmark.pedantic(call, rounds=5, warmup_rounds=1)
    np.testing.assert_allclose(result, TASK(theta), rtol=0.0, atol=1e-11)
