"""One data set, three ways: the closed-form flow, the simulation and the two-time march meet at small learning rates.

Deviations are of first order in the learning rate: at eta = 1e-3 below 1% of the losses here, twice that at 2 eta.
"""

import numpy as np
import pytest

import scalefield as sf

STEPS = np.array([100, 1000, 8000])


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_realised_flow_predicts_the_simulated_run(gamma):
    """projection=seed: A(0), samples and label noise of run 0 of that seed, by either method."""
    model = sf.Model(
        sf.PowerLawSpectrum(1.3, 0.7, n_modes=120), width=20, n_samples=15, gamma=gamma, label_noise=0.3
    )
    deviations = []
    for eta in (2e-3, 1e-3):
        steps = np.rint(STEPS * 1e-3 / eta).astype(int)
        flow = sf.solve_gradient_flow(model, steps * eta, projection=4)
        for method in ("literal", "reduced"):
            run = sf.simulate(model.replace(learning_rate=eta), steps[-1], seed=4, method=method, record=steps)
            np.testing.assert_allclose(run.loss[0], flow.loss, rtol=1e-2)
            np.testing.assert_allclose(run.train_loss[0], flow.train_loss, rtol=2e-2)
        deviations.append(np.abs(run.loss[0] - flow.loss).max())
    assert deviations[0] / deviations[1] == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_averaged_flow_is_the_limit_of_the_march(gamma):
    """2 L(eta/2) - L(eta) against the flow: what is left is of second order, 1e-5 at eta = 0.01."""
    model = sf.Model(sf.PowerLawSpectrum(1.3, 0.7), width=20, n_samples=15, gamma=gamma, label_noise=0.3)
    flow = sf.solve_gradient_flow(model, [0.5, 2.0, 4.0])
    losses, trains = [], []
    for refinement in (1, 2):
        steps = refinement * np.array([50, 200, 400])
        march = sf.solve_dmft(model.replace(learning_rate=0.01 / refinement), int(steps[-1]), steps=steps)
        losses.append(march.loss)
        trains.append(march.train_loss)
    np.testing.assert_allclose(2.0 * losses[1] - losses[0], flow.loss, rtol=5e-5)
    np.testing.assert_allclose(2.0 * trains[1] - trains[0], flow.train_loss, rtol=5e-5)
