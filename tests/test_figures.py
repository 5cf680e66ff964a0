"""Figures: their files, their numbers against theory and engines, and the command that makes them."""

import csv
from importlib import import_module, resources

import matplotlib.pyplot as plt
import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure
from matplotlib.image import imread

import scalefield as sf
from scalefield import cli, scaling
from scalefield.cli import commands
from scalefield.figures import FIGURES, Curve, FigureData, figure_1, figure_11
from scalefield.figures._base import draw_curves, draw_guide, make_panels, math_text, power_law_guide


def read(text):
    """Settings and rows of a .csv."""
    lines = text.splitlines()
    settings = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    return settings, list(csv.DictReader(line for line in lines if not line.startswith("#")))


@pytest.fixture
def data():
    x = np.array([1.0, 10.0, 100.0])
    return FigureData(
        "99",
        {"a": ("step", "loss"), "b": ("C", "loss")},
        (
            Curve("a", "runs, gamma = 1", x, x**-0.5, 0.01 * x**-0.5, "simulation", {"gamma": 1.0}, 0.5, 0.49, 0.02),
            Curve("a", "flow", x, x**-0.5, parameters={"gamma": 1.0}),
            power_law_guide("a", (1.0, 10.0), (1.0, 0.5), -0.5),
            Curve("b", 'N = inf, "best"', [1.0], [1.0 / 3.0], kind="measurement", parameters={"width": np.inf},
                  predicted_exponent=1.0, measured_exponent=2.0, window=(0.5, 2.0), note="why, in words"),
        ),
        {"seed": 3, "note": "two\nlines"},
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------- files


def test_registry_names_the_modules_that_are_there():
    files = {entry.name for entry in resources.files("scalefield.figures").iterdir()}
    modules = {name.removesuffix(".py") for name in files if name.startswith("figure_") and name.endswith(".py")}
    assert modules == {module.rpartition(".")[2] for module in FIGURES.values()}
    for module in modules:
        loaded = import_module(f"scalefield.figures.{module}")
        assert callable(loaded.compute)
        assert callable(loaded.draw)
        assert FIGURES[module.removeprefix("figure_")] == loaded.__name__


def test_csv_holds_every_point(data):
    settings, rows = read(data.csv())
    assert settings == {"figure": "99", "version": sf.__version__, "seed": "3", "note": "two lines"}
    assert len(rows) == 3 + 3 + 2 + 1
    assert list(rows[0]) == [
        "panel", "label", "kind", "gamma", "width", "x", "y", "standard_error", "predicted_exponent",
        "measured_exponent", "exponent_error", "window_start", "window_stop", "note",
    ]  # fmt: skip
    for row, x in zip(rows[:3], (1.0, 10.0, 100.0), strict=True):
        assert (row["panel"], row["label"], row["kind"]) == ("a", "runs, gamma = 1", "simulation")
        assert (float(row["x"]), float(row["y"]), float(row["standard_error"])) == (x, x**-0.5, 0.01 * x**-0.5)
        assert (row["predicted_exponent"], row["measured_exponent"], row["exponent_error"]) == ("0.5", "0.49", "0.02")
        assert (row["gamma"], row["width"], row["window_start"]) == ("1.0", "", "")
    last = rows[-1]
    assert last["label"] == 'N = inf, "best"'
    assert float(last["y"]) == 1.0 / 3.0
    assert (last["width"], last["window_start"], last["window_stop"]) == ("inf", "0.5", "2.0")
    assert last["note"] == "why, in words"


def test_panels_and_exponents(data):
    assert [curve.kind for curve in data.panel("a")] == ["simulation", "theory", "guide"]
    assert [curve.measured_exponent for curve in data.exponents()] == [0.49, 2.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a", "l", [1.0, 2.0], [1.0]), "x, y and standard_error must be vectors of one length"),
        (("a", "l", [1.0], [1.0], [1.0, 2.0]), "x, y and standard_error must be vectors of one length"),
        (("a", "l", [1.0], [1.0], None, "points"), "kind must be one of theory, simulation, guide, measurement"),
        (("a", "l", [1.0], [1.0], None, "theory", {"x": 1.0}), "parameters must not be named like columns"),
    ],
)
def test_bad_curves(arguments, message):
    with pytest.raises(ValueError, match=message):
        Curve(*arguments)


def test_bad_figure():
    with pytest.raises(ValueError, match="axes must name the panels of all curves, b not found"):
        FigureData("1", {"a": ("x", "y")}, (Curve("b", "l", [1.0], [1.0]),))


# ----------------------------------------------------------------------------------------------------- drawing


def test_guide_has_its_slope():
    guide = power_law_guide("a", (10.0, 1000.0), (100.0, 2.0), -0.75)
    np.testing.assert_allclose(guide.y, [2.0 * 10.0**0.75, 2.0 * 10.0**-0.75])
    assert guide.kind == "guide"
    assert guide.label == "-0.75"


def test_style_of_curves(data):
    """Simulations coloured with a band, theory of their parameters black and dashed, guides grey with their slope."""
    figure, axes = make_panels(data)
    assert isinstance(figure, Figure)
    draw_curves(axes["a"], data.panel("a"))
    simulation, theory, guide = axes["a"].get_lines()
    assert theory.get_color() == "black"
    assert theory.get_linestyle() == "--"
    assert simulation.get_color() != "black"
    assert simulation.get_linestyle() == "-"
    (band,) = axes["a"].collections
    np.testing.assert_allclose(band.get_paths()[0].get_extents().y1, 1.02)
    assert guide.get_linewidth() < 1.0
    assert [text.get_text() for text in axes["a"].texts] == ["-0.5"]
    assert [text.get_text() for text in axes["a"].get_legend().get_texts()] == [r"runs, $\gamma$ = 1", "theory"]
    assert (axes["a"].get_xscale(), axes["a"].get_xlabel()) == ("log", "step")


def test_theories_alone_have_colours_of_their_own():
    axes = plt.figure().add_subplot()
    draw_curves(axes, [Curve("a", f"gamma = {g}", [1.0, 2.0], [2.0, 1.0], parameters={"gamma": g}) for g in (0, 1)])
    colours = [line.get_color() for line in axes.get_lines()]
    assert len({*colours, "black"}) == 3
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [r"$\gamma$ = 0", r"$\gamma$ = 1"]
    plt.close("all")


def test_guide_is_labelled_in_its_middle():
    axes = plt.figure().add_subplot()
    axes.set_xscale("log")
    axes.set_yscale("log")
    draw_guide(axes, power_law_guide("a", (1.0, 100.0), (1.0, 1.0), -1.0))
    np.testing.assert_allclose(axes.texts[0].xy, (10.0, 0.1))
    plt.close("all")


def test_math_text():
    assert math_text("gamma = 0.1, N = inf") == r"$\gamma$ = 0.1, N = $\infty$"
    assert math_text(r"$\beta$") == r"$\beta$"
    assert math_text("alphabet") == "alphabet"


# ----------------------------------------------------------------------------------------------------- figures


@pytest.fixture(scope="module")
def eleven():
    return figure_11.compute(quick=True)


def test_figure_11(eleven):
    """Levels by Eq. 62, and gradient flow within 5e-3 of their limit: 4.4e-3 at beta = 1.1, tau = 1e10."""
    by_label = {curve.label: curve for curve in eleven.panel("a")}
    for level in (0, 1, 2, 3, 8):
        curve = by_label[f"level {level}"]
        expected = [scaling.bootstrap_exponents(beta, level)[-1] for beta in curve.x]
        np.testing.assert_array_equal(curve.y, expected)
    measured = [curve for curve in eleven.panel("a") if curve.kind == "measurement"]
    assert len(measured) >= 8
    for curve in measured:
        assert curve.measured_exponent == pytest.approx(curve.predicted_exponent, abs=5e-3)
        assert curve.note or abs(curve.measured_exponent - curve.predicted_exponent) < 1e-3
    for curve in eleven.panel("b"):
        np.testing.assert_allclose(curve.y[1:] / curve.y[:-1], curve.parameters["beta"], rtol=1e-9)


def test_figure_11_is_drawn(eleven):
    axes = figure_11.draw(eleven).axes
    assert [ax.get_xlabel() for ax in axes] == [r"source exponent $\beta$", "level $n$"]
    assert any(line.get_linestyle() == "--" and line.get_color() == "black" for line in axes[0].get_lines())


@pytest.mark.parametrize(
    ("alpha", "beta", "gamma", "panels", "tolerance"),
    [(3.0, 0.5, 0.0, "cad", 0.01), (2.0, 0.5, 1.0, "cbd", 0.01), (3.0, 2.0, 0.0, "cd", 0.02)],
)
def test_measured_exponents_of_figure_1(alpha, beta, gamma, panels, tolerance):
    """In time within 3e-3; in compute within the tolerance: features come one by one at these widths."""
    curves = figure_1._measure(alpha, beta, gamma, np.unique(np.round(np.geomspace(4, 1e3, 8))))
    assert "".join(curve.panel for curve in curves) == panels
    time, compute = curves[0], curves[-1]
    assert time.measured_exponent == pytest.approx(scaling.time_exponent(beta, gamma > 0.0), abs=3e-3)
    predicted = scaling.compute_optimal(alpha, beta, gamma > 0.0, sgd_noise=False).loss_exponent
    assert compute.predicted_exponent == predicted
    assert compute.measured_exponent == pytest.approx(predicted, abs=tolerance)
    assert compute.window[1] > 10.0 * compute.window[0]


def test_frontier_of_figure_1_is_the_least_loss_over_widths():
    """Against losses at all integer widths around the optimum: below none by more than the spline's 1e-3."""
    model = sf.Model(sf.PowerLawSpectrum(2.0, 0.5))
    budgets, loss = figure_1._frontier(model, np.unique(np.round(np.geomspace(4, 1e3, 9))))
    budget, found = budgets[0], loss[0]
    brute = [sf.solve_gradient_flow(model.replace(width=n), [budget / n]).loss[0] for n in range(4, 60)]
    assert int(np.argmin(brute)) not in (0, len(brute) - 1)
    assert found == pytest.approx(min(brute), rel=2e-3)


def test_figure_1_is_drawn():
    """Borders, a point of each kind, and both theories; the whole of it is made by `scalefield figure 1`."""
    curves = []
    for panel, gamma in (("a", 0.0), ("b", 1.0)):
        settings = {"kind": "measurement", "parameters": {"alpha": 2.0, "beta": 0.5, "gamma": gamma}}
        settings |= {"predicted_exponent": 0.3, "measured_exponent": 0.31}
        curves.append(Curve(panel, "beta = 1", [1.0, 4.0], [1.0, 1.0], kind="guide"))
        curves.append(Curve(panel, "task", [2.0], [0.5], **settings))
        curves += [Curve(section, "task", [0.5], [0.31], **settings) for section in "cd"]
    curves += [Curve(section, "lazy", [0.0, 1.0], [0.0, 1.0]) for section in "cd"]
    data = FigureData("1", dict.fromkeys("abcd", ("x", "y")), tuple(curves), {})
    axes = figure_1.draw(data).axes
    assert [ax.get_title(loc="left") for ax in axes[:4]] == ["(a) lazy", "(b) rich", "(c)", "(d)"]
    shading, point = axes[0].collections
    assert point.get_array()[0] == 0.31
    assert shading.get_clim() == point.get_clim() == (0.0, 1.0)


# --------------------------------------------------------------------------------------------------- the command


def test_command_writes_picture_and_numbers(tmp_path, eleven, monkeypatch):
    monkeypatch.setattr(figure_11, "compute", lambda quick, seed, progress: eleven)
    result = CliRunner().invoke(commands, ["figure", "11", "11", "--quick", "--out", str(tmp_path / "new")])
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["figure-11.csv", "figure-11.png"]
    text = (tmp_path / "new" / "figure-11.csv").read_text(encoding="utf-8")
    assert text == eleven.csv()
    assert imread(tmp_path / "new" / "figure-11.png").shape[1] > 1000
    assert result.output.count("wrote") == 1
    for word in ("predicted", "measured", "gradient flow, beta = 0.5", "0.6667", "[1] finite time"):
        assert word in result.output


def test_all_are_made_and_the_finished_ones_stay(tmp_path, eleven, monkeypatch):
    """Ctrl-C in the second of all: the first is on disk, exit code 130."""
    made = []

    def write(name, out, quick, seed, progress, checkpoints):
        made.append((name, quick, seed))
        if len(made) == 2:
            raise KeyboardInterrupt
        return eleven

    monkeypatch.setattr("scalefield.figures.write", write)
    arguments = ["figure", "all", "--seed", "5", "--out", str(tmp_path)]
    result = CliRunner().invoke(commands, arguments, standalone_mode=False)
    first, second = list(FIGURES)[:2]
    assert made == [(first, False, 5), (second, False, 5)]
    assert result.return_value == 130
    assert f"interrupted in figure {second}; written before: {first}" in result.output


def test_nothing_is_written_if_drawing_fails(tmp_path, eleven, monkeypatch):
    def draw(data):
        raise RuntimeError("no picture")

    monkeypatch.setattr(figure_11, "compute", lambda quick, seed, progress: eleven)
    monkeypatch.setattr(figure_11, "draw", draw)
    with pytest.raises(RuntimeError, match="no picture"):
        sf.figures.write("11", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["figure", "99"], f"name must be one of {', '.join(FIGURES)} or all, got '99'"),
        (["figure"], "Missing argument 'NAME...'."),
        (["figure", "11", "--seed", "-1"], "seed must be an integer of at least 0, got -1"),
    ],
)
def test_errors_are_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"scalefield: error: {message}\n"
    assert not list(tmp_path.iterdir())


def test_unwritable_folder_is_refused_before_anything_is_computed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("scalefield.figures.write", lambda *_, **__: pytest.fail("results would have been lost"))
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(["figure", "11", "--out", str(tmp_path)])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"scalefield: error: {tmp_path}: cannot write into this folder\n"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("99", "out"), ValueError, "name must be one of 1, "),
        (("11", "out", 1), TypeError, "quick must be True or False, got 1"),
        (("11", "out", False, -1), ValueError, "seed must be an integer of at least 0, got -1"),
    ],
)
def test_bad_input(arguments, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        sf.figures.write(*arguments)
    assert not list(tmp_path.iterdir())
