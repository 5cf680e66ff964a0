"""Pictures: what is drawn, in which style, with which labels."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

import scalefield as sf


@pytest.fixture(scope="module")
def model():
    return sf.Model(sf.PowerLawSpectrum(1.5, 0.5, n_modes=100), width=16, gamma=1.0, batch_size=8)


@pytest.fixture(scope="module")
def theory(model):
    return sf.solve_dmft(model, 40)


@pytest.fixture(scope="module")
def simulation(model):
    return sf.simulate(model, 40, n_runs=4, seed=0)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_theory_is_dashed_black_and_simulation_has_a_band(theory, simulation):
    ax = sf.plot.loss_curves(simulation, theory)
    mean, dashed = ax.get_lines()
    np.testing.assert_array_equal(mean.get_ydata(), simulation.mean[1:])
    np.testing.assert_array_equal(dashed.get_ydata(), theory.loss[1:])
    np.testing.assert_array_equal(dashed.get_xdata(), np.arange(1, 41))
    assert (dashed.get_linestyle(), dashed.get_color()) == ("--", "black")
    (band,) = ax.collections
    vertices = band.get_paths()[0].vertices
    at_last = vertices[vertices[:, 0] == 40.0][:, 1]
    np.testing.assert_allclose(at_last.max(), simulation.mean[40] + 2.0 * simulation.standard_error[40])
    np.testing.assert_allclose(at_last.min(), simulation.mean[40] - 2.0 * simulation.standard_error[40])
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "test loss")
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == [r"simulation (4 runs, $\pm$ 2 s.e.)", "theory"]


def test_one_run_has_no_band(model, theory):
    ax = sf.plot.loss_curves(sf.simulate(model, 40, seed=0), theory)
    assert not ax.collections


def test_labels_name_what_differs(model, theory, simulation):
    other = model.replace(width=np.inf, gamma=0.0)
    ax = sf.plot.loss_curves(simulation, theory, sf.solve_dmft(other, 40))
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels[0].startswith(r"simulation, $N = 16$, $\gamma = 1$ (")
    assert labels[1:] == ["theory", r"theory, $N = \infty$, $\gamma = 0$"]
    assert ax.get_lines()[2].get_color() != "black"


def test_draws_into_given_axes(theory):
    _, ax = plt.subplots()
    assert sf.plot.loss_curves(theory, ax=ax) is ax
    assert len(plt.get_fignums()) == 1


def test_gradient_flow_alone_is_drawn_against_tau(model):
    flows = [sf.solve_gradient_flow(model.replace(gamma=g), [0.0, 0.1, 1.0, 1e3]) for g in (0.0, 1.0)]
    ax = sf.plot.loss_curves(*flows)
    for line, flow in zip(ax.get_lines(), flows, strict=True):
        np.testing.assert_array_equal(line.get_xdata(), flow.times[1:])
        np.testing.assert_array_equal(line.get_ydata(), flow.loss[1:])
    assert ax.get_xlim() == (0.1, 1e3)
    assert ax.get_xlabel().startswith(r"$\tau$")
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == [r"gradient flow, $\gamma = 0$", r"gradient flow, $\gamma = 1$"]


def test_gradient_flow_beside_steps_is_dotted(model, theory):
    flow = sf.solve_gradient_flow(model, [0.0, 1.0, 4.0])
    ax = sf.plot.loss_curves(theory, flow)
    dashed, dotted = ax.get_lines()
    np.testing.assert_allclose(dotted.get_xdata(), [10.0, 40.0])
    assert (dashed.get_linestyle(), dotted.get_linestyle(), dotted.get_color()) == ("--", ":", "black")
    assert ax.get_xlabel() == "step"


def linear_runs(gamma, **changes):
    task = sf.PowerLawSpectrum(2.0, 0.5, n_modes=60)
    settings = {"width": 64, "learning_rate": 0.1, "batch_size": 32, "n_steps": 40, "n_runs": 3, "seed": 0}
    return sf.networks.train_linear_network(task, gamma=gamma, **(settings | changes))


def test_trainings_have_colours_and_bands_and_their_limits_the_same():
    lazy, rich = linear_runs(0.0), linear_runs(1.0)
    flow = sf.networks.solve_linear_network_flow(sf.PowerLawSpectrum(2.0, 0.5), 1.0, [0.0, 0.1, 4.0])
    other = sf.networks.solve_linear_network_flow(sf.PowerLawSpectrum(2.0, 0.5), 0.5, [0.1, 4.0])
    ax = sf.plot.training_curves(lazy, rich, flow, other)
    lines = ax.get_lines()
    np.testing.assert_allclose(lines[0].get_xdata(), 0.1 * np.arange(1, 41))
    np.testing.assert_array_equal(lines[1].get_ydata(), rich.mean[1:])
    np.testing.assert_array_equal(lines[2].get_xdata(), [0.1, 4.0])
    assert [line.get_linestyle() for line in lines] == ["-", "-", "--", "--"]
    assert lines[0].get_color() != lines[1].get_color() == lines[2].get_color()
    assert lines[3].get_color() == "black"
    assert len(ax.collections) == 2
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == [
        r"$\gamma = 0$ (3 runs, $\pm$ 2 s.e.)",
        r"$\gamma = 1$ (3 runs, $\pm$ 2 s.e.)",
        r"gradient flow, $\gamma = 1$",
        r"gradient flow, $\gamma = 0.5$",
    ]
    assert (ax.get_xlabel(), ax.get_ylabel()) == (r"$\tau$ = learning rate $\times$ step", "test loss")


def test_one_training_alone_and_different_kinds():
    alone = linear_runs(1.0, n_runs=1)
    ax = sf.plot.training_curves(alone)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["training"]
    assert not ax.collections
    task = sf.networks.CircleTask(1.0, n_modes=63)
    circle = sf.networks.train_multilayer(task, width=16, n_steps=20, batch_size=8, n_seeds=1, seed=0, n_test=64)
    steps = np.array([0, 10])
    deep = sf.networks.DeepNetworkRuns(
        "cnn", 16, 1.0, 0.05, 8, "mse", 0, steps, np.ones((1, 2)), np.ones((1, 2)), steps[:0],
        np.zeros((1, 0, 0, 0)), np.zeros((0, 1)),
    )  # fmt: skip
    ax = sf.plot.training_curves(circle, deep, sf.solve_gradient_flow(sf.Model(task.spectrum()), [0.1, 1.0]))
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels[0] == r"$L = 2$, $p = 1$, $q = 1$"
    assert labels[1:] == ["cnn, mse", "gradient flow"]


def test_bad_trainings(theory):
    with pytest.raises(ValueError, match="results must name at least one result, got none"):
        sf.plot.training_curves()
    with pytest.raises(TypeError, match=r"results must be LinearNetworkRuns, .* of type DMFTSolution"):
        sf.plot.training_curves(theory)


def test_bad_input(theory):
    with pytest.raises(ValueError, match="at least one solution"):
        sf.plot.loss_curves()
    with pytest.raises(TypeError, match="DMFTSolution, FlowSolution or Simulation objects, got 3 of type int"):
        sf.plot.loss_curves(theory, 3)
