"""`scalefield kernel`: the spectrum of a kernel on data, its exponents, and what they predict."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from scalefield import datasets
from scalefield._files import atomic_write
from scalefield.cli._console import SizeOrInfinity, make_folder, tell_warnings
from scalefield.errors import SpectrumFileError
from scalefield.spectrum import Spectrum

if TYPE_CHECKING:
    from rich.console import Console

    from scalefield.kernels import KernelPrediction
    from scalefield.streams import ImageStream

__all__ = ["kernel"]

_MATRIX_NAMES = ("K", "kernel", "gram")
_TARGET_NAMES = ("y", "Y", "targets", "target")
_MODES = ("eigenvalues", "target_coefficients")


@click.command()
@click.argument("source", metavar="digits|circle|FILE|FOLDER")
@click.option("--activation", default="relu", show_default=True, help="Nonlinearity of the network.")
@click.option("--power", type=float, default=1.0, show_default=True, help="q of relu^q.")
@click.option("--depth", type=int, default=2, show_default=True, help="Hidden layers.")
@click.option("--kind", type=click.Choice(["ntk", "nngp"]), default="ntk", show_default=True, help="Which kernel.")
@click.option("--samples", type=int, default=2000, show_default=True, help="Images drawn from FILE or FOLDER.")
@click.option("--target", help="one-hot, parity (even or odd label), or a class.  [default: one-hot; digits: parity]")
@click.option(
    "--target-exponent", type=float, default=1.0, show_default=True, help="q of the circle's sum_k k^-q cos(k theta)."
)
@click.option("--k-max", type=int, default=10_000, show_default=True, help="Largest frequency on the circle.")
@click.option("--center/--no-center", default=True, show_default=True, help="Centre kernel and target.")
@click.option("--normalize/--no-normalize", default=True, show_default=True, help="Largest eigenvalue 1.")
@click.option("--modes", type=int, help="Leading modes to compute, by Lanczos.  [default: all up to n = 10,000]")
@click.option("--window", type=(int, int), help="First and last mode of the fit.  [default: two decades to n/10]")
@click.option(
    "--method",
    type=click.Choice(["tail-sum", "increments"]),
    default="tail-sum",
    show_default=True,
    help="Whether power beyond the window counts.",
)
@click.option("--gamma", type=float, default=1.0, show_default=True, help="Richness of the rich curve.")
@click.option("--width", type=SizeOrInfinity(), default="inf", show_default=True, help="Width of both curves.")
@click.option("--budget", "budgets", type=float, multiple=True, help="Compute N t to spend best; may be repeated.")
@click.option("--learning-rate", type=float, default=0.1, show_default=True, help="Of the budgets.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the images drawn.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("scalefield-kernel"),
    show_default=True,
    help="Folder for spectrum.npz, .csv and .png, curves.csv and .png; made if absent.",
)
def kernel(source: str, window: tuple[int, int] | None, budgets: tuple[float, ...], out: Path, **options: Any) -> int:
    """Measure a kernel's spectrum on data, fit alpha and beta, and predict learning curves.

    The kernel is that of an infinitely wide network on the bundled handwritten digits (digits), on the circle (circle,
    in closed form) or on images drawn from FILE or FOLDER: CIFAR-5M parts, MNIST-1M or similar .npz, or a subfolder of
    pictures per class. A .npz FILE with a Gram matrix K and targets y brings a kernel of its own; one with eigenvalues
    and target_coefficients, or a .csv, a spectrum.

    \b
    Examples:
      scalefield kernel digits
      scalefield kernel circle --power 2 --target-exponent 1.5
      scalefield kernel my_gram.npz --gamma 5 --out mine
      scalefield kernel data/cifar5m --samples 4000 --depth 3
    """  # noqa: D301
    from rich.console import Console

    from scalefield.kernels import predict

    make_folder(out)
    console, errors = Console(), Console(stderr=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        spectrum, description = _measure(source, options)
        _write_spectrum(out, spectrum)
        prediction = predict(
            spectrum,
            gamma=options["gamma"],
            width=options["width"],
            window=window,
            method=options["method"],
            budgets=sorted(set(budgets)) if budgets else None,
            learning_rate=options["learning_rate"],
        )
    tell_warnings(errors, caught)
    _write_curves(out / "curves.csv", prediction)
    _write_pictures(out, prediction)
    _print_table(console, description, prediction)
    console.print(
        f"wrote spectrum.npz, spectrum.csv, spectrum.png, curves.csv and curves.png into {out}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
    return 0


def _measure(source: str, options: dict[str, Any]) -> tuple[Spectrum, str]:
    """The spectrum that `source` names, and what it is."""
    if source == "circle":
        from scalefield.kernels import circle_spectrum

        exponent = options["target_exponent"]
        spectrum = circle_spectrum(_network(options), exponent, options["k_max"])
        return spectrum, f"circle: {_name(options)}, target exponent {exponent:g}"
    if source == "digits":
        images, labels = datasets.digits()
        return _of_images(images, labels, 10, {**options, "target": options["target"] or "parity"}, "digits")
    path = Path(source).expanduser()
    if path.is_dir():
        return _of_stream(_open_folder(path), path, options)
    if path.suffix.lower() == ".csv":
        return Spectrum.load(path), f"{path}"
    if path.suffix.lower() != ".npz":
        raise ValueError(f"source must be digits, circle, a folder, or a .npz or .csv file, got {source!r}")
    names = _array_names(path)
    matrix = next((name for name in _MATRIX_NAMES if name in names), None)
    if set(_MODES) <= names:
        from scalefield.kernels import KernelSpectrum

        return (KernelSpectrum if "settings" in names else Spectrum).load(path), f"{path}"
    if matrix is not None:
        target = next((name for name in _TARGET_NAMES if name in names), None)
        if target is None:
            raise SpectrumFileError(f"{path}: holds a matrix {matrix} but no targets {' or '.join(_TARGET_NAMES)}")
        with np.load(path, allow_pickle=False) as archive:
            return _from_kernel(archive[matrix], archive[target], options), f"{path}: {matrix}"
    if {"X", "Y"} <= names and _pixels(path, "X") == 32 * 32 * 3:
        return _of_stream(datasets.load_cifar5m(path), path, options)
    return _of_stream(datasets.load_mnist1m(path), path, options)


def _array_names(path: Path) -> set[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except zipfile.BadZipFile as error:
        raise SpectrumFileError(f"{path}: not a readable .npz archive ({error})") from error


def _pixels(path: Path, name: str) -> int:
    from scalefield.streams import _read_header

    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as stream:
        return int(np.prod(_read_header(stream, f"{path}: {name}")[0][1:]))


def _open_folder(path: Path) -> ImageStream:
    names = [file.name for file in path.glob("*.npz")]
    if any(name.removeprefix("cifar5m_").startswith("part") for name in names):
        return datasets.load_cifar5m(path)
    return datasets.load_mnist1m(path) if names else datasets.load_image_folder(path)


def _of_stream(stream: ImageStream, path: Path, options: dict[str, Any]) -> tuple[Spectrum, str]:
    n = min(options["samples"], len(stream))
    images, labels = stream.sample(n, options["seed"])
    return _of_images(images, labels, len(stream.classes), options, f"{path}")


def _of_images(images: Any, labels: Any, n_classes: int, options: dict[str, Any], name: str) -> tuple[Spectrum, str]:
    target = datasets.class_targets(labels, options["target"] or "one-hot", n_classes)
    gram = _network(options).gram(datasets.preprocess(images))
    return _from_kernel(gram, target, options), f"{name}: {_name(options)}, {len(labels)} images"


def _from_kernel(gram: Any, target: Any, options: dict[str, Any]) -> Spectrum:
    return Spectrum.from_kernel(
        gram, target, center=options["center"], normalize=options["normalize"], n_modes=options["modes"]
    )


def _network(options: dict[str, Any]) -> Any:
    from scalefield.kernels import InfiniteWidthKernel

    return InfiniteWidthKernel(
        options["activation"], power=options["power"], depth=options["depth"], kind=options["kind"]
    )


def _name(options: dict[str, Any]) -> str:
    power = f"^{options['power']:g}" if options["power"] != 1.0 else ""
    return f"{options['kind'].upper()} of {options['depth']} layers of {options['activation']}{power}"


def _write_spectrum(out: Path, spectrum: Spectrum) -> None:
    spectrum.save(out / "spectrum.npz")
    spectrum.save(out / "spectrum.csv")


def _write_curves(path: Path, prediction: KernelPrediction) -> None:
    fit, rich = prediction.fit, prediction.rich
    columns = {
        "tau": prediction.lazy.times,
        "lazy_loss": prediction.lazy.loss,
        "rich_loss": rich.loss,
        "lazy_local_exponent": prediction.lazy.local_exponent,
        "rich_local_exponent": rich.local_exponent,
    }
    lines = [
        f"# gradient flow on fresh samples: width {rich.model.width:g}, gamma 0 and {rich.model.gamma:g}",
        f"# alpha {fit.alpha!r}, beta {fit.beta!r} over modes {fit.window[0]} to {fit.window[1]}",
        f"# modes of the window carry the loss to tau = {prediction.resolved_time!r}",
        ",".join(columns),
    ]
    lines += [",".join(map(repr, row)) for row in zip(*(c.tolist() for c in columns.values()), strict=True)]
    with atomic_write(path) as stream:
        stream.write(("\n".join(lines) + "\n").encode())


def _write_pictures(out: Path, prediction: KernelPrediction) -> None:
    from matplotlib.figure import Figure

    from scalefield.plot import loss_curves, spectrum_fit

    if isinstance(prediction.spectrum, Spectrum):
        figure = Figure(figsize=(8.4, 3.6), layout="constrained")
        spectrum_fit(prediction.spectrum, prediction.fit, (figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)))
        _save(figure, out / "spectrum.png")
    figure = Figure(figsize=(5.2, 3.9), layout="constrained")
    ax = loss_curves(prediction.lazy, prediction.rich, ax=figure.add_subplot())
    ax.axvline(prediction.resolved_time, color="0.6", linewidth=0.9, zorder=0)
    ax.annotate(
        "window's\nlast mode", (prediction.resolved_time, 0.97), xycoords=("data", "axes fraction"), color="0.45",
        xytext=(4, 0), textcoords="offset points", ha="left", va="top", fontsize="small",
    )  # fmt: skip
    _save(figure, out / "curves.png")


def _save(figure: Any, path: Path) -> None:
    with atomic_write(path) as stream:
        figure.savefig(stream, format="png", dpi=200)


def _print_table(console: Console, description: str, prediction: KernelPrediction) -> None:
    from rich.table import Table

    fit, spectrum = prediction.fit, prediction.spectrum
    console.print(f"{description}: {spectrum!r}", soft_wrap=True, highlight=False, markup=False)
    scale = getattr(spectrum, "scale", 1.0)
    if scale != 1.0:
        console.print(f"eigenvalues in units of the largest, {scale:.6g}", highlight=False)
    table = Table()
    for name in ("exponent", "value", f"{100 * fit.confidence:g}% interval", "drift over window"):
        table.add_column(name, justify="left" if name == "exponent" else "right", no_wrap=True)

    def row(name: str, value: float, interval: tuple[float, float], drift: float | None = None) -> None:
        shown = "" if drift is None else f"{drift:+.3f}"
        table.add_row(name, f"{value:.4f}", f"{interval[0]:.3f} to {interval[1]:.3f}", shown)

    row("alpha (capacity)", fit.alpha, fit.alpha_interval, fit.alpha_drift)
    row("beta (source)", fit.beta, fit.beta_interval, fit.beta_drift)
    row("loss ~ tau^-e, lazy", prediction.lazy_exponent, prediction.lazy_exponent_interval)
    row("loss ~ tau^-e, rich", prediction.rich_exponent, prediction.rich_exponent_interval)
    for name, optimum in (("lazy", prediction.lazy_optimum), ("rich", prediction.rich_optimum)):
        if optimum is not None:
            table.add_row(f"loss ~ C^-e, {name}", f"{optimum.loss_exponent:.4f}", "", "")
            table.add_row(f"width ~ C^e, {name}", f"{optimum.width_exponent:.4f}", "", "")
    console.print(table)
    corrected = f", corrected for {fit.n_samples} samples" if fit.n_samples else ""
    console.print(f"window: modes {fit.window[0]} to {fit.window[1]}{corrected}", highlight=False)
    for name, frontier in (("lazy", prediction.lazy_frontier), ("rich", prediction.rich_frontier)):
        if frontier is not None:
            for index, budget in enumerate(np.atleast_1d(frontier.budgets)):
                console.print(
                    f"compute {budget:.3g}, {name}: width {frontier.widths[index]:.4g}, "
                    f"{frontier.steps[index]:.4g} steps, loss {frontier.losses[index]:.4g}",
                    highlight=False,
                )
