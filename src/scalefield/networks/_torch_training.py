"""Online SGD on a network in mean-field parameterisation: the loop that vision and language share.

A network is a pure function of its parameters, which are standard normal at first; all scales are written into it. It
returns g = h/N, and the output is f = (g - g_0)/gamma, with g_0 from the initial parameters. Every parameter moves by

    eta gamma^2 N  x  the gradient of the objective.

The gradient of f with respect to a parameter is 1/gamma times that of g, so df/dtau at step 0 is N (dg/dtheta)^2 times
the residual: neither gamma nor N is in it, while features move by an amount proportional to gamma at any N.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalefield._checkpoint import Checkpoint, CheckpointFile
from scalefield._ensemble import DIVERGED, OK, STOPPED, Ensemble, affordable_threads
from scalefield._progress import Progress
from scalefield._steps import as_steps, few_steps, recorded_steps
from scalefield._validate import as_count, as_flag, as_float, as_seed
from scalefield.networks._torch import as_device, as_dtype, deterministic, generator, seed_of
from scalefield.networks._torch_results import DeepNetworkRuns

__all__ = ["Problem", "Recipe", "Sources", "Training", "empirical_kernel", "initial_parameters", "train"]

Array = NDArray[np.float64]
Tensor = Any
Parameters = dict[str, Any]

# Purposes of random numbers.
WEIGHTS, BATCHES, TEST, STREAM, SPLIT, KERNEL, PASSES = range(7)
# Evaluated at a time.
CHUNK = 512
# A loss this many times the first one has diverged.
_DIVERGED = 1e3
# Steps between two looks at a run.
_CHUNK_STEPS = 5
# Log-spaced steps whose loss, and whose kernel, is recorded beside step 0.
_LOG_STEPS, _PROBE_STEPS = 64, 12


@dataclass(frozen=True)
class Sources:
    """Generators for the batches of a run: one for each step, so that a run goes on from any, and each pass of data."""

    torch: Any
    seed: int
    run: int

    def of_step(self, step: int) -> Any:
        """For what a step draws."""
        return generator(self.torch, self.seed, BATCHES, self.run, step)

    def of_pass(self, number: int) -> Any:
        """For the order of the data in one pass through it."""
        return generator(self.torch, self.seed, PASSES, self.run, number)

    def seed_of_passes(self) -> int:
        """For the order of data that is read in order."""
        return seed_of(self.seed, PASSES, self.run)


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
    def batches(self, batch_size: int, sources: Sources, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets for training, from step `first` on without end."""

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
        steps = recorded_steps(record, n_steps, few_steps(n_steps, _LOG_STEPS))
        n_probe = as_count("n_probe", n_probe, minimum=0)
        probe_steps = np.zeros(0, dtype=np.int64)
        if n_probe:
            chosen = few_steps(n_steps, _PROBE_STEPS) if probe_record is None else probe_record
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


def train(
    torch: Any, problem: Problem, recipe: Recipe, *, file: CheckpointFile | None, progress: Progress | None
) -> DeepNetworkRuns:
    """All runs: one a thread on the CPU, one after the other on CUDA.

    Raises
    ------
    DivergenceError
        If a test loss is not finite or a thousand times the first.
    Interrupted
        At Ctrl-C.
    """
    as_device(torch, recipe.device)
    as_dtype(torch, recipe.dtype)
    with deterministic(torch):
        return Training(torch, problem, recipe, file).run(progress)


class Training:
    """Test sets that all runs share, arrays for what is recorded, and the loop."""

    def __init__(self, torch: Any, problem: Problem, recipe: Recipe, file: CheckpointFile | None = None) -> None:
        self.torch, self.problem, self.recipe = torch, problem, recipe
        self.dtype = as_dtype(torch, recipe.dtype)
        self.rate = recipe.learning_rate * recipe.gamma**2 * problem.width
        self.n_threads = affordable_threads(
            recipe.n_runs if recipe.device == "cpu" else 1, self._shared_bytes(), self._bytes_per_run(),
            f"training {recipe.n_runs} {problem.architecture} network(s) of width {problem.width} for "
            f"{recipe.n_steps} steps with PyTorch",
        )  # fmt: skip
        self.test = self.moved(*problem.sample(recipe.n_test, generator(torch, recipe.seed, TEST), held_out=True))
        self.stream = self.moved(*problem.sample(recipe.n_test, generator(torch, recipe.seed, STREAM), held_out=False))
        self.targets = np.zeros((0, 0))
        if recipe.n_probe:
            self.targets = problem.probe_targets(self.test[1][: recipe.n_probe])
        shape = (recipe.n_runs, recipe.steps.size)
        kernels = (recipe.n_runs, recipe.probe_steps.size, recipe.n_probe, recipe.n_probe)
        arrays: dict[str, NDArray[Any]] = {
            "loss": np.full(shape, np.nan),
            "stream_loss": np.full(shape, np.nan),
            "kernels": np.full(kernels, np.nan),
        }
        self.stop = np.zeros(1, dtype=np.uint8)
        store = None if file is None else Checkpoint(file, "training with PyTorch", self.describe())
        stops = np.union1d(recipe.steps, recipe.probe_steps)
        self.ensemble = Ensemble(recipe.n_steps, arrays, self.worker, _CHUNK_STEPS, stops, self.stop, store)

    def worker(self) -> Worker:
        """One thread's network."""
        return Worker(self)

    def run(self, progress: Progress | None) -> DeepNetworkRuns:
        """Train all runs."""
        rate = self.recipe.learning_rate
        advice = f"take a lower learning rate than {rate:g}"
        return self.ensemble.run(self.n_threads, progress, self.result, advice, unfinished=True)

    def _n_parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.problem.shapes().values())

    def _bytes_per_run(self) -> int:
        """Weights before and now, gradients, and those of every probe; activities come on top."""
        size = 4 if self.recipe.dtype == "float32" else 8
        return (4 * size + self.recipe.n_probe * (size + 8)) * self._n_parameters()

    def _shared_bytes(self) -> int:
        recipe = self.recipe
        return 8 * recipe.n_runs * (2 * recipe.steps.size + recipe.probe_steps.size * recipe.n_probe**2)

    def settings(self) -> dict[str, Any]:
        """What numbers depend on beside the recipe."""
        recipe = self.recipe
        return {
            **self.problem.settings,
            "n_test": recipe.n_test,
            "centred": recipe.centred,
            "dtype": recipe.dtype,
            "device": recipe.device,
            "torch": str(self.torch.__version__),
        }

    def describe(self) -> dict[str, Any]:
        """What a checkpoint must agree with: all but the number of runs."""
        problem, recipe = self.problem, self.recipe
        return {
            "architecture": problem.architecture,
            "objective": problem.objective,
            "width": problem.width,
            "gamma": recipe.gamma,
            "learning_rate": recipe.learning_rate,
            "batch_size": recipe.batch_size,
            "n_steps": recipe.n_steps,
            "seed": recipe.seed,
            "record": recipe.steps,
            "n_probe": recipe.n_probe,
            "probe_record": recipe.probe_steps,
            **self.settings(),
        }

    def result(self, runs: NDArray[np.bool_], before: int) -> DeepNetworkRuns | None:
        """What some runs have recorded at steps below `before`; None if nothing."""
        problem, recipe, arrays = self.problem, self.recipe, self.ensemble.arrays
        steps, probe_steps = (a[a < before].copy() for a in (recipe.steps, recipe.probe_steps))
        if not steps.size:
            return None
        return DeepNetworkRuns(
            architecture=problem.architecture,
            width=problem.width,
            gamma=recipe.gamma,
            learning_rate=recipe.learning_rate,
            batch_size=recipe.batch_size,
            objective=problem.objective,
            seed=recipe.seed,
            steps=steps,
            loss=np.ascontiguousarray(arrays["loss"][runs, : steps.size]),
            stream_loss=np.ascontiguousarray(arrays["stream_loss"][runs, : steps.size]),
            probe_steps=probe_steps,
            probe_kernels=np.ascontiguousarray(arrays["kernels"][runs, : probe_steps.size]),
            probe_targets=self.targets.copy(),
            settings=self.settings(),
        )

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
        return float(self.mean_loss(parameters, data, centres))

    def mean_loss(self, parameters: Parameters, data: tuple[Tensor, Tensor], centres: list[Tensor]) -> Tensor:
        """The same, left where it is computed."""
        inputs, targets = data
        total = self.torch.zeros((), dtype=self.torch.float64, device=self.recipe.device)
        with self.torch.no_grad():
            for index, start in enumerate(range(0, len(inputs), CHUNK)):
                part = slice(start, start + CHUNK)
                outputs = (self.problem.apply(parameters, inputs[part]) - centres[index]) / self.recipe.gamma
                total += self.problem.loss(outputs, targets[part]).double() * len(outputs)
        return total / len(inputs)


class Worker:
    """One thread's network, used for one run after the other; see `_ensemble.Worker`."""

    def __init__(self, training: Training) -> None:
        self.training, self.stop = training, training.stop
        self.initial: Parameters = {}
        self.parameters: Parameters = {}
        self.centres: tuple[list[Tensor], list[Tensor]] = [], []
        self._run, self._next = -1, -1
        self._batches: Iterator[tuple[Tensor, Tensor]] = iter(())

    @property
    def state(self) -> Mapping[str, NDArray[Any]]:
        """The parameters."""
        return {name: value.cpu().numpy() for name, value in self.parameters.items()}

    def start(self, run: int) -> bool:
        """Draw the parameters."""
        training = self.training
        self.initial = initial_parameters(training.torch, training.problem, training.recipe, run)
        self.parameters = {name: value.clone() for name, value in self.initial.items()}
        on_test, on_stream = (training.centres(self.initial, data[0]) for data in (training.test, training.stream))
        self.centres = on_test, on_stream
        self._next = -1
        return True

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take the parameters of another state of the run."""
        for name, value in self.parameters.items():
            value.copy_(self.training.torch.from_numpy(state[name]))

    def advance(self, run: int, t_first: int, t_last: int) -> tuple[int, int, float]:
        """Take steps t_first..t_last-1, those before the last step: status and step."""
        training, recipe = self.training, self.training.recipe
        if (run, t_first) != (self._run, self._next):
            sources = Sources(training.torch, recipe.seed, run)
            self._batches = training.problem.batches(recipe.batch_size, sources, t_first)
        for step in range(t_first, min(t_last, recipe.n_steps)):
            if self.stop[0]:
                return STOPPED, step, math.nan
            training.step(self.parameters, self.initial, *training.moved(*next(self._batches)))
        self._run, self._next = run, t_last
        return OK, t_last, math.nan

    def observe(self, run: int, step: int) -> tuple[int, float]:
        """Record the kernel and the losses, whichever are wanted at a step: status, and the loss if it has diverged."""
        training, recipe, arrays = self.training, self.training.recipe, self.training.ensemble.arrays
        place = int(np.searchsorted(recipe.probe_steps, step))
        if place < recipe.probe_steps.size and recipe.probe_steps[place] == step:
            inputs = training.test[0][: recipe.n_probe]
            kernel = empirical_kernel(training.torch, training.problem, self.parameters, inputs)
            arrays["kernels"][run, place] = kernel
        place = int(np.searchsorted(recipe.steps, step))
        if place < recipe.steps.size and recipe.steps[place] == step:
            loss = training.evaluate(self.parameters, training.test, self.centres[0])
            first = loss if place == 0 else float(arrays["loss"][run, 0])
            if not math.isfinite(loss) or loss > _DIVERGED * first:
                return DIVERGED, loss
            arrays["loss"][run, place] = loss
            arrays["stream_loss"][run, place] = training.evaluate(self.parameters, training.stream, self.centres[1])
        return OK, math.nan


def initial_parameters(torch: Any, problem: Problem, recipe: Recipe, run: int) -> Parameters:
    """Standard normal parameters of a run, drawn in float64 whatever the number format."""
    source, dtype = generator(torch, recipe.seed, WEIGHTS, run), as_dtype(torch, recipe.dtype)
    return {
        name: torch.randn(shape, generator=source, dtype=torch.float64).to(as_device(torch, recipe.device), dtype)
        for name, shape in problem.shapes().items()
    }


def empirical_kernel(torch: Any, problem: Problem, parameters: Parameters, inputs: Tensor) -> Array:
    """N (dg_a/dtheta) . (dg_a/dtheta)' averaged over outputs a, between all inputs, as float64.

    g = gamma f, and steps are eta gamma^2 N long: f moves by -eta K (f - y), with this K at step 0.
    """
    kernel: Array = kernel_tensor(torch, problem, parameters, inputs).cpu().numpy()
    # Products of BLAS are not exactly symmetric.
    return 0.5 * (kernel + kernel.T)


def kernel_tensor(torch: Any, problem: Problem, parameters: Parameters, inputs: Tensor) -> Tensor:
    """The same, left where it is computed, and symmetric to rounding."""
    frozen = {name: value.detach() for name, value in parameters.items()}
    with torch.no_grad():
        n_outputs = int(problem.probed(frozen, inputs[:1]).shape[-1])
    kernel = torch.zeros((len(inputs), len(inputs)), dtype=torch.float64, device=inputs.device)
    for output in range(n_outputs):

        def single(values: Parameters, one: Tensor, output: int = output) -> Tensor:
            return problem.probed(values, one[None])[0, output]

        gradient = torch.func.vmap(torch.func.grad(single), in_dims=(None, 0))
        parts = [gradient(frozen, inputs[i : i + CHUNK]) for i in range(0, len(inputs), CHUNK)]
        for name in frozen:
            flat = torch.cat([part[name].reshape(len(part[name]), -1) for part in parts]).double()
            kernel += flat @ flat.T
    return kernel * (problem.width / n_outputs)
