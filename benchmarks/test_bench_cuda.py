"""The CUDA path against the bandwidth of the device: bytes a step must move, over what a plain copy achieves.

Every figure is compared with a device-to-device copy timed on the same device in the same session. `extra_info` has
GB/s of the bytes that the step has to stream, their part of the copy's, and steps (or run-steps) a second; the aim
is 80% of the copy for literal steps at N = 4,096, M = 10^6. Kernels are compiled before anything is timed, and small
models are compared with the CPU first. Run it on a machine with a device by

    python -m pytest benchmarks/test_bench_cuda.py --benchmark-sort=name --benchmark-columns=min,mean -s
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

import scalefield as sf
from cases_simulation import CUDA_DEVIATES, CUDA_LITERAL, CUDA_REDUCED, SEED
from reference_simulation import losses
from scalefield._memory import format_bytes
from scalefield._projection import ENTRY_BYTES
from scalefield.errors import BackendUnavailableError
from scalefield.simulation import cuda
from scalefield.simulation.cuda_literal import CudaLiteral
from scalefield.simulation.cuda_reduced import CudaReduced
from scalefield.simulation.plan import Plan
from simulator import mend_simulator

try:
    gpu = cuda.require_cuda()
except BackendUnavailableError as error:
    pytest.skip(str(error), allow_module_level=True)

COPY_BYTES = 2**32

if gpu.SIMULATED:
    mend_simulator()
    # Only to see that everything here runs: a test does so.
    COPY_BYTES = 2**20

    def shrink(model: sf.Model) -> sf.Model:
        batch = model.batch_size if math.isinf(model.batch_size) else 3
        return model.replace(spectrum=sf.PowerLawSpectrum(1.5, 0.5, n_modes=20), width=8, batch_size=batch)

    CUDA_LITERAL = {name: (shrink(model), dtype, 1) for name, (model, dtype, _) in CUDA_LITERAL.items()}
    CUDA_REDUCED = {name: (shrink(model), dtype, 2, 2) for name, (model, dtype, *_) in CUDA_REDUCED.items()}
    CUDA_DEVIATES = (8, 4)


def make_plan(model: sf.Model, n_steps: int, n_runs: int, method: str, dtype: str) -> Plan:
    return Plan(model, n_steps, n_runs, SEED, method, np.arange(n_steps + 1), np.dtype(dtype), "gaussian")


def require_memory(n_bytes: float) -> None:
    if n_bytes > 0.95 * gpu.free_memory():
        pytest.skip(f"needs {format_bytes(int(n_bytes))} of device memory")


@pytest.fixture(scope="module")
def copy_bandwidth() -> float:
    """Bytes read and written a second by the best of ten copies."""
    size = int(min(COPY_BYTES, gpu.free_memory() / 4)) // 4
    source, target = gpu.empty(size, "float32"), gpu.empty(size, "float32")
    best = 0.0
    for _ in range(10):
        gpu.synchronize()
        started = time.perf_counter()
        target.copy_to_device(source)
        gpu.synchronize()
        seconds = time.perf_counter() - started
        best = max(best, 2 * 4 * size / seconds)
    return best


def report(benchmark, copy_bandwidth: float, n_bytes: float, units: int, unit: str) -> None:
    """Bytes in one timed call, and how many steps it did."""
    if benchmark.stats is None:
        return
    seconds = benchmark.stats.stats.min
    benchmark.extra_info["copy_GB_per_second"] = round(copy_bandwidth / 1e9, 1)
    benchmark.extra_info["GB_per_second"] = round(n_bytes / seconds / 1e9, 1)
    benchmark.extra_info["of_copy"] = round(n_bytes / seconds / copy_bandwidth, 3)
    benchmark.extra_info[f"{unit}_per_second"] = round(units / seconds, 1)


class LiteralSteps:
    """Steps of one run, continued call by call."""

    def __init__(self, model: sf.Model, dtype: str, n_steps: int) -> None:
        self.engine = CudaLiteral(make_plan(model, 1000 * n_steps, 1, "literal", dtype), gpu, None, None)
        self.n_steps, self.t = n_steps, 0
        self.engine.begin(0)
        gpu.synchronize()

    def __call__(self) -> None:
        for _ in range(self.n_steps):
            self.engine.step(self.t)
            self.t += 1
        gpu.synchronize()


def check_against_cpu(model: sf.Model, dtype: str) -> None:
    """The same kind of run, small: equal losses before anything is timed."""
    small = model.replace(spectrum=sf.PowerLawSpectrum(1.5, 0.5, n_modes=40), width=20)
    got = cuda.simulate_on_cuda(make_plan(small, 2, 1, "literal", dtype)).losses[0]
    np.testing.assert_allclose(got, losses(small, SEED, 0, 2), rtol=1e-10 if dtype == "float64" else 1e-5)


@pytest.mark.parametrize("case", CUDA_LITERAL)
def test_literal_steps(benchmark, copy_bandwidth, case):
    """The bar: 80% of the copy's bandwidth with A(0) streamed twice a step (once at B = inf)."""
    model, dtype, n_steps = CUDA_LITERAL[case]
    check_against_cpu(model, dtype)
    size = ENTRY_BYTES * model.width * model.spectrum.n_modes
    require_memory(1.1 * size)
    steps = LiteralSteps(model, dtype, n_steps)
    assert steps.engine.stored
    benchmark.group = "literal steps, A(0) in device memory"
    benchmark.pedantic(steps, rounds=5, warmup_rounds=1)
    streams = steps.engine.shape.projection_streams
    report(benchmark, copy_bandwidth, streams * size * n_steps, n_steps, "steps")


@pytest.mark.parametrize("case", CUDA_LITERAL)
def test_literal_steps_on_the_fly(benchmark, copy_bandwidth, monkeypatch, case):
    """A(0) made anew: bytes are those that would have been streamed, so that the rates compare."""
    model, dtype, n_steps = CUDA_LITERAL[case]
    batch = 0 if math.isinf(model.batch_size) else model.batch_size
    from scalefield._native.gpu_literal import Shape

    others = Shape(model.spectrum.n_modes, model.width, batch, model.is_rich, dtype).others_size
    require_memory(np.dtype(dtype).itemsize * others)
    monkeypatch.setattr(gpu, "free_memory", lambda: 1.1 * np.dtype(dtype).itemsize * others)
    steps = LiteralSteps(model, dtype, n_steps)
    assert not steps.engine.stored
    benchmark.group = "literal steps, A(0) on the fly"
    benchmark.pedantic(steps, rounds=5, warmup_rounds=1)
    size = ENTRY_BYTES * model.width * model.spectrum.n_modes
    report(benchmark, copy_bandwidth, steps.engine.shape.projection_streams * size * n_steps, n_steps, "steps")


@pytest.mark.parametrize("kernel", ["project", "back_project"])
@pytest.mark.parametrize("case", list(CUDA_LITERAL)[:1])
def test_streaming_kernel(benchmark, copy_bandwidth, case, kernel):
    """Each of the two passes over A(0) by itself."""
    model, dtype, n_steps = CUDA_LITERAL[case]
    size = ENTRY_BYTES * model.width * model.spectrum.n_modes
    require_memory(1.1 * size)
    steps = LiteralSteps(model, dtype, n_steps)
    queue: Callable[[], None] = getattr(steps.engine, f"queue_{kernel}")

    def run() -> None:
        for _ in range(n_steps):
            queue()
        gpu.synchronize()

    benchmark.group = "one pass over A(0)"
    benchmark.pedantic(run, rounds=5, warmup_rounds=1)
    report(benchmark, copy_bandwidth, size * n_steps, n_steps, "passes")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_normal_deviates(benchmark, copy_bandwidth, dtype):
    """A(0) filled from its counters: bounded by arithmetic, or by writing it."""
    from scalefield._native.gpu_literal import literal_kernels

    kernels = literal_kernels(dtype, 256, True)
    n_rows, n_quads = CUDA_DEVIATES
    out = gpu.empty(4 * n_rows * n_quads, "float32")
    words = [np.uint32(word) for word in (1, 2, 0)]

    def fill() -> None:
        kernels.fill_projection.launch(min(4096, -(-n_rows * n_quads // 256)), 256, *words, n_rows, n_quads, out)
        gpu.synchronize()

    benchmark.group = "normal deviates"
    benchmark.pedantic(fill, rounds=5, warmup_rounds=1)
    n = 4 * n_rows * n_quads
    report(benchmark, copy_bandwidth, ENTRY_BYTES * n, n, "deviates")


@dataclass
class Spectrum:
    """A made-up run in its eigenbasis: what it costs does not depend on the numbers."""

    eigenvalues: np.ndarray
    c: np.ndarray
    rest: float


@pytest.mark.parametrize("case", CUDA_REDUCED)
def test_reduced_ensemble(benchmark, copy_bandwidth, case):
    """At gamma > 0 G is read and written once a step and run; at gamma = 0 the deviates bound the speed."""
    model, dtype, n_steps, n_runs = CUDA_REDUCED[case]
    k = np.arange(1, model.width + 1)
    reductions = [Spectrum(model.width * k**-1.5, k**-0.9, 0.1)] * n_runs
    plan = make_plan(model, n_steps, n_runs, "reduced", dtype)

    def run() -> cuda.CudaRuns:
        return cuda.simulate_on_cuda(plan, reductions)

    require_memory(n_runs * CudaReduced(plan, gpu, None, None, reductions).shape.entries_per_run * 8)
    benchmark.group = f"reduced ensembles, {n_steps} steps of {n_runs} runs"
    runs = benchmark.pedantic(run, rounds=3, warmup_rounds=1)
    assert runs.finished.all()
    n_bytes = 2.0 * np.dtype(dtype).itemsize * model.width**2 * n_steps * n_runs if model.is_rich else 0.0
    report(benchmark, copy_bandwidth, n_bytes, n_steps * n_runs, "run_steps")
