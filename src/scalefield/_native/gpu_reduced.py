r"""Steps of the reduced model on a CUDA device, one block a run.

In the eigenbasis of S = A(0) Lambda A(0)^T a run is N + 1 Gaussian variables a sample (theory section 8):

.. math::
    d = c - \sqrt{e}\, \theta, \qquad L = |d|^2 + rest^2, \qquad
    err_b = z_b \cdot d + rest\, \xi_b + \sigma \epsilon_b

    v_2 = \frac{\sqrt{e}}{B} \sum_b z_b\, err_b \quad (B = \infty: v_2 = \sqrt{e}\, d), \qquad
    w \leftarrow w + \eta G v_2, \qquad G \leftarrow G + \frac{\eta\gamma}{N} w_{old} v_2^T, \qquad
    \theta = G^T w / N

Runs do not know of each other, so a block trains its run for as many steps as a launch is given and never waits for
another block: no launches between steps, and sums have a fixed order whatever the device. As many runs as fit train
at the same time; fewer runs than multiprocessors leave the others idle.

Traffic of a step and run: at gamma > 0 G is read and written once, 2 N^2 words (rows are taken as many at a time
as the first-level cache holds, so that their second reading does not leave the multiprocessor); at gamma = 0 vectors
only, and the B N deviates bound the speed: made once and kept (B N words, written and read) if there is room, else
made twice.

Layout: as in `gpu_literal`, one run behind the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from scalefield._native.gpu import Kernel, array_of, cuda, device, int64, load4, scalar_type, store4, uint32
from scalefield._native.gpu_rng import normals

__all__ = ["RECORD_NONE", "TRAINING", "ReducedShape", "reduced_kernel", "reset_kernel"]

# Threads that share one dot product.
LANES = 32
# Threads of a block, at least and at most.
LEAST_THREADS = 32
MOST_THREADS = 256

# Status of a run that has not diverged; else the step at which it did.
TRAINING = -1
# Place on the record of a step whose loss is not kept.
RECORD_NONE = -1


@dataclass(frozen=True)
class ReducedShape:
    """All launch arithmetic of an ensemble of reduced runs, and the sizes of a run's arrays.

    Parameters
    ----------
    width : int
        N.
    batch : int
        B; 0 for the population gradient.
    rich : bool
        Whether G is kept.
    kept : bool
        Whether the deviates of a batch are kept between their two uses.
    """

    width: int
    batch: int
    rich: bool
    kept: bool

    @property
    def n_quads(self) -> int:
        """Groups of four features."""
        return -(-self.width // 4)

    @property
    def padded_width(self) -> int:
        """Entries of a vector."""
        return 4 * self.n_quads

    @property
    def threads(self) -> int:
        """Threads of a block: enough for eight rows, or samples, at a time unless the run is small."""
        work = self.n_quads * max(1, min(8, self.width if self.rich else self.batch))
        return min(MOST_THREADS, max(LEAST_THREADS, 1 << max(0, work - 1).bit_length()))

    @property
    def lanes(self) -> int:
        """Threads side by side over the groups of four features; the rest share out rows or samples."""
        return min(self.threads, 1 << max(0, self.n_quads - 1).bit_length())

    @property
    def slices(self) -> int:
        """Parts in which rows or samples are shared out."""
        return self.threads // self.lanes

    @property
    def mixing_size(self) -> int:
        """Entries of G, 0 if it is not kept."""
        return self.width * self.padded_width if self.rich else 0

    @property
    def batch_size(self) -> int:
        """Entries of the kept deviates."""
        return self.batch * self.padded_width if self.kept else 0

    @property
    def sums_size(self) -> int:
        """Entries of the partial G^T w."""
        return self.slices * self.padded_width if self.rich else 0

    @property
    def entries_per_run(self) -> int:
        """Entries of all arrays: sqrt(e), c, w twice, theta, d, v_2, residuals, and the above."""
        return 7 * self.padded_width + self.batch + self.mixing_size + self.batch_size + self.sums_size


@cache
def reset_kernel(dtype: str) -> Kernel:
    """Return the kernel that sets G = 1 for all runs, zero in the padding."""
    real = np.dtype(dtype).type
    zero, one = real(0.0), real(1.0)

    def reset_mixing(n_runs: Any, width: Any, pitch: Any, mixing_out: Any) -> None:
        for place in range(cuda.grid(1), n_runs * width * pitch, cuda.gridsize(1)):
            row = place // pitch
            mixing_out[place] = one if place - row * pitch == row % width else zero

    return Kernel(reset_mixing, int64, int64, int64, array_of(dtype))


@cache
def reduced_kernel(dtype: str, threads: int, population: bool, rich: bool, kept: bool) -> Kernel:
    """Return the kernel `advance` for float32 or float64, a block size and the kind of run."""
    real = np.dtype(dtype).type
    real_type = scalar_type(dtype)
    vector = array_of(dtype)
    zero = real(0.0)
    word = np.uint32
    four_normals = normals(dtype)
    groups = threads // LANES
    # Partial sums of neighbouring groups lie in different banks.
    sums_size = groups * (LANES + 1)
    slice_sums_size = 4 * threads

    @device
    def dot4(a: Any, x: Any) -> Any:
        return (a[0] * x[0] + a[1] * x[1]) + (a[2] * x[2] + a[3] * x[3])

    @device
    def one_normal(key0: Any, key1: Any, b: Any, step: Any, run: Any) -> Any:
        """The deviate of sample b from a stream with counter (b // 4, 0, step, run) and lane b % 4."""
        quad = b // 4
        x = four_normals(key0, key1, word(quad), word(0), step, run)
        lane = b - 4 * quad
        return x[0] if lane == 0 else (x[1] if lane == 1 else (x[2] if lane == 2 else x[3]))

    @device
    def group_sum(value: Any, sums: Any) -> Any:
        """Give the first thread of each group of LANES the sum over the group; to be called by all threads."""
        thread = cuda.threadIdx.x
        group = thread // LANES
        lane = thread - group * LANES
        place = group * (LANES + 1)
        cuda.syncthreads()
        sums[place + lane] = value
        cuda.syncthreads()
        # Four threads add every fourth value, the first of them the four sums: one thread adding all would wait for
        # as many loads, or hold as many registers.
        total = zero
        if lane < 4:
            for j in range(LANES // 4):
                total += sums[place + 4 * j + lane]
        cuda.syncthreads()
        if lane < 4:
            sums[place + lane] = total
        cuda.syncthreads()
        if lane == 0:
            total = (sums[place] + sums[place + 1]) + (sums[place + 2] + sums[place + 3])
        return total

    def advance(
        t_first: Any,
        t_last: Any,
        n_steps: Any,
        first_run: Any,
        feature_key0: Any,
        feature_key1: Any,
        rest_key0: Any,
        rest_key1: Any,
        noise_key0: Any,
        noise_key1: Any,
        width: Any,
        n_quads: Any,
        batch: Any,
        lanes: Any,
        learning_rate: Any,
        gain: Any,
        inverse_width: Any,
        inverse_batch: Any,
        label_noise: Any,
        threshold: Any,
        n_records: Any,
        records: Any,
        root: Any,
        c: Any,
        rest: Any,
        w_out: Any,
        moved_out: Any,
        theta_out: Any,
        d_out: Any,
        v2_out: Any,
        residual_out: Any,
        features_out: Any,
        mixing_out: Any,
        sums_out: Any,
        curves_out: Any,
        status_out: Any,
    ) -> None:
        """Record the loss and take a step, for t = t_first..t_last-1; at t = n_steps only record."""
        sums = cuda.shared.array(sums_size, real_type)
        slice_sums = cuda.shared.array(slice_sums_size, real_type)
        shared_loss = cuda.shared.array(1, real_type)
        thread = cuda.threadIdx.x
        group = thread // LANES
        lane = thread - group * LANES
        piece = thread // lanes
        slices = threads // lanes
        column = thread - piece * lanes
        run = cuda.blockIdx.x
        if status_out[run] != TRAINING:
            return
        word_run = word(first_run + run)
        padded = 4 * n_quads
        # Where the run's arrays begin.
        base = run * padded
        matrix = run * width * padded
        kept_base = run * batch * padded
        sums_base = run * slices * padded
        rest_run = rest[run]

        for t in range(t_first, t_last):
            word_step = word(t)
            # d = c - sqrt(e) theta ; L = |d|^2 + rest^2 ; c and e are zero in the padding
            part = zero
            for i in range(thread, padded, threads):
                d = c[base + i] - root[base + i] * theta_out[base + i]
                d_out[base + i] = d
                part += d * d
            part = group_sum(part, sums)
            cuda.syncthreads()
            if lane == 0:
                sums[group] = part
            cuda.syncthreads()
            if thread == 0:
                loss = rest_run * rest_run
                for j in range(groups):
                    loss += sums[j]
                shared_loss[0] = loss
                if records[t] >= 0:
                    curves_out[run * n_records + records[t]] = np.float64(loss)
                # Written so that nan counts as divergence.
                if not loss <= threshold:
                    status_out[run] = t
            cuda.syncthreads()
            # The same for all threads of the block.
            if t == n_steps or not shared_loss[0] <= threshold:
                return

            if population:
                # B = inf: v2 = sqrt(e) d
                for i in range(thread, padded, threads):
                    v2_out[base + i] = root[base + i] * d_out[base + i]
            else:
                for top in range(0, batch, groups):
                    b = top + group
                    part = zero
                    if b < batch:
                        # err_b = z_b . d + rest xi_b + sigma eps_b
                        quad = lane
                        while quad < n_quads:
                            z = four_normals(feature_key0, feature_key1, word(quad), word(b), word_step, word_run)
                            if kept:
                                store4(features_out, kept_base + b * padded + 4 * quad, z[0], z[1], z[2], z[3])
                            part += dot4(z, load4(d_out, base + 4 * quad))
                            quad += LANES
                    part = group_sum(part, sums)
                    if lane == 0 and b < batch:
                        part += rest_run * one_normal(rest_key0, rest_key1, b, word_step, word_run)
                        if label_noise > zero:
                            part += label_noise * one_normal(noise_key0, noise_key1, b, word_step, word_run)
                        residual_out[run * batch + b] = part
                cuda.syncthreads()
                for left in range(0, n_quads, lanes):
                    quad = left + column
                    s0, s1, s2, s3 = zero, zero, zero, zero
                    if quad < n_quads:
                        # v2 = sqrt(e) (1/B) sum_b z_b err_b
                        b = piece
                        while b < batch:
                            e = residual_out[run * batch + b]
                            if kept:
                                z = load4(features_out, kept_base + b * padded + 4 * quad)
                            else:
                                z = four_normals(feature_key0, feature_key1, word(quad), word(b), word_step, word_run)
                            s0 += z[0] * e
                            s1 += z[1] * e
                            s2 += z[2] * e
                            s3 += z[3] * e
                            b += slices
                    if slices > 1:
                        slice_sums[thread] = s0
                        slice_sums[threads + thread] = s1
                        slice_sums[2 * threads + thread] = s2
                        slice_sums[3 * threads + thread] = s3
                        cuda.syncthreads()
                        if piece == 0:
                            for j in range(1, slices):
                                s0 += slice_sums[j * lanes + thread]
                                s1 += slice_sums[threads + j * lanes + thread]
                                s2 += slice_sums[2 * threads + j * lanes + thread]
                                s3 += slice_sums[3 * threads + j * lanes + thread]
                        cuda.syncthreads()
                    if piece == 0 and quad < n_quads:
                        r = load4(root, base + 4 * quad)
                        store4(
                            v2_out,
                            base + 4 * quad,
                            r[0] * inverse_batch * s0,
                            r[1] * inverse_batch * s1,
                            r[2] * inverse_batch * s2,
                            r[3] * inverse_batch * s3,
                        )
            cuda.syncthreads()

            if not rich:
                for i in range(thread, width, threads):
                    # w <- w + eta v2 ; theta = w / N
                    moved = w_out[base + i] + learning_rate * v2_out[base + i]
                    w_out[base + i] = moved
                    theta_out[base + i] = inverse_width * moved
            else:
                for quad in range(column, n_quads, lanes):
                    store4(sums_out, sums_base + piece * padded + 4 * quad, zero, zero, zero, zero)
                for top in range(0, width, groups):
                    # One row of G a group: w <- w + eta G v2
                    i = top + group
                    part = zero
                    if i < width:
                        for quad in range(lane, n_quads, LANES):
                            g = load4(mixing_out, matrix + i * padded + 4 * quad)
                            part += dot4(g, load4(v2_out, base + 4 * quad))
                    part = group_sum(part, sums)
                    if lane == 0 and i < width:
                        moved_out[base + i] = w_out[base + i] + learning_rate * part
                    cuda.syncthreads()
                    # The same rows, now by columns: G <- G + (eta gamma / N) w_old v2^T ; N theta = G^T w, both new
                    last = min(top + groups, width)
                    for quad in range(column, n_quads, lanes):
                        v = load4(v2_out, base + 4 * quad)
                        place = sums_base + piece * padded + 4 * quad
                        s = load4(sums_out, place)
                        s0, s1, s2, s3 = s[0], s[1], s[2], s[3]
                        for row in range(top + piece, last, slices):
                            a = gain * w_out[base + row]
                            moved = moved_out[base + row]
                            g = load4(mixing_out, matrix + row * padded + 4 * quad)
                            g0, g1, g2, g3 = g[0] + a * v[0], g[1] + a * v[1], g[2] + a * v[2], g[3] + a * v[3]
                            store4(mixing_out, matrix + row * padded + 4 * quad, g0, g1, g2, g3)
                            s0 += moved * g0
                            s1 += moved * g1
                            s2 += moved * g2
                            s3 += moved * g3
                        store4(sums_out, place, s0, s1, s2, s3)
                cuda.syncthreads()
                for i in range(thread, width, threads):
                    total = zero
                    for j in range(slices):
                        total += sums_out[sums_base + j * padded + i]
                    theta_out[base + i] = inverse_width * total
                    w_out[base + i] = moved_out[base + i]
            cuda.syncthreads()

    key = (uint32, uint32)
    return Kernel(
        advance,
        *[int64] * 4,
        *key * 3,
        *[int64] * 4,
        *[real_type] * 6,
        int64,
        array_of("int64"),
        *[vector] * 12,
        array_of("float64"),
        array_of("int64"),
        # Without it most of the registers go to addresses that change once a step, and one block a multiprocessor is
        # too few to hide the latency of memory. The price is some 200 bytes spilled outside the inner loops.
        bounds=(threads, 3),
    )
