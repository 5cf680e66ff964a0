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


def test_bad_input(theory):
    with pytest.raises(ValueError, match="at least one solution"):
        sf.plot.loss_curves()
    with pytest.raises(TypeError, match="DMFTSolution, FlowSolution or Simulation objects, got 3 of type int"):
        sf.plot.loss_curves(theory, 3)
