r"""Convolutional networks on images, in mean-field parameterisation with richness gamma, trained online (PyTorch)."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from itertools import count, islice
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalefield import datasets
from scalefield._checkpoint import CheckpointFile, seed_or_stored
from scalefield._progress import Progress
from scalefield._validate import as_count, as_float, as_seed
from scalefield.networks._torch import deterministic, generator, require_torch, seed_of
from scalefield.networks._torch_results import DeepNetworkRuns
from scalefield.networks._torch_training import (
    KERNEL,
    SPLIT,
    Problem,
    Recipe,
    Sources,
    empirical_kernel,
    initial_parameters,
    train,
)
from scalefield.streams import ImageStream

__all__ = ["train_vision_network", "vision_kernel"]

Array = NDArray[np.float64]
Tensor = Any

ARCHITECTURES = ("cnn", "residual")
# Share of the base images of digits that is held out.
_HELD_OUT = 0.2
# Images from which the mean and scale of the pixels of a stream are measured.
_SCALE_SAMPLES = 2048
_SHIFT, _NOISE = 1.0, 0.1
_SMALLEST = 4


def train_vision_network(
    architecture: str = "cnn",
    width: int = 32,
    gamma: float = 1.0,
    learning_rate: float = 0.05,
    batch_size: int = 128,
    n_steps: int = 1000,
    n_runs: int = 1,
    seed: int | None = None,
    *,
    data: ImageStream | None = None,
    test: ImageStream | None = None,
    target: str | None = None,
    shift: float | None = None,
    noise: float | None = None,
    n_blocks: int = 2,
    n_test: int = 2048,
    centred: bool = True,
    record: str | ArrayLike = "log",
    n_probe: int = 0,
    probe_record: ArrayLike | None = None,
    dtype: str = "float64",
    device: str = "cpu",
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 60.0,
    progress: Progress | None = None,
) -> DeepNetworkRuns:
    r"""Train a convolutional network by online SGD on the squared error, from lazy to rich.

    All weights are standard normal at first, N = width, phi(h) = sqrt(2) max(h, 0), no biases:

    ===========  ==================================================================================================
    "cnn"
    conv 1       h = (9 C)^{-1/2} W1 * x, 3 x 3, padded, N channels; phi; mean over 2 x 2
    conv 2       h = (9 N)^{-1/2} W2 * h, 3 x 3, padded, N channels; phi; mean over 2 x 2; S positions are left
    dense 1      h = (N S)^{-1/2} W3 h, N units; phi
    dense 2      g = N^{-1} W4 h
    "residual"
    stem         h = (9 C)^{-1/2} W0 * x, 3 x 3, padded, N channels
    L blocks     h <- h + L^{-1/2} (9 N)^{-1/2} V_l * phi((9 N)^{-1/2} U_l * phi(h)); mean over 2 x 2 in the middle
    readout      g = N^{-1} W (mean over positions of phi(h))
    ===========  ==================================================================================================

    .. math::
        f = \frac{g - g_0}{\gamma}, \qquad
        \theta \leftarrow \theta - \eta \gamma^2 N\, \partial_\theta\, \frac{1}{2B} \sum_b |f(x_b) - y_b|^2 .

    Outputs move by -eta K (f - y) a step at first, with a kernel K that depends on neither gamma nor, as N grows, on N:
    lazy and rich networks begin alike. Features move by an amount proportional to gamma at every width.

    Parameters
    ----------
    architecture : {"cnn", "residual"}
        Two convolutions and two dense layers, or a residual network.
    width : int
        N.
    gamma : float
        Richness, positive; small is lazy.
    learning_rate : float
        eta; tau = eta x step. Stable below about 2/lambda_1 of the kernel (`vision_kernel`), and lower in the rich
        regime, where it grows.
    batch_size, n_steps, n_runs : int
        Fresh images a step, steps, independent weights and streams.
    seed : int or None
        Same seed, same weights, data and test set, whatever gamma, device and n_runs; None draws one, or takes that of
        the checkpoint.
    data : ImageStream, optional
        What `datasets.load_mnist1m`, `load_cifar5m` or `load_image_folder` return. Default: the digits of the package
        with random shifts and noise, an endless stream from 1,438 base images.
    test : ImageStream, optional
        From which test images are drawn. By default n_test images of the stream are held out, and for digits the other
        359 base images, with shifts and noise of their own.
    target : str, optional
        "one-hot", less its mean 1/classes; "parity", +1 for even labels and -1 for odd ones; or the number of a class,
        +1 for it and -1 for others. Default: "parity" for two classes, else "one-hot".
    shift : float, optional
        Largest shift along either axis in pixels, uniform, by linear interpolation, with the first pixel's background
        moving in; default 1 for digits, else 0.
    noise : float, optional
        Standard deviation of normal noise on every pixel, in units of the full scale; default 0.1 for digits, else 0.
    n_blocks : int
        L of "residual".
    n_test : int
        Test images.
    centred : bool
        Whether g_0 is subtracted.
    record : "log", "all" or array_like of int
        Steps at which losses are recorded: 0 and 64 log-spaced ones, all, or those given.
    n_probe : int
        Test images on which the neural tangent kernel is followed; default none.
    probe_record : array_like of int, optional
        Steps at which it is recorded, beginning with 0; by default 0 and 12 log-spaced ones.
    dtype : {"float64", "float32"}
        Number format. "float32" is several times as fast; at gamma = 0.05 it changed losses by less than 0.1% in the
        tests, more at smaller gamma, where weights hardly move.
    device : {"cpu", "cuda"}
        Passed to PyTorch.
    checkpoint : path, optional
        A file to write the state to now and then, and to go on from if it is there: the same call, after whatever
        ended it, continues, to the last bit on the CPU of the same machine. More runs may be asked for than it holds.
    checkpoint_every : float
        Seconds between two writings (default 60).
    progress : callable, optional
        Called as ``progress(done, total)`` with steps of all runs.

    Returns
    -------
    DeepNetworkRuns

    Raises
    ------
    BackendUnavailableError
        If PyTorch is not installed, or there is no CUDA device where one is asked for.
    DivergenceError
        If a loss is not finite or a thousand times the first; `partial` holds what all runs have recorded before it.
    InsufficientMemoryError
        If weights and gradients of a single run do not fit into the available memory.
    Interrupted
        On Ctrl-C; `partial` holds the runs finished by then, in order; or the one that came furthest, as far as it
        came; or is None.
    ScalefieldError
        If the checkpoint is damaged or belongs to another call.
    TypeError, ValueError
        For arguments of the wrong type or range.

    Warns
    -----
    CheckpointWarning
        If a checkpoint could not be written; training goes on.

    Notes
    -----
    Runs repeat to the last bit on one machine and version of PyTorch on the CPU (one thread is used); across devices
    and versions the numbers drawn are the same, and rounding differs. Width 32 takes some 10 ms a step on digits in
    float32 on one core. Kernels take O(outputs x n_probe x parameters) memory and time beside the training.

    References
    ----------
    Bordelon, Atanasov & Pehlevan, arXiv:2409.17858, Sec. 5.2 and App. A.2. Yang & Hu, arXiv:2011.14522 (muP).
    Bordelon, Noci, Li, Hanin & Pehlevan, arXiv:2309.16620 (blocks of size L^{-1/2}).

    Examples
    --------
    >>> from scalefield import networks
    >>> runs = networks.train_vision_network(width=8, n_steps=20, seed=0)  # doctest: +SKIP
    >>> round(float(runs.mean[0]), 6)  # doctest: +SKIP
    0.9
    """
    torch = require_torch()
    file = CheckpointFile.checked(checkpoint, checkpoint_every)
    recipe = Recipe.checked(
        gamma=gamma,
        learning_rate=learning_rate,
        batch_size=batch_size,
        n_steps=n_steps,
        n_runs=n_runs,
        seed=seed_or_stored(seed, file),
        record=record,
        n_probe=n_probe,
        probe_record=probe_record,
        n_test=n_test,
        centred=centred,
        dtype=dtype,
        device=device,
    )
    # The scale of the pixels, too, must not depend on the number of threads.
    with deterministic(torch):
        images = _images(torch, data, test, shift, noise, recipe.seed, recipe.n_test)
    problem = _Vision(torch, architecture, width, n_blocks, images, target)
    return train(torch, problem, recipe, file=file, progress=progress)


def vision_kernel(
    architecture: str = "cnn",
    width: int = 32,
    n_samples: int = 1000,
    seed: int | None = None,
    *,
    data: ImageStream | None = None,
    target: str | None = None,
    shift: float | None = None,
    noise: float | None = None,
    n_blocks: int = 2,
    device: str = "cpu",
) -> tuple[Array, Array]:
    """Neural tangent kernel of an untrained network of `train_vision_network` on images that it could be trained on.

    What `kernels.predict` needs to predict its learning curves, at tau = learning rate x step.

    Parameters
    ----------
    architecture, width, data, target, shift, noise, n_blocks, device
        As for `train_vision_network`.
    n_samples : int
        Images; no more than there are base images of digits (1,438), each of which is taken once at most.
    seed : int or None
        With the seed of a training, the weights are those of its first run.

    Returns
    -------
    kernel : ndarray of float64, shape (n_samples, n_samples)
        Mean over outputs of N (dg_a/dtheta) . (dg_a/dtheta)'.
    targets : ndarray of float64, shape (n_samples, outputs)

    Raises
    ------
    BackendUnavailableError
        If PyTorch is not installed, or there is no CUDA device where one is asked for.
    TypeError, ValueError
        For arguments of the wrong type or range.

    Notes
    -----
    O(n_samples x parameters) memory, in float64: 110 MB for a CNN of width 32 on 1,000 digits; some 10 s on one core.

    References
    ----------
    Bordelon, Atanasov & Pehlevan, arXiv:2409.17858, Figure 8. Jacot, Gabriel & Hongler, arXiv:1806.07572.
    """
    torch = require_torch()
    n_samples = as_count("n_samples", n_samples, minimum=2)
    number = as_seed("seed", seed)
    recipe = Recipe.checked(
        gamma=1.0, learning_rate=1.0, batch_size=1, n_steps=1, n_runs=1, seed=number, record="all", n_probe=0,
        probe_record=None, n_test=1, centred=True, dtype="float64", device=device,
    )  # fmt: skip
    with deterministic(torch):
        images = _images(torch, data, None, shift, noise, number, 0)
        problem = _Vision(torch, architecture, width, n_blocks, images, target)
        inputs, labels = images.distinct(n_samples, generator(torch, number, KERNEL))
        weights = initial_parameters(torch, problem, recipe, 0)
        kernel = empirical_kernel(torch, problem, weights, inputs.to(device))
    return kernel, problem.targets_of(labels).numpy()


# ----------------------------------------------------------------------------------------------------- images


class _Images(ABC):
    """Base images, some held out, with shifts and noise that are drawn anew each time.

    Pixels are as float64 in units of the full scale, channels first; what comes out is standardised by the mean and
    standard deviation of the pixels of the training images.
    """

    name: str
    classes: int
    shape: tuple[int, int, int]
    n_train: int

    def __init__(self, torch: Any, shift: float, noise: float) -> None:
        self.torch = torch
        self.shift, self.noise = as_float("shift", shift, minimum=0.0), as_float("noise", noise, minimum=0.0)
        self.mean, self.scale = 0.0, 1.0

    def settings(self) -> dict[str, Any]:
        return {
            "data": self.name,
            "n_train": self.n_train,
            "shift": self.shift,
            "noise": self.noise,
            "pixel_mean": self.mean,
            "pixel_scale": self.scale,
        }

    def standardise_by(self, pixels: Tensor) -> None:
        self.mean, self.scale = float(pixels.mean()), float(pixels.std())
        if not self.scale > 0.0:
            raise ValueError("images must differ from a constant, got pixels that are all equal")

    def varied(self, pixels: Tensor, source: Any) -> Tensor:
        """Shifted, with noise, and standardised; shape (n, channels, height, width)."""
        torch = self.torch
        if self.shift:
            offset = self.shift * (2.0 * torch.rand((len(pixels), 2), generator=source, dtype=torch.float64) - 1.0)
            rows, columns = (self._interpolation(offset[:, i], pixels.shape[2 + i]) for i in (0, 1))
            # The background stays the background.
            ground = pixels[:, :, :1, :1]
            pixels = ground + rows[:, None] @ (pixels - ground) @ columns[:, None].transpose(2, 3)
        if self.noise:
            pixels = pixels + self.noise * torch.randn(pixels.shape, generator=source, dtype=torch.float64)
        return (pixels - self.mean) / self.scale

    def _interpolation(self, offset: Tensor, length: int) -> Tensor:
        """Matrices, shape (n, length, length), that shift a line by `offset`: tents of unit width."""
        place = self.torch.arange(length, dtype=self.torch.float64)
        distance = place[None, :, None] + offset[:, None, None] - place[None, None, :]
        return (1.0 - distance.abs()).clamp(min=0.0)

    @abstractmethod
    def drawn(self, n: int, source: Any, *, held_out: bool) -> tuple[Tensor, Tensor]:
        """Images, varied, and their labels: held out, or from those that training sees."""

    @abstractmethod
    def distinct(self, n: int, source: Any) -> tuple[Tensor, Tensor]:
        """Images from different base images that training sees."""

    @abstractmethod
    def batches(self, batch_size: int, sources: Sources, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels for training, from step `first` on without end."""


class _Digits(_Images):
    """The digits of the package: a fifth of the base images, chosen by the seed, is held out for tests."""

    name, classes, shape = "digits", 10, (1, 8, 8)

    def __init__(self, torch: Any, shift: float, noise: float, seed: int) -> None:
        super().__init__(torch, shift, noise)
        pixels, labels = datasets.digits()
        self.pixels = torch.from_numpy(pixels[:, None].astype(np.float64) / 16.0)
        self.labels = torch.from_numpy(labels)
        order = torch.randperm(len(labels), generator=generator(torch, seed, SPLIT))
        n_test = int(_HELD_OUT * len(labels))
        self.held_out, self.training = order[:n_test], order[n_test:]
        self.n_train = len(self.training)
        self.standardise_by(self.pixels[self.training])

    def drawn(self, n: int, source: Any, *, held_out: bool) -> tuple[Tensor, Tensor]:
        base = self.held_out if held_out else self.training
        index = base[self.torch.randint(len(base), (n,), generator=source)]
        return self.varied(self.pixels[index], source), self.labels[index]

    def distinct(self, n: int, source: Any) -> tuple[Tensor, Tensor]:
        if n > self.n_train:
            raise ValueError(f"n_samples must be at most {self.n_train}, the base images of digits, got {n}")
        index = self.training[self.torch.randperm(self.n_train, generator=source)[:n]]
        return self.varied(self.pixels[index], source), self.labels[index]

    def batches(self, batch_size: int, sources: Sources, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        for step in count(first):
            yield self.drawn(batch_size, sources.of_step(step), held_out=False)


class _Streamed(_Images):
    """A stream on disk, less the images held out, or with a stream of its own for tests."""

    def __init__(
        self,
        torch: Any,
        data: ImageStream,
        test: ImageStream | None,
        shift: float,
        noise: float,
        seed: int,
        n_test: int,
    ) -> None:
        super().__init__(torch, shift, noise)
        if len(data.shape) not in (2, 3):
            raise ValueError(f"images must have shape (height, width) or (height, width, channels), got {data.shape}")
        if test is not None and (test.shape != data.shape or test.classes != data.classes):
            raise ValueError(
                f"test must have images of shape {data.shape} and {len(data.classes)} classes like data, "
                f"got {test.shape} and {len(test.classes)}"
            )
        self.data, self.test = data, test
        self.name = f"{len(data)} images: {', '.join(os.path.basename(part.name) for part in data.parts)}"
        self.classes = len(data.classes)
        self.shape = (data.shape[2] if len(data.shape) == 3 else 1, data.shape[0], data.shape[1])
        self.in_order = not all(part.has_random_access for part in data.parts)
        held = 0 if test is not None else n_test
        if held and self.in_order:
            raise ValueError("test must be given where data is compressed and cannot be read out of order, got None")
        if len(data) - held < 2:
            raise ValueError(f"n_test must be at most {len(data) - 2} of {len(data)} images, got {n_test}")
        order = np.random.default_rng(seed_of(seed, SPLIT)).permutation(len(data)) if held else np.arange(len(data))
        self.held_out, self.training = np.sort(order[:held]), np.sort(order[held:])
        self.n_train = self.training.size
        few = self.training[: min(_SCALE_SAMPLES, self.n_train)]
        self.standardise_by(self._read(data, few)[0])

    def _read(self, stream: ImageStream, index: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        return self._tensors(*stream.take(index))

    def _tensors(self, pixels: Array, labels: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        images = self.torch.from_numpy(pixels.reshape(len(pixels), *self.data.shape[:2], -1))
        return images.permute(0, 3, 1, 2).contiguous(), self.torch.from_numpy(labels)

    def drawn(self, n: int, source: Any, *, held_out: bool) -> tuple[Tensor, Tensor]:
        stream = self.test if held_out and self.test is not None else self.data
        if held_out:
            index = self.held_out if self.test is None else np.arange(len(self.test))
        else:
            index = self.training
        if n > index.size:
            raise ValueError(f"n_test must be at most {index.size}, the images there are, got {n}")
        chosen = np.sort(index[self.torch.randperm(index.size, generator=source)[:n].numpy()])
        images, labels = self._read(stream, chosen)
        return self.varied(images, source), labels

    def distinct(self, n: int, source: Any) -> tuple[Tensor, Tensor]:
        return self.drawn(n, source, held_out=False)

    def batches(self, batch_size: int, sources: Sources, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        if self.in_order:
            if batch_size > len(self.data):
                raise ValueError(f"batch_size must be at most {len(self.data)}, the number of images, got {batch_size}")
            seed = sources.seed_of_passes()
            # Read through, where a run goes on.
            read = islice(self.data.batches(batch_size, seed=seed, epochs=None, drop_last=True), first, None)
            for step, (images, labels) in zip(count(first), read, strict=False):
                pixels, numbers = self._tensors(images, labels)
                yield self.varied(pixels, sources.of_step(step)), numbers
        if batch_size > self.n_train:
            raise ValueError(f"batch_size must be at most {self.n_train}, the training images, got {batch_size}")
        steps_of_pass = self.n_train // batch_size
        for number in count(first // steps_of_pass):
            order = self.training[self.torch.randperm(self.n_train, generator=sources.of_pass(number)).numpy()]
            for step in range(max(first, number * steps_of_pass), (number + 1) * steps_of_pass):
                start = (step - number * steps_of_pass) * batch_size
                pixels, numbers = self._read(self.data, order[start : start + batch_size])
                yield self.varied(pixels, sources.of_step(step)), numbers


def _images(
    torch: Any,
    data: ImageStream | None,
    test: ImageStream | None,
    shift: float | None,
    noise: float | None,
    seed: int,
    n_test: int,
) -> _Images:
    for name, stream in (("data", data), ("test", test)):
        if stream is not None and not isinstance(stream, ImageStream):
            raise TypeError(f"{name} must be an ImageStream or None, got {stream!r} of type {type(stream).__name__}")
    if data is None:
        if test is not None:
            raise ValueError("test goes with data, got test alone")
        return _Digits(torch, _SHIFT if shift is None else shift, _NOISE if noise is None else noise, seed)
    return _Streamed(torch, data, test, 0.0 if shift is None else shift, 0.0 if noise is None else noise, seed, n_test)


# --------------------------------------------------------------------------------------------------- networks


class _Vision(Problem):
    """A network on images."""

    objective = "mse"

    def __init__(
        self, torch: Any, architecture: str, width: int, n_blocks: int, images: _Images, target: str | None
    ) -> None:
        if architecture not in ARCHITECTURES:
            raise ValueError(f"architecture must be 'cnn' or 'residual', got {architecture!r}")
        if target is not None and not isinstance(target, str):
            raise TypeError(f"target must be a string or None, got {target!r} of type {type(target).__name__}")
        self.torch, self.architecture, self.images = torch, architecture, images
        self.width = as_count("width", width)
        self.n_blocks = as_count("n_blocks", n_blocks)
        self.target = target if target is not None else ("parity" if images.classes == 2 else "one-hot")
        if min(images.shape[1:]) < _SMALLEST:
            raise ValueError(f"images must be at least {_SMALLEST} x {_SMALLEST} pixels, got {images.shape[1:]}")
        self.n_outputs = int(self.targets_of(torch.zeros(1, dtype=torch.int64)).shape[1])
        self.settings = {**images.settings(), "target": self.target}
        if architecture == "residual":
            self.settings["n_blocks"] = self.n_blocks

    def targets_of(self, labels: Tensor) -> Tensor:
        """Targets of labels, shape (n, outputs)."""
        values = datasets.class_targets(labels.numpy(), self.target, self.images.classes)
        if self.target == "one-hot":
            values = values - 1.0 / self.images.classes
        return self.torch.from_numpy(values.reshape(len(labels), -1))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        n = self.width
        channels, height, width = self.images.shape
        readout = (self.n_outputs, n)
        if self.architecture == "cnn":
            positions = (height // 2 // 2) * (width // 2 // 2)
            return {
                "convolution_1": (n, channels, 3, 3),
                "convolution_2": (n, n, 3, 3),
                "dense_1": (n, n * positions),
                "dense_2": readout,
            }
        blocks = {f"{part}_{i}": (n, n, 3, 3) for i in range(self.n_blocks) for part in ("inner", "outer")}
        return {"stem": (n, channels, 3, 3), **blocks, "readout": readout}

    def apply(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        functional = self.torch.nn.functional
        n = self.width

        def convolve(name: str, x: Tensor) -> Tensor:
            # Scaled after the product: fewer numbers than weights in small batches, the same function.
            weights = parameters[name]
            return functional.conv2d(x, weights, padding=1) / math.sqrt(9 * weights.shape[1])

        def phi(h: Tensor) -> Tensor:
            return math.sqrt(2.0) * functional.relu(h)

        if self.architecture == "cnn":
            h = functional.avg_pool2d(phi(convolve("convolution_1", inputs)), 2)
            h = functional.avg_pool2d(phi(convolve("convolution_2", h)), 2).flatten(1)
            h = phi(h @ parameters["dense_1"].T / math.sqrt(h.shape[1]))
            return h @ parameters["dense_2"].T / n
        h = convolve("stem", inputs)
        for block in range(self.n_blocks):
            if block == self.n_blocks // 2:
                h = functional.avg_pool2d(h, 2)
            step = convolve(f"outer_{block}", phi(convolve(f"inner_{block}", phi(h))))
            h = h + step / math.sqrt(self.n_blocks)
        return phi(h).mean(dim=(2, 3)) @ parameters["readout"].T / n

    def probed(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        return self.apply(parameters, inputs)

    def batches(self, batch_size: int, sources: Sources, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        for pixels, labels in self.images.batches(batch_size, sources, first):
            yield pixels, self.targets_of(labels)

    def sample(self, n: int, generator: Any, *, held_out: bool) -> tuple[Tensor, Tensor]:
        pixels, labels = self.images.drawn(n, generator, held_out=held_out)
        return pixels, self.targets_of(labels)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().sum(dim=1).mean()

    def probe_targets(self, targets: Tensor) -> Array:
        return np.asarray(targets.cpu().double().numpy())
