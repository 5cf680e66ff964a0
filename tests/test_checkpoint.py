"""Checkpoints: bit-for-bit continuation after whatever ended a simulation, and refusal of anything else.

Continued runs are compared bit for bit. A child process is killed with SIGKILL again and again, at random moments and
at chosen ones inside the writing of the file, until it finishes.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import scalefield as sf
from killing import run_script
from scalefield import _checkpoint as checkpoint_module
from scalefield import _ensemble as ensemble
from scalefield._checkpoint import Checkpoint
from scalefield.errors import CheckpointWarning, DivergenceError, Interrupted, ScalefieldError, StabilityWarning
from scalefield.simulation.literal import LiteralWorker
from scalefield.simulation.reduced import ReducedWorker

STATISTICS = ("weight_norm", "kernel_scale", "spike", "alignment")
TASK = sf.PowerLawSpectrum(1.5, 0.5, n_modes=60)
MODEL = sf.Model(TASK, width=12, gamma=1.0, learning_rate=0.1, batch_size=4, label_noise=0.1)
CALL = {"n_steps": 400, "n_runs": 3, "seed": 5, "statistics": STATISTICS, "modes": [0, 7]}
# The call of a checkpoint with runs under way.
UNFINISHED = {**CALL, "n_steps": 20_000, "method": "reduced", "record": [0, 3, 20_000]}


def assert_equal(found: sf.Simulation, expected: sf.Simulation) -> None:
    """The same bits."""
    for name in ("steps", "loss", "modes", "mode_errors", *STATISTICS):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    settings = ("model", "seed", "method", "dtype", "features", "tail")
    for name in settings:
        assert getattr(found, name) == getattr(expected, name), name


def interrupt_at(fraction: float):
    """A progress function like Ctrl-C at some part of the work."""

    def progress(done: int, total: int) -> None:
        if done >= fraction * total:
            raise KeyboardInterrupt

    return progress


def shorten_chunks(patch: pytest.MonkeyPatch) -> None:
    """Calls of a few steps, and not too fast for the main thread, which looks often, on a busy machine."""
    patch.setattr(ensemble, "_CHUNK_WORK", 2e4)
    patch.setattr(ensemble, "_POLL_SECONDS", 0.002)
    for worker in (ReducedWorker, LiteralWorker):

        def slowed(*arguments, advance=worker.advance):
            time.sleep(3e-4)
            return advance(*arguments)

        patch.setattr(worker, "advance", slowed)


@pytest.fixture
def short_chunks(monkeypatch):
    """Checkpoints are written many times a run."""
    shorten_chunks(monkeypatch)


def leave_unfinished(path: Path, model: sf.Model, **call) -> None:
    """A checkpoint with runs under way, by Ctrl-C once there is one."""
    kept: list[int] = []
    write = Checkpoint.write

    def noted(self, arrays, states):
        write(self, arrays, states)
        kept.extend(state.step for state in states.values())

    def progress(done: int, total: int) -> None:
        if any(step > 0 for step in kept):
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "write", noted)
        with pytest.raises(Interrupted):
            sf.simulate(model, **call, checkpoint=path, checkpoint_every=0.005, progress=progress)


# ---------------------------------------------------------------------------------------------------------- kill -9

KILLED = """
    import os, signal, sys
    import numpy as np
    import scalefield as sf
    from killing import kill_until_done
    from scalefield import _ensemble as ensemble
    from scalefield import _files

    method, folder, at = sys.argv[1], sys.argv[2], sys.argv[3]
    ensemble._POLL_SECONDS = 0.005
    # Some milliseconds a call.
    ensemble._CHUNK_WORK = 2e6
    if method == "reduced":
        model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5, n_modes=300), width=40, gamma=1.0, batch_size=8, label_noise=0.1)
        n_steps = {"random": 80_000, "stages": 3_000}[at]
    else:
        model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5, n_modes=120), width=16, gamma=0.5, batch_size=4)
        n_steps = {"random": 40_000, "stages": 5_000}[at]
    call = dict(n_runs=3, seed=8, method=method, statistics=["weight_norm", "spike", "alignment"], modes=[0, 99])
    path = os.path.join(folder, "runs.checkpoint")

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def die_half_way(stream, **arrays):
        stream.write(b"PK" + bytes(1000))
        stream.flush()
        die()

    def child(attempt):
        if at == "stages":
            # In turn: before the file is complete, half way, just before and just after it takes its name.
            stage, calls = attempt % 4, [0]

            def at_third_call(function, before=lambda *a, **k: None, after=lambda: None):
                def wrapped(*arguments, **options):
                    calls[0] += 1
                    if calls[0] == 3:
                        before(*arguments, **options)
                    result = function(*arguments, **options)
                    if calls[0] == 3:
                        after()
                    return result
                return wrapped

            if stage == 0:
                os.fsync = at_third_call(os.fsync, before=lambda *a: die())
            elif stage == 1:
                np.savez = at_third_call(np.savez, before=die_half_way)
            elif stage == 2:
                os.replace = at_third_call(os.replace, before=lambda *a: die())
            else:
                os.replace = at_third_call(os.replace, after=die)
        found = sf.simulate(model, n_steps, **call, checkpoint=path, checkpoint_every=0.01)
        found.save(os.path.join(folder, "found.npz"))

    sf.simulate(model, 2, **call)
    print(kill_until_done(child, at_random=at == "random"))
    sf.simulate(model, n_steps, **call).save(os.path.join(folder, "expected.npz"))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are copies of a process")
@pytest.mark.parametrize("at", ["random", "stages"])
@pytest.mark.parametrize("method", ["reduced", "literal"])
def test_continues_after_kill(method, at, tmp_path):
    """SIGKILL at random moments after 0.02 to 0.2 s and more, or at four stages of the third writing, until it ends.

    6 to 13 kills were counted.
    """
    run_script(KILLED, method, str(tmp_path), at)
    found, expected = (sf.Simulation.load(tmp_path / f"{name}.npz") for name in ("found", "expected"))
    assert found.model == expected.model
    for name in ("steps", "loss", "weight_norm", "spike", "alignment", "mode_errors"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


# --------------------------------------------------------------------------------------- other ends, and continuation


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("gamma", [0.0, 1.0])
@pytest.mark.parametrize("method", ["reduced", "literal"])
def test_continues_after_interruptions(method, gamma, dtype, tmp_path, short_chunks, monkeypatch):
    """Ctrl-C at 20%, 50% and 80% of the work, on other numbers of threads each time."""
    model, path = MODEL.replace(gamma=gamma), tmp_path / "runs"
    call = {**CALL, "n_steps": 1500, "method": method, "dtype": dtype}
    expected = sf.simulate(model, **call)
    for threads, fraction in (("1", 0.2), ("3", 0.5), ("2", 0.8)):
        monkeypatch.setenv("SCALEFIELD_NUM_THREADS", threads)
        with pytest.raises(Interrupted):
            sf.simulate(model, **call, checkpoint=path, checkpoint_every=0.005, progress=interrupt_at(fraction))
    done: list[int] = []
    found = sf.simulate(model, **call, checkpoint=path, progress=lambda now, total: done.append(now))
    assert_equal(found, expected)
    # It went on from where it was, not from the start.
    assert done[0] > 0.1 * 3 * 1500
    assert done[-1] == 3 * 1500


def test_runs_shorter_than_the_interval_are_kept_when_finished(tmp_path, short_chunks, monkeypatch):
    """A run that began after a checkpoint was due has nothing to add; it must not hold the file up."""
    monkeypatch.setenv("SCALEFIELD_NUM_THREADS", "1")
    path, kept = tmp_path / "runs", []
    write = Checkpoint.write

    def noted(self, arrays, states):
        kept.append(int(arrays["finished"].sum()))
        write(self, arrays, states)

    monkeypatch.setattr(Checkpoint, "write", noted)
    # The disk may be slow.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    sf.simulate(MODEL, 100, n_runs=60, seed=1, method="reduced", checkpoint=path, checkpoint_every=0.02)
    assert len(kept) >= 4
    assert kept == sorted(kept)
    assert kept[-1] == 60


def test_infinite_spectrum_keeps_its_tail(tmp_path):
    model = MODEL.replace(spectrum=sf.PowerLawSpectrum(1.5, 0.5), width=3)
    call = {"n_steps": 20, "n_runs": 3, "seed": 3, "checkpoint": tmp_path / "runs"}
    first = sf.simulate(model, **call)
    assert first.tail > 0.0
    assert sf.simulate(model, **call).tail == first.tail


def test_functions_as_features(tmp_path, short_chunks):
    call = {**CALL, "method": "literal", "features": np.cbrt, "n_steps": 600}
    expected = sf.simulate(MODEL, **call)
    path = tmp_path / "runs"
    with pytest.raises(Interrupted):
        sf.simulate(MODEL, **call, checkpoint=path, checkpoint_every=0.005, progress=interrupt_at(0.4))
    assert_equal(sf.simulate(MODEL, **call, checkpoint=path), expected)
    with pytest.raises(ScalefieldError, match=r"with features 'numpy.cbrt' instead of 'numpy.sqrt'"):
        sf.simulate(MODEL, **{**call, "features": np.sqrt}, checkpoint=path)


def test_finished_checkpoints_return_at_once(tmp_path, monkeypatch):
    path = tmp_path / "runs"
    first = sf.simulate(MODEL, **CALL, checkpoint=path)
    assert_equal(first, sf.simulate(MODEL, **CALL))
    stored = path.read_bytes()
    monkeypatch.setattr(ensemble.Ensemble, "_work", lambda self: pytest.fail("nothing is left to do"))
    monkeypatch.setattr(Checkpoint, "_write", lambda *arguments: pytest.fail("nothing is new"))
    calls: list[tuple[int, int]] = []
    again = sf.simulate(MODEL, **CALL, checkpoint=path, progress=lambda *now: calls.append(now))
    assert_equal(again, first)
    assert calls == [(1200, 1200)]
    assert path.read_bytes() == stored


def test_without_a_seed_the_stored_one_goes_on(tmp_path):
    call = {"n_steps": 20, "n_runs": 2, "checkpoint": tmp_path / "runs"}
    first = sf.simulate(MODEL, **call)
    second = sf.simulate(MODEL, **call)
    assert second.seed == first.seed
    np.testing.assert_array_equal(second.loss, first.loss)


def test_continues_after_divergence(tmp_path, short_chunks, monkeypatch):
    """After an interruption before step 246, where it diverges; and the same error again from the file it leaves."""
    monkeypatch.setattr(ensemble, "_CHUNK_WORK", 0.0)
    model, path = MODEL.replace(learning_rate=1.7, gamma=0.0), tmp_path / "runs"
    call = {**CALL, "n_steps": 3000, "method": "reduced"}
    with pytest.warns(StabilityWarning), pytest.raises(DivergenceError) as expected:
        sf.simulate(model, **call)
    assert expected.value.step == 246
    for _ in range(2):
        with pytest.warns(StabilityWarning):
            leave_unfinished(path, model, **call)
    first: list[int] = []
    for _ in range(3):
        done: list[int] = []
        with pytest.warns(StabilityWarning), pytest.raises(DivergenceError) as found:
            sf.simulate(
                model,
                **call,
                checkpoint=path,
                checkpoint_every=0.002,
                progress=lambda now, total, d=done: d.append(now),
            )
        first.append(done[0])
        assert (found.value.step, str(found.value)) == (expected.value.step, str(expected.value))
        assert_equal(found.value.partial, expected.value.partial)
    assert first[0] > 0


def test_path_may_be_relative_and_any_kind_of_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = sf.simulate(MODEL, **CALL, checkpoint="runs")
    assert_equal(sf.simulate(MODEL, **CALL, checkpoint=Path("runs")), first)
    assert [entry.name for entry in tmp_path.iterdir()] == ["runs"]


# ----------------------------------------------------------------------------------------------------------- refused


class LookedAtError(Exception):
    """Ends a simulation once its checkpoint has been read."""


def restored(path: Path, **changes):
    """What a checkpoint gives a simulation, or the error, and the arrays it filled."""
    call = {**UNFINISHED, **changes}
    model = call.pop("model", MODEL)
    restore, found = Checkpoint.restore, []

    def look(self, arrays_out):
        for name, array in arrays_out.items():
            if name != "finished":
                array.fill(np.nan)
        try:
            states = restore(self, arrays_out)
        except ScalefieldError as error:
            states = error
        found.extend((states, arrays_out))
        raise LookedAtError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "restore", look)
        with pytest.raises(LookedAtError):
            sf.simulate(model, **call, checkpoint=path)
    return found


def untouched(arrays) -> bool:
    return all(not array.any() if name == "finished" else np.isnan(array).all() for name, array in arrays.items())


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """The bytes of a checkpoint with runs under way."""
    path = tmp_path_factory.mktemp("checkpoint") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        shorten_chunks(patch)
        patch.setenv("SCALEFIELD_NUM_THREADS", "2")
        leave_unfinished(path, MODEL, **UNFINISHED)
    return path.read_bytes()


def test_what_is_kept(unfinished, tmp_path):
    path = tmp_path / "runs"
    path.write_bytes(unfinished)
    states, arrays = restored(path)
    assert len(states) in (1, 2)
    for state in states.values():
        assert 0 < state.step < 20_000
        assert set(state.arrays) == {"w", "theta", "mixing"}
    assert np.isfinite(arrays["loss"][list(states), 0]).all()
    assert not arrays["finished"].all()


def test_truncated_files_are_refused(unfinished, tmp_path):
    """At every 64th byte, around the ends, and at 50 random ones."""
    path = tmp_path / "runs"
    size = len(unfinished)
    cuts = {*range(0, size, 64), *range(1, 64, 7), *range(size - 40, size)}
    cuts |= set(np.random.default_rng(0).integers(0, size, 50).tolist())
    for cut in sorted(cuts):
        path.write_bytes(unfinished[:cut])
        error, arrays = restored(path)
        assert isinstance(error, ScalefieldError), cut
        assert str(path) in str(error)
        assert untouched(arrays), cut
        assert path.read_bytes() == unfinished[:cut]
    with pytest.raises(ScalefieldError, match="not a scalefield archive"):
        sf.simulate(MODEL, **CALL, checkpoint=path)


def test_flipped_bits_are_refused_or_harmless(unfinished, tmp_path):
    """Every checksummed byte counts; those that say when the file was made do not."""
    path = tmp_path / "runs"
    path.write_bytes(unfinished)
    states, expected = restored(path)
    assert not isinstance(states, ScalefieldError)
    places = np.random.default_rng(1).choice(len(unfinished), 400, replace=False).tolist()
    # What tells types and shapes: a smaller array would be read without its checksum.
    for text in (b"<f8", b"'shape': (3, 3", b"|b1", b"NUMPY", b"<U"):
        first = unfinished.index(text)
        places += range(first, first + len(text))
    refused = 0
    for place in places:
        for bit in (0, 2):
            damaged = bytearray(unfinished)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            found, arrays = restored(path)
            if isinstance(found, ScalefieldError):
                refused += 1
                assert untouched(arrays), place
                continue
            for name, array in arrays.items():
                np.testing.assert_array_equal(array, expected[name])
            assert {run: state.step for run, state in found.items()} == {r: s.step for r, s in states.items()}
            for run, state in found.items():
                for name, array in state.arrays.items():
                    np.testing.assert_array_equal(array, states[run].arrays[name])
    assert refused > 0.8 * 2 * len(places)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("model.gamma", {"model": MODEL.replace(gamma=1.0 + 1e-15)}),
        ("model.spectrum.n_modes", {"model": MODEL.replace(spectrum=sf.PowerLawSpectrum(1.5, 0.5, n_modes=61))}),
        ("model.batch_size", {"model": MODEL.replace(batch_size=5)}),
        ("n_steps", {"n_steps": 20_001}),
        ("seed", {"seed": 6}),
        ("method", {"method": "literal"}),
        ("record", {"record": [0, 4, 20_000]}),
        ("dtype", {"dtype": "float32"}),
        ("features", {"features": "uniform", "method": "literal"}),
        ("statistics", {"statistics": ("spike",)}),
        ("modes", {"modes": [0, 8]}),
        ("modes", {"modes": None}),
    ],
)
def test_checkpoints_of_other_calls_are_refused(unfinished, tmp_path, name, changes):
    path = tmp_path / "runs"
    path.write_bytes(unfinished)
    error, arrays = restored(path, **changes)
    assert isinstance(error, ScalefieldError)
    assert f"{path}: checkpoint of another simulation, with " in str(error)
    assert "give another path, or remove the file to start anew" in str(error)
    # Methods are told before features.
    assert f"with {'method' if name == 'features' else name} " in str(error)
    assert untouched(arrays)
    assert path.read_bytes() == unfinished


def test_more_runs_may_be_asked_for(unfinished, tmp_path):
    """Finished ones and those under way are taken up, others begun; none is lost by asking for fewer."""
    call = {**CALL, "n_steps": 600}
    path = tmp_path / "runs"
    first = sf.simulate(MODEL, **call, checkpoint=path)
    stored, n_runs = path.read_bytes(), first.n_runs
    done: list[int] = []
    more = {**call, "n_runs": n_runs + 2}
    found = sf.simulate(MODEL, **more, checkpoint=path, progress=lambda now, total: done.append(now))
    assert done[0] == n_runs * 600
    np.testing.assert_array_equal(found.loss[:n_runs], first.loss)
    assert_equal(found, sf.simulate(MODEL, **more))
    path.write_bytes(stored)
    message = f"checkpoint of {n_runs} runs, {n_runs - 1} are asked for; ask for at least as many"
    with pytest.raises(ScalefieldError, match=message):
        sf.simulate(MODEL, **{**call, "n_runs": n_runs - 1}, checkpoint=path)
    assert path.read_bytes() == stored
    path.write_bytes(unfinished)
    states, arrays = restored(path, n_runs=5)
    assert len(states) in (1, 2)
    assert len(arrays["loss"]) == 5


def test_checkpoints_of_other_features_are_refused(tmp_path):
    call = {**CALL, "method": "literal", "checkpoint": tmp_path / "runs"}
    sf.simulate(MODEL, **call, features="uniform")
    with pytest.raises(ScalefieldError, match="with features 'uniform' instead of 'gaussian'"):
        sf.simulate(MODEL, **call)


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("scalefield.__version__", "0.0.1", "with version '0.0.1' instead of"),
        ("scalefield._checkpoint._FORMAT", 0, "not a checkpoint of this version of scalefield"),
    ],
)
def test_checkpoints_of_other_versions_are_refused(tmp_path, monkeypatch, attribute, value, message):
    path = tmp_path / "runs"
    with monkeypatch.context() as patch:
        patch.setattr(attribute, value)
        sf.simulate(MODEL, **CALL, checkpoint=path)
    with pytest.raises(ScalefieldError, match=message):
        sf.simulate(MODEL, **CALL, checkpoint=path)


def test_files_that_are_something_else_are_refused(tmp_path):
    contents = {"text": b"steps,loss\n0,1.0\n", "empty": b"", "archive": None, "simulation": None}
    for name, content in contents.items():
        path = tmp_path / name
        if name == "archive":
            with open(path, "wb") as stream:
                np.savez(stream, loss=np.zeros((3, 401)), finished=np.ones(3, dtype=bool))
        elif name == "simulation":
            sf.simulate(MODEL, **CALL).save(path)
        else:
            path.write_bytes(content)
        before = path.read_bytes()
        with pytest.raises(ScalefieldError, match=f"{path}: not a (scalefield archive|checkpoint)"):
            sf.simulate(MODEL, **CALL, checkpoint=path)
        assert path.read_bytes() == before
    with pytest.raises(ScalefieldError, match="Is a directory"):
        sf.simulate(MODEL, **CALL, checkpoint=tmp_path)


# ---------------------------------------------------------------------------------------- where nothing can be written


@pytest.fixture
def no_work(monkeypatch):
    """Fails if a run is begun."""
    monkeypatch.setattr(ensemble.Ensemble, "_work", lambda self: pytest.fail("work before the path was tried"))


def test_absent_folders_are_told_before_any_work(tmp_path, no_work):
    with pytest.raises(FileNotFoundError, match="absent"):
        sf.simulate(MODEL, **CALL, checkpoint=tmp_path / "absent" / "runs")


@pytest.mark.parametrize("exists", [False, True])
def test_folders_that_cannot_be_written_to_are_told_before_any_work(tmp_path, no_work, monkeypatch, unfinished, exists):
    """As the system tells it: who may write anywhere (root) is told by a full or read-only disk alone."""
    path = tmp_path / "runs"
    if exists:
        path.write_bytes(unfinished)

    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(PermissionError, match="Permission denied"):
        sf.simulate(MODEL, **UNFINISHED, checkpoint=path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_folders_without_permission(tmp_path, no_work):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError):
            sf.simulate(MODEL, **CALL, checkpoint=tmp_path / "runs")
    finally:
        tmp_path.chmod(0o700)


def full_disk(function, calls: list[int], first: int):
    """`function` until its call number `first`; no space left from then on."""

    def wrapped(*arguments, **options):
        calls.append(len(calls))
        if len(calls) >= first:
            raise OSError(errno.ENOSPC, "No space left on device")
        return function(*arguments, **options)

    return wrapped


@pytest.mark.parametrize("where", ["os.replace", "os.fsync", "numpy.savez"])
def test_full_disk(tmp_path, monkeypatch, short_chunks, where):
    """A warning for each writing that failed; the simulation finishes and the last whole file stays."""
    path, calls = tmp_path / "runs", []
    call = {**CALL, "n_steps": 4000, "method": "reduced"}
    expected = sf.simulate(MODEL, **call)
    module, name = where.split(".")
    function = getattr(sys.modules[module], name)
    kept: list[bytes] = []

    def noting(done: int, total: int) -> None:
        if len(calls) >= 3:
            kept.append(path.read_bytes())

    with monkeypatch.context() as patch:
        patch.setattr(where, full_disk(function, calls, 3))
        with pytest.warns(CheckpointWarning, match="No space left on device") as warned:
            found = sf.simulate(MODEL, **call, checkpoint=path, checkpoint_every=0.005, progress=noting)
    assert_equal(found, expected)
    assert len(calls) >= 3
    assert len(warned) == len(calls) - 2
    assert str(path) in str(warned[0].message)
    # The second file stayed, whole, and nothing beside it.
    assert len(set(kept)) == 1
    assert path.read_bytes() == kept[0]
    assert [entry.name for entry in tmp_path.iterdir()] == ["runs"]
    done: list[int] = []
    again = sf.simulate(MODEL, **call, checkpoint=path, progress=lambda now, total: done.append(now))
    assert_equal(again, expected)
    assert done[0] < done[-1]


def test_full_disk_half_way_through_a_file(tmp_path, monkeypatch, short_chunks):
    """The device fills up while the arrays are written."""
    path = tmp_path / "runs"
    write_archive, calls = checkpoint_module.write_archive, []

    class Full:
        """A stream with room for 700 bytes."""

        def __init__(self, stream) -> None:
            self.stream, self.room = stream, 700

        def __getattr__(self, name):
            return getattr(self.stream, name)

        def write(self, data) -> int:
            self.room -= len(data)
            if self.room < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.stream.write(data)

    savez = np.savez

    def narrow(stream, **arrays) -> None:
        savez(Full(stream), **arrays)

    def counted(*arguments, **options) -> None:
        calls.append(1)
        with monkeypatch.context() as patch:
            if len(calls) > 1:
                patch.setattr(np, "savez", narrow)
            write_archive(*arguments, **options)

    monkeypatch.setattr(checkpoint_module, "write_archive", counted)
    call = {**CALL, "n_steps": 3000, "method": "reduced"}
    with pytest.warns(CheckpointWarning, match="No space left on device"):
        found = sf.simulate(MODEL, **call, checkpoint=path, checkpoint_every=0.005)
    assert_equal(found, sf.simulate(MODEL, **call))
    assert [entry.name for entry in tmp_path.iterdir()] == ["runs"]
    monkeypatch.undo()
    assert_equal(sf.simulate(MODEL, **call, checkpoint=path), found)


def test_what_a_killed_writer_left_is_removed(tmp_path):
    path = tmp_path / "state"
    for name in (".state.abc.part", ".other.abc.part"):
        (tmp_path / name).write_bytes(b"half")
    sf.simulate(sf.Model(sf.PowerLawSpectrum(1.5, 0.5, 20), width=4, batch_size=4), 3, seed=0, checkpoint=path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".other.abc.part", "state"]
