"""Checkpoints of trained networks: bit-for-bit continuation after Ctrl-C and SIGKILL, more runs, and refusal.

What the file itself must withstand is tested with simulations (test_checkpoint.py).
"""

from __future__ import annotations

import math
import os

import pytest

import scalefield as sf
from interruptions import Pace, assert_equal, check_continuation
from killing import run_script
from scalefield.errors import DivergenceError, Interrupted, ScalefieldError, StabilityWarning
from scalefield.networks import train_linear_network, train_multilayer
from scalefield.networks.linear_training import STATISTICS

TASK = sf.PowerLawSpectrum(2.0, 0.5, n_modes=13)
CIRCLE = sf.networks.CircleTask(1.0, n_modes=63)

LINEAR = {
    "spectrum": TASK, "width": 40, "gamma": 1.0, "learning_rate": 0.05, "batch_size": 4, "n_steps": 400, "seed": 7,
    "label_noise": 0.1, "statistics": STATISTICS, "record": [0, 1, 3, *range(10, 401, 30)],
}  # fmt: skip
MULTILAYER = {
    "task": CIRCLE, "width": 20, "batch_size": 8, "n_steps": 200, "n_test": 64, "seed": 7, "kernel_points": 5,
}  # fmt: skip


def trained_linear(n_runs: int = 3, **changes):
    return train_linear_network(**(LINEAR | changes), n_runs=n_runs)


def trained_multilayer(n_runs: int = 3, **changes):
    return train_multilayer(**(MULTILAYER | changes), n_seeds=n_runs)


CALLS = {
    "linear, reduced": (trained_linear, {}),
    "linear, literal": (trained_linear, {"method": "literal", "centred": False}),
    "linear, infinitely wide": (trained_linear, {"width": math.inf}),
    "linear, regression": (
        trained_linear,
        {"width": math.inf, "gamma": 0.0, "statistics": (), "n_steps": 5000, "learning_rate": 0.002},
    ),
    "circle, F_0 computed": (trained_multilayer, {}),
    "circle, F_0 interpolated": (trained_multilayer, {"gamma": 8.0, "learning_rate": 0.01, "depth": 3}),
    "circle, single precision": (trained_multilayer, {"dtype": "float32", "activation_power": 2.0, "depth": 1}),
}


@pytest.fixture
def pace(monkeypatch):
    return Pace(monkeypatch)


@pytest.mark.parametrize("call", CALLS)
def test_continues_after_interruptions(call, tmp_path, pace, monkeypatch):
    train, changes = CALLS[call]
    check_continuation(lambda **more: train(**(changes | more)), tmp_path / "runs", pace, monkeypatch)


@pytest.mark.parametrize("call", ["linear, reduced", "circle, F_0 computed"])
def test_more_runs_may_be_asked_for_and_nothing_else(call, tmp_path):
    train, path = CALLS[call][0], tmp_path / "runs"
    train(2, checkpoint=path)
    done: list[int] = []
    more = train(3, checkpoint=path, progress=lambda now, total: done.append(now))
    assert_equal(more, train(3))
    assert done[0] == 2 * more.steps[-1]
    with pytest.raises(ScalefieldError, match="checkpoint of 3 runs, 2 are asked for"):
        train(2, checkpoint=path)
    stored = path.read_bytes()
    for changes, message in (
        ({"gamma": 0.5}, "gamma"),
        ({"seed": 8}, "seed 7 instead of 8"),
        ({"record": [0, 100]}, "record"),
        ({"learning_rate": 0.01}, "learning_rate"),
    ):
        with pytest.raises(ScalefieldError, match=f"checkpoint of another training .*, with .*{message}"):
            train(3, **changes, checkpoint=path)
    # Nor one of another kind.
    with pytest.raises(ScalefieldError, match=r"with kind 'training .*' instead of 'simulation'"):
        sf.simulate(sf.Model(TASK, 4, batch_size=2), 10, checkpoint=path, seed=7)
    assert path.read_bytes() == stored
    with pytest.raises(FileNotFoundError):
        train(3, checkpoint=tmp_path / "absent" / "runs")
    with pytest.raises(TypeError, match="checkpoint must be a path, got 3"):
        train(3, checkpoint=3)
    with pytest.raises(ValueError, match="checkpoint_every must be"):
        train(3, checkpoint=path, checkpoint_every=0.0)


def test_divergence_after_an_interruption(tmp_path, pace):
    """The same error at the same step, with the same records."""
    # (1 - 2 eta)^2 = 1.08 a step on the first mode.
    changes = {"width": math.inf, "gamma": 0.0, "statistics": (), "learning_rate": 1.02, "batch_size": math.inf}
    path = tmp_path / "runs"
    pace.free()
    with pytest.warns(StabilityWarning), pytest.raises(DivergenceError) as expected:
        trained_linear(**changes, n_steps=5000)
    assert expected.value.step > 300
    with pytest.warns(StabilityWarning), pytest.raises(Interrupted):
        trained_linear(
            **changes, n_steps=5000, checkpoint=path, checkpoint_every=0.001, progress=pace.interrupt_at(0.01)
        )  # fmt: skip
    pace.free()
    with pytest.warns(StabilityWarning), pytest.raises(DivergenceError) as found:
        trained_linear(**changes, n_steps=5000, checkpoint=path)
    assert (str(found.value), found.value.step) == (str(expected.value), expected.value.step)
    assert_equal(found.value.partial, expected.value.partial)


KILLED = """
    import os, sys
    import scalefield as sf
    from killing import kill_until_done
    from scalefield import _ensemble as ensemble
    from scalefield.networks import circle_training

    kind, folder = sys.argv[1:]
    ensemble._POLL_SECONDS = 0.005
    # Some milliseconds a call.
    ensemble._CHUNK_WORK, circle_training._CHUNK_WORK = 2e6, 2e7

    def train(n_steps=15_000, **more):
        if kind == "linear":
            return sf.networks.train_linear_network(
                sf.PowerLawSpectrum(1.5, 0.5, n_modes=100), 200, 1.0, 0.05, 8, 4 * n_steps, 3, 8,
                statistics=["readout_norm", "kernel_distance"], **more,
            )
        return sf.networks.train_multilayer(
            sf.networks.CircleTask(1.0, n_modes=63), width=48, batch_size=32, n_steps=n_steps, n_seeds=3, seed=8,
            n_test=64, kernel_points=5, **more,
        )

    train(2)
    path = os.path.join(folder, "runs")

    def child(attempt):
        train(checkpoint=path, checkpoint_every=0.01).save(os.path.join(folder, "found.npz"))

    print(kill_until_done(child))
    train().save(os.path.join(folder, "expected.npz"))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are copies of a process")
@pytest.mark.parametrize("kind", ["linear", "circle"])
def test_continues_after_kill(kind, tmp_path):
    """SIGKILL at random moments, 0.02 to 0.2 s and more after the start, until it ends."""
    run_script(KILLED, kind, str(tmp_path))
    made = sf.networks.LinearNetworkRuns if kind == "linear" else sf.networks.MultilayerTraining
    assert_equal(*(made.load(tmp_path / f"{name}.npz") for name in ("found", "expected")))
