"""Figure 6: convolutional networks on images, from lazy to rich, against exponents from their kernel's spectrum.

The paper trains a CNN on MNIST-1M and a residual network on CIFAR-5M. Here a CNN learns the handwritten digits that
come with the package, with random shifts and noise; MNIST-1M, where the environment variable SCALEFIELD_MNIST1M names
its file or folder; or a residual network CIFAR-5M, where SCALEFIELD_CIFAR5M names the folder of its parts. It needs
PyTorch.

Digits are told even from odd: theory is of one output. With ten, kernels between outputs vanish only where the width is
much larger than ten, and lazy networks of width 32 are slower than their mean kernel predicts.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scalefield import datasets
from scalefield._progress import Progress
from scalefield.errors import KernelWarning
from scalefield.figures._base import Curve, FigureData, draw_curves, make_panels, power_law_guide
from scalefield.figures._trainings import train_all
from scalefield.kernels import KernelPrediction, predict
from scalefield.networks import DeepNetworkRuns, train_vision_network, vision_kernel
from scalefield.scaling import fit_power_law

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from scalefield.streams import ImageStream

__all__ = ["compute", "draw", "feature_curves", "loss_curve"]

Array = NDArray[np.float64]

MNIST, CIFAR = "SCALEFIELD_MNIST1M", "SCALEFIELD_CIFAR5M"
_GAMMAS = (0.05, 0.3, 1.0)
# A fifth of the bound 2/lambda_1 of the CNN's kernel on digits: it grows in rich networks.
_LEARNING_RATE = 0.5
_BATCH_SIZE = 64
# Exponents are measured over the last decade.
_DECADE = 10.0
_FULL = {"width": 32, "n_steps": 5000, "n_runs": 3, "n_samples": 1400, "n_test": 2048, "n_probe": 64}
_QUICK = {"width": 16, "n_steps": 400, "n_runs": 2, "n_samples": 400, "n_test": 512, "n_probe": 24}


def compute(
    quick: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    *,
    data: ImageStream | None = None,
    architecture: str | None = None,
    device: str = "cpu",
    checkpoints: Path | None = None,
) -> FigureData:
    """Train networks of three richnesses on the same streams, and predict their exponents.

    Parameters
    ----------
    quick : bool
        2 runs of 400 steps at width 16, instead of 3 runs of 5,000 steps at width 32.
    seed : int
        Of weights and data.
    progress : callable, optional
        Counts steps of all runs.
    data : ImageStream, optional
        By default what SCALEFIELD_MNIST1M or SCALEFIELD_CIFAR5M name, or the digits if they name nothing.
    architecture : {"cnn", "residual"}, optional
        By default "residual" for images in colour, else "cnn".
    device : {"cpu", "cuda"}
        Passed to PyTorch.
    checkpoints : Path, optional
        Folder for checkpoints of the trainings.

    Returns
    -------
    FigureData
        Panel a, test losses with the exponents beta (smallest gamma) and chi(beta) (largest); b and c, how far the
        kernel has moved, and its alignment with the task.
    """
    size = _QUICK if quick else _FULL
    if data is None:
        data = _named_stream()
    if architecture is None:
        architecture = "residual" if data is not None and len(data.shape) == 3 and data.shape[2] > 1 else "cnn"
    target = "parity" if architecture == "cnn" else "one-hot"
    n_samples = size["n_samples"]
    kernel, targets = vision_kernel(
        architecture, size["width"], n_samples, seed, data=data, target=target, device=device
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", KernelWarning)
        prediction = predict(kernel, targets, times=_LEARNING_RATE * np.geomspace(1.0, size["n_steps"], 60))
    bends = "; ".join(str(item.message) for item in caught)

    def train(gamma: float, /, *, checkpoint: Path | None, progress: Progress) -> DeepNetworkRuns:
        return train_vision_network(
            architecture, size["width"], gamma, _LEARNING_RATE, _BATCH_SIZE, size["n_steps"], size["n_runs"], seed,
            data=data, target=target, n_test=size["n_test"], n_probe=size["n_probe"], dtype="float32", device=device,
            checkpoint=checkpoint, progress=progress,
        )  # fmt: skip

    every = list(train_all(_GAMMAS, train, progress, checkpoints, f"figure-6-width-{size['width']}").values())
    curves = _loss_curves(every, prediction, bends)
    for panel in ("b", "c"):
        curves += feature_curves(panel, every)
    axes = {
        "a": ("step", "test loss"),
        "b": ("step", "1 - cosine of kernels at 0 and t"),
        "c": ("step", "alignment of kernel and task"),
    }
    fit = prediction.fit
    settings = {
        "quick": quick,
        "seed": seed,
        "architecture": architecture,
        **every[0].settings,
        "width": size["width"],
        "learning_rate": _LEARNING_RATE,
        "batch_size": _BATCH_SIZE,
        "n_runs": size["n_runs"],
        "kernel": f"empirical NTK at initialisation, {n_samples} samples",
        "alpha": f"{fit.alpha:.4g}, 95% {fit.alpha_interval[0]:.4g} to {fit.alpha_interval[1]:.4g}",
        "beta": f"{fit.beta:.4g}, 95% {fit.beta_interval[0]:.4g} to {fit.beta_interval[1]:.4g}",
        "modes": f"{fit.window[0]} to {fit.window[1]}",
        "resolved_time": prediction.resolved_time,
    }
    return FigureData("6", axes, tuple(curves), settings)


def _named_stream() -> ImageStream | None:
    if os.environ.get(MNIST):
        return datasets.load_mnist1m(os.environ[MNIST])
    if os.environ.get(CIFAR):
        return datasets.load_cifar5m(os.environ[CIFAR])
    return None


def loss_curve(runs: DeepNetworkRuns, predicted: float | None, why: str) -> Curve:
    """Test loss of one richness with the exponent of its last decade; a note says where it is not the predicted one."""
    steps = runs.steps[1:].astype(float)
    window = (steps[-1] / _DECADE, steps[-1])
    losses = runs.loss[:, 1:]
    fit = fit_power_law(steps, losses if runs.n_runs > 1 else losses[0], window=window)
    notes = []
    if predicted is not None and abs(fit.exponent - predicted) > 2.0 * fit.standard_error:
        notes.append(f"not the exponent predicted{why}")
    if abs(fit.drift) > 0.1 * abs(fit.exponent):
        notes.append(f"no pure power law: the local exponent changes by {fit.drift:+.2f} within the window")
    stream = float(runs.stream_loss[:, -1].mean())
    if stream < 0.9 * float(runs.mean[-1]):
        notes.append(
            f"no longer online: at the end {stream:.3g} on the training stream and {float(runs.mean[-1]):.3g} on the "
            f"test set"
        )
    return Curve(
        "a", f"gamma = {runs.gamma:g}", steps, runs.mean[1:], runs.standard_error[1:] if runs.n_runs > 1 else None,
        "simulation", {"gamma": runs.gamma}, predicted, fit.exponent, fit.standard_error, fit.window, "; ".join(notes),
    )  # fmt: skip


def _loss_curves(every: list[DeepNetworkRuns], prediction: KernelPrediction, bends: str) -> list[Curve]:
    curves: list[Curve] = []
    why = f" ({bends})" if bends else ""
    exponents = (prediction.lazy_exponent, prediction.rich_exponent)
    for runs in every:
        end = {every[0].gamma: exponents[0], every[-1].gamma: exponents[1]}.get(runs.gamma)
        curves.append(loss_curve(runs, end, why))
    flow = prediction.lazy
    steps = flow.times / every[0].learning_rate
    kept = flow.times <= prediction.resolved_time
    theory = fit_power_law(steps[kept], flow.loss[kept], window=(0.1 * steps[kept][-1], steps[kept][-1]))
    curves.append(
        Curve(
            "a", "lazy theory, from the kernel", steps[kept], flow.loss[kept], parameters={"gamma": 0.0},
            predicted_exponent=exponents[0], measured_exponent=theory.exponent, window=theory.window,
            note="slope of the theory's own curve at finite time, beside the exponent fitted to the spectrum",
        )
    )  # fmt: skip
    for curve, exponent, name in ((curves[0], exponents[0], "lazy"), (curves[len(every) - 1], exponents[1], "rich")):
        start, stop = curve.window or (curve.x[0], curve.x[-1])
        at = (start, float(np.interp(np.log(start), np.log(curve.x), curve.y)))
        label = f"{name} exponent predicted: -{exponent:.2f}"
        curves.append(power_law_guide("a", (start, stop), at, -exponent, label))
    return curves


def feature_curves(panel: str, every: list[DeepNetworkRuns]) -> list[Curve]:
    """Distance of the kernel from the initial one (panel b), or its centred alignment with the task."""
    curves = []
    for runs in every:
        values = runs.kernel_distance(centred=True) if panel == "b" else runs.kernel_alignment(centred=True)
        error = values.std(axis=0, ddof=1) / np.sqrt(runs.n_runs) if runs.n_runs > 1 else None
        # Step 0 has no place on a logarithmic axis.
        curves.append(
            Curve(
                panel, f"gamma = {runs.gamma:g}", runs.probe_steps[1:].astype(float), values.mean(axis=0)[1:],
                None if error is None else error[1:], "simulation", {"gamma": runs.gamma},
            )
        )  # fmt: skip
    return curves


def draw(data: FigureData) -> Figure:
    """Losses with the lazy theory and guides of the predicted slopes; kernels beside them."""
    figure, panels = make_panels(data, n_columns=3, size=(4.2, 3.8))
    for name, ax in panels.items():
        curves = data.panel(name)
        draw_curves(ax, [curve for curve in curves if curve.kind != "guide"], legend=False, log=False)
        guides = [curve for curve in curves if curve.kind == "guide"]
        for curve, style in zip(guides, (":", "-."), strict=False):
            ax.plot(curve.x, curve.y, style, color="0.35", linewidth=1.2, zorder=4, label=curve.label)
        ax.set_xscale("log")
        if name == "a":
            ax.set_yscale("log")
            label_values(ax)
            ax.legend(frameon=False, fontsize="small", loc="lower left")
        else:
            # Colours are those of panel a.
            ax.set_ylim(bottom=0.0)
    return figure


def label_values(ax: Any) -> None:
    """Plain numbers within decades, and room for a legend below the curves."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    low, high = ax.get_ylim()
    ax.set_ylim(low * (low / high) ** 0.6, high)
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    within = [2.0, 5.0] if high > 5.0 * low else [1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0]
    ax.yaxis.set_minor_locator(LogLocator(subs=within))
    ax.yaxis.set_minor_formatter(plain)
    ax.yaxis.set_major_formatter(plain)
