r"""Multilayer perceptrons on the circle, lazy to rich (Sec. 5.1, App. A.1; theory section 11)."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import ArrayLike

from scalefield._checkpoint import CheckpointFile, seed_or_stored
from scalefield._progress import Progress
from scalefield._steps import as_steps, few_steps, recorded_steps
from scalefield._validate import as_count, as_counter, as_float, as_seed
from scalefield.networks.circle_results import MultilayerTraining
from scalefield.networks.circle_task import CircleTask
from scalefield.networks.circle_training import Plan, Training

__all__ = ["train_multilayer"]

_DTYPES = ("float64", "float32")
# Log-spaced steps whose loss, and whose kernel, is recorded beside step 0.
_LOG_STEPS = 60
_KERNEL_STEPS = 12


def train_multilayer(
    task: CircleTask,
    depth: int = 2,
    width: int = 512,
    activation_power: float = 1.0,
    gamma: float = 1.0,
    learning_rate: float = 0.05,
    batch_size: int = 128,
    n_steps: int = 10_000,
    n_seeds: int = 1,
    seed: int | None = None,
    record: str | ArrayLike = "log",
    *,
    kernel_points: int | None = None,
    kernel_steps: ArrayLike | None = None,
    n_test: int = 4096,
    dtype: str = "float64",
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 60.0,
    progress: Progress | None = None,
) -> MultilayerTraining:
    r"""Train multilayer perceptrons on a task on the circle by online SGD.

    With z = (cos theta, sin theta), L hidden layers of width N, phi(h) = c relu(h)^q, c^2 = 2, 2/3, 2/15 for q = 1, 2,
    3, and standard normal initial weights,

    .. math::
        h^1 = W^0 z, \quad h^{l+1} = \tfrac{1}{\sqrt N} W^l \phi(h^l), \quad
        F = \tfrac{1}{\gamma N} w \cdot \phi(h^L), \quad f = F - F_0 ,

    and each step takes B fresh angles, uniform on the circle, and moves all weights by

    .. math:: \eta \gamma^2 N \, \tfrac{1}{B} \sum_b (y_b - f_b)\, \nabla F(\theta_b) .

    This is the mean-field (muP) parameterisation. The first steps are the same for every gamma, up to O(gamma): those
    of a kernel that tends to ``InfiniteWidthKernel("relu", power=q, depth=L)`` as N grows. Weights then move by
    O(gamma), so that gamma -> 0 is lazy. At fixed gamma and large N, features move by an amount that does not depend
    on N.

    Parameters
    ----------
    task : CircleTask
        The target.
    depth, width : int
        Hidden layers L >= 1, and units in each, N >= 2. With one layer half of the frequencies cannot be learned
        lazily (their eigenvalues are 0 by parity).
    activation_power : float
        q of relu^q, at least 1.
    gamma : float
        Richness > 0.
    learning_rate : float
        eta > 0; tau = eta x step is the time of gradient flow. Stable, at first, below 2 over the kernel's largest
        eigenvalue (3 for relu and two layers: 2/1.38), and less as the kernel grows.
    batch_size : int
        B, fresh samples a step.
    n_steps, n_seeds : int
        Steps, and independent runs (initial weights and samples).
    seed : int, optional
        In [0, 2^63). Run r of a seed has the same numbers whatever `n_seeds` and the number of threads. None draws a
        seed, which the result tells, or takes that of the checkpoint.
    record : {"log", "all"} or array_like of int
        Steps whose test loss is kept: 0 and 60 log-spaced ones (default), all, or increasing steps from 0 to n_steps.
    kernel_points : int, optional
        Equally spaced angles at which the empirical neural tangent kernel is recorded; none if None.
    kernel_steps : array_like of int, optional
        Steps whose kernel is recorded; by default 0 and about 12 log-spaced ones.
    n_test : int
        Equally spaced angles on which the test loss is taken.
    dtype : {"float64", "float32"}
        Of weights and activities; targets, outputs' centres and losses are in double precision. Single precision is
        twice as fast and rounds weights by 6e-8 a step: enough for gamma of 0.1 or more, where steps are far larger.
    checkpoint : path, optional
        A file to write the state to now and then, and to go on from if it is there: the same call, after whatever
        ended it, continues to the last bit on the same machine. More runs may be asked for than it holds.
    checkpoint_every : float
        Seconds between two writings (default 60).
    progress : callable, optional
        Called from this thread about ten times a second as ``progress(done, total)``, in steps summed over runs.

    Returns
    -------
    MultilayerTraining

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described.
    InsufficientMemoryError
        If a single run does not fit into the available memory.
    DivergenceError
        If a batch's loss is not finite or exceeds 1e12 mean_square; `step` is the earliest such step of all runs,
        `partial` holds what all runs have recorded up to it, or is None.
    Interrupted
        On Ctrl-C; `partial` holds the runs finished by then, in order; or the one that came furthest, as far as it
        came; or is None.
    ScalefieldError
        If the checkpoint is damaged or belongs to another call.

    Warns
    -----
    CheckpointWarning
        If a checkpoint could not be written; training goes on.

    Notes
    -----
    6 (L - 1) N^2 B operations a step, by BLAS, one run a thread; and 2 (L - 1) N^2 n_test for each recorded step.
    Memory a thread: (L - 1) N^2 weights and (2 L + 1) N (B + 256) activities; fewer threads if memory asks. Kernels:
    n^2 numbers each.

    The target is evaluated to 1e-11 by a non-uniform Fourier transform, at 14 points an angle whatever the number of
    modes. F_0 is interpolated between 2^14 angles where gamma N >= 100, to a few 1e-6, and computed at every sample
    elsewhere, at a third of a step's cost; on the test grid it is exact. The test loss takes the target's frequencies
    below n_test/2 on the grid and adds the power of the others, which no network has learned: right to 1e-4 as long
    as frequencies near n_test/2 are not learned, eta t lambda_k << 1.

    Results do not depend on the number of threads. On another machine, whose BLAS sums in another order, they differ
    by rounding, which training amplifies.

    References
    ----------
    Bordelon, Atanasov & Pehlevan, arXiv:2409.17858, Sec. 5.1 and App. A.1.

    Examples
    --------
    >>> import scalefield as sf
    >>> task = sf.networks.CircleTask(1.0, n_modes=255)
    >>> training = sf.networks.train_multilayer(task, width=32, n_steps=50, batch_size=16, n_seeds=2, seed=0)
    >>> training.loss.shape, bool(training.mean[-1] < 0.5 * training.mean[0])
    ((2, 34), True)
    """
    file = CheckpointFile.checked(checkpoint, checkpoint_every)
    plan = _plan(
        task, depth, width, activation_power, gamma, learning_rate, batch_size, n_steps, n_seeds,
        seed_or_stored(seed, file), record, kernel_points, kernel_steps, n_test, dtype,
    )  # fmt: skip
    training = Training(plan, file)
    advice = f"learning_rate {plan.learning_rate:g}, gamma {plan.gamma:g}: a smaller learning rate may be stable"
    return training.ensemble.run(training.n_threads, progress, training.result, advice, unfinished=True)


def _plan(
    task: CircleTask,
    depth: int,
    width: int,
    activation_power: float,
    gamma: float,
    learning_rate: float,
    batch_size: int,
    n_steps: int,
    n_seeds: int,
    seed: int | None,
    record: str | ArrayLike,
    kernel_points: int | None,
    kernel_steps: ArrayLike | None,
    n_test: int,
    dtype: str,
) -> Plan:
    """Check everything once."""
    if not isinstance(task, CircleTask):
        raise TypeError(f"task must be a CircleTask, got {task!r} of type {type(task).__name__}")
    depth, width = as_count("depth", depth), as_count("width", width, minimum=2)
    n_steps, n_seeds = as_counter("n_steps", n_steps), as_counter("n_seeds", n_seeds)
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    steps = recorded_steps(record, n_steps, few_steps(n_steps, _LOG_STEPS))
    observed = np.zeros(0, dtype=np.int64)
    if kernel_points is not None:
        kernel_points = as_count("kernel_points", kernel_points, minimum=3)
        observed = few_steps(n_steps, _KERNEL_STEPS)
        if kernel_steps is not None:
            observed = as_steps("kernel_steps", kernel_steps, n_steps)
    elif kernel_steps is not None:
        raise ValueError("kernel_steps goes with kernel_points, got no kernel_points")
    return Plan(
        task,
        depth,
        width,
        as_float("activation_power", activation_power, minimum=1.0),
        as_float("gamma", gamma, minimum=0.0, exclusive=True),
        as_float("learning_rate", learning_rate, minimum=0.0, exclusive=True),
        as_count("batch_size", batch_size),
        n_steps,
        n_seeds,
        as_seed("seed", seed),
        as_count("n_test", n_test, minimum=4),
        dtype,
        kernel_points or 0,
        steps,
        observed,
    )
