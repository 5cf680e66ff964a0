r"""Training steps of the model itself on a CUDA device.

The same step as in `literal_steps`, theory section 1 with A(t) = G(t) A(0):

.. math::
    u_k = \sqrt{\lambda_k} (w^*_k - A(0)_k \cdot \theta), \qquad L = \sum_k u_k^2, \qquad
    e_b = \sum_k \xi_{bk} u_k + \sigma \epsilon_b

    v_{1k} = \frac{\sqrt{\lambda_k}}{B} \sum_b \xi_{bk} e_b \quad (B = \infty: v_{1k} = \sqrt{\lambda_k} u_k), \qquad
    v_2 = \sum_k A(0)_k v_{1k}

    w \leftarrow w + \eta G v_2, \qquad G \leftarrow G + \frac{\eta\gamma}{N} w_{old} v_2^T, \qquad
    \theta = G^T w / N

A step is a sequence of kernels on one stream and the host waits for none of them:

=====================  ==========================================  =========================================
kernel                 does                                        words read or written (of 4 or 8 bytes)
=====================  ==========================================  =========================================
`project`              u (or v_1 at B = inf), loss                 N M of 4 bytes, or none if A(0) is made on the fly
`sum_loss`             L, divergence                               chunks
`residuals`, `sum`     e, with xi from its counter                 M
`add_noise`            + sigma eps                                 B
`gradient`             v_1, with the same xi                       2 M
`back_project`, `sum`  v_2                                         N M, and 2 N chunks
`move`                 w, theta at gamma = 0                       3 N
`mix`                  w at gamma > 0                              N^2
`turn`, `sum`          G, theta at gamma > 0                       2 N^2, and 2 N chunks
`descend`, `sum`       u, loss and v_2 in one pass, at B = inf     N M, and 2 N chunks
=====================  ==========================================  =========================================

So a step streams A(0) twice, or once at B = inf, where a mode's v_1 needs nothing of the other modes and its row
waits in registers (N up to 4,096, in float64 2,048; wider models take two passes). Twice is 2 N M words, 32 GB at
N = 4,096, M = 10^6 in float32; everything else together is below 1% of that (at most `MOST_CHUNKS` partial sums, each
over many modes).

The streaming kernels read A(0) in accesses of 16 bytes, neighbouring threads next to each other, eight rows at a time:
128 bytes in flight a thread, 32 KiB a block of 256 threads, and registers are bounded so that four such blocks share a
multiprocessor: three times what 3.4 TB/s on 132 multiprocessors with a latency of 1 microsecond ask for (26 KB each),
so that blocks which wait at a barrier leave enough on its way. theta and v_1 come from the first-level cache. If A(0)
does not fit, its entries are made anew in registers from their counters, about 70 instructions each.

Layout: rows of `n_quads` groups of four entries, one row a mode, ``projection[4 (k n_quads + q) + j]`` =
A(0)[4 q + j, k]; vectors over features are padded to 4 n_quads, those over modes and the rows of matrices to a
multiple of ROWS. theta, v_2 and w are zero in the padding, so are sqrt(lambda), u and v_1; entries of A(0) there are
finite and never count. A group of four is also what one counter of the random streams gives.

Sums: work is cut by its size alone, every partial sum is written to its own place, and sums over partial sums have a
fixed order. Results are therefore the same, bit for bit, from run to run and on every device with the same
arithmetic, and for A(0) stored or made on the fly. No atomics.

Indices: k modes, q groups of four, b samples, i features.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from scalefield._native.gpu import (
    Kernel,
    array_of,
    cuda,
    device,
    int64,
    load4,
    scalar_type,
    store4,
    uint32,
)
from scalefield._native.gpu_rng import normals

__all__ = ["ROWS", "SUM_SLICES", "LiteralKernels", "Shape", "descend_kernel", "literal_kernels"]

# Modes whose errors a block finishes together.
ROWS = 16
# Partial sums of the same kind added by one thread: one of this many interleaved parts.
SUM_SLICES = 8
# Blocks of a streaming kernel, at most: enough to fill any device many times over, few enough for their partial sums
# not to matter.
MOST_CHUNKS = 2048
# Threads of a block, at least (one warp) and at most.
LEAST_THREADS = 32
MOST_THREADS = 256
# Threads of a block of `descend`, at most: as many as have registers for two times four rows.
WIDEST = {"float32": 1024, "float64": 512}


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _power_of_two(n: int) -> int:
    """Return the smallest power of two not below n."""
    return 1 << max(0, n - 1).bit_length()


@dataclass(frozen=True)
class Shape:
    """All launch arithmetic of a literal run: threads, grids and the sizes of the arrays.

    Parameters
    ----------
    n_modes, width : int
        M and N.
    batch : int
        B; 0 for the population gradient.
    rich : bool
        Whether G is kept.
    dtype : str
        "float32" or "float64".
    """

    n_modes: int
    width: int
    batch: int
    rich: bool
    dtype: str

    @property
    def n_quads(self) -> int:
        """Groups of four features in a row."""
        return _ceil_div(self.width, 4)

    @property
    def padded_width(self) -> int:
        """Entries of a vector over features."""
        return 4 * self.n_quads

    @property
    def padded_modes(self) -> int:
        """Entries of a vector over modes and rows of A(0)."""
        return ROWS * _ceil_div(self.n_modes, ROWS)

    @property
    def padded_rows(self) -> int:
        """Rows of G."""
        return ROWS * _ceil_div(self.width, ROWS)

    @property
    def padded_batch(self) -> int:
        """Entries of a vector over samples."""
        return 4 * _ceil_div(self.batch, 4)

    @property
    def threads(self) -> int:
        """Threads of a block, the same for all kernels but `descend`."""
        return min(MOST_THREADS, max(LEAST_THREADS, _power_of_two(self.n_quads)))

    @property
    def wide_threads(self) -> int:
        """Threads of a block of `descend`: one a group of four features."""
        return max(LEAST_THREADS, _power_of_two(self.n_quads))

    @property
    def single_pass(self) -> bool:
        """Whether one pass over A(0) serves both products of a step."""
        return self.batch == 0 and self.wide_threads <= WIDEST[self.dtype]

    @property
    def projection_streams(self) -> int:
        """How often a step reads A(0), or makes it."""
        return 1 if self.single_pass else 2

    def blocks(self, n_items: int) -> int:
        """Blocks for one thread an item."""
        return _ceil_div(n_items, self.threads)

    @property
    def mode_chunk(self) -> int:
        """Modes of a block of `project` and `back_project`."""
        return ROWS * _ceil_div(_ceil_div(self.n_modes, MOST_CHUNKS), ROWS)

    @property
    def n_mode_chunks(self) -> int:
        """Partial losses and partial v_2."""
        return _ceil_div(self.n_modes, self.mode_chunk)

    @property
    def row_chunk(self) -> int:
        """Rows of G of a block of `turn`."""
        return ROWS * _ceil_div(_ceil_div(self.width, max(1, MOST_CHUNKS // 8)), ROWS)

    @property
    def n_row_chunks(self) -> int:
        """Partial theta."""
        return _ceil_div(self.width, self.row_chunk)

    @property
    def column_groups(self) -> int:
        """Blocks side by side for one thread a group of four features."""
        return self.blocks(self.n_quads)

    @property
    def sample_lanes(self) -> int:
        """Samples of a block of `residuals`."""
        return min(self.threads, _power_of_two(self.batch))

    @property
    def sample_groups(self) -> int:
        """Blocks of `residuals` side by side."""
        return _ceil_div(self.batch, self.sample_lanes)

    @property
    def sample_chunk(self) -> int:
        """Groups of four modes of a block of `residuals`: some for every thread, and no more than 1024 chunks."""
        slices = self.threads // self.sample_lanes
        return max(4 * slices, _ceil_div(self.padded_modes // 4, MOST_CHUNKS // 2))

    @property
    def n_sample_chunks(self) -> int:
        """Partial residuals."""
        return _ceil_div(self.padded_modes // 4, self.sample_chunk)

    def sum_blocks(self, n_columns: int) -> int:
        """Blocks of `sum_rows`."""
        return _ceil_div(n_columns, self.threads // SUM_SLICES)

    @property
    def row_blocks(self) -> int:
        """Blocks of `mix`."""
        return self.padded_rows // ROWS

    @property
    def projection_size(self) -> int:
        """Entries of A(0) with its padding."""
        return self.padded_modes * self.padded_width

    @property
    def mixing_size(self) -> int:
        """Entries of G with its padding; 0 if it is not kept."""
        return self.padded_rows * self.padded_width if self.rich else 0

    @property
    def partials_size(self) -> int:
        """Entries of the array that all partial sums but the losses share."""
        rows = max(self.n_mode_chunks, self.n_row_chunks if self.rich else 0)
        return max(rows * self.padded_width, self.n_sample_chunks * self.batch if self.batch else 0)

    @property
    def others_size(self) -> int:
        """Entries of everything but A(0): G, partial sums, and the vectors.

        The vectors are target, sqrt(lambda), u and v_1; theta, v_2 and w twice; e; partial losses.
        """
        vectors = 4 * self.padded_modes + 4 * self.padded_rows + self.padded_batch + self.n_mode_chunks
        return self.mixing_size + self.partials_size + vectors


@dataclass(frozen=True)
class LiteralKernels:
    """The kernels of a literal run in one precision and block size."""

    fill_projection: Kernel
    reset_mixing: Kernel
    project: Kernel
    sum_loss: Kernel
    residuals: Kernel
    sum_rows: Kernel
    add_noise: Kernel
    gradient: Kernel
    back_project: Kernel
    move: Kernel
    mix: Kernel
    turn: Kernel


@device
def dot4(a: Any, x: Any) -> Any:
    """Product of two groups of four."""
    return (a[0] * x[0] + a[1] * x[1]) + (a[2] * x[2] + a[3] * x[3])


@cache
def _entries(dtype: str, stored: bool) -> Any:
    """Return the device function that gives A(0)_k at features 4 quad .. 4 quad + 3."""
    four_normals = normals(dtype)
    word, single, real = np.uint32, np.float32, np.dtype(dtype).type

    def load(projection: Any, key0: Any, key1: Any, run: Any, k: Any, quad: Any, n_quads: Any) -> Any:
        a = load4(projection, 4 * (k * n_quads + quad))
        return real(a[0]), real(a[1]), real(a[2]), real(a[3])

    def make(projection: Any, key0: Any, key1: Any, run: Any, k: Any, quad: Any, n_quads: Any) -> Any:
        a = four_normals(key0, key1, word(quad), word(k), run, word(0))
        # Entries of A(0) are rounded to single precision, as where they are stored.
        return real(single(a[0])), real(single(a[1])), real(single(a[2])), real(single(a[3]))

    return device(load if stored else make)


@cache
def descend_kernel(dtype: str, threads: int, stored: bool) -> Kernel:
    """Return the kernel `descend` for a block size, one thread a group of four features."""
    real = np.dtype(dtype).type
    real_type = scalar_type(dtype)
    vector = array_of(dtype)
    zero = real(0.0)
    entries = _entries(dtype, stored)
    # Parts in which the partial dot products of a row are added.
    segments = min(32, threads // 4)
    terms = threads // segments
    pitch = threads + segments
    partials_size = 4 * pitch
    parts_pitch = segments + 1
    parts_size = 4 * parts_pitch

    def descend(
        projection: Any,
        key0: Any,
        key1: Any,
        run: Any,
        n_modes: Any,
        n_quads: Any,
        chunk: Any,
        theta: Any,
        target: Any,
        root: Any,
        partials_out: Any,
        losses_out: Any,
    ) -> None:
        """u, the loss and v_2 of the population gradient over a chunk of modes, from one pass over A(0).

        A block holds four whole rows in its threads' registers while their errors are summed, and the next four
        are on their way meanwhile.
        """
        partials = cuda.shared.array(partials_size, real_type)
        parts = cuda.shared.array(parts_size, real_type)
        gradients = cuda.shared.array(4, real_type)
        thread = cuda.threadIdx.x
        # Threads beyond the row repeat its last group, with theta = 0 and nothing written.
        quad = min(thread, n_quads - 1)
        first = cuda.blockIdx.x * chunk
        last = min(first + chunk, n_modes)
        x = load4(theta, 4 * quad)
        if thread >= n_quads:
            x = (zero, zero, zero, zero)
        s0, s1, s2, s3 = zero, zero, zero, zero
        loss = zero
        row = thread // segments
        segment = thread - row * segments
        n0 = entries(projection, key0, key1, run, first, quad, n_quads)
        n1 = entries(projection, key0, key1, run, first + 1, quad, n_quads)
        n2 = entries(projection, key0, key1, run, first + 2, quad, n_quads)
        n3 = entries(projection, key0, key1, run, first + 3, quad, n_quads)
        for top in range(first, last, 4):
            a0, a1, a2, a3 = n0, n1, n2, n3
            # After the last rows the same ones again.
            ahead = top + 4 if top + 4 < last else top
            n0 = entries(projection, key0, key1, run, ahead, quad, n_quads)
            n1 = entries(projection, key0, key1, run, ahead + 1, quad, n_quads)
            n2 = entries(projection, key0, key1, run, ahead + 2, quad, n_quads)
            n3 = entries(projection, key0, key1, run, ahead + 3, quad, n_quads)
            # A(0)_k . theta
            partials[thread] = dot4(a0, x)
            partials[pitch + thread] = dot4(a1, x)
            partials[2 * pitch + thread] = dot4(a2, x)
            partials[3 * pitch + thread] = dot4(a3, x)
            cuda.syncthreads()
            if row < 4:
                total = zero
                for j in range(terms):
                    total += partials[row * pitch + j * segments + segment]
                parts[row * parts_pitch + segment] = total
            cuda.syncthreads()
            if thread < 4:
                v3 = zero
                for j in range(segments):
                    v3 += parts[thread * parts_pitch + j]
                k = top + thread
                # u_k = sqrt(lambda_k) (w*_k - A(0)_k . theta) ; L = sum_k u_k^2 ; v1_k = sqrt(lambda_k) u_k
                u = root[k] * (target[k] - v3)
                loss += u * u
                gradients[thread] = root[k] * u
            cuda.syncthreads()
            # v2 += A(0)_k v1_k
            v0, v1, v2, v3 = gradients[0], gradients[1], gradients[2], gradients[3]
            s0 += (a0[0] * v0 + a1[0] * v1) + (a2[0] * v2 + a3[0] * v3)
            s1 += (a0[1] * v0 + a1[1] * v1) + (a2[1] * v2 + a3[1] * v3)
            s2 += (a0[2] * v0 + a1[2] * v1) + (a2[2] * v2 + a3[2] * v3)
            s3 += (a0[3] * v0 + a1[3] * v1) + (a2[3] * v2 + a3[3] * v3)
        if thread < n_quads:
            store4(partials_out, 4 * (cuda.blockIdx.x * n_quads + quad), s0, s1, s2, s3)
        if thread < 4:
            parts[thread] = loss
        cuda.syncthreads()
        if thread == 0:
            losses_out[cuda.blockIdx.x] = (parts[0] + parts[1]) + (parts[2] + parts[3])

    # 64 registers a thread fill a multiprocessor with 1,024 threads in float32, 128 with 512 in float64.
    bounds = (threads, max(1, WIDEST[dtype] // threads)) if stored else (threads, 1)
    return Kernel(
        descend, array_of("float32"), uint32, uint32, uint32, *[int64] * 3, *[vector] * 5, bounds=bounds
    )


@cache
def literal_kernels(dtype: str, threads: int, stored: bool) -> LiteralKernels:
    """Return the kernels for float32 or float64, a block size, and A(0) stored or made on the fly."""
    real = np.dtype(dtype).type
    real_type = scalar_type(dtype)
    double = scalar_type("float64")
    vector, projection_vector = array_of(dtype), array_of("float32")
    zero, one = real(0.0), real(1.0)
    four_normals = normals(dtype)
    word, single = np.uint32, np.float32
    # Parts in which the `threads` partial dot products of a row are added.
    segments = threads // ROWS
    # Rows of partial dot products, shifted against each other so that a warp's accesses fall into different banks.
    pitch = threads + segments
    partials_size = ROWS * pitch
    parts_pitch = segments + 1
    parts_size = ROWS * parts_pitch
    sum_columns = threads // SUM_SLICES

    # ------------------------------------------------------------------------------------- device functions

    entries = _entries(dtype, stored)

    def make_row_dot(entries: Any) -> Any:
        """Return the device function that gives thread j < ROWS the product of row top + j with x.

        Rows are those of A(0) or of G: all that differs is where their entries come from.
        """

        @device
        def row_dot(
            matrix: Any, key0: Any, key1: Any, run: Any, top: Any, n_quads: Any, x: Any, partials: Any, parts: Any
        ) -> Any:
            thread = cuda.threadIdx.x
            for half in range(ROWS // 8):
                k = top + 8 * half
                s0, s1, s2, s3 = zero, zero, zero, zero
                s4, s5, s6, s7 = zero, zero, zero, zero
                # s_j += row_{k+j} . x ; the eight loads do not wait for each other
                for quad in range(thread, n_quads, threads):
                    x4 = load4(x, 4 * quad)
                    a0 = entries(matrix, key0, key1, run, k, quad, n_quads)
                    a1 = entries(matrix, key0, key1, run, k + 1, quad, n_quads)
                    a2 = entries(matrix, key0, key1, run, k + 2, quad, n_quads)
                    a3 = entries(matrix, key0, key1, run, k + 3, quad, n_quads)
                    a4 = entries(matrix, key0, key1, run, k + 4, quad, n_quads)
                    a5 = entries(matrix, key0, key1, run, k + 5, quad, n_quads)
                    a6 = entries(matrix, key0, key1, run, k + 6, quad, n_quads)
                    a7 = entries(matrix, key0, key1, run, k + 7, quad, n_quads)
                    s0 += dot4(a0, x4)
                    s1 += dot4(a1, x4)
                    s2 += dot4(a2, x4)
                    s3 += dot4(a3, x4)
                    s4 += dot4(a4, x4)
                    s5 += dot4(a5, x4)
                    s6 += dot4(a6, x4)
                    s7 += dot4(a7, x4)
                place = 8 * half * pitch + thread
                partials[place] = s0
                partials[place + pitch] = s1
                partials[place + 2 * pitch] = s2
                partials[place + 3 * pitch] = s3
                partials[place + 4 * pitch] = s4
                partials[place + 5 * pitch] = s5
                partials[place + 6 * pitch] = s6
                partials[place + 7 * pitch] = s7
            cuda.syncthreads()
            # Thread (row, segment) adds every segments-th of its row's partial products, thread `row` the segments.
            row = thread // segments
            segment = thread - row * segments
            total = zero
            for j in range(ROWS):
                total += partials[row * pitch + j * segments + segment]
            parts[row * parts_pitch + segment] = total
            cuda.syncthreads()
            total = zero
            if thread < ROWS:
                for j in range(segments):
                    total += parts[thread * parts_pitch + j]
            return total

        return row_dot

    projection_dot = make_row_dot(entries)
    mixing_dot = make_row_dot(_entries(dtype, True))

    # ------------------------------------------------------------------------------------------ setting up

    def fill_projection(key0: Any, key1: Any, run: Any, n_rows: Any, n_quads: Any, projection_out: Any) -> None:
        """A(0) of a run, padding included."""
        for place in range(cuda.grid(1), n_rows * n_quads, cuda.gridsize(1)):
            k = place // n_quads
            a = four_normals(key0, key1, word(place - k * n_quads), word(k), run, word(0))
            store4(projection_out, 4 * place, single(a[0]), single(a[1]), single(a[2]), single(a[3]))

    def reset_mixing(width: Any, n_rows: Any, n_quads: Any, mixing_out: Any) -> None:
        """G = 1, and zero in the padding."""
        pitch = 4 * n_quads
        for place in range(cuda.grid(1), n_rows * pitch, cuda.gridsize(1)):
            i = place // pitch
            mixing_out[place] = one if i < width and place == i * pitch + i else zero

    # ---------------------------------------------------------------------------------- first pass over A(0)

    def project(
        projection: Any,
        key0: Any,
        key1: Any,
        run: Any,
        n_modes: Any,
        n_quads: Any,
        chunk: Any,
        population: Any,
        theta: Any,
        target: Any,
        root: Any,
        errors_out: Any,
        losses_out: Any,
    ) -> None:
        """u, or v_1 of the population gradient, of a chunk of modes, and their part of the loss."""
        partials = cuda.shared.array(partials_size, real_type)
        parts = cuda.shared.array(parts_size, real_type)
        thread = cuda.threadIdx.x
        first = cuda.blockIdx.x * chunk
        last = min(first + chunk, n_modes)
        loss = zero
        for top in range(first, last, ROWS):
            v3 = projection_dot(projection, key0, key1, run, top, n_quads, theta, partials, parts)
            if thread < ROWS:
                k = top + thread
                # u_k = sqrt(lambda_k) (w*_k - A(0)_k . theta) ; L = sum_k u_k^2
                u = root[k] * (target[k] - v3)
                loss += u * u
                # B = inf: v1_k = sqrt(lambda_k) u_k
                errors_out[k] = root[k] * u if population != 0 else u
        if thread < ROWS:
            # Read by thread 0 only, after all have passed the last barrier of the loop and then this one.
            partials[thread] = loss
        cuda.syncthreads()
        if thread == 0:
            total = zero
            for j in range(ROWS):
                total += partials[j]
            losses_out[cuda.blockIdx.x] = total

    def sum_loss(
        losses: Any, n_chunks: Any, step: Any, record: Any, threshold: Any, curve_out: Any, diverged_out: Any
    ) -> None:
        """The loss, kept at curve[record] unless record < 0; the first step beyond the threshold is noted."""
        sums = cuda.shared.array(threads, double)
        thread = cuda.threadIdx.x
        total = 0.0
        for j in range(thread, n_chunks, threads):
            total += losses[j]
        sums[thread] = total
        cuda.syncthreads()
        if thread == 0:
            for j in range(1, threads):
                total += sums[j]
            if record >= 0:
                curve_out[record] = total
            # Written so that nan counts as divergence.
            if diverged_out[0] < 0 and not total <= threshold:
                diverged_out[0] = step

    # ----------------------------------------------------------------------------------------- the batch

    def residuals(
        key0: Any,
        key1: Any,
        step: Any,
        run: Any,
        n_mode_quads: Any,
        chunk: Any,
        batch: Any,
        lanes: Any,
        u: Any,
        partials_out: Any,
    ) -> None:
        """sum_k xi_bk u_k over a chunk of modes; thread (b, slice) takes every slices-th group of four modes."""
        sums = cuda.shared.array(threads, real_type)
        thread = cuda.threadIdx.x
        piece = thread // lanes
        slices = threads // lanes
        b = cuda.blockIdx.y * lanes + thread - piece * lanes
        first = cuda.blockIdx.x * chunk
        last = min(first + chunk, n_mode_quads)
        total = zero
        if b < batch:
            for quad in range(first + piece, last, slices):
                # e_b += xi_bk u_k
                total += dot4(four_normals(key0, key1, word(quad), word(b), step, run), load4(u, 4 * quad))
        sums[thread] = total
        cuda.syncthreads()
        if piece == 0 and b < batch:
            for j in range(1, slices):
                total += sums[j * lanes + thread]
            partials_out[cuda.blockIdx.x * batch + b] = total

    def add_noise(key0: Any, key1: Any, step: Any, run: Any, batch: Any, label_noise: Any, residual_out: Any) -> None:
        """e_b += sigma eps_b."""
        quad = cuda.grid(1)
        if 4 * quad < batch:
            eps = four_normals(key0, key1, word(quad), word(0), step, run)
            e = load4(residual_out, 4 * quad)
            store4(
                residual_out,
                4 * quad,
                e[0] + label_noise * eps[0],
                e[1] + label_noise * eps[1],
                e[2] + label_noise * eps[2],
                e[3] + label_noise * eps[3],
            )

    def gradient(
        key0: Any,
        key1: Any,
        step: Any,
        run: Any,
        n_mode_quads: Any,
        batch: Any,
        inverse_batch: Any,
        residual: Any,
        root: Any,
        v1_out: Any,
    ) -> None:
        """v_1; a thread makes the deviates of its four modes for every sample."""
        quad = cuda.grid(1)
        if quad < n_mode_quads:
            s0, s1, s2, s3 = zero, zero, zero, zero
            for b in range(batch):
                xi = four_normals(key0, key1, word(quad), word(b), step, run)
                e = residual[b]
                s0 += xi[0] * e
                s1 += xi[1] * e
                s2 += xi[2] * e
                s3 += xi[3] * e
            # v1_k = sqrt(lambda_k) (1/B) sum_b xi_bk e_b
            r = load4(root, 4 * quad)
            store4(
                v1_out,
                4 * quad,
                r[0] * inverse_batch * s0,
                r[1] * inverse_batch * s1,
                r[2] * inverse_batch * s2,
                r[3] * inverse_batch * s3,
            )

    # --------------------------------------------------------------------------------- second pass over A(0)

    def back_project(
        projection: Any,
        key0: Any,
        key1: Any,
        run: Any,
        n_modes: Any,
        n_quads: Any,
        chunk: Any,
        v1: Any,
        partials_out: Any,
    ) -> None:
        """sum_k A(0)_k v_1k over a chunk of modes; a thread keeps four features in registers."""
        quad = cuda.blockIdx.y * threads + cuda.threadIdx.x
        # From the last chunk back, since the end of A(0) is what the second-level cache still holds.
        place = cuda.gridDim.x - 1 - cuda.blockIdx.x
        first = place * chunk
        last = min(first + chunk, n_modes)
        if quad < n_quads:
            s0, s1, s2, s3 = zero, zero, zero, zero
            # v2 += A(0)_k v1_k ; the eight loads do not wait for each other
            for k in range(first, last, 8):
                a0 = entries(projection, key0, key1, run, k, quad, n_quads)
                a1 = entries(projection, key0, key1, run, k + 1, quad, n_quads)
                a2 = entries(projection, key0, key1, run, k + 2, quad, n_quads)
                a3 = entries(projection, key0, key1, run, k + 3, quad, n_quads)
                a4 = entries(projection, key0, key1, run, k + 4, quad, n_quads)
                a5 = entries(projection, key0, key1, run, k + 5, quad, n_quads)
                a6 = entries(projection, key0, key1, run, k + 6, quad, n_quads)
                a7 = entries(projection, key0, key1, run, k + 7, quad, n_quads)
                v = load4(v1, k)
                x = load4(v1, k + 4)
                s0 += ((a0[0] * v[0] + a1[0] * v[1]) + (a2[0] * v[2] + a3[0] * v[3])) + (
                    (a4[0] * x[0] + a5[0] * x[1]) + (a6[0] * x[2] + a7[0] * x[3])
                )
                s1 += ((a0[1] * v[0] + a1[1] * v[1]) + (a2[1] * v[2] + a3[1] * v[3])) + (
                    (a4[1] * x[0] + a5[1] * x[1]) + (a6[1] * x[2] + a7[1] * x[3])
                )
                s2 += ((a0[2] * v[0] + a1[2] * v[1]) + (a2[2] * v[2] + a3[2] * v[3])) + (
                    (a4[2] * x[0] + a5[2] * x[1]) + (a6[2] * x[2] + a7[2] * x[3])
                )
                s3 += ((a0[3] * v[0] + a1[3] * v[1]) + (a2[3] * v[2] + a3[3] * v[3])) + (
                    (a4[3] * x[0] + a5[3] * x[1]) + (a6[3] * x[2] + a7[3] * x[3])
                )
            store4(partials_out, 4 * (place * n_quads + quad), s0, s1, s2, s3)

    def sum_rows(partials: Any, n_rows: Any, pitch: Any, n_columns: Any, factor: Any, out: Any) -> None:
        """out_i = factor sum_r partials[r, i]; thread (column, slice) adds every SUM_SLICES-th row."""
        sums = cuda.shared.array(threads, real_type)
        thread = cuda.threadIdx.x
        piece = thread // sum_columns
        column = cuda.blockIdx.x * sum_columns + thread - piece * sum_columns
        total = zero
        if column < n_columns:
            for row in range(piece, n_rows, SUM_SLICES):
                total += partials[row * pitch + column]
        sums[thread] = total
        cuda.syncthreads()
        if piece == 0 and column < n_columns:
            for j in range(1, SUM_SLICES):
                total += sums[j * sum_columns + thread]
            out[column] = factor * total

    # ------------------------------------------------------------------------------------- weights and G

    def move(width: Any, learning_rate: Any, inverse_width: Any, v2: Any, w_out: Any, theta_out: Any) -> None:
        """w and theta where G = 1."""
        i = cuda.grid(1)
        if i < width:
            # w <- w + eta v2 ; theta = w / N
            moved = w_out[i] + learning_rate * v2[i]
            w_out[i] = moved
            theta_out[i] = inverse_width * moved

    def mix(mixing: Any, width: Any, n_quads: Any, learning_rate: Any, v2: Any, w: Any, w_out: Any) -> None:
        """The new w, from ROWS rows of G a block."""
        partials = cuda.shared.array(partials_size, real_type)
        parts = cuda.shared.array(parts_size, real_type)
        top = cuda.blockIdx.x * ROWS
        product = mixing_dot(mixing, word(0), word(0), word(0), top, n_quads, v2, partials, parts)
        i = top + cuda.threadIdx.x
        if cuda.threadIdx.x < ROWS and i < width:
            # w <- w + eta G v2
            w_out[i] = w[i] + learning_rate * product

    def turn(
        width: Any,
        n_quads: Any,
        chunk: Any,
        gain: Any,
        w_old: Any,
        w_new: Any,
        v2: Any,
        mixing_out: Any,
        partials_out: Any,
    ) -> None:
        """G and G^T w over a chunk of rows, in one pass; a thread keeps four columns in registers."""
        quad = cuda.blockIdx.y * threads + cuda.threadIdx.x
        first = cuda.blockIdx.x * chunk
        last = min(first + chunk, width)
        if quad < n_quads:
            v = load4(v2, 4 * quad)
            s0, s1, s2, s3 = zero, zero, zero, zero
            # Four rows are loaded before the first is written back, which the compiler cannot arrange by itself.
            for i in range(first, last, 4):
                place = 4 * (i * n_quads + quad)
                pitch = 4 * n_quads
                g0 = load4(mixing_out, place)
                g1 = load4(mixing_out, place + pitch)
                g2 = load4(mixing_out, place + 2 * pitch)
                g3 = load4(mixing_out, place + 3 * pitch)
                old = load4(w_old, i)
                new = load4(w_new, i)
                # G <- G + (eta gamma / N) w_old v2^T ; N theta = G^T w with the new G and w
                a0, a1, a2, a3 = gain * old[0], gain * old[1], gain * old[2], gain * old[3]
                g0 = (g0[0] + a0 * v[0], g0[1] + a0 * v[1], g0[2] + a0 * v[2], g0[3] + a0 * v[3])
                g1 = (g1[0] + a1 * v[0], g1[1] + a1 * v[1], g1[2] + a1 * v[2], g1[3] + a1 * v[3])
                g2 = (g2[0] + a2 * v[0], g2[1] + a2 * v[1], g2[2] + a2 * v[2], g2[3] + a2 * v[3])
                g3 = (g3[0] + a3 * v[0], g3[1] + a3 * v[1], g3[2] + a3 * v[2], g3[3] + a3 * v[3])
                store4(mixing_out, place, g0[0], g0[1], g0[2], g0[3])
                store4(mixing_out, place + pitch, g1[0], g1[1], g1[2], g1[3])
                store4(mixing_out, place + 2 * pitch, g2[0], g2[1], g2[2], g2[3])
                store4(mixing_out, place + 3 * pitch, g3[0], g3[1], g3[2], g3[3])
                s0 += (new[0] * g0[0] + new[1] * g1[0]) + (new[2] * g2[0] + new[3] * g3[0])
                s1 += (new[0] * g0[1] + new[1] * g1[1]) + (new[2] * g2[1] + new[3] * g3[1])
                s2 += (new[0] * g0[2] + new[1] * g1[2]) + (new[2] * g2[2] + new[3] * g3[2])
                s3 += (new[0] * g0[3] + new[1] * g1[3]) + (new[2] * g2[3] + new[3] * g3[3])
            store4(partials_out, 4 * (cuda.blockIdx.x * n_quads + quad), s0, s1, s2, s3)

    # Enough registers for eight loads on the way, and enough blocks to hide the time they take; entries made on the fly
    # wait for arithmetic instead. Chosen from what the assembler reports: kernels that load A(0) spill none.
    blocks = {("float32", True): 4, ("float64", True): 2, ("float32", False): 3, ("float64", False): 1}[dtype, stored]
    streaming = (threads, blocks)
    key = (uint32, uint32)
    return LiteralKernels(
        fill_projection=Kernel(fill_projection, *key, uint32, int64, int64, projection_vector),
        reset_mixing=Kernel(reset_mixing, int64, int64, int64, vector),
        project=Kernel(project, projection_vector, *key, uint32, *[int64] * 4, *[vector] * 5, bounds=streaming),
        sum_loss=Kernel(
            sum_loss, vector, int64, int64, int64, double, array_of("float64"), array_of("int64")
        ),
        residuals=Kernel(residuals, *key, uint32, uint32, *[int64] * 4, vector, vector),
        sum_rows=Kernel(sum_rows, vector, int64, int64, int64, real_type, vector),
        add_noise=Kernel(add_noise, *key, uint32, uint32, int64, real_type, vector),
        gradient=Kernel(gradient, *key, uint32, uint32, int64, int64, real_type, *[vector] * 3),
        back_project=Kernel(
            back_project, projection_vector, *key, uint32, *[int64] * 3, vector, vector, bounds=streaming
        ),
        move=Kernel(move, int64, real_type, real_type, *[vector] * 3),
        mix=Kernel(mix, vector, int64, int64, real_type, *[vector] * 3),
        turn=Kernel(turn, int64, int64, int64, real_type, *[vector] * 5),
    )
