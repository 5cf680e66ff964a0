"""The neural tangent kernel of a finite network, from the gradients of its output for every sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalefield._memory import require_memory
from scalefield._progress import Progress
from scalefield._threads import share, single_threaded_blas, thread_count
from scalefield._validate import as_count, as_float

__all__ = ["empirical_ntk"]

Array = NDArray[np.float64]
Gradients = ArrayLike | Callable[[int, int], ArrayLike]

# Rows of the products that one thread forms at a time.
TILE = 256


def empirical_ntk(
    gradients: Gradients,
    other: Gradients | None = None,
    *,
    n_samples: int | None = None,
    n_other: int | None = None,
    outputs: Literal["full", "average"] = "full",
    scale: float = 1.0,
    memory: int = 2**30,
    progress: Progress | None = None,
) -> Array:
    r"""Scalar products of the gradients of a network's outputs with respect to its parameters.

    .. math::
        K_{ab}(x, x') = s \sum_p \frac{\partial f_a(x)}{\partial\theta_p} \frac{\partial f_b(x')}{\partial\theta_p}

    Parameters
    ----------
    gradients : array_like, or callable
        Shape (n, parameters), or (n, outputs, parameters) for several outputs; any real dtype, memory-mapped arrays
        included. A callable takes (start, stop) and returns the gradients of samples start..stop-1 in that shape.
    other : array_like or callable, optional
        Gradients of other samples; those of `gradients` itself if None, and then the kernel is exactly symmetric.
    n_samples, n_other : int, optional
        Number of samples, needed for callables (and only for these).
    outputs : {"full", "average"}
        For several outputs: every pair, or the mean over equal ones, :math:`\sum_a K_{aa}/O`, which is the kernel that
        all outputs share as the width grows.
    scale : float
        s > 0. Gradients of the NTK parameterisation need none; of f = h/(gamma sqrt(N)) it is gamma^2 N.
    memory : int
        Bytes that blocks of gradients may take, as float64.
    progress : callable, optional
        Called with the pairs of samples finished and their total.

    Returns
    -------
    ndarray, float64
        Shape (n, m), or (n, m, outputs, outputs) for several outputs and "full".

    Raises
    ------
    TypeError, ValueError
        For gradients that are not finite real numbers, shapes that do not fit together, or missing numbers of samples.
    InsufficientMemoryError
        If the kernel does not fit into memory.

    Notes
    -----
    O(n m P) operations in double precision, whatever the dtype. Samples are taken in blocks of which two fit into
    `memory`; a callable is called once for each block of samples and each block before it, so one block that holds all
    costs each gradient once. The result does not depend on the number of threads.

    Examples
    --------
    >>> import numpy as np
    >>> import scalefield as sf
    >>> gradients = np.array([[1.0, 2.0], [0.0, 1.0], [3.0, -1.0]])
    >>> sf.kernels.empirical_ntk(gradients)
    array([[ 5.,  2.,  1.],
           [ 2.,  1., -1.],
           [ 1., -1., 10.]])
    >>> sf.kernels.empirical_ntk(lambda start, stop: gradients[start:stop], n_samples=3)[0]
    array([5., 2., 1.])
    """
    if outputs not in ("full", "average"):
        raise ValueError(f"outputs must be 'full' or 'average', got {outputs!r}")
    scale = as_float("scale", scale, minimum=0.0, exclusive=True)
    memory = as_count("memory", memory)
    rows = _Samples("gradients", gradients, "n_samples", n_samples)
    if other is None and n_other is not None:
        raise ValueError("n_other goes with other, got no other")
    columns = rows if other is None else _Samples("other", other, "n_other", n_other)
    if rows.shape != columns.shape:
        raise ValueError(
            f"gradients and other must agree in outputs and parameters, got shapes {rows.shape} and {columns.shape}"
        )
    symmetric = columns is rows
    n_outputs, n_parameters = rows.shape if len(rows.shape) == 2 else (1, rows.shape[0])
    several = len(rows.shape) == 2
    averaged = outputs == "average" or not several
    pairs = 1 if averaged else n_outputs * n_outputs
    require_memory(8 * rows.n * columns.n * pairs, f"a kernel between {rows.n} and {columns.n} samples")
    size = max(1, memory // (16 * n_outputs * n_parameters))
    result = np.empty((rows.n, columns.n, 1 if averaged else n_outputs, 1 if averaged else n_outputs))

    def product(left: Array, right: Array, start: int, first: int, mirrored: bool) -> None:
        """Blocks of shape (samples, outputs, parameters), tile by tile."""
        across = range(0, right.shape[0], TILE)
        tiles = [(i, j) for i in range(0, left.shape[0], TILE) for j in across if not mirrored or j >= i]

        def tile(index: int) -> None:
            i, j = tiles[index]
            a, b = left[i : i + TILE], right[j : j + TILE]
            if averaged:
                mean = np.zeros((a.shape[0], b.shape[0]))
                for o in range(n_outputs):
                    mean += a[:, o] @ b[:, o].T
                value = mean[:, :, None, None] * (scale / n_outputs)
            else:
                flat = a.reshape(-1, n_parameters) @ b.reshape(-1, n_parameters).T
                value = scale * flat.reshape(a.shape[0], n_outputs, b.shape[0], n_outputs).transpose(0, 2, 1, 3)
            here, there = slice(start + i, start + i + a.shape[0]), slice(first + j, first + j + b.shape[0])
            if mirrored and i == j:
                # Products of BLAS are not exactly symmetric: the upper triangle counts.
                flat = np.ascontiguousarray(value.transpose(0, 2, 1, 3)).reshape(a.shape[0] * value.shape[2], -1)
                flat = np.triu(flat) + np.triu(flat, 1).T
                value = flat.reshape(a.shape[0], value.shape[2], b.shape[0], -1).transpose(0, 2, 1, 3)
            result[here, there] = value
            if symmetric and not (mirrored and i == j):
                result[there, here] = value.transpose(1, 0, 3, 2)

        share(tile, len(tiles), thread_count())

    total = rows.n * (rows.n + 1) // 2 if symmetric else rows.n * columns.n
    done = 0
    with single_threaded_blas():
        for start in range(0, rows.n, size):
            left = rows.block(start, min(start + size, rows.n))
            for first in range(start if symmetric else 0, columns.n, size):
                same = symmetric and first == start
                right = left if same else columns.block(first, min(first + size, columns.n))
                product(left, right, start, first, same)
                done += left.shape[0] * (left.shape[0] + 1) // 2 if same else left.shape[0] * right.shape[0]
                if progress is not None:
                    progress(done, total)
    return result[:, :, 0, 0] if averaged else result


class _Samples:
    """Gradients of n samples, given whole or made block by block; `shape` is that of one sample's."""

    def __init__(self, name: str, source: Any, count_name: str, count: int | None) -> None:
        self.name, self.source = name, source
        if callable(source):
            if count is None:
                raise ValueError(f"{count_name} must be given where {name} is a callable")
            self.n = as_count(count_name, count)
            self.shape = self._load(0, 1).shape[1:]
        else:
            if count is not None:
                raise ValueError(f"{count_name} goes with a callable, got {count!r} with an array")
            self.source = array = np.asarray(source)
            if array.ndim not in (2, 3) or 0 in array.shape:
                raise ValueError(
                    f"{name} must have the shape (samples, parameters) or (samples, outputs, parameters), with at "
                    f"least one of each, got {array.shape}"
                )
            self.n, self.shape = array.shape[0], array.shape[1:]

    def _load(self, start: int, stop: int) -> NDArray[Any]:
        raw = np.asarray(self.source(start, stop)) if callable(self.source) else self.source[start:stop]
        if raw.ndim not in (2, 3) or raw.shape[0] != stop - start or 0 in raw.shape:
            raise ValueError(
                f"{self.name}({start}, {stop}) must have the shape ({stop - start}, parameters) or "
                f"({stop - start}, outputs, parameters), got {raw.shape}"
            )
        return raw

    def block(self, start: int, stop: int) -> Array:
        """Gradients of samples start..stop-1 as float64, shape (samples, outputs, parameters)."""
        raw = self._load(start, stop)
        if raw.dtype.kind not in "iuf":
            raise TypeError(f"{self.name} must hold real numbers, got dtype {raw.dtype}")
        if raw.shape[1:] != self.shape:
            raise ValueError(f"{self.name} must keep its shape {self.shape} for every sample, got {raw.shape[1:]}")
        block = np.ascontiguousarray(raw, dtype=np.float64).reshape(stop - start, -1, self.shape[-1])
        if not math.isfinite(float(block.sum())) and not np.isfinite(block).all():
            sample = start + int(np.argmax(~np.isfinite(block).all(axis=(1, 2))))
            raise ValueError(f"{self.name} must be finite, got a gradient that is not for sample {sample}")
        return block
