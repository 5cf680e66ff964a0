"""Checks of the CUDA path, on a device or in Numba's simulator; run by test_cuda.py, each in a process of its own.

Theory sections 1 and 8. The kernels draw the numbers that the CPU draws, so a run on the device is compared with plain
NumPy loss by loss. In float64 both sides take sums of at most 10^3 terms in different orders over at most 6 steps of
a stable iteration, and a device fuses products: 1e-12 of the loss leaves a factor of 100. Sizes are small because the
simulator is slow; blocks have 32 threads, so that several are launched.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest

import scalefield as sf
from reference_simulation import initial_projection, losses, normals, philox_scalar, stream_key
from scalefield._native import gpu, gpu_literal, gpu_reduced, gpu_rng
from scalefield._native.gpu import cuda as numba_cuda
from scalefield._projection import ENTRY_BYTES
from scalefield.errors import InsufficientMemoryError, Interrupted
from scalefield.simulation import cuda_engine
from scalefield.simulation.cuda import simulate_on_cuda
from scalefield.simulation.cuda_literal import CudaLiteral
from scalefield.simulation.cuda_reduced import CudaReduced
from scalefield.simulation.plan import Plan
from simulator import mend_simulator

mend_simulator()

SEED = 3


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    for module in (gpu_literal, gpu_reduced):
        monkeypatch.setattr(module, "MOST_THREADS", 32)


def make(n_modes=40, **changes) -> sf.Model:
    settings = {"width": 10, "gamma": 1.0, "learning_rate": 0.1, "batch_size": 6, **changes}
    return sf.Model(sf.PowerLawSpectrum(1.5, 0.5, n_modes=n_modes), **settings)


def make_plan(model, n_steps=4, n_runs=1, method="literal", dtype="float64", record=None, **changes) -> Plan:
    steps = np.arange(n_steps + 1) if record is None else np.array(record)
    settings = {"seed": SEED, "features": "gaussian", **changes}
    return Plan(model, n_steps, n_runs, method=method, record_steps=steps, dtype=np.dtype(dtype), **settings)


# ------------------------------------------------------------------------------------------------- deviates


def deviates_on_device(dtype: str, key, counters) -> np.ndarray:
    """One block of four deviates for each row of `counters`, shape (n, 4)."""
    four, store4 = gpu_rng.normals(dtype), gpu.store4

    def fill(key0, key1, c0, c1, c2, c3, out):
        i = numba_cuda.grid(1)
        if i < c0.size:
            x = four(key0, key1, c0[i], c1[i], c2[i], c3[i])
            store4(out, 4 * i, x[0], x[1], x[2], x[3])

    words = gpu.array_of("uint32")
    kernel = gpu.Kernel(fill, gpu.uint32, gpu.uint32, *[words] * 4, gpu.array_of(dtype))
    columns = [gpu.to_device(column, "uint32") for column in np.transpose(counters)]
    out = gpu.empty(4 * len(counters), dtype)
    kernel.launch(-(-len(counters) // 32), 32, *[np.uint32(word) for word in key], *columns, out)
    return out.copy_to_host().reshape(-1, 4)


def box_muller(key, counters) -> np.ndarray:
    """The same deviates by the definition, with the C library's functions."""
    rows = []
    for counter in counters:
        words = np.array(philox_scalar(key, tuple(int(word) for word in counter)), dtype=float)
        u = (words + 0.5) / 2.0**32
        radius, angle = np.sqrt(-2.0 * np.log(u[[0, 2]])), 2.0 * np.pi * u[[1, 3]]
        rows.append(np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1))
    return np.array(rows)


COUNTERS = np.random.default_rng(1).integers(0, 2**32, size=(1024, 4))
KEY = (0xA4093822, 0x299F31D0)


@pytest.mark.parametrize(
    ("dtype", "error"),
    [
        # As for the CPU's: polynomials good to 1e-16, and deviates of at most 7.
        ("float64", 1e-14),
        # u to 2^-24 of itself: 1e-7 in the radius where it is of order 1, and three more roundings of a number up to 7.
        ("float32", 2e-6),
    ],
)
def test_deviates(dtype, error):
    np.testing.assert_allclose(deviates_on_device(dtype, KEY, COUNTERS), box_muller(KEY, COUNTERS), rtol=0, atol=error)


@pytest.mark.skipif(not gpu.SIMULATED, reason="device functions can be called from Python in the simulator only")
def test_words_and_float32_transform_at_extremes():
    """Words bit for bit; float32 at every octant boundary, the largest and the smallest radius."""
    for row in [*np.random.default_rng(0).integers(0, 2**32, size=(300, 6)).tolist(), [0] * 6, [2**32 - 1] * 6]:
        words = gpu_rng.philox(*[np.uint32(word) for word in row])
        assert tuple(int(word) for word in words) == philox_scalar(tuple(row[:2]), tuple(row[2:]))
    top = 2**32 - 1
    angles = [0, 1, top, *(k * 2**29 + d for k in range(1, 8) for d in (-1, 0, 1))]
    for radial in (0, 1, 2, 3, 2**20, 2**31 - 1, 2**31, 3037000499, 3037000500, top - 3000, top - 1, top):
        # log1p of the exact distance from 1 keeps the digits of small radii.
        radius = math.sqrt(-2.0 * math.log1p(-((2.0**32 - radial) - 0.5) / 2.0**32))
        for angular in angles:
            pair = gpu_rng._pair_float32(np.uint32(radial), np.uint32(angular))
            angle = 2.0 * math.pi * (angular + 0.5) / 2.0**32
            # Relative to the radius: five roundings in the logarithm and the root, and five in the polynomials.
            error = 10 * 2.0**-24 * radius
            assert all(isinstance(value, np.float32) for value in pair)
            assert abs(float(pair[0]) - radius * math.cos(angle)) < error
            assert abs(float(pair[1]) - radius * math.sin(angle)) < error


# -------------------------------------------------------------------------------------------------- literal

LITERAL = {
    "lazy": make(gamma=0.0),
    "rich": make(),
    "lazy, population": make(gamma=0.0, batch_size=math.inf),
    "rich, population": make(batch_size=math.inf),
    "label noise": make(n_modes=21, width=5, gamma=0.0, label_noise=0.4, batch_size=5),
    "more samples than threads": make(n_modes=18, width=4, batch_size=39, label_noise=0.2),
    "one of each": make(n_modes=1, width=1, batch_size=1),
    "rows longer than a block": make(n_modes=17, width=133, batch_size=2),
}


@pytest.mark.parametrize("case", LITERAL)
def test_literal(case):
    model = LITERAL[case]
    n_steps = 2 if model.width > 100 else 4
    runs = simulate_on_cuda(make_plan(model, n_steps))
    np.testing.assert_allclose(runs.losses[0], losses(model, SEED, 0, n_steps), rtol=1e-12)
    assert runs.finished.all()
    assert not runs.divergences


def test_literal_against_the_cpu():
    """Two runs of the package itself, a chunk of several blocks of modes each, and a record with holes."""
    model = make(n_modes=70, width=9, label_noise=0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_literal, "MOST_CHUNKS", 3)
        assert gpu_literal.Shape(70, 9, 6, True, "float64").mode_chunk == 32
        runs = simulate_on_cuda(make_plan(model, 5, n_runs=2, record=[0, 1, 4]))
    expected = sf.simulate(model, 5, n_runs=2, seed=SEED, method="literal").loss[:, [0, 1, 4]]
    np.testing.assert_allclose(runs.losses, expected, rtol=1e-12)


@pytest.mark.parametrize("method", ["literal", "reduced"])
def test_simulate_on_either_device(method):
    """One seed, one curve: the front door with device="cuda" and "cpu", also of a spectrum that never ends."""
    model = make(n_modes=40, width=7, label_noise=0.1)
    arguments = {"n_runs": 2, "seed": SEED, "method": method, "record": [0, 2, 4]}
    there, here = (sf.simulate(model, 4, device=device, **arguments) for device in ("cuda", "cpu"))
    np.testing.assert_allclose(there.loss, here.loss, rtol=1e-12)
    np.testing.assert_array_equal(there.steps, here.steps)
    assert (there.device, there.method, here.device) == ("cuda", method, "cpu")
    if method == "reduced":
        endless = model.replace(spectrum=sf.PowerLawSpectrum(1.5, 0.5))
        there, here = (sf.simulate(endless, 2, seed=SEED, device=device) for device in ("cuda", "cpu"))
        np.testing.assert_allclose(there.loss, here.loss, rtol=1e-12)
        assert there.tail == here.tail > 0.0


def test_simulate_refuses_what_the_device_does_not_do():
    model = make(n_modes=40, width=7)
    for changes, arguments, message in (
        ({"n_samples": 9}, {}, "n_samples must be inf on device 'cuda', got 9"),
        ({}, {"statistics": ["spike"]}, "statistics and modes must be left out on device 'cuda'"),
        ({}, {"checkpoint": "state"}, "checkpoint must be None on device 'cuda'"),
        ({}, {"features": "uniform"}, "features must be 'gaussian' on device 'cuda'"),
        ({"width": math.inf}, {}, "width must be finite on device 'cuda'"),
    ):
        with pytest.raises(ValueError, match=message):
            sf.simulate(model.replace(**changes), 2, seed=SEED, device="cuda", **arguments)


def free_memory_without_projection(monkeypatch, model, dtype):
    """Let the device have room for everything but A(0)."""
    batch = 0 if math.isinf(model.batch_size) else model.batch_size
    shape = gpu_literal.Shape(model.spectrum.n_modes, model.width, batch, model.is_rich, dtype)
    room = np.dtype(dtype).itemsize * shape.others_size + ENTRY_BYTES * shape.projection_size // 2
    monkeypatch.setattr(gpu, "free_memory", lambda: room / cuda_engine.USABLE_MEMORY)


def test_literal_with_more_threads(monkeypatch):
    """64 threads, of which 34 have features: the partial products of a row are added in four parts."""
    monkeypatch.setattr(gpu_literal, "MOST_THREADS", 64)
    model = make(n_modes=17, width=133, batch_size=2)
    assert gpu_literal.Shape(17, 133, 2, True, "float64").threads == 64
    runs = simulate_on_cuda(make_plan(model, 1))
    np.testing.assert_allclose(runs.losses[0], losses(model, SEED, 0, 1), rtol=1e-12)


@pytest.mark.parametrize("case", ["lazy, population", "rich, population"])
def test_population_in_two_passes(monkeypatch, case):
    """Models too wide for `descend` take the passes of finite batches."""
    monkeypatch.setattr(gpu_literal, "WIDEST", {"float64": 16})
    model = LITERAL[case]
    assert not gpu_literal.Shape(40, 10, 0, model.is_rich, "float64").single_pass
    runs = simulate_on_cuda(make_plan(model, 3))
    np.testing.assert_allclose(runs.losses[0], losses(model, SEED, 0, 3), rtol=1e-12)


def test_population_with_wide_blocks():
    """64 threads in a block of `descend`, of which 40 have features, and chunks of several groups of four modes."""
    model = make(n_modes=37, width=158, gamma=0.0, batch_size=math.inf)
    assert gpu_literal.Shape(37, 158, 0, False, "float64").wide_threads == 64
    runs = simulate_on_cuda(make_plan(model, 2))
    np.testing.assert_allclose(runs.losses[0], losses(model, SEED, 0, 2), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", ["rich", "lazy, population"])
def test_projection_on_the_fly(monkeypatch, case, dtype):
    """Not a bit changes."""
    plan = make_plan(LITERAL[case], 2, dtype=dtype)
    stored = simulate_on_cuda(plan).losses
    free_memory_without_projection(monkeypatch, plan.model, dtype)
    assert not CudaLiteral(plan, gpu, None, None).stored
    np.testing.assert_array_equal(simulate_on_cuda(plan).losses, stored)


@pytest.mark.parametrize("case", ["rich", "label noise", "lazy, population"])
def test_literal_in_float32(case):
    """What float32 loses: deviates and sums are good to some 2^-24 each, and errors add up over a few steps."""
    model = LITERAL[case]
    runs = simulate_on_cuda(make_plan(model, dtype="float32"))
    np.testing.assert_allclose(runs.losses[0], losses(model, SEED, 0, 4), rtol=3e-6)
    assert runs.losses.dtype == np.float64


# -------------------------------------------------------------------------------------------------- reduced


@dataclass
class Reduction:
    eigenvalues: np.ndarray
    c: np.ndarray
    rest: float


def reduce(model: sf.Model, run: int) -> Reduction:
    eigenvalues, target = model.spectrum.modes(0, model.spectrum.n_modes)
    a = initial_projection(SEED, run, model.width, eigenvalues.size)
    e, u = np.linalg.eigh((a * eigenvalues) @ a.T)
    e, u = e[::-1], u[:, ::-1]
    c = u.T @ (a @ (eigenvalues * target)) / np.sqrt(e)
    return Reduction(e, c, math.sqrt(eigenvalues @ target**2 - c @ c))


def reduced_losses(model: sf.Model, reduction: Reduction, run: int, n_steps: int) -> np.ndarray:
    """Theory section 8 as it stands."""
    n, root = model.width, np.sqrt(reduction.eigenvalues)
    w, g, curve = np.zeros(n), np.eye(n), []
    for t in range(n_steps + 1):
        d = reduction.c - root * (g.T @ w) / n
        curve.append(d @ d + reduction.rest**2)
        if math.isinf(model.batch_size):
            v2 = root * d
        else:
            b = model.batch_size
            z = normals(stream_key(SEED, 3), n, np.arange(b), t, run)
            xi, eps = (normals(stream_key(SEED, stream), b, 0, t, run) for stream in (4, 2))
            v2 = root * (z.T @ (z @ d + reduction.rest * xi + model.label_noise * eps)) / b
        step = model.learning_rate * (g @ v2)
        g = g + model.learning_rate * model.gamma / n * np.outer(w, v2)
        w = w + step
    return np.array(curve)


REDUCED = {
    "lazy": make(gamma=0.0, width=7),
    "rich": make(width=9),
    "lazy, population": make(gamma=0.0, batch_size=math.inf),
    "rich, population": make(batch_size=math.inf),
    "label noise": make(width=5, label_noise=0.4, batch_size=5),
    "one of each": make(n_modes=3, width=1, batch_size=1),
    "rows longer than a block": make(n_modes=150, width=133, batch_size=2),
}


@pytest.mark.parametrize("case", REDUCED)
def test_reduced(case):
    model = REDUCED[case]
    n_steps = 2 if model.width > 100 else 3
    reductions = [reduce(model, run) for run in range(2)]
    runs = simulate_on_cuda(make_plan(model, n_steps, n_runs=2, method="reduced"), reductions)
    for run in range(2):
        expected = reduced_losses(model, reductions[run], run, n_steps)
        np.testing.assert_allclose(runs.losses[run], expected, rtol=1e-12)
    assert runs.finished.all()


def test_reduced_with_many_threads(monkeypatch):
    """Rows and samples shared out among 64 threads: two groups of lanes, several slices."""
    monkeypatch.setattr(gpu_reduced, "MOST_THREADS", 64)
    model = make(width=35, batch_size=11, label_noise=0.2)
    shape = gpu_reduced.ReducedShape(35, 11, True, True)
    assert (shape.threads, shape.lanes, shape.slices) == (64, 16, 4)
    runs = simulate_on_cuda(make_plan(model, 2, method="reduced"), [reduce(model, 0)])
    np.testing.assert_allclose(runs.losses[0], reduced_losses(model, reduce(model, 0), 0, 2), rtol=1e-12)


def test_reduced_population_is_the_literal_run():
    """At B = inf both forms are one dynamics; the eigenvalues' condition of about 1e3 costs some digits."""
    model = REDUCED["rich, population"]
    runs = simulate_on_cuda(make_plan(model, 4, method="reduced"), [reduce(model, 0)])
    np.testing.assert_allclose(runs.losses[0], losses(model, SEED, 0, 4), rtol=1e-10)


def test_reduced_in_turns_and_batches_made_twice(monkeypatch):
    """Room for one run at a time and none for its deviates: the same losses, bit for bit."""
    model = REDUCED["rich"]
    plan = make_plan(model, 2, n_runs=2, method="reduced", record=[0, 2])
    reductions = [reduce(model, run) for run in range(2)]
    together = simulate_on_cuda(plan, reductions).losses
    lean = gpu_reduced.ReducedShape(9, 6, True, False)
    room = 1.5 * (8 * lean.entries_per_run + 8 * 3)
    monkeypatch.setattr(gpu, "free_memory", lambda: room / cuda_engine.USABLE_MEMORY)
    engine = CudaReduced(plan, gpu, None, None, reductions)
    assert (engine.at_a_time, engine.shape.kept) == (1, False)
    np.testing.assert_array_equal(simulate_on_cuda(plan, reductions).losses, together)


@pytest.mark.parametrize("case", ["lazy", "rich"])
def test_reduced_in_float32(case):
    """As for the literal runs."""
    model = REDUCED[case]
    runs = simulate_on_cuda(make_plan(model, 3, method="reduced", dtype="float32"), [reduce(model, 0)])
    np.testing.assert_allclose(runs.losses[0], reduced_losses(model, reduce(model, 0), 0, 3), rtol=3e-6)


# ------------------------------------------------------------------------- divergence, interruption, refusals


@pytest.mark.parametrize("method", ["literal", "reduced"])
def test_divergence(method):
    """A learning rate far too large: the first step beyond the threshold is the reference's, and nothing follows."""
    model = make(n_modes=12, width=4, gamma=0.0, batch_size=math.inf, learning_rate=1e4)
    reference = losses(model, SEED, 0, 12)
    first = int(np.argmax(~(reference <= model.largest_loss)))
    assert 1 < first < 12
    reductions = [reduce(model, run) for run in range(2)]
    runs = simulate_on_cuda(make_plan(model, 12, n_runs=2, method=method), reductions)
    assert runs.divergences[0] == first
    np.testing.assert_allclose(runs.losses[0, : first + 1], reference[: first + 1], rtol=1e-9)
    assert np.isnan(runs.losses[0, first + 1 :]).all()
    assert not runs.finished.any()


def test_nan_is_a_divergence():
    model = make(n_modes=12, width=4, gamma=0.0, batch_size=math.inf)
    bad = reduce(model, 0)
    bad.c[1] = math.nan
    assert simulate_on_cuda(make_plan(model, method="reduced"), [bad]).divergences == {0: 0}


@pytest.mark.parametrize("method", ["literal", "reduced"])
def test_interruption_and_progress(monkeypatch, method):
    """Ctrl-C between chunks keeps the finished run and what the second had; progress counts steps."""
    monkeypatch.setattr(cuda_engine, "_CHUNK_SECONDS", 0.0)
    model = make(n_modes=12, width=4, gamma=0.0)
    reductions = [reduce(model, run) for run in range(2)]
    if method == "reduced":
        lean = gpu_reduced.ReducedShape(4, 6, False, False)
        monkeypatch.setattr(gpu, "free_memory", lambda: 1.5 * (8 * lean.entries_per_run + 8 * 5) / 0.95)
    calls: list[int] = []

    def progress(done: int, total: int) -> None:
        assert total == 6
        calls.append(done)
        if done == 5:
            raise KeyboardInterrupt

    plan = make_plan(model, 3, n_runs=2, method=method)
    with pytest.raises(Interrupted, match="1 of 2 runs") as caught:
        simulate_on_cuda(plan, reductions, progress)
    assert calls == sorted(calls)
    assert calls[0] == 0
    runs = caught.value.partial
    assert runs.finished.tolist() == [True, False]
    whole = simulate_on_cuda(plan, reductions).losses
    np.testing.assert_array_equal(runs.losses[0], whole[0])
    np.testing.assert_array_equal(runs.losses[1, :2], whole[1, :2])
    assert np.isnan(runs.losses[1, 2:]).all()


def test_stop(monkeypatch):
    monkeypatch.setattr(cuda_engine, "_CHUNK_SECONDS", 0.0)
    stop = np.zeros(1, dtype=np.uint8)

    def progress(done: int, total: int) -> None:
        stop[0] = done >= 2

    runs = simulate_on_cuda(make_plan(make(n_modes=12, width=4, gamma=0.0), 5), None, progress, stop)
    # Two steps are done, and with them the losses before each.
    assert np.isfinite(runs.losses[0]).tolist() == [True, True, False, False, False, False]
    assert not runs.finished.any()


def test_memory_is_refused_before_anything_is_done(monkeypatch):
    monkeypatch.setattr(gpu, "free_memory", lambda: 1000.0)
    with pytest.raises(InsufficientMemoryError, match="40 modes and width 10"):
        simulate_on_cuda(make_plan(make()))
    with pytest.raises(InsufficientMemoryError, match="width 10"):
        simulate_on_cuda(make_plan(make(), method="reduced"), [reduce(make(), 0)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": "rademacher"}, "features must be 'gaussian' on device 'cuda', got 'rademacher'"),
        ({"model": make(width=math.inf)}, r"model\.width must be finite"),
        ({"model": make(n_modes=None)}, "finitely many modes"),
        ({"dtype": "float16"}, "dtype must be float64 or float32, got float16"),
        ({"method": "reduced"}, "reductions must have one entry for each of 1 runs, got none"),
        ({"method": "other"}, "method must be 'literal' or 'reduced', got 'other'"),
    ],
)
def test_what_the_device_does_not_do(changes, message):
    settings = {"model": make(), **changes}
    with pytest.raises(ValueError, match=message):
        simulate_on_cuda(make_plan(settings.pop("model"), **settings))


def test_default_block_sizes_reach_every_launch():
    """Launch arithmetic at sizes of interest: every mode, feature and sample has exactly one owner."""
    script = """
import math
from scalefield._native.gpu_literal import ROWS, SUM_SLICES, Shape
for m, n, b in [(1, 1, 1), (1000, 64, 32), (10**6, 4096, 32), (10**8, 512, 1), (10**5, 20000, 10**5), (9, 999, 0)]:
    s = Shape(m, n, b, True, "float64")
    assert s.threads in (32, 64, 128, 256) and s.threads % ROWS == 0 and s.threads % SUM_SLICES == 0
    assert s.mode_chunk % ROWS == 0 and s.n_mode_chunks <= 2048
    assert (s.n_mode_chunks - 1) * s.mode_chunk < m <= s.n_mode_chunks * s.mode_chunk
    assert (s.column_groups - 1) * s.threads < s.n_quads <= s.column_groups * s.threads and 4 * s.n_quads >= n
    assert (s.n_row_chunks - 1) * s.row_chunk < n <= s.n_row_chunks * s.row_chunk and s.row_chunk % 4 == 0
    if b:
        assert (s.sample_groups - 1) * s.sample_lanes < b <= s.sample_groups * s.sample_lanes
        assert (s.n_sample_chunks - 1) * s.sample_chunk < s.padded_modes // 4 <= s.n_sample_chunks * s.sample_chunk
        assert s.threads % s.sample_lanes == 0 and s.n_sample_chunks <= 1024
    assert s.single_pass == (b == 0 and n <= 2048) and (not s.single_pass or s.n_quads <= s.wide_threads <= 512)
print(Shape(10**6, 4096, 32, False, "float32").threads, Shape(10**6, 4096, 32, False, "float32").mode_chunk)
"""
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["256", "496"]
