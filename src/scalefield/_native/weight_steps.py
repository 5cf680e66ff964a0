"""Products of rows, and the update of readout and mixing matrix: what literal and reduced training steps share.

Arrays are in double or single precision; scalars and sums are in double precision.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scalefield._native.jit import byte_vector, float64, int64, jit, matrix32, precisions, vector32, void

__all__ = ["DIVERGED", "OK", "STOPPED", "add_chosen_rows", "add_rows", "add_scaled", "dot", "dot_rows", "update_rows"]

Array = NDArray[np.float64]
Rows = NDArray[np.float64] | NDArray[np.float32]

# Status of a kernel.
OK = 0
DIVERGED = 1
STOPPED = 2

# Sums may be reordered, at the cost of rounding errors that depend on the machine's vector width: a sum cannot
# be vectorised otherwise (measured with AVX2: dot products 2.5 to 6 times slower). Fusing products gains nothing.
_SUMS = ("reassoc",)


# Rows and vectors in one precision, or rows in single and vectors in double precision: A(0).
_products = tuple((vector, matrix, vector) for vector, matrix in precisions)
_products += ((vector32, matrix32, precisions[0][0]),)


@jit([float64(row, vector) for row, _, vector in _products], fastmath=_SUMS)
def dot(x: Rows, y: Array) -> float:
    total = 0.0
    for i in range(x.size):
        total += x[i] * y[i]
    return total


@jit([void(int64, matrix, vector, vector) for _, matrix, vector in _products], fastmath=_SUMS)
def dot_rows(k: int, rows: Rows, x: Array, y_out: Array) -> None:
    """y_out[k:k+4] = rows[k:k+4] . x; four rows at once load x once."""
    t0, t1, t2, t3 = 0.0, 0.0, 0.0, 0.0
    for i in range(x.size):
        t0 += rows[k, i] * x[i]
        t1 += rows[k + 1, i] * x[i]
        t2 += rows[k + 2, i] * x[i]
        t3 += rows[k + 3, i] * x[i]
    y_out[k] = t0
    y_out[k + 1] = t1
    y_out[k + 2] = t2
    y_out[k + 3] = t3


@jit([void(float64, row, vector) for row, _, vector in _products])
def add_scaled(a: float, x: Rows, y_out: Array) -> None:
    for i in range(x.size):
        y_out[i] += a * x[i]


@jit([void(*[int64] * 7, matrix, vector, vector) for _, matrix, vector in _products], inline=True)
def add_chosen_rows(
    i0: int, i1: int, i2: int, i3: int, left: int, right: int, a_first: int, rows: Rows, a: Array, y_out: Array
) -> None:
    """y_out += sum_j a[a_first+j] rows[i_j, left:right] over j < 4; four rows at once load and store y once."""
    a0, a1, a2, a3 = a[a_first], a[a_first + 1], a[a_first + 2], a[a_first + 3]
    # Slices, since an index of unknown sign (left + i) is checked for wrapping round and stops vectorisation.
    x0, x1, x2, x3 = rows[i0, left:right], rows[i1, left:right], rows[i2, left:right], rows[i3, left:right]
    for i in range(y_out.size):
        y_out[i] += (a0 * x0[i] + a1 * x1[i]) + (a2 * x2[i] + a3 * x3[i])


@jit([void(int64, int64, int64, int64, matrix, vector, vector) for _, matrix, vector in _products])
def add_rows(top: int, left: int, right: int, a_first: int, rows: Rows, a: Array, y_out: Array) -> None:
    """y_out += sum_j a[a_first+j] rows[top+j, left:right] over j < 4."""
    add_chosen_rows(top, top + 1, top + 2, top + 3, left, right, a_first, rows, a, y_out)


@jit([void(float64, float64, vector, vector, vector) for vector, matrix in precisions])
def move_row(gain_w: float, w_new: float, v2: Array, row_out: Array, sum_out: Array) -> None:
    """One row of G and its part of N theta."""
    for j in range(v2.size):
        # G <- G + (eta gamma / N) w_old v2^T ; N theta = G^T w with the new G and w
        entry = row_out[j] + gain_w * v2[j]
        row_out[j] = entry
        sum_out[j] += w_new * entry


@jit([void(*[int64] * 2, *[vector] * 2, *[float64] * 2, matrix, vector, byte_vector) for vector, matrix in precisions])
def update_rows(
    first: int,
    last: int,
    v2: Array,
    w_out: Array,
    learning_rate: float,
    gain: float,
    mixing_out: Array,
    sum_out: Array,
    stop: NDArray[np.uint8],
) -> None:
    """Rows first..last-1 of w and G after one step, and their part of N theta = G^T w, in one pass; gain = eta gamma/N.

    Without G (shape (0, 0)) sum_out is N theta = w itself, at these rows.
    """
    if mixing_out.shape[0] == 0:
        for i in range(first, last):
            w_out[i] += learning_rate * v2[i]
            sum_out[i] = w_out[i]
        return
    for i in range(sum_out.size):
        sum_out[i] = 0.0
    for i in range(first, last):
        if stop[0] != 0:
            return
        row = mixing_out[i]
        old = w_out[i]
        # w <- w + eta G v2
        w_out[i] = old + learning_rate * dot(row, v2)
        move_row(gain * old, w_out[i], v2, row, sum_out)
