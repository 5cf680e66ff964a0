r"""Training on a fixed data set: both methods against plain NumPy, the flow and each other.

Reference. psi_mu = sqrt(lambda) xi_mu, r = Psi v_0 + sigma eps, v_1 = Psi^T r/P over all samples or a batch of them,
then w and A(t) by Eq. 4. The random numbers are those of the package (streams PROJECTION, DATA, DATA_NOISE), drawn by
the references of the tests; sums in another order leave some 1e-13.
"""

import math
import time

import numpy as np
import pytest

import scalefield as sf
from reference_simulation import initial_projection, normals, stream_key
from scalefield._native import literal_steps
from scalefield.errors import DivergenceError, Interrupted, StabilityWarning
from scalefield.simulation import literal, offline
from scalefield.simulation.plan import Plan
from scalefield.simulation.samples import batches_of

DATA, DATA_NOISE = 6, 7
TASK = sf.PowerLawSpectrum(1.3, 0.7, n_modes=90)


def make(**changes):
    settings = {"width": 24, "gamma": 1.0, "learning_rate": 0.1, "n_samples": 17, "label_noise": 0.4, **changes}
    return sf.Model(settings.pop("spectrum", TASK), **settings)


def reference(model, seed, run, n_steps, batches=None, law=None):
    """Test and train loss at steps 0..n_steps; batches: the samples of each step."""
    n_modes, n_samples = model.spectrum.n_modes, model.n_samples
    lam, target = model.spectrum.modes(0, n_modes)
    if law is None:
        xi = normals(stream_key(seed, DATA), n_modes, np.arange(n_samples), run, 0)
    else:
        xi = law
    psi = xi * np.sqrt(lam)
    noise = model.label_noise * normals(stream_key(seed, DATA_NOISE), n_samples, np.array([run]), 0, 0)[0]
    # N = inf: A(0)^T A(0)/N is the identity.
    infinite = math.isinf(model.width)
    width = n_modes if infinite else model.width
    first = np.sqrt(width) * np.eye(n_modes) if infinite else initial_projection(seed, run, width, n_modes)
    a, w, losses, train = first.copy(), np.zeros(width), [], []
    for t in range(n_steps + 1):
        v0 = target - a.T @ w / width
        residual = psi @ v0 + noise
        losses.append(lam @ v0**2)
        train.append(np.mean(residual**2))
        chosen = np.arange(n_samples) if batches is None else batches[min(t, len(batches) - 1)]
        v1 = psi[chosen].T @ residual[chosen] / chosen.size
        step = model.learning_rate * a @ v1
        a = a + model.learning_rate * model.gamma / width * np.outer(w, first.T @ (first @ v1))
        w = w + step
    return np.array(losses), np.array(train)


@pytest.mark.parametrize("method", ["literal", "reduced"])
@pytest.mark.parametrize("gamma", [0.0, 1.5])
@pytest.mark.parametrize("n_samples", [1, 17, 60])
def test_full_batches_against_numpy(method, gamma, n_samples):
    model = make(gamma=gamma, n_samples=n_samples)
    simulation = sf.simulate(model, 40, n_runs=2, seed=5, method=method)
    assert simulation.method == method
    for run in range(2):
        losses, train = reference(model, 5, run, 40)
        np.testing.assert_allclose(simulation.loss[run], losses, rtol=1e-10)
        np.testing.assert_allclose(simulation.train_loss[run], train, rtol=1e-9, atol=1e-13)


def test_infinite_width():
    model = make(width=math.inf)
    simulation = sf.simulate(model, 30, seed=2)
    assert simulation.method == "literal"
    losses, train = reference(model, 2, 0, 30)
    np.testing.assert_allclose(simulation.loss[0], losses, rtol=1e-10)
    np.testing.assert_allclose(simulation.train_loss[0], train, rtol=1e-10)
    with pytest.raises(ValueError, match="width must be finite for the reduced method"):
        sf.simulate(model, 30, seed=2, method="reduced")


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("method", ["literal", "reduced"])
def test_batches_from_the_data_set(method, replacement):
    model = make(batch_size=5)
    plan = Plan(model, 30, 1, 3, method, np.arange(31), np.dtype(np.float64), replacement=replacement)
    batches = batches_of(plan, 1, 0, 30)
    losses, train = reference(model, 3, 1, 30, batches)
    simulation = sf.simulate(model, 30, n_runs=2, seed=3, method=method, replacement=replacement)
    np.testing.assert_allclose(simulation.loss[1], losses, rtol=1e-10)
    np.testing.assert_allclose(simulation.train_loss[1], train, rtol=1e-10)


def test_batches_are_what_they_are_said_to_be():
    """Without replacement epochs are permutations; with it each sample comes up alike (chi^2 of 16 degrees, 1e-4)."""
    model = make(batch_size=5)
    plan = Plan(model, 3000, 1, 7, "reduced", np.arange(2), np.dtype(np.float64))
    batches = batches_of(plan, 0, 0, 300)
    epochs = batches.reshape(100, 15)
    assert all(np.unique(epoch).size == 15 for epoch in epochs)
    assert np.unique(epochs, axis=0).shape[0] == 100
    # 3 batches of 5 leave 2 samples out, others in each epoch.
    assert np.unique(batches).size == 17
    np.testing.assert_array_equal(batches_of(plan, 0, 137, 160), batches[137:160])
    assert not np.array_equal(batches_of(plan, 1, 0, 300), batches)
    drawn = batches_of(Plan(**{**vars(plan), "replacement": True}), 0, 0, 2000)
    counts = np.bincount(drawn.ravel(), minlength=17)
    expected = drawn.size / 17
    assert ((counts - expected) ** 2 / expected).sum() < 45.0
    assert (np.sort(drawn, axis=1)[:, 1:] == np.sort(drawn, axis=1)[:, :-1]).any()


@pytest.mark.parametrize("features", ["rademacher", "uniform", lambda u: np.sqrt(12.0) * (u - 0.5)])
def test_other_features(features):
    """Reduced and literal runs are one run whatever the law; a function of the uniform deviates is the uniform law."""
    model = make()
    both = [sf.simulate(model, 20, n_runs=2, seed=1, method=m, features=features) for m in ("literal", "reduced")]
    np.testing.assert_allclose(both[0].loss, both[1].loss, rtol=1e-11)
    np.testing.assert_allclose(both[0].train_loss, both[1].train_loss, rtol=1e-10)
    gaussian = sf.simulate(model, 20, n_runs=2, seed=1)
    assert not np.allclose(both[0].loss[:, 5], gaussian.loss[:, 5], rtol=1e-3)
    if callable(features):
        uniform = sf.simulate(model, 20, n_runs=2, seed=1, features="uniform")
        np.testing.assert_allclose(both[0].loss, uniform.loss, rtol=1e-11)


def test_samples_made_again_are_the_same(monkeypatch):
    """Where the data set is not held: drawn at every step, block by block."""
    model = make(spectrum=sf.PowerLawSpectrum(1.3, 0.7, n_modes=2500))
    held = sf.simulate(model, 8, seed=1, method="literal")
    monkeypatch.setattr(literal, "_KEPT_SAMPLE_BYTES", 0)
    monkeypatch.setattr(literal, "_KEPT_BATCH_BYTES", 0)
    plan = Plan(model.replace(width=2), 8, 1, 1, "literal", np.arange(9), np.dtype(np.float64))
    assert offline.LiteralOffline(plan, np.zeros(1, np.uint8)).sizes.samples == (0, 0)
    narrow = model.replace(width=2)
    made = sf.simulate(narrow, 8, seed=1, method="literal")
    monkeypatch.undo()
    again = sf.simulate(narrow, 8, seed=1, method="literal")
    np.testing.assert_array_equal(made.loss, again.loss)
    np.testing.assert_array_equal(made.train_loss, again.train_loss)
    assert held.loss.shape == again.loss.shape


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("batch_size", [6, math.inf])
@pytest.mark.parametrize("method", ["literal", "reduced"])
def test_same_seed_same_numbers(method, batch_size, dtype, monkeypatch):
    model = make(batch_size=batch_size, spectrum=sf.PowerLawSpectrum(1.3, 0.7, n_modes=2500))
    arguments = {"seed": 4, "method": method, "dtype": dtype}
    monkeypatch.setattr(literal, "_SHARED_WORK", 0.0)
    monkeypatch.setenv("SCALEFIELD_NUM_THREADS", "1")
    first = sf.simulate(model, 15, n_runs=3, **arguments)
    for threads, n_runs in (("2", 3), ("3", 1), ("8", 2)):
        monkeypatch.setenv("SCALEFIELD_NUM_THREADS", threads)
        again = sf.simulate(model, 15, n_runs=n_runs, **arguments)
        np.testing.assert_array_equal(again.loss, first.loss[:n_runs])
        np.testing.assert_array_equal(again.train_loss, first.train_loss[:n_runs])


def literal_worker(model, n_steps):
    plan = Plan(model, n_steps, 1, 2, "literal", np.arange(n_steps + 1), np.dtype(np.float64))
    shared = offline.LiteralOffline(plan, np.zeros(1, np.uint8))
    shared.allocate()
    worker = shared.worker()
    assert worker.start(0)
    return worker


@pytest.fixture
def calls(monkeypatch):
    """Thread, first step and `errors_known` of every call of the literal kernel."""
    found: list[tuple[int, int, int]] = []
    kernel = literal_steps.advance

    def advance(*arguments):
        found.append((arguments[0], arguments[3], arguments[6]))
        return kernel(*arguments)

    monkeypatch.setattr(literal_steps, "advance", advance)
    return found


@pytest.mark.parametrize("batch_size", [6, math.inf])
def test_threads_share_a_call_of_the_kernel(monkeypatch, calls, batch_size):
    """One call a thread for all steps, not one a pass."""
    monkeypatch.setattr(literal, "_SHARED_WORK", 0.0)
    monkeypatch.setenv("SCALEFIELD_NUM_THREADS", "3")
    assert literal_worker(make(batch_size=batch_size), 9).advance(0, 0, 10, np.empty(10)) == (0, 10)
    assert sorted(calls) == [(thread, 0, 0) for thread in range(3)]


def test_short_calls_are_not_shared(monkeypatch, calls):
    """A call of one step, here of some 0.3 ms, would take longer to start its threads."""
    monkeypatch.setenv("SCALEFIELD_NUM_THREADS", "2")
    worker = literal_worker(make(spectrum=sf.PowerLawSpectrum(1.3, 0.7, n_modes=9000)), 39)
    assert worker.shared.threads_per_run == 2
    assert worker.advance(0, 0, 1, np.empty(1)) == (0, 1)
    assert worker.advance(0, 1, 40, np.empty(39)) == (0, 40)
    assert sorted(calls) == [(0, 0, 0), (0, 1, 0), (1, 1, 0)]


@pytest.mark.parametrize("width", [24, math.inf])
def test_an_observed_step_is_not_begun_again(calls, width):
    """Its residuals are those of the state, unless this has been written into or another run begun."""
    model = make(width=width)
    plain, worker = literal_worker(model, 9), literal_worker(model, 9)
    losses, observed = np.empty(10), np.empty(10)
    assert plain.advance(0, 0, 10, losses) == (0, 10)
    for t in range(10):
        worker.observe()
        worker.advance(0, t, t + 1, observed[t:])
    np.testing.assert_array_equal(observed, losses)
    for name, array in plain.state.items():
        np.testing.assert_array_equal(worker.state[name], array)
    assert [known for _, _, known in calls[1:]] == [0, 1] * 10
    # The state after the fourth step, once by the way there and once written.
    steps, first, second = literal_worker(model, 9), np.empty(1), np.empty(1)
    steps.advance(0, 0, 4, np.empty(4))
    worker.observe()
    for name, array in steps.state.items():
        worker.state[name][...] = array
    worker.advance(0, 4, 5, first)
    steps.advance(0, 4, 5, second)
    assert first[0] == second[0] == losses[4]
    for name, array in steps.state.items():
        np.testing.assert_array_equal(worker.state[name], array)
    # theta = 0 at the start of every run.
    plain.start(0)
    plain.observe()
    plain.start(1)
    plain.advance(1, 0, 2, losses)
    worker.start(1)
    worker.advance(1, 0, 2, observed)
    np.testing.assert_array_equal(losses[:2], observed[:2])


@pytest.mark.parametrize("threads", ["1", "2"])
def test_large_step_is_interrupted_within_a_second(monkeypatch, threads):
    """Each step draws 10^5 samples of 4,000 features again, which takes seconds."""
    monkeypatch.setenv("SCALEFIELD_NUM_THREADS", threads)
    model = make(spectrum=sf.PowerLawSpectrum(1.5, 0.5, n_modes=4000), n_samples=100_000)
    start: list[float] = []

    def progress(done, total):
        start.append(time.perf_counter())
        if len(start) == 3:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        sf.simulate(model, 5, seed=0, method="literal", progress=progress)
    assert time.perf_counter() - start[-1] < 1.0


def test_records_statistics_and_files(tmp_path):
    model = make()
    both = [
        sf.simulate(
            model, 30, n_runs=2, seed=1, method=m, record=[0, 4, 30], statistics=["spike", "alignment"], modes=[0, 7]
        )
        for m in ("literal", "reduced")
    ]
    for name in ("loss", "train_loss", "spike", "alignment", "mode_errors"):
        np.testing.assert_allclose(getattr(both[0], name), getattr(both[1], name), rtol=1e-9, atol=1e-12, err_msg=name)
    whole = sf.simulate(model, 30, n_runs=2, seed=1, method="reduced", record="all")
    np.testing.assert_array_equal(both[1].train_loss, whole.train_loss[:, [0, 4, 30]])
    np.testing.assert_allclose(whole.generalization_gap, whole.loss + 0.16 - whole.train_loss, rtol=1e-12)
    whole.save(tmp_path / "runs.npz")
    again = sf.Simulation.load(tmp_path / "runs.npz")
    assert again.model == model
    np.testing.assert_array_equal(again.train_loss, whole.train_loss)
    online = sf.simulate(model.replace(n_samples=math.inf, batch_size=4), 5, seed=1)
    assert online.train_loss is None
    assert online.generalization_gap is None
    assert np.isnan(online.train_mean).all()


@pytest.mark.parametrize("method", ["literal", "reduced"])
def test_checkpoints_continue_bit_for_bit(method, tmp_path):
    model = make(batch_size=5)
    expected = sf.simulate(model, 4000, n_runs=2, seed=1, method=method, record=[0, 100, 4000])
    path = tmp_path / "state"

    def stop(done, total):
        if done > 0.4 * total:
            raise KeyboardInterrupt

    arguments = {"n_runs": 2, "seed": 1, "method": method, "record": [0, 100, 4000], "checkpoint": path}
    with pytest.raises(Interrupted):
        sf.simulate(model, 4000, **arguments, checkpoint_every=0.01, progress=stop)
    again = sf.simulate(model, 4000, **arguments)
    np.testing.assert_array_equal(again.loss, expected.loss)
    np.testing.assert_array_equal(again.train_loss, expected.train_loss)


def test_single_precision():
    """Weights, samples and features rounded: 1e-5 of the losses over 100 steps."""
    model = make()
    for method in ("literal", "reduced"):
        single, double = (sf.simulate(model, 100, seed=1, method=method, dtype=d) for d in ("float32", "float64"))
        np.testing.assert_allclose(single.loss, double.loss, rtol=1e-5)
        np.testing.assert_allclose(single.train_loss, double.train_loss, rtol=1e-4)


def test_divergence():
    model = make(gamma=0.0, learning_rate=5.0)
    with pytest.warns(StabilityWarning), pytest.raises(DivergenceError) as caught:
        sf.simulate(model, 500, n_runs=2, seed=0)
    assert caught.value.partial.train_loss.shape == caught.value.partial.loss.shape


@pytest.mark.parametrize(
    ("model", "arguments", "error", "message"),
    [
        (make(batch_size=18), {}, ValueError, "batch_size must be at most n_samples = 17 without replacement, got 18"),
        (make(), {"replacement": 1}, TypeError, "replacement must be True or False, got 1"),
        (
            make(n_samples=math.inf, batch_size=4),
            {"replacement": True},
            ValueError,
            "replacement is for batches from a data set",
        ),
        (
            make(spectrum=sf.PowerLawSpectrum(1.5, 0.5)),
            {},
            ValueError,
            r"at most 2\*\*20 modes for a data set, which is made mode by mode, got infinitely many",
        ),
        (make(n_samples=2**33), {}, ValueError, r"model.n_samples must be below 2\*\*32"),
        (make(), {"features": lambda u: u[0]}, ValueError, "features must return real numbers of shape"),
    ],
)
def test_bad_input(model, arguments, error, message):
    with pytest.raises(error, match=message):
        sf.simulate(model, 5, seed=0, **arguments)
