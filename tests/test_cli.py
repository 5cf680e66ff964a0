"""The command line, through click's runner and as a subprocess."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.image import imread

import scalefield as sf
from scalefield import cli
from scalefield.cli import commands
from scalefield.errors import Interrupted

SMALL = ["--steps", "30", "--runs", "4", "--width", "16", "--batch-size", "8"]


def run(*arguments, code=0):
    """Run the command line as `python -m` would, and return its output."""
    process = subprocess.run(
        [sys.executable, "-c", "from scalefield.cli import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == code, process.stderr
    return process


def read_curve(path):
    with open(path, newline="") as stream:
        rows = list(csv.DictReader(line for line in stream if not line.startswith("#")))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


def test_curve_of_the_digits(tmp_path):
    """The main job: table, numbers and picture, equal to what the library computes."""
    result = CliRunner().invoke(commands, ["curve", "digits", *SMALL, "--seed", "3", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    model = sf.Model(sf.datasets.digits_spectrum(), width=16, gamma=1.0, batch_size=8)
    theory, simulation = sf.solve_dmft(model, 30, "two-time"), sf.simulate(model, 30, n_runs=4, seed=3)

    curve = read_curve(tmp_path / "curve.csv")
    np.testing.assert_array_equal(curve["step"], theory.steps)
    np.testing.assert_array_equal(curve["theory_loss"], theory.loss)
    np.testing.assert_array_equal(curve["simulation_mean"], simulation.mean)
    np.testing.assert_array_equal(curve["simulation_standard_error"], simulation.standard_error)
    parts = sum(curve[f"theory_{name}"] for name in ("bias", "feature_variance", "sgd_variance"))
    np.testing.assert_allclose(parts, theory.loss, rtol=1e-14)
    z = (simulation.mean - theory.loss)[1:] / simulation.standard_error[1:]
    np.testing.assert_allclose(curve["z_score"][1:], z, rtol=1e-12)

    with np.load(tmp_path / "curve.npz") as archive:
        np.testing.assert_array_equal(archive["simulation_loss"], simulation.loss)
        settings = json.loads(str(archive["settings"]))
    assert sf.Model.from_description(settings["model"]) == model
    assert settings["seed"] == 3
    assert imread(tmp_path / "curve.png").shape[0] > 500
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curve.csv", "curve.npz", "curve.png"]

    for heading in ("step", "theory", "simulation", "std. error", "z-score"):
        assert heading in result.output
    assert f"{theory.loss[30]:.6g}" in result.output
    assert f"{z[29]:+.2f}" in result.output


def test_curve_of_a_file_and_of_a_power_law_agree(tmp_path):
    lam, w = sf.PowerLawSpectrum(1.5, 0.5, n_modes=50).modes(0, 50)
    sf.Spectrum(lam, w).save(tmp_path / "spectrum.csv")
    law = ["--alpha", "1.5", "--beta", "0.5", "--modes", "50"]
    for source, out in (([str(tmp_path / "spectrum.csv")], "a"), (law, "b")):
        result = CliRunner().invoke(commands, ["curve", *source, *SMALL, "--out", str(tmp_path / out)])
        assert result.exit_code == 0, result.output
    a, b = (read_curve(tmp_path / out / "curve.csv") for out in "ab")
    np.testing.assert_allclose(a["theory_loss"], b["theory_loss"], rtol=1e-11)
    np.testing.assert_allclose(a["simulation_mean"], b["simulation_mean"], rtol=1e-11)


def test_theory_alone_of_infinite_everything(tmp_path):
    infinite = ["--modes", "inf", "--width", "inf", "--batch-size", "INF"]
    rest = ["--gamma", "0", "--steps", "20", "--runs", "0", "--out", str(tmp_path / "new" / "folder")]
    result = CliRunner().invoke(commands, ["curve", "--alpha", "2", "--beta", "1.5", *infinite, *rest])
    assert result.exit_code == 0, result.output
    curve = read_curve(tmp_path / "new" / "folder" / "curve.csv")
    assert "simulation_mean" not in curve
    k = np.arange(1.0, 1e5)
    expected = (k**-4.0 * (1.0 - 0.1 * k**-2.0) ** 40).sum()
    np.testing.assert_allclose(curve["theory_loss"][20], expected, rtol=1e-11)


def test_single_run_has_no_error_estimate(tmp_path):
    result = CliRunner().invoke(commands, ["curve", "digits", *SMALL, "--runs", "1", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert np.isnan(read_curve(tmp_path / "curve.csv")["z_score"]).all()


def test_version_and_help():
    assert run("--version").stdout.split()[-1] == sf.__version__
    assert "curve" in run("--help").stdout
    text = run("curve", "--help").stdout
    for option in ("--alpha", "--width", "--gamma", "--learning-rate", "--batch-size", "--steps", "--runs", "--out"):
        assert option in text
    assert "digits" in text
    # Without a command, the help, as a usage error.
    assert "Usage" in run(code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["curve"], "name a task"),
        (["curve", "--alpha", "1.5"], "name a task"),
        (["curve", "digits", "--alpha", "1.5"], "not both"),
        (["curve", "absent.csv"], "absent.csv: No such file"),
        (["curve", "spectrum.txt"], "must end in .npz or .csv"),
        (["curve", "--alpha", "0.9", "--beta", "0.5", "--modes", "inf", "--runs", "0"], "alpha must be greater than 1"),
        (["curve", "--alpha", "1.5", "--beta", "-1"], "beta must be a finite number greater than 0, got -1"),
        (["curve", "--alpha", "1.5", "--beta", "1", "--modes", "inf", "--width", "inf"], "give --runs 0 or --modes M"),
        (["curve", "--alpha", "1.5", "--beta", "1", "--modes", "inf", "--samples", "9"], "modes with a data set"),
        (["curve", "digits", "--samples", "0"], "n_samples must be an integer of at least 1, got 0"),
        (["curve", "digits", "--width", "0"], "width must be an integer of at least 1, got 0"),
        (["curve", "digits", "--width", "few"], "'few' is neither an integer nor inf"),
        (["curve", "digits", "--batch-size", "-2"], "batch_size must be an integer of at least 1, got -2"),
        (["curve", "digits", "--learning-rate", "0"], "learning_rate must be a finite number greater than 0"),
        (["curve", "digits", "--gamma", "nan"], "gamma must be a finite number at least 0, got nan"),
        (["curve", "digits", "--steps", "0"], "steps must be an integer of at least 1, got 0"),
        (["curve", "digits", "--runs", "-1"], "runs must be an integer of at least 0, got -1"),
        (["curve", "digits", "--seed", "-1"], "seed must be an integer of at least 0, got -1"),
        (["curve", "digits", "--colour", "red"], "No such option"),
        (["curve", "digits", "--learning-rate", "9"], "left the finite range at step"),
        (["curve", "digits", "--steps", "10000000"], "needs about"),
        (["draw"], "No such command 'draw'"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("scalefield: error: ")
    assert message in lines[0]
    assert not list(tmp_path.rglob("curve.*"))


def test_errors_of_a_subprocess_have_no_traceback(tmp_path):
    (tmp_path / "bad.csv").write_text("eigenvalue,target_coefficient\n1.0,0.5\n0.5,many\n")
    process = run("curve", tmp_path / "bad.csv", code=2)
    assert process.stdout == ""
    message = "row 3, column target_coefficient: not a number: 'many'"
    assert process.stderr == f"scalefield: error: {tmp_path / 'bad.csv'}: {message}\n"


def test_unwritable_folder_is_named(tmp_path):
    (tmp_path / "taken").write_text("a file where a folder should go")
    process = run("curve", "digits", *SMALL, "--out", tmp_path / "taken", code=2)
    assert "taken" in process.stderr
    assert process.stderr.count("\n") == 1


def test_read_only_folder_is_refused_before_anything_is_computed(tmp_path, monkeypatch, capsys):
    def computed(*_, **__):
        pytest.fail("results would have been lost")

    monkeypatch.setattr(sys.modules["scalefield.cli.curve"], "solve_dmft", computed)
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(["curve", "digits", *SMALL, "--out", str(tmp_path)])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"scalefield: error: {tmp_path}: cannot write into this folder\n"


def test_unstable_learning_rate_is_warned_about(tmp_path):
    arguments = ["--alpha", "1.5", "--beta", "0.5", "--modes", "20", "--gamma", "0", "--learning-rate", "1.25"]
    process = run("curve", *arguments, *SMALL, "--out", tmp_path)
    assert "warning: learning_rate 1.25 is beyond the stability bound" in process.stderr


def test_interrupt_writes_what_is_finished(tmp_path, monkeypatch):
    """Ctrl-C while runs are simulated: exit code 130, the theory and the finished runs on disk."""
    finished = []

    def interrupted(model, n_steps, n_runs, seed, record, progress):
        finished.append(sf.simulate(model, n_steps, 3, seed))
        raise Interrupted("interrupted with 3 of 4 runs finished", finished[0])

    monkeypatch.setattr(sys.modules["scalefield.cli.curve"], "simulate", interrupted)
    result = CliRunner().invoke(commands, ["curve", "digits", *SMALL, "--out", str(tmp_path)], standalone_mode=False)
    assert result.return_value == 130
    assert "interrupted after 30 of 30 steps of theory and 3 of 4 runs; what was finished is written" in result.output
    np.testing.assert_array_equal(read_curve(tmp_path / "curve.csv")["simulation_mean"], finished[0].mean)
    assert (tmp_path / "curve.png").stat().st_size > 0


def test_interrupt_before_anything_is_finished_is_one_line(tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise Interrupted("interrupted after 0 of 30 steps")

    monkeypatch.setattr(sys.modules["scalefield.cli.curve"], "solve_dmft", interrupted)
    with pytest.raises(SystemExit) as stop:
        cli.main(["curve", "digits", *SMALL, "--out", str(tmp_path)])
    assert stop.value.code == 130
    assert capsys.readouterr().err.strip() == "scalefield: interrupted"
    assert not list(tmp_path.iterdir())


def test_data_set(tmp_path):
    """--samples: train loss beside test loss in the table, the .csv, the .npz and the picture; full batches."""
    arguments = ["curve", "digits", "--samples", "40", "--label-noise", "0.3", "--steps", "30", "--runs", "3"]
    result = CliRunner().invoke(commands, [*arguments, "--out", str(tmp_path)], standalone_mode=False)
    assert result.return_value == 0, result.output
    assert "batch inf, 40 samples, label noise 0.3" in result.output
    assert "train" in result.output
    header, first = [line for line in (tmp_path / "curve.csv").read_text().splitlines() if line[0] != "#"][:2]
    row = dict(zip(header.split(","), map(float, first.split(",")), strict=True))
    assert row["theory_train_loss"] == pytest.approx(row["theory_loss"] + 0.09)
    assert row["theory_data_variance"] == 0.0
    assert "theory_sgd_variance" not in row
    with np.load(tmp_path / "curve.npz") as archive:
        assert archive["simulation_train_loss"].shape == (3, 31)


def test_infinitely_many_modes_are_simulated(tmp_path):
    task = ["--alpha", "1.5", "--beta", "1", "--modes", "inf"]
    arguments = ["curve", *task, "--width", "8", "--steps", "5", "--runs", "2"]
    result = CliRunner().invoke(commands, [*arguments, "--out", str(tmp_path)], standalone_mode=False)
    assert result.return_value == 0, result.output
    assert "simulation" in result.output
