r"""Deep networks: parameterisation, data and bookkeeping.

With g = h/N of standard normal parameters, f = (g - g_0)/gamma and steps of eta gamma^2 N, outputs on the squared error
begin with df/dtau = K y/B, K = N (dg/dtheta) . (dg/dtheta)': neither gamma nor N is in it, up to fluctuations of K of
order 1/sqrt(N). Features move by an amount of order gamma at any width, and as gamma vanishes training is linear
regression on the gradients.
"""

import math
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import ndimage

import scalefield as sf
from interruptions import Pace, check_continuation
from scalefield import datasets, networks
from scalefield.cli import commands
from scalefield.errors import BackendUnavailableError, DatasetError, DivergenceError, Interrupted, ScalefieldError
from scalefield.networks import DeepNetworkRuns, train_language_model, train_vision_network, vision_kernel
from scalefield.networks._torch_training import Sources

KINDS = ("cnn", "residual", "transformer")


@pytest.fixture(scope="module")
def torch():
    module = pytest.importorskip("torch")
    # Threads that wait for each other on busy cores cost more than they bring.
    threads = module.get_num_threads()
    module.set_num_threads(1)
    yield module
    module.set_num_threads(threads)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    letters = np.random.default_rng(0).choice(list("aaaabbbcc d"), 900)
    path.write_text("".join(letters[:810]) + "xyz" * 30, encoding="utf-8")
    return path


def build(torch, kind, width, gamma, learning_rate=1e-6, seed=0, text=None, target="parity", n_test=6, **changes):
    """The loop of a training, without starting it."""
    from scalefield.networks import _torch_training as training
    from scalefield.networks import language, vision

    recipe = training.Recipe.checked(
        gamma=gamma, learning_rate=learning_rate, batch_size=5, n_steps=10, n_runs=1, seed=seed, record="all",
        n_probe=0, probe_record=None, n_test=n_test, centred=True, dtype="float64", device="cpu", **changes,
    )  # fmt: skip
    if kind == "transformer":
        problem = language._Transformer(torch, width, 1, 2, "mse", language._Text(text, 4, 3))
    else:
        images = vision._images(torch, None, None, None, None, 7, n_test)
        problem = vision._Vision(torch, kind, width, 2, images, target)
    return training.Training(torch, problem, recipe)


def outputs(loop, parameters, initial, inputs):
    return (loop.problem.apply(parameters, inputs) - loop.centre(initial, inputs)) / loop.recipe.gamma


def start(torch, loop, run=0):
    """Initial parameters, a copy to be trained, and the batches."""
    from scalefield.networks._torch_training import initial_parameters

    initial = initial_parameters(torch, loop.problem, loop.recipe, run)
    source = loop.problem.batches(loop.recipe.batch_size, Sources(torch, 1, 3), 0)
    return initial, {name: value.clone() for name, value in initial.items()}, source


def gradients(torch, loop, parameters, inputs):
    """dg/dtheta for every number that comes out, one call of autograd each; shape (numbers, parameters)."""
    free = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    rows = []
    for number in loop.problem.apply(free, inputs).flatten():
        parts = torch.autograd.grad(number, list(free.values()), retain_graph=True)
        rows.append(torch.cat([part.flatten() for part in parts]).numpy())
    return np.array(rows)


# ------------------------------------------------------------------------------------------------ parameterisation


@pytest.mark.parametrize("kind", KINDS)
def test_lazy_and_rich_begin_alike(torch, kind, text):
    """df/dtau at step 0 is N (dg/dtheta)(dg/dtheta)' y/B whatever gamma. Steps are small: what is left is eta gamma."""
    velocities = []
    for gamma in (0.1, 1.0, 10.0):
        loop = build(torch, kind, 6, gamma, text=text)
        initial, parameters, source = start(torch, loop)
        inputs, targets = next(source)
        loop.step(parameters, initial, inputs, targets)
        velocities.append(outputs(loop, parameters, initial, loop.test[0]).numpy().ravel() / 1e-6)
    y = targets if kind != "transformer" else loop.problem._one_hot(targets)
    here, there = (gradients(torch, loop, initial, x) for x in (loop.test[0], inputs))
    samples = y.numel() // y.shape[-1]
    expected = 6 * here @ (there.T @ y.numpy().ravel()) / samples
    assert np.abs(expected).max() > 0.01
    for velocity in velocities:
        np.testing.assert_allclose(velocity, expected, atol=1e-3 * np.abs(expected).max(), rtol=0)


def test_velocity_does_not_depend_on_width(torch):
    """Variance over seeds falls as 1/N, and means agree: 12 seeds at N = 12 and 96, ratio 8 expected.

    The ratio of two variances with some 11 x 6 x (correlated) degrees of freedom is within 2.5 times its mean with
    probability above 99.9%; means differ by 1/N and by their standard error.
    """
    means, variances = [], []
    for width in (12, 96):
        velocities = []
        for seed in range(12):
            loop = build(torch, "cnn", width, 1.0, seed=seed)
            loop.test = build(torch, "cnn", width, 1.0, seed=0).test
            initial, parameters, source = start(torch, loop)
            loop.step(parameters, initial, *next(source))
            velocities.append(outputs(loop, parameters, initial, loop.test[0]).numpy().ravel() / 1e-6)
        means.append(np.mean(velocities, axis=0))
        variances.append(np.var(velocities, axis=0, ddof=1).mean())
    assert 3.2 < variances[0] / variances[1] < 20.0
    scale = np.abs(means[1]).max()
    error = math.sqrt(variances[0] / 12)
    assert np.abs(means[0] - means[1]).max() < 4.0 * error + scale / 12


@pytest.mark.parametrize("kind", KINDS)
def test_features_move_as_much_at_any_width(torch, kind, text):
    """Coordinate check of muP: the change of the last features after 5 steps, at N = 32 and 128, and at 10 times gamma.

    In the standard and the neural tangent parameterisation it would change by a factor sqrt(4) = 2. Seeds differ by 20
    to 30%, four are averaged; smaller networks are not in the limit. Corrections to gamma's first power are of order
    gamma.
    """
    changes = {}
    for width, gamma in ((32, 0.1), (128, 0.1), (32, 0.01)):
        moved = []
        for seed in range(4):
            loop = build(torch, kind, width, gamma, 0.2, seed=seed, text=text, target="one-hot")
            initial, parameters, source = start(torch, loop)
            for _ in range(3):
                loop.step(parameters, initial, *next(source))
            readout = "dense_2" if kind == "cnn" else "readout"
            # Reads the features themselves.
            identity = {readout: width * torch.eye(width, dtype=torch.float64)}
            before, after = (loop.problem.apply({**p, **identity}, loop.test[0]) for p in (initial, parameters))
            moved.append(float((after - before).square().mean().sqrt()))
        changes[width, gamma] = np.mean(moved)
    assert changes[32, 0.1] > 1e-4
    assert 1 / 1.4 < changes[32, 0.1] / changes[128, 0.1] < 1.4
    np.testing.assert_allclose(changes[32, 0.1] / changes[32, 0.01], 10.0, rtol=0.15)


def test_vanishing_gamma_is_regression_on_gradients(torch):
    """30 steps of linear SGD on the gradients by NumPy, at gamma = 1e-5: relative corrections are of order gamma."""
    loop = build(torch, "cnn", 4, 1e-5, 0.3)
    initial, parameters, source = start(torch, loop)
    here = 2.0 * gradients(torch, loop, initial, loop.test[0])
    weights = np.zeros(here.shape[1])
    for _ in range(30):
        inputs, targets = next(source)
        features = 2.0 * gradients(torch, loop, initial, inputs)
        weights -= 0.3 * features.T @ (features @ weights - targets.numpy().ravel()) / 5
        loop.step(parameters, initial, inputs, targets)
    found = outputs(loop, parameters, initial, loop.test[0]).numpy().ravel()
    assert np.abs(found).max() > 0.05
    np.testing.assert_allclose(found, here @ weights, atol=1e-3 * np.abs(found).max(), rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_kernel_is_that_of_plain_gradients(torch, kind, text):
    from scalefield.networks._torch_training import empirical_kernel

    loop = build(torch, kind, 6, 1.0, text=text, target="one-hot")
    initial, _, _ = start(torch, loop)
    rows = gradients(torch, loop, initial, loop.test[0])
    rows = rows.reshape(6, -1, loop.problem.apply(initial, loop.test[0][:1]).shape[-1], rows.shape[1])[:, -1]
    expected = sf.kernels.empirical_ntk(rows, outputs="average", scale=6.0)
    found = empirical_kernel(torch, loop.problem, initial, loop.test[0])
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_first_loss_does_not_depend_on_the_weights(torch, text):
    """Centred outputs are 0: one-hot less 1/10 has squared norm 0.9, uniform characters cost the log of their count."""
    first = [train_vision_network(width=4, n_steps=1, seed=seed, n_test=20).loss[0, 0] for seed in (0, 1)]
    np.testing.assert_allclose(first, 0.9, rtol=1e-12)
    runs = train_language_model(8, n_steps=1, n_runs=2, seed=0, corpus=text, context=4, n_test=9)
    # a, b, c, d, space, and all others
    np.testing.assert_allclose(runs.loss[:, 0], math.log(runs.settings["n_outputs"]), rtol=1e-12)
    runs = train_vision_network(width=4, n_steps=1, seed=0, n_test=20, target="parity", centred=False)
    assert abs(runs.loss[0, 0] - 1.0) > 1e-3


def test_transformer_does_not_see_the_future(torch, text):
    loop = build(torch, "transformer", 8, 1.0, text=text)
    initial, _, _ = start(torch, loop)
    inputs = loop.test[0].clone()
    before = loop.problem.apply(initial, inputs)
    inputs[:, 2] = (inputs[:, 2] + 1) % 4
    after = loop.problem.apply(initial, inputs)
    assert torch.equal(before[:, :2], after[:, :2])
    assert not torch.allclose(before[:, 2], after[:, 2])


def test_single_precision(torch):
    """What the docstring says of float32: less than 0.1% of the loss at gamma = 0.05."""
    losses = [
        train_vision_network("cnn", 8, 0.05, 0.5, 16, 60, seed=0, n_test=64, target="parity", dtype=dtype).loss[0]
        for dtype in ("float32", "float64")
    ]
    assert losses[1][-1] < 0.9 * losses[1][0]
    np.testing.assert_allclose(*losses, rtol=1e-3)
    assert not np.array_equal(*losses)


# ------------------------------------------------------------------------------------------------------------ data


def test_held_out_digits_never_appear_in_training(torch):
    from scalefield.networks import vision
    from scalefield.networks._torch import generator

    images = vision._images(torch, None, None, 0.0, 0.0, 3, 10)
    assert sorted([*images.held_out.tolist(), *images.training.tolist()]) == list(range(1797))
    assert len(images.held_out) == 359
    raw, labels = datasets.digits()
    of_pixels = {image.tobytes(): index for index, image in enumerate(raw)}
    assert len(of_pixels) == 1797

    def origins(batch):
        pixels = np.rint((batch.numpy() * images.scale + images.mean) * 16).astype(np.uint8)
        return {of_pixels[image.tobytes()] for image in pixels[:, 0]}

    seen = set()
    batches = images.batches(400, Sources(torch, 0, 0), 0)
    for _ in range(25):
        pixels, numbers = next(batches)
        seen |= origins(pixels)
        assert numbers.tolist() == [
            labels[of_pixels[image.tobytes()]]
            for image in np.rint((pixels.numpy()[:, 0] * images.scale + images.mean) * 16).astype(np.uint8)
        ]
    assert len(seen) > 1400
    assert seen <= set(images.training.tolist())
    assert origins(images.drawn(300, generator(torch, 1), held_out=True)[0]) <= set(images.held_out.tolist())


def test_shifts_interpolate_linearly(torch):
    from scalefield.networks import vision
    from scalefield.networks._torch import generator

    images = vision._images(torch, None, None, 1.5, 0.0, 3, 10)
    offset = 1.5 * (2.0 * torch.rand((4, 2), generator=generator(torch, 5), dtype=torch.float64).numpy() - 1.0)
    plain = images.pixels[:4].numpy()
    shifted = images.varied(images.pixels[:4], generator(torch, 5)).numpy() * images.scale + images.mean
    for one, moved, by in zip(plain[:, 0], shifted[:, 0], offset, strict=True):
        wide = np.pad(one, 4, constant_values=one[0, 0])
        expected = ndimage.shift(wide, -by, order=1)[4:-4, 4:-4]
        np.testing.assert_allclose(moved, expected, atol=1e-12)


def stream(tmp_path, compressed=False, n=60, name="some.npz"):
    """Images of 28 x 28 whose first pixel is their number."""
    pixels = np.random.default_rng(0).integers(0, 256, (n, 28, 28)).astype(np.uint8)
    pixels[:, 0, 0] = np.arange(n)
    (np.savez_compressed if compressed else np.savez)(tmp_path / name, images=pixels, labels=np.arange(n) % 10)
    return datasets.load_mnist1m(tmp_path / name)


def test_held_out_images_of_streams_never_appear_in_training(torch, tmp_path):
    from scalefield.networks import vision
    from scalefield.networks._torch import generator

    images = vision._images(torch, stream(tmp_path), None, None, None, 0, 15)

    def numbers(pixels):
        return set(np.rint((pixels[:, 0, 0, 0].numpy() * images.scale + images.mean) * 255).astype(int).tolist())

    batches = images.batches(7, Sources(torch, 0, 0), 0)
    seen = set.union(*(numbers(next(batches)[0]) for _ in range(30)))
    test = numbers(images.drawn(15, generator(torch, 1), held_out=True)[0])
    assert len(test) == 15
    assert seen == set(range(60)) - test


def test_compressed_streams_need_a_test_set(torch, tmp_path):
    data = stream(tmp_path, compressed=True)
    with pytest.raises(ValueError, match="test must be given where data is compressed"):
        train_vision_network(width=2, n_steps=1, data=data, n_test=5)
    test = stream(tmp_path, n=20, name="test.npz")
    runs = train_vision_network("residual", 2, n_steps=2, batch_size=8, data=data, test=test, n_test=5, seed=0)
    assert runs.settings["n_train"] == 60
    assert np.isfinite(runs.loss).all()


def test_text(torch, text):
    from scalefield.networks import language

    whole = text.read_text()
    parts = language._Text(text, 4, 8)
    assert parts.n_outputs == 5
    assert parts.alphabet[:2] == "ab"
    encoded = [parts.alphabet.find(c) if c in parts.alphabet else 4 for c in whole]
    assert [*parts.training, *parts.held_out] == encoded
    assert len(parts.training) == 810
    assert set(parts.held_out.tolist()) == {4}
    with pytest.raises(DatasetError, match="must have more than 101 characters in either part, got 810 and 90"):
        language._Text(text, 4, 100)
    text.write_bytes(b"\xff\xfe\xfa" * 10)
    with pytest.raises(DatasetError, match="must be text in UTF-8"):
        language._Text(text, 4, 2)
    sources, held_out = language._python_sources()
    assert len(sources) > 1e6
    assert "def " in held_out
    assert held_out[:2000] not in sources


# ----------------------------------------------------------------------------------------------------- bookkeeping


def small(**changes):
    settings = {"width": 4, "gamma": 1.0, "learning_rate": 0.3, "batch_size": 8, "n_steps": 6, "seed": 4, "n_test": 16}
    return train_vision_network(**{**settings, "target": "parity", "n_probe": 4, "probe_record": [0, 6], **changes})


def same(left, right):
    for name in ("steps", "loss", "stream_loss", "probe_steps", "probe_kernels", "probe_targets"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
    assert repr(left) == repr(right)
    assert left.settings == right.settings


def test_same_seed_same_numbers(torch):
    first = small(n_runs=2)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    same(first, small(n_runs=2))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    assert not np.array_equal(first.loss[0], first.loss[1])
    assert not np.array_equal(first.loss, small(n_runs=2, seed=5).loss)
    # Weights, data and test set are shared by all gammas.
    lazy = small(gamma=0.01)
    np.testing.assert_array_equal(lazy.probe_kernels[0, 0], first.probe_kernels[0, 0])
    assert 0.0 < lazy.kernel_distance()[0, 1] < 0.1 * first.kernel_distance()[0, 1]


def test_threads_and_more_runs_change_nothing(torch, text, monkeypatch):
    for train in (small, partial(language, text)):
        monkeypatch.setenv("SCALEFIELD_NUM_THREADS", "1")
        alone = train(n_runs=2)
        monkeypatch.setenv("SCALEFIELD_NUM_THREADS", "3")
        together = train(n_runs=5)
        for name in ("loss", "stream_loss", "probe_kernels"):
            np.testing.assert_array_equal(getattr(together, name)[:2], getattr(alone, name))


def language(text, **changes):
    settings = {"width": 4, "batch_size": 4, "n_steps": 12, "seed": 4, "n_test": 16, "n_probe": 3, "context": 4}
    return train_language_model(**{**settings, "depth": 1, "corpus": text, "probe_record": [0, 12], **changes})


@pytest.mark.parametrize("kind", ["digits", "residual", "stream", "compressed stream", "text"])
def test_continues_after_interruptions(torch, kind, tmp_path, text, monkeypatch):
    """In the middle of a pass through the data, too: 45 images in batches of 8 are five steps a pass."""
    changes: dict = {"n_steps": 30, "probe_record": [0, 6, 30], "n_runs": 3}
    if kind == "residual":
        changes |= {"architecture": "residual", "dtype": "float32"}
    elif kind.endswith("stream"):
        changes |= {"data": stream(tmp_path, kind != "stream"), "test": stream(tmp_path, n=20, name="test.npz")}
    train = partial(language, text, n_runs=3) if kind == "text" else partial(small, **changes)
    check_continuation(train, tmp_path / "runs", Pace(monkeypatch), monkeypatch)


def test_checkpoints_of_other_calls_are_refused(torch, tmp_path):
    path = tmp_path / "runs"
    small(checkpoint=path)
    same(small(n_runs=2, checkpoint=path), small(n_runs=2))
    with pytest.raises(ScalefieldError, match=r"another training with PyTorch, with gamma 1\.0 instead of 2\.0"):
        small(n_runs=2, checkpoint=path, gamma=2.0)
    with pytest.raises(ScalefieldError, match=r"another training with PyTorch, with noise 0\.1 instead of 0\.2"):
        small(n_runs=2, checkpoint=path, noise=0.2)


@pytest.mark.parametrize(("kind", "compressed"), [("digits", False), ("stream", False), ("stream", True)])
def test_batches_begin_anywhere(torch, kind, compressed, tmp_path):
    from scalefield.networks import vision

    data = stream(tmp_path, compressed) if kind == "stream" else None
    test = stream(tmp_path, n=20, name="test.npz") if compressed else None
    images = vision._images(torch, data, test, None, 0.1, 0, 15)
    whole = images.batches(7, Sources(torch, 3, 1), 0)
    batches = [next(whole) for _ in range(25)]
    if data is not None:
        # The same images without noise: every step has noise of its own.
        plain = vision._images(torch, data, test, None, 0.0, 0, 15).batches(7, Sources(torch, 3, 1), 0)
        noises = np.array([(pixels - next(plain)[0]).numpy() for pixels, _ in batches])
        np.testing.assert_allclose(noises.std() * images.scale, 0.1, rtol=0.02)
        assert np.unique(noises[:, 0, 0, 0, 0].round(9)).size == 25
    for first in (1, 6, 7, 19):
        later = images.batches(7, Sources(torch, 3, 1), first)
        for expected in batches[first:]:
            pixels, labels = next(later)
            np.testing.assert_array_equal(pixels, expected[0])
            np.testing.assert_array_equal(labels, expected[1])


def test_interruption_of_the_first_run_keeps_its_records(torch, monkeypatch):
    whole = small(n_steps=40, record="all", n_probe=0, probe_record=None)
    stop = Pace(monkeypatch).interrupt_at(0.5)
    with pytest.raises(Interrupted, match="0 of 1 runs finished") as caught:
        small(n_steps=40, record="all", n_probe=0, probe_record=None, progress=stop)
    partial = caught.value.partial
    assert 20 <= partial.steps.size < 40
    np.testing.assert_array_equal(partial.loss, whole.loss[:, : partial.steps.size])


def test_save_and_load(tmp_path):
    kernels = np.array([[np.eye(2), [[1.0, 0.5], [0.5, 1.0]]]])
    runs = DeepNetworkRuns(
        "cnn", 4, 1.0, 0.5, 8, "mse", 3, np.array([0, 2]), np.array([[1.0, 0.5]]), np.array([[1.0, 0.4]]),
        np.array([0, 2]), kernels, np.array([[1.0], [1.0]]), {"data": "digits", "shift": 1.0},
    )  # fmt: skip
    runs.save(tmp_path / "runs.npz")
    same(runs, DeepNetworkRuns.load(tmp_path / "runs.npz"))
    np.testing.assert_allclose(runs.kernel_distance(), [[0.0, 1.0 - 2.0 / math.sqrt(5.0)]], atol=1e-15)
    # y^T K y/(|K| |y|^2): 2/(sqrt(2) 2) and 3/(sqrt(2.5) 2)
    np.testing.assert_allclose(runs.kernel_alignment(), [[math.sqrt(0.5), 1.5 / math.sqrt(2.5)]])
    np.testing.assert_array_equal(runs.times, [0.0, 1.0])
    assert np.isnan(runs.standard_error).all()
    with pytest.raises(ValueError, match="read-only"):
        runs.loss[0, 0] = 2.0
    flow = networks.solve_linear_network_flow(sf.PowerLawSpectrum(1.5, 0.5, n_modes=5), 1.0, [1.0])
    flow.save(tmp_path / "other.npz")
    with pytest.raises(ScalefieldError, match="holds LinearNetworkFlow, not a DeepNetworkRuns"):
        DeepNetworkRuns.load(tmp_path / "other.npz")


@pytest.mark.parametrize("call", [train_vision_network, train_language_model, vision_kernel])
def test_without_torch_the_error_names_the_extra(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'scalefield\[nn\]'"):
        call()


def test_no_cuda_device_is_an_error(torch, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendUnavailableError, match="finds no CUDA device"):
        small(device="cuda")


ELSEWHERE = """
    import dataclasses, sys
    import torch
    from torch._subclasses.fake_tensor import FakeTensorDeviceMismatchError, FakeTensorMode
    from torch.utils import backend_registration

    sys.path.insert(0, sys.argv[1])
    from test_deep_networks import KINDS, build, start
    from scalefield.networks import _torch
    from scalefield.networks._torch_training import Worker, kernel_tensor

    # A device with shapes and types but no numbers.
    backend_registration._setup_privateuseone_for_python_backend("elsewhere")
    _torch.DEVICES = ("cpu", "elsewhere")
    for kind in KINDS:
        loop = build(torch, kind, 4, 1.0, text=sys.argv[2], n_test=600)
        batch = next(start(torch, loop)[2])
        loop.recipe = dataclasses.replace(loop.recipe, device="elsewhere", dtype="float32")
        loop.dtype = torch.float32
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            loop.test, loop.stream = (
                loop.moved(*(mode.from_tensor(part) for part in data)) for data in (loop.test, loop.stream)
            )
            worker = Worker(loop)
            worker.start(0)
            inputs, targets = loop.moved(*(mode.from_tensor(part) for part in batch))
            loop.step(worker.parameters, worker.initial, inputs, targets)
            loss = loop.mean_loss(worker.parameters, loop.test, worker.centres[0])
            kernel = kernel_tensor(torch, loop.problem, worker.parameters, loop.test[0][:3])
            assert (kernel.shape, kernel.dtype) == ((3, 3), torch.float64), kernel
            for value in (inputs, targets, loss, kernel, *worker.parameters.values(), *worker.centres[1]):
                assert value.device.type == "elsewhere", value
            assert {value.dtype for value in worker.parameters.values()} == {torch.float32}
            # What is left behind is found.
            try:
                loop.problem.apply(worker.parameters, mode.from_tensor(batch[0]).to(inputs.dtype))
            except FakeTensorDeviceMismatchError:
                print(kind)
"""


def test_nothing_is_left_on_the_cpu(torch, text):
    """Shapes, types and devices of all that a training does on another device, where operations between two devices
    are refused. Whether CUDA computes the same is not seen so.
    """
    if not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this version of PyTorch has no device without numbers")
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ELSEWHERE), str(Path(__file__).parent), str(text)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == list(KINDS)


def test_divergence(torch):
    with pytest.raises(DivergenceError, match="take a lower learning rate than 1e\\+06") as caught:
        small(learning_rate=1e6, record="all")
    assert 0 < caught.value.step <= 6
    assert caught.value.partial.loss.shape == (1, caught.value.step)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"architecture": "mlp"}, ValueError, "architecture must be 'cnn' or 'residual', got 'mlp'"),
        ({"gamma": 0.0}, ValueError, "gamma must be a finite number greater than 0, got 0.0"),
        ({"width": 2.5}, ValueError, "width must be an integer"),
        ({"dtype": "float16"}, ValueError, "dtype must be 'float64' or 'float32', got 'float16'"),
        ({"device": "tpu"}, ValueError, "device must be 'cpu' or 'cuda', got 'tpu'"),
        ({"data": "digits"}, TypeError, "data must be an ImageStream or None, got 'digits'"),
        ({"record": "some"}, ValueError, "record must be 'log', 'all' or increasing steps, got 'some'"),
        ({"probe_record": [2, 6]}, ValueError, "probe_record must begin with step 0, got 2"),
        ({"n_probe": 0}, ValueError, "probe_record goes with n_probe of at least 1"),
        ({"n_test": 2}, ValueError, "n_test must be an integer of at least 4"),
        ({"noise": -1.0}, ValueError, "noise must be a finite number at least 0"),
        ({"target": 3}, TypeError, "target must be a string or None, got 3"),
    ],
)
def test_bad_arguments(torch, changes, error, message):
    with pytest.raises(error, match=message):
        small(**changes)


def test_bad_arguments_of_language(torch, text):
    with pytest.raises(ValueError, match="width must be a multiple of n_heads = 2, got 5"):
        train_language_model(5, corpus=text, context=4)
    with pytest.raises(ValueError, match="objective must be 'cross-entropy' or 'mse', got 'mae'"):
        train_language_model(4, corpus=text, context=4, objective="mae")
    with pytest.raises(FileNotFoundError):
        train_language_model(4, corpus=text.with_name("none.txt"))


def test_language_learns(torch, text):
    """Characters drawn independently, with held-out ones the training text has not: only the stream's loss falls."""
    runs = train_language_model(
        8, 1.0, 1.0, 16, 60, 2, 0, depth=1, corpus=text, context=4, n_test=32, record=[0, 60], n_probe=3,
        probe_record=[0, 60],
    )  # fmt: skip
    shares = np.array([4, 3, 2, 1, 1]) / 11
    entropy = float(-(shares * np.log(shares)).sum())
    assert (runs.stream_loss[:, 1] < 0.92 * runs.stream_loss[:, 0]).all()
    assert (runs.stream_loss[:, 1] > 0.95 * entropy).all()
    assert (runs.loss[:, 1] > runs.loss[:, 0]).all()
    assert runs.probe_kernels.shape == (2, 2, 3, 3)
    assert runs.kernel_alignment().shape == (2, 2)


def test_kernel_predicts_lazy_training(torch):
    """Gradient flow on the kernel's spectrum against a lazy network of width 16: to finite width and samples, 10%."""
    kernel, targets = vision_kernel("cnn", 16, 300, 0, target="parity")
    runs = train_vision_network("cnn", 16, 0.05, 0.5, 64, 60, seed=0, target="parity", record=[0, 60], dtype="float32")
    spectrum = sf.Spectrum.from_kernel(kernel, targets)
    flow = sf.solve_gradient_flow(sf.Model(spectrum, gamma=0.0), runs.times[1:])
    assert runs.loss[0, 1] < 0.87
    np.testing.assert_allclose(flow.loss, runs.loss[0, 1:], rtol=0.1)


def test_images_in_colour(torch, tmp_path):
    """Channels come first, in the right places: a network of 3 channels sees the pixels of the file."""
    from scalefield.networks import vision

    pixels = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3)).astype(np.uint8)
    np.savez(tmp_path / "cifar5m_part0.npz", X=pixels, Y=np.arange(40) % 10)
    data = datasets.load_cifar5m(tmp_path)
    images = vision._images(torch, data, None, 0.0, 0.0, 0, 8)
    found = images.distinct(images.n_train, torch.Generator().manual_seed(0))[0].numpy() * images.scale + images.mean
    expected = np.moveaxis(pixels[images.training], 3, 1) / 255.0
    np.testing.assert_allclose(np.sort(found, axis=0), np.sort(expected, axis=0), atol=1e-12)
    runs = train_vision_network("residual", 2, n_steps=1, batch_size=4, data=data, n_test=8, seed=0, n_blocks=3)
    np.testing.assert_allclose(runs.loss[0, 0], 0.9, rtol=1e-12)


def test_figures(torch, text, monkeypatch):
    from scalefield.figures import figure_6, figure_9

    size = {"width": 4, "n_steps": 12, "n_runs": 2, "n_test": 32}
    monkeypatch.setattr(figure_6, "_QUICK", {**size, "n_samples": 160, "n_probe": 4})
    monkeypatch.setattr(figure_9, "_QUICK", {**size, "context": 4})
    monkeypatch.setenv("SCALEFIELD_TEXT", str(text))
    calls = []
    data = figure_6.compute(True, 0, lambda *call: calls.append(call))
    labels = [text.get_text() for text in figure_6.draw(data).axes[0].get_legend().get_texts()]
    assert labels[:4] == [r"$\gamma$ = 0.05", r"$\gamma$ = 0.3", r"$\gamma$ = 1", "lazy theory, from the kernel"]
    assert [label.split(":")[0] for label in labels[4:]] == ["lazy exponent predicted", "rich exponent predicted"]
    assert calls[-1] == (3000, 3000)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    curves = [curve for curve in data.panel("a") if curve.kind == "simulation"]
    assert [curve.parameters["gamma"] for curve in curves] == [0.05, 0.3, 1.0]
    beta = float(data.settings["beta"].split(",")[0])
    np.testing.assert_allclose(curves[0].predicted_exponent, beta, rtol=1e-3)
    np.testing.assert_allclose(curves[2].predicted_exponent, 2 * beta / (1 + beta), rtol=1e-3)
    # What is drawn is what a call of one's own gives.
    runs = train_vision_network(
        "cnn", 4, 0.3, 0.5, 64, 12, 2, 0, target="parity", n_test=32, n_probe=4, dtype="float32"
    )
    np.testing.assert_array_equal(curves[1].y, runs.mean[1:])
    # Steps 2 to 12: the last decade.
    slope = -np.polyfit(np.log(runs.steps[2:]), np.log(runs.mean[2:]), 1)[0]
    np.testing.assert_allclose(curves[1].measured_exponent, slope, rtol=1e-6)
    data = figure_9.compute(True, 0)
    assert len(figure_9.draw(data).axes) == 1
    first, *_, last = (curve for curve in data.curves if curve.kind == "simulation")
    assert first.predicted_exponent is None
    if first.measured_exponent > 0.0:
        beta = first.measured_exponent
        np.testing.assert_allclose(last.predicted_exponent, 2 * beta / (1 + beta))


def test_all_figures_are_made_without_torch_but_those_that_need_it(tmp_path, monkeypatch):
    made = []

    def write(name, out, quick, seed, progress, checkpoints):
        if name in ("6", "9"):
            raise BackendUnavailableError("deep networks need PyTorch: pip install 'scalefield[nn]'")
        made.append(name)
        return sf.figures.FigureData(name, {}, ())

    monkeypatch.setattr("scalefield.figures.write", write)
    arguments = ["figure", "all", "--out", str(tmp_path)]
    result = CliRunner().invoke(commands, arguments, standalone_mode=False)
    assert result.return_value == 0
    assert made == [name for name in sf.figures.FIGURES if name not in ("6", "9")]
    assert "figure 6 left out: deep networks need PyTorch: pip install 'scalefield[nn]'" in result.output
    result = CliRunner().invoke(commands, ["figure", "6", "--out", str(tmp_path)], standalone_mode=False)
    assert isinstance(result.exception, BackendUnavailableError)


def test_everything_is_public():
    assert {"DeepNetworkRuns", "train_language_model", "train_vision_network", "vision_kernel"} <= set(networks.__all__)
