"""`kernels.predict`, the command `scalefield kernel` and figure 8."""

import csv
import sys

import numpy as np
import pytest

import scalefield as sf
from scalefield import cli, figures
from scalefield.errors import KernelWarning
from scalefield.figures import figure_8
from scalefield.kernels import KernelSpectrum, predict


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(["kernel", *map(str, arguments)])
    return stop.value.code


def read(path):
    with open(path, newline="") as stream:
        rows = list(csv.DictReader(line for line in stream if not line.startswith("#")))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


@pytest.fixture
def no_pictures(monkeypatch):
    """Pictures take most of a command's time and are looked at once."""
    monkeypatch.setattr(sys.modules["scalefield.cli.kernel"], "_write_pictures", lambda out, prediction: None)


@pytest.fixture(scope="module")
def small_gram():
    images, labels = sf.datasets.digits()
    x = sf.datasets.preprocess(images[:300])
    return sf.kernels.InfiniteWidthKernel("relu", depth=2).gram(x), sf.datasets.class_targets(labels[:300])


# ------------------------------------------------------------------------------------------------- predict


def test_prediction_of_a_power_law_follows_theory():
    task = sf.PowerLawSpectrum(1.5, 0.5, 3000)
    times = np.geomspace(0.1, 1e3, 20)
    prediction = predict(task, gamma=2.0, width=500, times=times, budgets=[1e3, 1e5], learning_rate=0.2)
    assert prediction.lazy_exponent == pytest.approx(0.5, rel=1e-6)
    assert prediction.rich_exponent == pytest.approx(2 / 3, rel=1e-6)
    assert prediction.lazy_optimum.loss_exponent == pytest.approx(1.5 * 0.5 / 2.5, rel=1e-5)
    assert prediction.rich_optimum.loss_exponent == pytest.approx(2 * 0.75 / (1.5 * 1.5 + 2), rel=1e-5)
    assert prediction.crossover_time == pytest.approx(0.25, rel=1e-5)
    for solution, gamma in ((prediction.lazy, 0.0), (prediction.rich, 2.0)):
        model = sf.Model(task, width=500, gamma=gamma, learning_rate=0.2)
        assert solution.model == model
        np.testing.assert_array_equal(solution.loss, sf.solve_gradient_flow(model, times).loss)
    expected = sf.scaling.compute_frontier(task, 2.0, 0.2, np.inf, [1e3, 1e5])
    np.testing.assert_array_equal(prediction.rich_frontier.widths, expected.widths)
    assert (prediction.rich_frontier.losses < prediction.lazy_frontier.losses).all()
    # The last mode of the window is learned at resolved_time.
    assert prediction.resolved_time == pytest.approx(0.5 * prediction.fit.window[1] ** 1.5, rel=1e-12)


def test_prediction_from_a_matrix_and_from_its_spectrum_agree(small_gram):
    spectrum = sf.Spectrum.from_kernel(*small_gram)
    direct, indirect = predict(*small_gram, n_samples=50), predict(spectrum, n_samples=50)
    np.testing.assert_array_equal(direct.rich.loss, indirect.rich.loss)
    assert direct.fit == indirect.fit
    assert direct.spectrum == spectrum
    # Fewer samples than the kernel was measured on, and their train loss
    assert direct.lazy.train_loss[-1] < direct.lazy.loss[-1]
    low, high = direct.rich_exponent_interval
    assert low < direct.rich_exponent < high


def test_bad_arguments_of_predict(small_gram):
    kernel, y = small_gram
    for arguments, options, message in [
        ((kernel,), {}, "y must be given with a matrix"),
        ((sf.PowerLawSpectrum(1.5, 0.5, 200), y), {}, "y goes with a matrix"),
        ((sf.PowerLawSpectrum(1.5, 0.5, 200),), {"gamma": 0.0}, "gamma must be a finite number greater than 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            predict(*arguments, **options)


def test_target_without_source_exponent():
    eigenvalues = np.arange(1, 201.0) ** -1.5
    with pytest.warns(KernelWarning, match="no power law holds"):
        prediction = predict(sf.Spectrum(eigenvalues, np.sqrt(np.arange(1, 201.0) / eigenvalues)))
    assert np.isnan([prediction.lazy_exponent, prediction.rich_exponent, prediction.crossover_time]).all()
    assert prediction.lazy_optimum is None


# ----------------------------------------------------------------------------------------------------- CLI


def test_digits_by_default(tmp_path, capsys):
    assert run("digits", "--out", tmp_path / "new", "--budget", 1e4) == 0
    output = capsys.readouterr().out
    spectrum = KernelSpectrum.load(tmp_path / "new" / "spectrum.npz")
    np.testing.assert_allclose(spectrum.eigenvalues, sf.datasets.digits_spectrum().eigenvalues, rtol=0, atol=1e-12)
    assert sf.Spectrum.load(tmp_path / "new" / "spectrum.csv") == spectrum
    prediction = predict(spectrum, budgets=[1e4])
    columns = read(tmp_path / "new" / "curves.csv")
    np.testing.assert_array_equal(columns["rich_loss"], prediction.rich.loss)
    np.testing.assert_array_equal(columns["tau"], prediction.lazy.times)
    for shown in (
        f"{prediction.fit.alpha:.4f}", f"{prediction.fit.beta:.4f}", f"{prediction.rich_exponent:.4f}",
        "window: modes 10 to 179, corrected for 1797 samples", "compute 1e+04, rich: width",
        f"{prediction.fit.alpha_interval[0]:.3f} to {prediction.fit.alpha_interval[1]:.3f}",
    ):  # fmt: skip
        assert shown in output
    for name in ("spectrum.png", "curves.png"):
        assert (tmp_path / "new" / name).read_bytes().startswith(b"\x89PNG")


def test_circle_and_files(tmp_path, capsys, small_gram, no_pictures):
    out = tmp_path / "out"
    assert run("circle", "--power", 2, "--k-max", 2000, "--target-exponent", 1.5, "--out", out) == 0
    assert "circle: NTK of 2 layers of relu^2, target exponent 1.5" in capsys.readouterr().out
    kernel, y = small_gram
    np.savez(tmp_path / "gram.npz", K=kernel, y=y)
    assert run(tmp_path / "gram.npz", "--no-normalize", "--out", out, "--window", 3, 30) == 0
    assert "modes 3 to 30, corrected for 300 samples" in capsys.readouterr().out
    expected = sf.Spectrum.from_kernel(kernel, y)
    assert sf.Spectrum.load(out / "spectrum.npz") == expected
    # What was written is read back, with the number of samples.
    assert run(out / "spectrum.npz", "--out", tmp_path / "again") == 0
    assert "corrected for 300 samples" in capsys.readouterr().out
    assert run(out / "spectrum.csv", "--out", tmp_path / "again") == 0
    assert "corrected" not in capsys.readouterr().out


def test_images_on_disk(tmp_path, capsys, no_pictures):
    from PIL import Image

    rng = np.random.default_rng(0)
    # Classes are mean images with noise, so that there is something to learn.
    centres = rng.normal(128, 40, (10, 32, 32, 3))
    labels = rng.integers(0, 10, 150)
    images = np.clip(centres[labels] + rng.normal(0, 40, (150, 32, 32, 3)), 0, 255).astype(np.uint8)
    folder = tmp_path / "cifar"
    folder.mkdir()
    np.savez(folder / "cifar5m_part0.npz", X=images, Y=labels)
    np.savez(tmp_path / "mnist.npz", images=images[:, :28, :28, 0], labels=labels)
    pictures = tmp_path / "pictures"
    for index in range(60):
        (pictures / str(labels[index])).mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[index, :8, :8]).save(pictures / str(labels[index]) / f"{index}.png")
    sources = [(folder, 120), (folder / "cifar5m_part0.npz", 120), (tmp_path / "mnist.npz", 120), (pictures, 60)]
    for source, n in sources:
        assert run(source, "--samples", 120, "--method", "increments", "--out", tmp_path / "out") == 0
        assert f"{source}: NTK of 2 layers of relu, {n} images" in capsys.readouterr().out
        assert KernelSpectrum.load(tmp_path / "out" / "spectrum.npz").n_outputs == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.npz"], "nowhere.npz: No such file"),
        (["nowhere.txt"], "source must be digits, circle, a folder, or a .npz or .csv file"),
        (["digits", "--activation", "step"], "activation must be a callable or one of"),
        (["digits", "--target", "odd"], "kind must be 'one-hot', 'parity' or the number of a class"),
        (["digits", "--gamma", "0"], "gamma must be a finite number greater than 0"),
        (["digits", "--window", "5", "9"], "window must span at least 8 modes"),
        (["bad.npz"], "bad.npz: not a readable .npz archive"),
        (["half.npz"], "half.npz: holds a matrix K but no targets"),
    ],
)
def test_errors_are_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    np.savez(tmp_path / "half.npz", K=np.eye(3))
    # Not the whole digits, which take a second each.
    images, labels = sf.datasets.digits()
    monkeypatch.setattr("scalefield.datasets.digits", lambda: (images[:200], labels[:200]))
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("scalefield: error: ")
    assert message in error


def test_warnings_are_told(tmp_path, capsys, no_pictures):
    np.savez(tmp_path / "gram.npz", K=np.eye(200) + np.diag(np.arange(200.0)), y=np.arange(200) % 3)
    assert run(tmp_path / "gram.npz", "--out", tmp_path / "out") == 0
    assert "scalefield: warning: no power law holds" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------- figure 8


def test_figure_8(tmp_path, monkeypatch):
    seen = []
    data = figures.write("8", tmp_path, quick=True, seed=1, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert set(data.axes) == {"a", "b", "c"}
    assert data.settings["data"] == "handwritten digits"
    curve = data.panel("a")[0]
    images, labels = sf.datasets.digits()
    chosen = np.sort(np.random.default_rng(1).choice(1797, 600, replace=False))
    kernel = sf.kernels.InfiniteWidthKernel("relu").gram(sf.datasets.preprocess(images[chosen]))
    spectrum = sf.Spectrum.from_kernel(kernel, sf.datasets.class_targets(labels[chosen]), normalize=True)
    np.testing.assert_allclose(curve.y, spectrum.eigenvalues[curve.x.astype(int) - 1], rtol=1e-12)
    assert curve.measured_exponent == pytest.approx(sf.kernels.fit_source_capacity(spectrum).alpha, rel=1e-9)
    alignment = data.panel("c")[0].y
    assert (np.diff(alignment) >= 0.0).all()
    assert 0.99 < alignment[-1] <= 1.0

    # Files of CIFAR-5M take the place of the digits.
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "cifar5m_part0.npz", X=rng.integers(0, 256, (120, 32, 32, 3), np.uint8), Y=np.arange(120) % 10)
    monkeypatch.setenv(figure_8.FOLDER, str(tmp_path))
    assert figure_8.compute(quick=True).settings["data"] == "CIFAR-5M"


def test_kernels_are_imported_without_matplotlib():
    import subprocess

    code = "import sys, scalefield.kernels; assert not {'matplotlib', 'PIL', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
