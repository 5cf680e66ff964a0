"""Sweeps: labels, seeds and failures; the same results from any executor; nothing lost whatever is killed.

Results are compared bit for bit with direct calls, and with each other. Kills are SIGKILL: of the sweeping process at
random moments and at chosen ones inside the writing of its files, of the workers of a real dask cluster, and of a
process of a pool. What was computed is told by a log that the functions write.
"""

from __future__ import annotations

import gc
import itertools
import json
import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import scalefield as sf
from scalefield._sweeps import journal as journal_module
from scalefield._sweeps import labelled
from scalefield._sweeps.grid import point_seed
from scalefield._sweeps.journal import Journal
from scalefield._threads import limited_threads, thread_count
from scalefield.errors import BackendUnavailableError, CheckpointWarning, Interrupted, ScalefieldError, SweepError
from sweep_functions import curve, deadly_square, lines, slow_square

xarray = pytest.importorskip("xarray")

TASK = {"alpha": 1.5, "beta": 0.5}
GRID = {"x": [1.0, 2.0, 5.0], "y": [2.0, 3.0]}


@pytest.fixture(scope="module")
def expected():
    """The sweep of `curve` with seeds, one point after the other."""
    return sf.sweep(curve, GRID, seed=7)


# -------------------------------------------------------------------------------------------- functions and engines


def test_functions_by_their_names(expected):
    """Each entry is that of a direct call, and the one point that raises is nan, with its error."""
    assert dict(expected.sizes) == {"x": 3, "y": 2, "t": 4}
    for x, y in itertools.product(*GRID.values()):
        found = expected.sel(x=x, y=y)
        if x == y:
            assert found.status == "failed"
            assert found.failure == "ZeroDivisionError: x and y are both 2.0"
            assert np.isnan(found.ratio)
            assert np.isnan(found.path).all()
            continue
        direct = curve(x, y, seed=point_seed(7, {"x": x, "y": y}))
        assert (found.status, found.failure) == ("finished", "")
        assert found.ratio == direct["ratio"]
        assert found["count"] == direct["count"]
        np.testing.assert_array_equal(found.path, direct["path"][1])
    np.testing.assert_array_equal(expected.t, np.arange(4.0))
    assert expected.attrs["function"] == "sweep_functions.curve"
    assert expected.attrs["seed"] == 7
    assert expected.attrs["scalefield_version"] == sf.__version__


@pytest.mark.parametrize("engine", ["flow", sf.solve_gradient_flow])
def test_gradient_flow(engine):
    """Model fields and spectrum parameters, infinities among them, make the model."""
    times = np.array([0.0, 1.0, 100.0])
    grid = {"width": [16, math.inf], "alpha": [1.2, 2.0], "n_modes": [50, math.inf]}
    found = sf.sweep(engine, grid, settings={"times": times, "beta": 0.5, "gamma": 0.5})
    np.testing.assert_array_equal(found.time, times)
    for width, alpha, n_modes in itertools.product(*grid.values()):
        spectrum = sf.PowerLawSpectrum(alpha, 0.5, None if n_modes == math.inf else n_modes)
        direct = sf.solve_gradient_flow(sf.Model(spectrum, width=width, gamma=0.5), times)
        there = found.sel(width=width, alpha=alpha, n_modes=n_modes)
        for name in ("loss", "kernel_scale", "spike", "alignment", "local_exponent", "effective_time"):
            np.testing.assert_array_equal(there[name], getattr(direct, name), err_msg=name)
        assert there.quadrature_error == direct.quadrature_error
    assert found.time.attrs["units"].startswith("tau")
    assert found.width.attrs["long_name"] == "number of features N"
    assert json.loads(found.attrs["settings"])["gamma"] == 0.5


def test_mean_field_theory_of_other_lengths():
    """Shorter curves end in nan; two-time arrays come when named."""
    settings = {**TASK, "width": 16, "gamma": 1.0, "batch_size": 8, "method": "two-time"}
    found = sf.sweep("dmft", {"n_steps": [3, 6]}, settings=settings, variables=["loss", "C_w"])
    assert set(found.data_vars) == {"loss", "C_w", "status", "failure"}
    assert found.C_w.dims == ("n_steps", "step", "earlier_step")
    np.testing.assert_array_equal(found.step, np.arange(7))
    model = sf.Model(sf.PowerLawSpectrum(**TASK), width=16, gamma=1.0, batch_size=8)
    for n_steps in (3, 6):
        direct = sf.solve_dmft(model, n_steps, "two-time")
        there = found.sel(n_steps=n_steps)
        np.testing.assert_array_equal(there.loss[: n_steps + 1], direct.loss)
        np.testing.assert_array_equal(there.C_w[: n_steps + 1, : n_steps + 1], direct.C_w)
        assert np.isnan(there.loss[n_steps + 1 :]).all()
        assert np.isnan(there.C_w[n_steps + 1 :]).all()


def test_simulations_have_seeds_of_their_own():
    grid = {"spectrum": {"hard": sf.PowerLawSpectrum(1.5, 0.5, 40), "easy": sf.PowerLawSpectrum(1.5, 1.5, 40)}}
    settings = {"width": 8, "n_steps": 5, "n_runs": 3, "statistics": ["spike"], "modes": [0, 3]}
    found = sf.sweep("simulate", grid, settings=settings, seed=3)
    assert found.spectrum.values.tolist() == ["hard", "easy"]
    for label, spectrum in grid["spectrum"].items():
        seed = point_seed(3, {"spectrum": label})
        direct = sf.simulate(sf.Model(spectrum, width=8), 5, 3, seed, statistics=["spike"], modes=[0, 3])
        there = found.sel(spectrum=label)
        assert there.loss.dims == ("run", "step")
        np.testing.assert_array_equal(there.loss, direct.loss)
        np.testing.assert_array_equal(there.spike, direct.spike)
        np.testing.assert_array_equal(there.mode_errors, direct.mode_errors)
        np.testing.assert_array_equal(there.mode, [0, 3])
    # Averages when named; one seed for all points when it is a setting.
    means = sf.sweep("simulate", grid, settings={**settings, "seed": 1}, variables=("mean", "standard_error"))
    direct = sf.simulate(sf.Model(grid["spectrum"]["hard"], width=8), 5, 3, 1)
    np.testing.assert_array_equal(means.sel(spectrum="hard")["mean"], direct.mean)
    np.testing.assert_array_equal(means.sel(spectrum="hard").standard_error, direct.standard_error)
    assert "seed" not in means.attrs


def test_simulations_without_a_seed_draw_one_that_the_store_keeps(tmp_path):
    call = {"grid": {"width": [2, 3]}, "settings": {**TASK, "n_modes": 9, "n_steps": 3}, "store": tmp_path / "runs"}
    first = sf.sweep("simulate", **call)
    assert first.attrs["seed"] >= 0
    assert sf.sweep("simulate", **call).identical(first)


def test_models_to_start_from():
    """A model whose fields the grid varies, those of its spectrum too."""
    base = sf.Model(sf.PowerLawSpectrum(1.5, 0.5, 30), width=8, learning_rate=0.2)
    found = sf.sweep(describe, {"beta": [0.5, 2.0], "gamma": [0.0, 3.0]}, settings={"model": base})
    for beta, gamma in itertools.product((0.5, 2.0), (0.0, 3.0)):
        changed = base.replace(gamma=gamma, spectrum=sf.PowerLawSpectrum(1.5, beta, 30))
        # `describe` takes gamma as well.
        assert found.value.sel(beta=beta, gamma=gamma) == f"{changed!r}, {gamma}"


def describe(model: sf.Model, gamma: float) -> str:
    return f"{model!r}, {gamma}"


def test_rich_exponents_are_those_of_the_theory():
    """beta max(1, 2/(1 + beta)) at tau = 1e10, to 1 % away from beta = 1 (arXiv:2409.17858, Eq. 10)."""
    found = sf.sweep(
        "flow", {"beta": [0.25, 0.5, 1.5, 2.0]}, settings={"alpha": 1.5, "gamma": 1.0, "times": [1e10]}
    ).local_exponent.squeeze("time")
    np.testing.assert_allclose(found, found.beta * np.maximum(1.0, 2.0 / (1.0 + found.beta)), rtol=0.01)


def test_what_functions_may_return():
    """Text, complex numbers, booleans and integers, xarray objects, and arrays without names of dimensions."""

    def function(kind):
        return {
            "a": np.arange(6).reshape(2, 3),
            "b": {"text": "yes" if kind == "b" else "no", "z": 1 + 2j, "flag": True, "n": 3},
            "c": xarray.DataArray([1.0, 2.0], {"s": [10, 20]}, name="density"),
            "d": xarray.Dataset({"p": ("s", [1.0, 2.0])}, {"s": [10, 20]}),
            "e": 1.5,
        }[kind]

    one = {kind: sf.sweep(function, {"kind": [kind]}).isel(kind=0) for kind in "abcde"}
    assert one["a"].value.dims == ("value_0", "value_1")
    np.testing.assert_array_equal(one["a"].value, np.arange(6).reshape(2, 3))
    assert one["b"].text == "yes"
    assert one["b"].z == 1 + 2j
    assert one["b"].flag.dtype == np.bool_
    assert one["b"].n.dtype == np.int64
    np.testing.assert_array_equal(one["c"].density.sel(s=20), 2.0)
    np.testing.assert_array_equal(one["d"].p.sel(s=10), 1.0)
    assert one["e"].value == 1.5
    # One function, one kind: what differs from the first point is a failure, told as such.
    both = sf.sweep(function, {"kind": ["e", "b", "a"]})
    assert both.status.values.tolist() == ["finished", "failed", "failed"]
    assert "returned the variables text, z, flag, n" in str(both.failure[1].values)
    assert "has the dimensions" in str(both.failure[2].values)


def test_coordinates_that_differ():
    """Parts of the longest one keep their labels; others become variables along places."""

    def part(n):
        return {"t": ("t", np.arange(0.0, n, 2.0 if n == 4 else 1.0)), "v": ("t", np.full(n if n != 4 else 2, 1.0 * n))}

    found = sf.sweep(part, {"n": [2, 5, 4]})
    np.testing.assert_array_equal(found.t, np.arange(5.0))
    nan = math.nan
    np.testing.assert_array_equal(found.v, [[2, 2, nan, nan, nan], [5, 5, 5, 5, 5], [4, nan, 4, nan, nan]])

    def own(n):
        return {"t": ("t", np.arange(1.0, n + 1.0) / n), "v": ("t", np.full(n, 1.0 * n))}

    found = sf.sweep(own, {"n": [2, 3]})
    assert found.v.dims == found.t.dims == ("n", "t_index")
    np.testing.assert_array_equal(found.t, [[0.5, 1.0, nan], [1 / 3, 2 / 3, 1.0]])
    np.testing.assert_array_equal(found.v, [[2, 2, nan], [3, 3, 3]])


def test_learning_curves():
    grid = {"alpha": 1.5, "beta": [0.5, 1.5], "width": [20, math.inf], "gamma": 1.0}
    flows = sf.scaling.learning_curves(grid, [1.0, 10.0], variables=["loss", "local_exponent"], rtol=1e-6)
    steps = sf.scaling.learning_curves(grid, n_steps=4)
    assert set(steps.data_vars) == {"loss", "status", "failure"}
    for beta, width in itertools.product((0.5, 1.5), (20, math.inf)):
        model = sf.Model(sf.PowerLawSpectrum(1.5, beta), width=width, gamma=1.0)
        flow = sf.solve_gradient_flow(model, [1.0, 10.0], rtol=1e-6)
        there = flows.sel(beta=beta, width=width)
        np.testing.assert_array_equal(there.loss, flow.loss)
        np.testing.assert_array_equal(there.local_exponent, flow.local_exponent)
        np.testing.assert_array_equal(steps.loss.sel(beta=beta, width=width), sf.solve_dmft(model, 4).loss)
    for arguments, message in (
        ((grid,), "either times or n_steps must be given"),
        (({**TASK, "width": 3}, [1.0]), "a field with several values"),
        (({**grid, "depth": [1]}, [1.0]), "must name arguments of solve_gradient_flow"),
    ):
        with pytest.raises(ValueError, match=message):
            sf.scaling.learning_curves(*arguments)
    with pytest.raises(ValueError, match="different names, got gamma"):
        sf.scaling.learning_curves(grid, [1.0], gamma=2.0)


# ------------------------------------------------------------------------------------------------------------ seeds

labels = st.one_of(st.integers(-(2**40), 2**40), st.floats(allow_nan=False), st.text(), st.booleans())


@given(st.integers(0, 2**63 - 1), st.dictionaries(st.text(), labels, min_size=1))
def test_seeds_depend_on_names_and_values_alone(seed, point):
    found = point_seed(seed, point)
    assert 0 <= found < 2**63
    assert point_seed(seed, dict(reversed(point.items()))) == found
    as_float = {name: float(v) if type(v) is int else v for name, v in point.items()}
    assert point_seed(seed, as_float) == found


def test_seeds_differ(expected):
    """2,000 points and 50 seeds: 10^5 hashes of 63 bits are all different, but for one chance in 2 x 10^9."""
    found = {
        point_seed(seed, {"x": x, "name": name})
        for seed, x, name in itertools.product(range(50), range(1000), ("a", "b"))
    }
    assert len(found) == 100_000
    # A part of the grid, in another order, has the same numbers.
    part = sf.sweep(curve, {"y": [3.0], "x": [5.0, 1.0]}, seed=7)
    there = expected.sel(x=[5.0, 1.0], y=[3.0])
    np.testing.assert_array_equal(part.path.transpose(*there.path.dims), there.path)
    assert not np.array_equal(sf.sweep(curve, GRID, seed=8).path, expected.path, equal_nan=True)


# -------------------------------------------------------------------------------------------------------- executors


@pytest.fixture(scope="module")
def processes():
    """Two processes, started afresh as forks of a process with threads may hang."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.fixture(scope="module")
def cluster():
    """A dask cluster of two processes, each started again by its nanny when it dies."""
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as local,
        distributed.Client(local) as client,
    ):
        yield client


@pytest.mark.parametrize("n_threads", [1, 3])
def test_threads_give_the_same(n_threads, expected):
    with ThreadPoolExecutor(n_threads) as threads:
        assert sf.sweep(curve, GRID, threads, seed=7).identical(expected)


def test_processes_give_the_same(processes, expected):
    assert sf.sweep(curve, GRID, processes, seed=7).identical(expected)
    call = {
        "grid": {"gamma": [0.0, 1.0], "width": [4, 9]},
        "settings": {**TASK, "n_modes": 30, "batch_size": 4, "n_steps": 20, "n_runs": 2},
        "seed": 1,
    }
    assert sf.sweep("simulate", executor=processes, **call).identical(sf.sweep("simulate", **call))


def test_functions_that_processes_cannot_be_sent(processes):
    with pytest.raises(TypeError, match="function_or_engine and settings must be such that other processes"):
        sf.sweep(lambda x: x, {"x": [1]}, processes)


def test_engines_use_one_thread_where_points_run_at_once(monkeypatch):
    monkeypatch.setenv("SCALEFIELD_NUM_THREADS", "5")

    def threads(x):
        return thread_count()

    with ThreadPoolExecutor(2) as pool:
        assert sf.sweep(threads, {"x": [0, 1]}, pool).value.values.tolist() == [1, 1]
        assert sf.sweep(threads, {"x": [0, 1]}, pool, n_threads=3).value.values.tolist() == [3, 3]
    assert sf.sweep(threads, {"x": [0]}).value.values.tolist() == [5]
    with limited_threads(9):
        assert thread_count() == 5
    assert thread_count() == 5


def test_a_process_that_is_killed_breaks_the_pool_and_loses_nothing(tmp_path):
    """The data set so far comes with the error; another pool goes on from the store."""
    log = tmp_path / "log"
    call = {"grid": {"x": range(6)}, "settings": {"log": str(log), "deadly": 4}, "store": tmp_path / "store"}
    with (
        pytest.raises(SweepError, match=r"the executor broke .* with \d of 6 points done and kept in") as broken,
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool,
    ):
        sf.sweep(deadly_square, executor=pool, **call)
    partial = broken.value.partial
    np.testing.assert_array_equal(partial.value[:4], [0.0, 1.0, 4.0, 9.0])
    assert partial.status.values.tolist() == ["finished"] * 4 + ["pending"] * 2
    assert sf.load_sweep(tmp_path / "store").identical(partial)


def futures_alive() -> set[str]:
    """Keys of the results that this process still waits for."""
    from distributed import Future

    return {thing.key for thing in gc.get_objects() if type(thing) is Future}


@pytest.mark.filterwarnings("ignore::ResourceWarning:distributed", "ignore::ResourceWarning:tornado")
def test_dask_cluster_with_killed_workers(cluster, expected, tmp_path):
    """Three workers are killed under way: nothing is lost, and nothing that had arrived is computed again.

    A result has arrived when it is stored, and the scheduler knows that nobody waits for it: messages take their time.
    """
    assert sf.sweep(curve, GRID, cluster.get_executor(), seed=7).identical(expected)
    log, store = tmp_path / "log", tmp_path / "store"
    tasks, nannies = cluster.cluster.scheduler.tasks, cluster.cluster.workers
    kills: list[tuple[int, set[int]]] = []

    def progress(done: int, total: int) -> None:
        if done not in (10, 40, 70):
            return
        deadline = time.monotonic() + 20.0
        while not set(tasks) == set(cluster.futures) == futures_alive() and time.monotonic() < deadline:
            time.sleep(0.002)
        # What is kept, and what was begun, when a worker dies.
        found = sf.load_sweep(store)
        kept = set(found.x.values[found.status.values == "finished"].tolist())
        assert len(kept) == done
        alive = [nanny.process.pid for nanny in nannies.values() if nanny.process is not None and nanny.process.pid]
        os.kill(alive[0], signal.SIGKILL)
        kills.append((len(lines(log)), kept))

    found = sf.sweep(
        slow_square,
        {"x": range(100)},
        cluster.get_executor(),
        settings={"log": str(log), "seconds": 0.02},
        store=store,
        progress=progress,
    )
    assert (found.status == "finished").all()
    np.testing.assert_array_equal(found.value, np.arange(100.0) ** 2)
    assert sf.load_sweep(store).identical(found)
    begun = [int(line) for line in lines(log)]
    assert len(kills) == 3
    for position, kept in kills:
        assert not kept & set(begun[position:])

    # A point that kills every worker it comes to is a failed one in the end, and the others go on.
    cluster.cluster.scheduler.allowed_failures = 0
    found = sf.sweep(
        deadly_square, {"x": range(5)}, cluster, settings={"log": str(tmp_path / "other"), "deadly": 2}
    )
    assert found.status[2] == "failed"
    assert str(found.failure[2].values).startswith("KilledWorker: ")
    assert (found.status == "finished").sum() >= 3


# ------------------------------------------------------------------------------------------------------------ store


def test_restarted_sweeps_skip_what_is_done(tmp_path):
    """And failed points, unless they are to be tried again."""
    calls: list[tuple[float, float]] = []

    def noted(x, y):
        calls.append((x, y))
        return curve(x, y)

    first = sf.sweep(noted, GRID, store=tmp_path)
    assert sorted(calls) == sorted(itertools.product(*GRID.values()))
    del calls[:]
    reports: list[tuple[int, int]] = []
    assert sf.sweep(noted, GRID, store=tmp_path, progress=lambda *now: reports.append(now)).identical(first)
    assert (calls, reports) == ([], [(6, 6)])
    assert sf.sweep(noted, GRID, store=tmp_path, retry_failed=True).identical(first)
    assert calls == [(2.0, 2.0)]
    assert sf.load_sweep(tmp_path).identical(first)
    with xarray.open_dataset(tmp_path / "results.nc", engine="h5netcdf") as stored:
        assert stored.load().identical(first)


def test_retried_points_replace_their_failures(tmp_path):
    broken = [True]

    def function(x):
        if broken:
            raise OSError("no licence")
        return x

    assert (sf.sweep(function, {"x": [1, 2]}, store=tmp_path).status == "failed").all()
    del broken[:]
    # What a function captured is compared with the store; here it is told that this does not matter.
    with pytest.raises(ScalefieldError, match=r"another source of .*function, whose text or captured values"):
        sf.sweep(function, {"x": [1, 2]}, store=tmp_path)
    broken.append(True)
    trial = sf.sweep(function, {"x": [1, 2]}, store=tmp_path)
    assert trial.failure.values.tolist() == ["OSError: no licence"] * 2


def shifted(offset):
    def function(x, y=0.0, scale=1.0):
        return scale * x + y + offset

    return function


def test_other_sweeps_are_refused(tmp_path, monkeypatch):
    """Another grid, order of names, function, captured value, setting, seed, version; the message tells which."""
    call = {"function_or_engine": shifted(1), "grid": {"x": [1, 2], "y": [0.5]}, "settings": {"scale": 2.0}}
    first = sf.sweep(**call, store=tmp_path)
    others = [
        ({"grid": {"x": [1, 3], "y": [0.5]}}, r"grid\['x'\] \[1, 2\] instead of \[1, 3\]"),
        ({"grid": {"x": [1, 2]}}, "grid of x, y instead of x"),
        ({"grid": {"y": [0.5], "x": [1, 2]}}, "grid of x, y instead of y, x"),
        ({"function_or_engine": shifted(2)}, "another source of .*shifted"),
        ({"function_or_engine": slow_square, "grid": {"x": [1, 2]}, "settings": {}}, "instead of sweep_functions.slow"),
        ({"settings": {"scale": 3.0}}, r"settings\['scale'\] 2.0 instead of 3.0"),
        ({"settings": {}}, "settings of scale instead of"),
        ({"variables": "value"}, "variables None instead of"),
        ({"version": "b"}, "version None instead of b"),
    ]
    before = (tmp_path / "results.journal").read_bytes()
    for changes, message in others:
        with pytest.raises(ScalefieldError, match=message):
            sf.sweep(**{**call, **changes}, store=tmp_path)
    monkeypatch.setattr(sf, "__version__", "99")
    with pytest.raises(ScalefieldError, match=r"with scalefield \d[\w.]* instead of 99;"):
        sf.sweep(**call, store=tmp_path)
    monkeypatch.undo()
    assert (tmp_path / "results.journal").read_bytes() == before
    assert sf.sweep(**call, store=tmp_path).identical(first)


def test_values_behind_labels_are_compared(tmp_path):
    call = {"settings": {"width": 2, "times": [1.0]}, "store": tmp_path}
    sf.sweep("flow", {"spectrum": {"a": sf.Spectrum([1.0], [1.0])}}, **call)
    with pytest.raises(ScalefieldError, match=r"grid\['spectrum'\] of other values behind the same labels"):
        sf.sweep("flow", {"spectrum": {"a": sf.Spectrum([2.0], [1.0])}}, **call)


def test_folders_of_something_else_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ScalefieldError, match=r"holds 'thesis.tex' and no sweep"):
        sf.sweep(slow_square, {"x": [1]}, store=tmp_path)
    with pytest.raises(FileNotFoundError, match="no sweep there"):
        sf.load_sweep(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_one_sweep_at_a_time(tmp_path):
    """From this process and from another, also while workers of a killed one still live."""

    def progress(done, total):
        for attempt in range(2):
            if attempt == 0:
                with pytest.raises(ScalefieldError, match="is in use by another sweep"):
                    sf.sweep(slow_square, {"x": [1]}, store=tmp_path)
            else:
                code = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'ab'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
                tried = subprocess.run(
                    [sys.executable, "-c", code, tmp_path / "lock"], capture_output=True, text=True, check=False
                )
                assert "BlockingIOError" in tried.stderr
        assert sf.load_sweep(tmp_path).status.size == 1

    sf.sweep(slow_square, {"x": [1]}, store=tmp_path, progress=progress)
    assert sf.sweep(slow_square, {"x": [1]}, store=tmp_path).value == 1.0


def journal_of(folder: Path, n: int = 5) -> tuple[bytes, xarray.Dataset]:
    dataset = sf.sweep(shifted(0), {"x": range(n)}, store=folder)
    return (folder / "results.journal").read_bytes(), dataset


def test_journals_cut_anywhere_lose_their_last_record_only(tmp_path):
    content, dataset = journal_of(tmp_path)
    path = tmp_path / "results.journal"
    size = len(content) // 5
    assert len(content) == 5 * size
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        found = sf.load_sweep(tmp_path) if cut % 37 == 0 else None
        outcomes, end = journal_module._read(path)
        assert len(outcomes) == cut // size
        assert end == cut // size * size
        if found is not None:
            assert (found.status == "finished").sum() == cut // size
    for cut in (0, 1, size - 1, size, 3 * size + 7, len(content) - 1):
        path.write_bytes(content[:cut])
        assert sf.sweep(shifted(0), {"x": range(5)}, store=tmp_path).identical(dataset)
        assert path.read_bytes() == content


def test_damaged_records_are_computed_again(tmp_path, caplog):
    """A flipped bit anywhere spoils one record; the others stay."""
    content, dataset = journal_of(tmp_path)
    path, size = tmp_path / "results.journal", len(content) // 5
    places = range(2 * size, 3 * size)
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 16
        path.write_bytes(damaged)
        outcomes, end = journal_module._read(path)
        assert sorted(outcomes) == [0, 1, 3, 4], place
        assert end == len(content)
    assert "damaged in 1 place(s)" in caplog.text
    assert sf.sweep(shifted(0), {"x": range(5)}, store=tmp_path).identical(dataset)
    assert path.read_bytes()[: len(content)] == bytes(damaged)


def test_results_that_cannot_be_written_are_tried_again(tmp_path, monkeypatch):
    """A full disk for a while: one warning, and in the end everything is there."""
    write, n = Journal._write, itertools.count()

    def failing(self, content):
        if 3 <= next(n) < 8:
            raise OSError(28, "No space left on device")
        write(self, content)

    monkeypatch.setattr(Journal, "_write", failing)
    with pytest.warns(CheckpointWarning, match="No space left on device; the sweep goes on") as caught:
        found = sf.sweep(shifted(0), {"x": range(12)}, store=tmp_path)
    assert len(caught) == 1
    assert sf.load_sweep(tmp_path).identical(found)
    monkeypatch.setattr(labelled.os, "replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space")))
    with pytest.warns(CheckpointWarning, match=r"results.nc not written: .*No space"):
        assert sf.sweep(shifted(0), {"x": range(12)}, store=tmp_path).identical(found)
    assert not list(tmp_path.glob("*.part"))


KILLED = """
    import os, random, signal, sys, time
    sys.path.insert(0, sys.argv[3])
    import scalefield as sf
    from scalefield._sweeps import journal, labelled
    from sweep_functions import lines, slow_square
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path
    import xarray, h5netcdf

    folder, at = sys.argv[1], sys.argv[2]
    store, log = os.path.join(folder, "store"), os.path.join(folder, "log")

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def child(attempt):
        if at == "stages":
            # In turn: a record half written, just before and just after sweep.json or results.nc take their name, and
            # while results.nc is written.
            stage, calls = attempt % 4, [0]
            write = journal.Journal._write

            def half(self, content):
                calls[0] += 1
                if calls[0] == 4:
                    self._stream.seek(self._end)
                    self._stream.write(content[: random.Random(attempt).randrange(len(content))])
                    die()
                write(self, content)

            replace = os.replace

            def replaced(*paths):
                if stage == 2:
                    replace(*paths)
                die()

            if stage == 0:
                journal.Journal._write = half
            elif stage in (1, 2) and attempt < 12:
                os.replace = replaced
            elif stage == 3 and attempt < 12:
                xarray.Dataset.to_netcdf = lambda self, path, **options: (path.write_bytes(b"half"), die())
        call = dict(settings={"log": log, "seconds": 0.003 if at == "random" else 0.0}, store=store)
        with ThreadPoolExecutor(2) as threads:
            found = sf.sweep(slow_square, {"x": range(60)}, threads if at == "random" else None, **call)
        assert found.value.values.tolist() == [x * x for x in range(60)]
        os._exit(0)

    # What is imported late is loaded once; a child is a copy of this process.
    sf.sweep(slow_square, {"x": [1]}, store=os.path.join(folder, "first"))
    moments, kills = random.Random(1), 0
    for attempt in range(200):
        process = os.fork()
        if process == 0:
            try:
                child(attempt)
            finally:
                os._exit(1)
        if at == "random":
            # Later and later, so that a slow machine finishes too.
            time.sleep(moments.uniform(0.01, 0.06) * (1.0 + attempt / 5))
            os.kill(process, signal.SIGKILL)
        status = os.waitpid(process, 0)[1]
        if os.WIFSIGNALED(status):
            kills += 1
            if os.path.exists(os.path.join(store, "sweep.json")):
                sf.load_sweep(store)
        else:
            sys.exit(f"status {status}") if status else print(kills)
            break
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are copies of a process")
@pytest.mark.parametrize("at", ["random", "stages"])
def test_goes_on_after_kill(at, tmp_path):
    """SIGKILL of the sweeping process at random moments, or at four stages of its writing, until it ends."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(KILLED), tmp_path, at, Path(__file__).parent],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    kills = int(result.stdout)
    assert kills >= 3
    begun = Counter(lines(tmp_path / "log"))
    assert len(begun) == 60
    # Two threads have one point each under way, and a result that is not yet kept; without threads it is one point.
    again = sum(begun.values()) - 60
    assert again <= kills * (4 if at == "random" else 1)
    found = sf.load_sweep(tmp_path / "store")
    np.testing.assert_array_equal(found.value, np.arange(60.0) ** 2)
    assert not list((tmp_path / "store").glob(".*.part"))
    with xarray.open_dataset(tmp_path / "store" / "results.nc", engine="h5netcdf") as stored:
        assert stored.load().identical(found)


# ------------------------------------------------------------------------------------------ interruption and progress


@pytest.mark.parametrize("how", ["here", "threads"])
def test_interrupted_sweeps_keep_what_is_finished(how, tmp_path):
    def progress(done, total):
        if done == 5:
            raise KeyboardInterrupt

    with ThreadPoolExecutor(2) as threads, pytest.raises(Interrupted, match="of 40 points done and kept in") as stop:
        sf.sweep(
            slow_square,
            {"x": range(40)},
            threads if how == "threads" else None,
            settings={"seconds": 0.002},
            store=tmp_path,
            progress=progress,
        )
    partial = stop.value.partial
    finished = partial.status.values == "finished"
    assert 5 <= finished.sum() < 40
    np.testing.assert_array_equal(partial.value[finished], np.arange(40.0)[finished] ** 2)
    assert sf.load_sweep(tmp_path).identical(partial)
    whole = sf.sweep(slow_square, {"x": range(40)}, settings={"seconds": 0.002}, store=tmp_path)
    np.testing.assert_array_equal(whole.value, np.arange(40.0) ** 2)


def test_ctrl_c_is_heard_at_once_while_threads_work():
    """Points that take 1.2 s are not waited for."""
    threads = ThreadPoolExecutor(1)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    start = time.perf_counter()
    timer.start()
    with pytest.raises(Interrupted, match=r"with 1 of 3 points done$") as stop:
        sf.sweep(sleep_for, {"seconds": [0.0, 1.2, 0.1]}, threads)
    assert time.perf_counter() - start < 1.1
    assert stop.value.partial.status.values.tolist() == ["finished", "pending", "pending"]
    threads.shutdown(cancel_futures=True)
    timer.join()


def sleep_for(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def test_progress(capfd):
    reports: list[tuple[int, int]] = []
    with ThreadPoolExecutor(2) as threads:
        sf.sweep(slow_square, {"x": range(5)}, threads, progress=lambda *now: reports.append(now))
    assert reports == [(done, 5) for done in range(6)]
    sf.sweep(slow_square, {"x": range(5)}, progress=True)
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "5/5" in printed.err


def test_an_executor_that_is_shut_down():
    threads = ThreadPoolExecutor(1)
    threads.shutdown()
    with pytest.raises(SweepError, match=r"takes no more points .* with 0 of 1 points done") as error:
        sf.sweep(slow_square, {"x": [1]}, threads)
    assert error.value.partial.status.values.tolist() == ["pending"]


# ----------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("grid", "kind", "message"),
    [
        ([1], TypeError, "grid must be a mapping"),
        ({}, ValueError, "grid must have at least one axis"),
        ({1: [1]}, TypeError, "names of grid must be strings"),
        ({"status": [1]}, ValueError, "must be those of arguments, and not 'status'"),
        ({"a b": [1]}, ValueError, "must be those of arguments"),
        ({"x": 1.0}, TypeError, r"grid\['x'\] must be a sequence of values.*belongs into settings"),
        ({"x": "abc"}, TypeError, "must be a sequence of values"),
        ({"x": []}, ValueError, "at least one value"),
        ({"x": np.ones((2, 2))}, ValueError, r"one dimension, got shape \(2, 2\)"),
        ({"x": np.float64(1.0)}, ValueError, r"one dimension, got shape \(\)"),
        ({"x": [1, 1.0]}, ValueError, "distinct values"),
        ({"x": [1, "a"]}, TypeError, "numbers, or strings, or booleans, got int, str"),
        ({"x": [sf.Spectrum([1.0], [1.0])]}, TypeError, "got Spectrum; give other objects as a mapping"),
        ({"x": [math.nan]}, ValueError, "must not hold nan"),
        ({"x": [2**63]}, ValueError, "integers of 64 bits"),
        ({"x": {1: 2}}, TypeError, "strings for labels"),
        ({"z": [1]}, ValueError, r"arguments of slow_square \(log, seconds, x\), got z"),
        ({"log": ["a"]}, ValueError, "slow_square needs x as well"),
        ({"x": [1], "seconds": [0.0]}, ValueError, "settings must not repeat the names of grid, got seconds"),
    ],
)
def test_grids_are_checked_before_anything_is_computed(grid, kind, message):
    with pytest.raises(kind, match=message):
        sf.sweep(slow_square, grid, settings={"seconds": 0.0})


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"function_or_engine": "bootstrap"}, ValueError, "one of 'dmft', 'flow', 'simulate', got 'bootstrap'"),
        ({"function_or_engine": 3}, TypeError, "function_or_engine must be a function or the name"),
        ({"function_or_engine": int}, None, None),
        ({"executor": 4}, TypeError, "executor must be None or a concurrent.futures.Executor"),
        ({"settings": [1]}, TypeError, "settings must be a mapping"),
        ({"settings": {"model": 1}}, TypeError, r"settings\['model'\] must be a Model"),
        ({"settings": {"times": [1.0], "alpha": 1.5}}, ValueError, "must tell the task"),
        ({"settings": {**TASK}}, ValueError, "solve_gradient_flow needs times as well"),
        ({"settings": {**TASK, "times": [1.0], "depth": 3}}, ValueError, "got depth"),
        ({"seed": 1}, ValueError, "got seed"),
        ({"seed": -1}, ValueError, "seed must be an integer of at least 0"),
        ({"variables": 1}, TypeError, "variables must be a sequence of strings"),
        ({"variables": []}, ValueError, "at least one name"),
        ({"version": 1}, TypeError, "version must be a string"),
        ({"store": 1}, TypeError, "store must be a path"),
        ({"n_threads": 0}, ValueError, "n_threads must be an integer of at least 1"),
    ],
)
def test_arguments_are_checked(changes, kind, message):
    call = {"function_or_engine": "flow", "grid": {"width": [2]}, "settings": {**TASK, "times": [1.0]}, **changes}
    if kind is None:
        # Types are called too: what they take is theirs to say.
        assert sf.sweep(call["function_or_engine"], {"x": [1]}).status == "failed"
        return
    with pytest.raises(kind, match=message):
        sf.sweep(**call)


def test_failures_tell_what_was_returned():
    def messages(function, **options):
        return str(sf.sweep(function, {"x": [1]}, **options).failure.values[0])

    assert "must be a number, text, or an array" in messages(lambda x: object())
    assert "must be among loss" in messages(lambda x: {"loss": 1.0}, variables="gain")
    assert "other names than the grid and status and failure, got x" in messages(lambda x: {"x": 1.0})
    assert "at least one variable" in messages(lambda x: {})
    assert "strings for names" in messages(lambda x: {1: 2.0})
    assert "must have the dimensions ('t',), got shape (2, 2)" in messages(lambda x: {"v": ("t", np.ones((2, 2)))})
    assert "return a mapping" in messages(lambda x: sf._result.Result(sf.Model(sf.Spectrum([1.0], [1.0]))))
    bad = sf.sweep("flow", {"gamma": [-1.0, 0.0]}, settings={**TASK, "times": [1.0]})
    assert str(bad.failure.values[0]).startswith("ValueError: gamma must be a finite number at least 0")
    named = sf.sweep("flow", {"gamma": [0.0]}, settings={**TASK, "times": [1.0]}, variables="spikes")
    assert "variables must be among loss, kernel_scale" in str(named.failure.values[0])


@pytest.mark.parametrize("missing", ["xarray", "h5netcdf"])
def test_missing_packages_are_named(missing, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, missing, None)
    store = None if missing == "xarray" else tmp_path / "store"
    with pytest.raises(BackendUnavailableError, match=rf"package {missing}, .* pip install 'scalefield\[sweep\]'"):
        sf.sweep(slow_square, {"x": [1]}, store=store)
    assert not (tmp_path / "store").exists()
    # Without a store nothing is written, and h5netcdf is not needed.
    if missing == "h5netcdf":
        assert sf.sweep(slow_square, {"x": [1]}).value == 1.0


def test_documentation_runs(capsys):
    """The blocks of docs/howto/sweeps.md, in one namespace."""
    text = (Path(__file__).resolve().parents[1] / "docs" / "howto" / "sweeps.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "sweeps.md", "exec"), namespace)
    assert len(blocks) == 5
    assert "0.666" in capsys.readouterr().out
