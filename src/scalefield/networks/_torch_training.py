"""Online SGD on a network in mean-field parameterisation: the loop that vision and language share.

A network is a pure function of its parameters, which are standard normal at first; all scales are written into it. It
returns g = h/N, and the output is f = (g - g_0)/gamma, with g_0 from the initial parameters. Every parameter moves by

    eta gamma^2 N  x  the gradient of the objective.

The gradient of f with respect to a parameter is 1/gamma times that of g, so df/dtau at step 0 is N (dg/dtheta)^2 times
the residual: neither gamma nor N is in it, while features move by an amount proportional to gamma at any N.
"""

from __future__ import annotations

import json
import logging
import math
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalefield._files import read_archive, write_archive
from scalefield._progress import Progress
from scalefield._steps import as_steps, log_spaced_steps
from scalefield._validate import as_count, as_flag, as_float, as_seed
from scalefield.errors import CheckpointWarning, DivergenceError, Interrupted, ScalefieldError
from scalefield.networks._torch import as_device, as_dtype, deterministic, generator
from scalefield.networks._torch_results import DeepNetworkRuns

__all__ = ["Problem", "Recipe", "empirical_kernel", "initial_parameters", "seed_or_stored", "train"]

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]
Tensor = Any
Parameters = dict[str, Any]

# Purposes of random numbers.
WEIGHTS, BATCHES, TEST, STREAM, SPLIT, KERNEL = range(6)
# Evaluated at a time.
CHUNK = 512
# A loss this many times the first one has diverged.
_DIVERGED = 1e3
# Steps between two calls of progress.
_REPORT = 20
_PROBE_STEPS = 12
_FORMAT = 1


class Problem(ABC):
    """A network and its data. Tensors of data are on the CPU, inputs in float64 or int64."""

    architecture: str
    objective: str
    width: int
    settings: dict[str, Any]

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters, by name and in the order in which they are drawn."""

    @abstractmethod
    def apply(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """g = h/N for a batch, outputs in the last axis."""

    @abstractmethod
    def probed(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """What kernels are of: g of shape (samples, outputs)."""

    @abstractmethod
    def batches(self, batch_size: int, generator: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets for training, without end."""

    @abstractmethod
    def sample(self, n: int, generator: Any, *, held_out: bool) -> tuple[Tensor, Tensor]:
        """Inputs and targets that training never sees, or that it could."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss that is reported."""

    @abstractmethod
    def probe_targets(self, targets: Tensor) -> Array:
        """Targets of `probed`, shape (samples, outputs)."""

    @property
    def gradient_factor(self) -> float:
        """What is trained is this times the loss: half the squared error."""
        return 0.5 if self.objective == "mse" else 1.0


@dataclass(frozen=True)
class Recipe:
    """How it is trained: arguments of the public functions, checked."""

    gamma: float
    learning_rate: float
    batch_size: int
    n_steps: int
    n_runs: int
    seed: int
    steps: NDArray[np.int64]
    probe_steps: NDArray[np.int64]
    n_probe: int
    n_test: int
    centred: bool
    dtype: str
    device: str

    @classmethod
    def checked(
        cls,
        *,
        gamma: float,
        learning_rate: float,
        batch_size: int,
        n_steps: int,
        n_runs: int,
        seed: int | None,
        record: str | ArrayLike,
        n_probe: int,
        probe_record: ArrayLike | None,
        n_test: int,
        centred: bool,
        dtype: str,
        device: str,
    ) -> Recipe:
        n_steps = as_count("n_steps", n_steps)
        if isinstance(record, str):
            if record not in ("log", "all"):
                raise ValueError(f"record must be 'log', 'all' or a list of steps, got {record!r}")
            steps = _log_steps(n_steps, 64) if record == "log" else np.arange(n_steps + 1)
        else:
            steps = as_steps("record", record, n_steps)
        n_probe = as_count("n_probe", n_probe, minimum=0)
        probe_steps = np.zeros(0, dtype=np.int64)
        if n_probe:
            chosen = _log_steps(n_steps, _PROBE_STEPS) if probe_record is None else probe_record
            probe_steps = as_steps("probe_record", chosen, n_steps)
            if probe_steps[0] != 0:
                raise ValueError(f"probe_record must begin with step 0, got {int(probe_steps[0])}")
        elif probe_record is not None:
            raise ValueError("probe_record goes with n_probe of at least 1, got n_probe = 0")
        return cls(
            gamma=as_float("gamma", gamma, minimum=0.0, exclusive=True),
            learning_rate=as_float("learning_rate", learning_rate, minimum=0.0, exclusive=True),
            batch_size=as_count("batch_size", batch_size),
            n_steps=n_steps,
            n_runs=as_count("n_runs", n_runs),
            seed=as_seed("seed", seed),
            steps=steps,
            probe_steps=probe_steps,
            n_probe=n_probe,
            n_test=as_count("n_test", n_test, minimum=max(1, n_probe)),
            centred=as_flag("centred", centred),
            dtype=dtype,
            device=device,
        )


def _log_steps(n_steps: int, count: int) -> NDArray[np.int64]:
    """0 and about `count` log-spaced steps to n_steps."""
    steps = log_spaced_steps(n_steps)
    if steps.size <= count + 1:
        return steps
    wanted = np.unique(np.rint(np.geomspace(1.0, n_steps, count)).astype(np.int64))
    return np.append(0, wanted)


def train(
    torch: Any,
    problem: Problem,
    recipe: Recipe,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> DeepNetworkRuns:
    """All runs, one after the other; finished ones are written to the checkpoint and read from it.

    Raises
    ------
    DivergenceError
        If a loss is not finite or a thousand times the first; `partial` holds the runs finished before.
    Interrupted
        At Ctrl-C; `partial` holds the finished runs, or the first one as far as it came.
    """
    as_device(torch, recipe.device)
    as_dtype(torch, recipe.dtype)
    store = None if checkpoint is None else _Checkpoint(Path(checkpoint), problem, recipe)
    runs: list[_Run] = [] if store is None else store.restore()
    del runs[recipe.n_runs :]
    total = recipe.n_runs * recipe.n_steps
    with deterministic(torch):
        training = _Training(torch, problem, recipe)
        for number in range(len(runs), recipe.n_runs):
            run = _Run.empty(recipe)

            def report(step: int, before: int = number) -> None:
                if progress is not None:
                    progress(before * recipe.n_steps + step, total)

            try:
                training.train(number, run, report)
            except KeyboardInterrupt:
                kept = runs or ([run] if run.n_records else [])
                partial = _result(problem, recipe, kept, training.targets) if kept else None
                raise Interrupted(
                    f"interrupted in run {number + 1} of {recipe.n_runs}; {len(runs)} finished", partial
                ) from None
            except DivergenceError as error:
                partial = _result(problem, recipe, runs, training.targets) if runs else None
                raise DivergenceError(str(error), error.step, partial) from None
            runs.append(run)
            if store is not None:
                store.write(runs)
        if progress is not None:
            progress(total, total)
        return _result(problem, recipe, runs, training.targets)


@dataclass
class _Run:
    """Records of one run, n_records of them so far."""

    loss: Array
    stream_loss: Array
    kernels: Array
    n_records: int = 0
    n_kernels: int = 0

    @classmethod
    def empty(cls, recipe: Recipe) -> _Run:
        shape = (recipe.probe_steps.size, recipe.n_probe, recipe.n_probe)
        return cls(np.full(recipe.steps.size, np.nan), np.full(recipe.steps.size, np.nan), np.full(shape, np.nan))


def _result(problem: Problem, recipe: Recipe, runs: list[_Run], targets: Array) -> DeepNetworkRuns:
    n, k = min(run.n_records for run in runs), min(run.n_kernels for run in runs)
    return DeepNetworkRuns(
        architecture=problem.architecture,
        width=problem.width,
        gamma=recipe.gamma,
        learning_rate=recipe.learning_rate,
        batch_size=recipe.batch_size,
        objective=problem.objective,
        seed=recipe.seed,
        steps=recipe.steps[:n].copy(),
        loss=np.array([run.loss[:n] for run in runs]),
        stream_loss=np.array([run.stream_loss[:n] for run in runs]),
        probe_steps=recipe.probe_steps[:k].copy(),
        probe_kernels=np.array([run.kernels[:k] for run in runs]),
        probe_targets=targets.copy(),
        settings=_settings(problem, recipe),
    )


def _settings(problem: Problem, recipe: Recipe) -> dict[str, Any]:
    import torch

    return {
        **problem.settings,
        "n_test": recipe.n_test,
        "centred": recipe.centred,
        "dtype": recipe.dtype,
        "device": recipe.device,
        "torch": str(torch.__version__),
    }


class _Training:
    """Test sets that all runs share, and the loop."""

    def __init__(self, torch: Any, problem: Problem, recipe: Recipe) -> None:
        self.torch, self.problem, self.recipe = torch, problem, recipe
        self.dtype = as_dtype(torch, recipe.dtype)
        self.rate = recipe.learning_rate * recipe.gamma**2 * problem.width
        self.test = self.moved(*problem.sample(recipe.n_test, generator(torch, recipe.seed, TEST), held_out=True))
        self.stream = self.moved(*problem.sample(recipe.n_test, generator(torch, recipe.seed, STREAM), held_out=False))
        self.targets = np.zeros((0, 0))
        if recipe.n_probe:
            self.targets = problem.probe_targets(self.test[1][: recipe.n_probe])

    def moved(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """In the number format and on the device of training; indices stay integers."""
        device = self.recipe.device
        x, y = (p.to(device, self.dtype if p.is_floating_point() else None) for p in (inputs, targets))
        return x, y

    def centre(self, initial: Parameters, inputs: Tensor) -> Tensor:
        """g_0, or nothing to subtract."""
        with self.torch.no_grad():
            return self.problem.apply(initial, inputs) if self.recipe.centred else 0.0

    def step(self, parameters: Parameters, initial: Parameters, inputs: Tensor, targets: Tensor) -> None:
        """theta <- theta - eta gamma^2 N dL/dtheta, in place."""
        torch = self.torch
        free = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        outputs = (self.problem.apply(free, inputs) - self.centre(initial, inputs)) / self.recipe.gamma
        objective = self.problem.gradient_factor * self.problem.loss(outputs, targets)
        gradients = torch.autograd.grad(objective, list(free.values()))
        with torch.no_grad():
            for value, gradient in zip(parameters.values(), gradients, strict=True):
                value.sub_(gradient, alpha=self.rate)

    def centres(self, initial: Parameters, inputs: Tensor) -> list[Tensor]:
        """g_0 on a fixed set, chunk by chunk."""
        return [self.centre(initial, inputs[i : i + CHUNK]) for i in range(0, len(inputs), CHUNK)]

    def evaluate(self, parameters: Parameters, data: tuple[Tensor, Tensor], centres: list[Tensor]) -> float:
        """Mean loss on a fixed set."""
        inputs, targets = data
        total = 0.0
        with self.torch.no_grad():
            for index, start in enumerate(range(0, len(inputs), CHUNK)):
                part = slice(start, start + CHUNK)
                outputs = (self.problem.apply(parameters, inputs[part]) - centres[index]) / self.recipe.gamma
                total += float(self.problem.loss(outputs, targets[part])) * len(outputs)
        return total / len(inputs)

    def train(self, number: int, run: _Run, report: Callable[[int], None]) -> None:
        """One run, recorded into `run`."""
        recipe = self.recipe
        initial = initial_parameters(self.torch, self.problem, recipe, number)
        parameters = {name: value.clone() for name, value in initial.items()}
        batches = self.problem.batches(recipe.batch_size, generator(self.torch, recipe.seed, BATCHES, number))
        on_test, on_stream = self.centres(initial, self.test[0]), self.centres(initial, self.stream[0])
        recorded, probed = set(recipe.steps.tolist()), set(recipe.probe_steps.tolist())
        limit = math.inf
        for step in range(recipe.n_steps + 1):
            if step in probed:
                inputs = self.test[0][: recipe.n_probe]
                run.kernels[run.n_kernels] = empirical_kernel(self.torch, self.problem, parameters, inputs)
                run.n_kernels += 1
            if step in recorded:
                loss = self.evaluate(parameters, self.test, on_test)
                if not loss <= limit:
                    raise DivergenceError(
                        f"the loss of run {number + 1} is {loss:g} at step {step}: take a lower learning rate than "
                        f"{recipe.learning_rate:g}",
                        step,
                    )
                if math.isinf(limit):
                    limit = _DIVERGED * max(loss, 1e-300)
                run.stream_loss[run.n_records] = self.evaluate(parameters, self.stream, on_stream)
                run.loss[run.n_records] = loss
                run.n_records += 1
            if step % _REPORT == 0:
                report(step)
            if step < recipe.n_steps:
                self.step(parameters, initial, *self.moved(*next(batches)))


def initial_parameters(torch: Any, problem: Problem, recipe: Recipe, run: int) -> Parameters:
    """Standard normal parameters of a run, drawn in float64 whatever the number format."""
    source, dtype = generator(torch, recipe.seed, WEIGHTS, run), as_dtype(torch, recipe.dtype)
    return {
        name: torch.randn(shape, generator=source, dtype=torch.float64).to(as_device(torch, recipe.device), dtype)
        for name, shape in problem.shapes().items()
    }


def seed_or_stored(seed: int | None, checkpoint: str | os.PathLike[str] | None) -> int | None:
    """The seed, or that of a checkpoint where none is given."""
    if seed is not None or checkpoint is None or not os.path.exists(checkpoint):
        return seed
    stored = read_archive(checkpoint)[0].get("seed")
    return stored if isinstance(stored, int) else None


def empirical_kernel(torch: Any, problem: Problem, parameters: Parameters, inputs: Tensor) -> Array:
    """N (dg_a/dtheta) . (dg_a/dtheta)' averaged over outputs a, between all inputs, as float64.

    g = gamma f, and steps are eta gamma^2 N long: f moves by -eta K (f - y), with this K at step 0.
    """
    frozen = {name: value.detach() for name, value in parameters.items()}
    with torch.no_grad():
        n_outputs = int(problem.probed(frozen, inputs[:1]).shape[-1])
    kernel = np.zeros((len(inputs), len(inputs)))
    for output in range(n_outputs):

        def single(values: Parameters, one: Tensor, output: int = output) -> Tensor:
            return problem.probed(values, one[None])[0, output]

        gradient = torch.func.vmap(torch.func.grad(single), in_dims=(None, 0))
        parts = [gradient(frozen, inputs[i : i + CHUNK]) for i in range(0, len(inputs), CHUNK)]
        for name in frozen:
            flat = torch.cat([part[name].reshape(len(part[name]), -1) for part in parts]).double()
            kernel += (flat @ flat.T).cpu().numpy()
    kernel *= problem.width / n_outputs
    # Products of BLAS are not exactly symmetric.
    return 0.5 * (kernel + kernel.T)


class _Checkpoint:
    """Finished runs in a file, refused unless they belong to the same call; more runs may be asked for."""

    def __init__(self, path: Path, problem: Problem, recipe: Recipe) -> None:
        self.path, self.recipe = path, recipe
        settings = {
            "class": "DeepNetworkCheckpoint",
            "format": _FORMAT,
            "architecture": problem.architecture,
            "objective": problem.objective,
            "width": problem.width,
            "gamma": recipe.gamma,
            "learning_rate": recipe.learning_rate,
            "batch_size": recipe.batch_size,
            "n_steps": recipe.n_steps,
            "seed": recipe.seed,
            "record": recipe.steps.tolist(),
            "n_probe": recipe.n_probe,
            "probe_record": recipe.probe_steps.tolist(),
            **_settings(problem, recipe),
        }
        # As the file gives them back.
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))

    def restore(self) -> list[_Run]:
        """Finished runs.

        Raises
        ------
        ScalefieldError
            If the file is damaged or belongs to another call.
        OSError
            If it cannot be read, or its folder not be written to.
        """
        if not self.path.exists():
            # Told before any work.
            self._write([])
            return []
        settings, arrays = read_archive(self.path)
        if settings.get("class") != "DeepNetworkCheckpoint":
            raise ScalefieldError(f"{self.path}: not a checkpoint of deep networks")
        for name, value in self.settings.items():
            if settings.get(name) != value:
                raise ScalefieldError(
                    f"{self.path}: checkpoint of another training, with {name} {str(settings.get(name))[:80]} instead "
                    f"of {str(value)[:80]}; give another path, or remove the file to start anew"
                )
        try:
            loss, stream, kernels = (arrays[name] for name in ("loss", "stream_loss", "kernels"))
        except KeyError as error:
            raise ScalefieldError(f"{self.path}: not a checkpoint of deep networks ({error})") from error
        logger.info("%s: %d runs finished", self.path, loss.shape[0])
        n, k = self.recipe.steps.size, self.recipe.probe_steps.size
        return [_Run(*parts, n_records=n, n_kernels=k) for parts in zip(loss, stream, kernels, strict=True)]

    def write(self, runs: list[_Run]) -> None:
        """Replace the file; if that fails a warning is given and training goes on."""
        try:
            self._write(runs)
        except OSError as error:
            logger.warning("checkpoint %s not written: %s", self.path, error)
            warnings.warn(f"checkpoint {self.path} not written: {error}", CheckpointWarning, stacklevel=2)

    def _write(self, runs: list[_Run]) -> None:
        first = _Run.empty(self.recipe)
        arrays = {
            "loss": np.array([run.loss for run in runs]).reshape(-1, *first.loss.shape),
            "stream_loss": np.array([run.stream_loss for run in runs]).reshape(-1, *first.loss.shape),
            "kernels": np.array([run.kernels for run in runs]).reshape(len(runs), *first.kernels.shape),
        }
        write_archive(self.path, self.settings, arrays, compressed=False)
