# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The two-time march of online SGD (theory section 3): row t of every matrix from the rows before it.

All arrays are row-major (rows later time, columns earlier), so causal matrices are lower triangular. A row goes
through the phases below; those marked * are shared among the threads of a team, the others are short and done by
worker 0. Modes are cut into chunks and matrices into panels of rows (dealt to LANES sums) in a way that depends
on sizes only, so results do not depend on the number of threads.

    readout    * products of C_2(t-1, .) with H_w and C_w    ->  H_w, C_w, P
    memory     * product of P(t, .) with R_22                ->  K, H_k 1 of the source modes
    resolvents * H_k(t, .) of all modes                      ->  R_13, R_22
    features   * products of K(t, .), R_22(t, .) with C_1
    noise      * product with K                              ->  Z
    variances  * H_k Z of all modes                          ->  L(t), D(t)
    propagate  * (H_k [lambda_k Z + D/B] H_k^T)(t, .)        ->  C_1, C_0
    responses  * product with R_22                           ->  C_2

No H_k is stored beyond its diagonal blocks. The resolvents' rows of all modes together are a Q x t matrix h
with h (1 + Lambda . K) = unit vector, a triangular system whose matrix K all modes share: solved by column
blocks, its work is matrix-matrix (Q x t by t x block), as are the product with Z and the transposed system
that multiplies by H_k^T from the right. 4 Q t^2 flops a row, (4/3) Q T^3 in all, in O(T^2 + Q T) memory.
Beside it a row makes six passes over the lower triangle of a T x T matrix, bound by memory.
"""

from libc.math cimport isfinite
from libc.string cimport memset
from scipy.linalg.cython_blas cimport ddot, dgemv

cdef extern from "march_blocks.h" nogil:
    enum: MARCH_BLOCK
    ctypedef struct march_barrier:
        pass
    void march_barrier_init(march_barrier *barrier, int n_threads)
    void march_barrier_abandon(march_barrier *barrier)
    int march_barrier_wait(march_barrier *barrier)
    void march_lower_block_product(int n, double scale, const double *x, const double *block,
                                   double *y_out)
    void march_upper_block_product(int n, double scale, const double *x, const double *block,
                                   double *y_out)
    void march_add(int n, double scale, const double *x, double *y_out)
    void march_source_row(int n, double lam, double inverse_batch, const double *h, const double *d,
                          double *u_out)
    void march_rows_times_matrix(int n_modes, int n, const double *x, long ld_x, const double *a, long ld,
                                 double *out, long ld_out)
    void march_rows_times_transposed(int n_modes, int n, int width, const double *x, long ld_x,
                                     const double *a, long ld, double *out)
    double march_weighted_square(int n, const double *h, const double *d)
    void march_lower_dots(int first, int last, const double *a, long ld, const double *x, double *dot_out)
    void march_lower_sums(int first, int last, const double *a, long ld, const double *x, double *sum_out)
    void march_lower_both(int first, int last, const double *a, long ld, const double *x, double *dot_out,
                          double *sum_out)
    void march_lower_both_pair(int first, int last, const double *a, long ld, const double *x,
                               const double *second_x, double *dot_out, double *second_dot_out,
                               double *sum_out, double *second_sum_out)

# Modes come in groups of 4, as the products take them, and groups in chunks of up to 6: enough rows
# for an efficient matrix product, enough chunks to share among threads.
cdef enum:
    GROUP = 4
    GROUPS_A_CHUNK = 6

# Rows a panel (a multiple of 4), and sums to which the panels are dealt in turn.
cdef enum:
    PANEL = 32
    LANES_ = 8

# The phases of a row, in their order.
cdef enum:
    READOUT_SUMS
    READOUT_ROW
    MEMORY_SUMS
    MEMORY_ROW
    RESOLVENTS
    RESOLVENT_ROW
    FEATURE_SUMS
    FEATURE_ROW
    NOISE
    VARIANCE_COLUMNS
    VARIANCES
    LOSS
    PROPAGATE
    CORRELATION_ROW
    RESPONSES

BLOCK = MARCH_BLOCK
MODE_GROUP = GROUP
LANES = LANES_

cdef char *PLAIN = b"N"
cdef char *TRANSPOSED = b"T"
cdef int ONE = 1
cdef double UNIT = 1.0
cdef double ZERO = 0.0


cdef inline double dot(int n, double *x, double *y) noexcept nogil:
    return ddot(&n, x, &ONE, y, &ONE)


cdef class TwoTimeMarch:
    """State of one march; `march(worker)` is called by every thread of a team of `n_workers`.

    The two-time arrays are zero on entry and filled row by row in their lower triangle (Z in both). They have T
    rows, all of one length: T or more, a whole number of blocks.
    The number of modes is a multiple of MODE_GROUP; modes of weight 0 fill it up.
    """

    # Settings.
    cdef double learning_rate, gamma, inverse_width, inverse_batch, noise_power, largest_loss
    cdef int n_rows, ld, n_modes, n_sources, n_workers, n_chunks
    # Arrays of the caller.
    cdef double[:, ::1] H_w, C_w, P, K, R_13, R_22, Z, C_0, C_1, C_2
    cdef double[::1] bias, feature_variance, sgd_variance, loss
    cdef const double[::1] eigenvalue, mode_weight, source_eigenvalue, source_power
    # Workspace: rows of all modes (h, u), their diagonal blocks and transposes, sums of chunks.
    cdef double[:, ::1] h, u, x, source_h, chunk_sum, chunk_scratch
    cdef double[:, :, :, ::1] diagonal, diagonal_transposed
    cdef double[:, ::1] chunk_loss
    cdef double[::1] row, second_row, mode_sum, dots, second_dots, source_row, noise
    cdef double[:, ::1] sums, second_sums
    # Shared progress; written by worker 0 only, stop_requested by the caller.
    cdef march_barrier barrier
    cdef volatile int rows_finished, stop_requested, stopping, failed

    def __init__(self, dict arrays, dict workspace, *, eigenvalue, mode_weight, source_eigenvalue,
                 source_power, double learning_rate, double gamma, double inverse_width,
                 double inverse_batch, double noise_power, double largest_loss, int n_workers):
        self.H_w, self.C_w, self.P, self.K = arrays["H_w"], arrays["C_w"], arrays["P"], arrays["K"]
        self.R_13, self.R_22, self.Z = arrays["R_13"], arrays["R_22"], workspace["Z"]
        self.C_0, self.C_1, self.C_2 = arrays["C_0"], arrays["C_1"], arrays["C_2"]
        self.bias, self.loss = arrays["bias"], arrays["loss"]
        self.feature_variance, self.sgd_variance = arrays["feature_variance"], arrays["sgd_variance"]
        self.eigenvalue, self.mode_weight = eigenvalue, mode_weight
        self.source_eigenvalue, self.source_power = source_eigenvalue, source_power
        self.learning_rate, self.gamma = learning_rate, gamma
        self.inverse_width, self.inverse_batch = inverse_width, inverse_batch
        self.noise_power, self.largest_loss = noise_power, largest_loss
        self.n_rows, self.ld = self.loss.shape[0], self.H_w.shape[1]
        self.n_modes, self.n_sources = eigenvalue.shape[0], source_eigenvalue.shape[0]
        self.n_workers, self.n_chunks = n_workers, chunk_count(self.n_modes)
        self.h, self.u, self.x = workspace["h"], workspace["u"], workspace["x"]
        self.source_h = workspace["source_h"]
        self.diagonal, self.diagonal_transposed = workspace["diagonal"], workspace["diagonal_transposed"]
        self.chunk_sum, self.chunk_loss = workspace["chunk_sum"], workspace["chunk_loss"]
        self.chunk_scratch = workspace["chunk_scratch"]
        self.row, self.second_row = workspace["row"], workspace["second_row"]
        self.dots, self.second_dots = workspace["dots"], workspace["second_dots"]
        self.sums, self.second_sums = workspace["sums"], workspace["second_sums"]
        self.mode_sum = workspace["mode_sum"]
        self.source_row, self.noise = workspace["source_row"], workspace["noise"]
        march_barrier_init(&self.barrier, n_workers)
        self.rows_finished = self.stop_requested = self.stopping = self.failed = 0

    @property
    def rows(self):
        """Rows finished so far."""
        return self.rows_finished

    @property
    def diverged(self):
        """Whether the row after the last finished one left the finite range."""
        return bool(self.failed)

    def stop(self):
        """Ask the team to stop before its next row."""
        self.stop_requested = 1

    def abandon(self):
        """Release workers that wait for a thread that never started."""
        self.stop_requested = 1
        march_barrier_abandon(&self.barrier)

    def march(self, int worker):
        """March to the last row as member `worker` of the team; the GIL is released."""
        with nogil:
            self.march_rows(worker)

    cdef void march_rows(self, int worker) noexcept nogil:
        cdef int t
        cdef bint finite_width = self.inverse_width > 0.0, rich = self.gamma > 0.0
        for t in range(self.n_rows):
            if worker == 0:
                self.stopping = self.stop_requested
            if self.meet() or self.stopping:
                return
            if (
                (t > 0 and rich and self.share(READOUT_SUMS, LANES_, t, worker))
                or (t > 0 and self.alone(READOUT_ROW, t, worker))
                or (t > 0 and finite_width and self.share(MEMORY_SUMS, LANES_, t, worker))
                or self.alone(MEMORY_ROW, t, worker)
                or self.share(RESOLVENTS, self.n_chunks, t, worker)
                or self.alone(RESOLVENT_ROW, t, worker)
                or (finite_width and self.share(FEATURE_SUMS, LANES_, t, worker))
                or (finite_width and self.alone(FEATURE_ROW, t, worker))
                or (finite_width and self.share(NOISE, LANES_, t, worker))
                or (finite_width and self.share(VARIANCE_COLUMNS, t // MARCH_BLOCK + 1, t, worker))
                or self.share(VARIANCES, self.n_chunks, t, worker)
                or self.alone(LOSS, t, worker)
                or self.failed
                or self.share(PROPAGATE, self.n_chunks, t, worker)
                or self.alone(CORRELATION_ROW, t, worker)
                or (finite_width and self.share(RESPONSES, LANES_, t, worker))
            ):
                return
            if worker == 0:
                self.rows_finished = t + 1

    cdef int share(self, int phase, int n_items, int t, int worker) noexcept nogil:
        """Do this worker's items of a phase, then meet the others; nonzero if the team is given up."""
        cdef int item
        for item in range(n_items):
            if item % self.n_workers == worker:
                self.run(phase, t, item)
        return self.meet()

    cdef int alone(self, int phase, int t, int worker) noexcept nogil:
        """Let worker 0 do a phase, then meet the others; nonzero if the team is given up."""
        if worker == 0:
            self.run(phase, t, 0)
        return self.meet()

    cdef void run(self, int phase, int t, int item) noexcept nogil:
        if phase == READOUT_SUMS:
            self.readout_lane(t, item)
        elif phase == READOUT_ROW:
            self.readout_row(t)
        elif phase == MEMORY_SUMS:
            self.memory_lane(t, item)
        elif phase == MEMORY_ROW:
            self.memory_row(t)
        elif phase == RESOLVENTS:
            self.resolvent_chunk(t, item)
        elif phase == RESOLVENT_ROW:
            self.resolvent_row(t)
        elif phase == FEATURE_SUMS:
            self.feature_lane(t, item)
        elif phase == FEATURE_ROW:
            self.feature_row(t)
        elif phase == NOISE:
            self.noise_lane(t, item)
        elif phase == VARIANCE_COLUMNS:
            self.variance_columns(t, item)
        elif phase == VARIANCES:
            self.variance_chunk(t, item)
        elif phase == LOSS:
            self.failed = self.loss_entry(t)
        elif phase == PROPAGATE:
            self.propagate_chunk(t, item)
        elif phase == CORRELATION_ROW:
            self.correlation_row(t)
        elif phase == RESPONSES:
            self.response_lane(t, item)

    cdef inline int meet(self) noexcept nogil:
        return march_barrier_wait(&self.barrier)

    cdef inline double gather(self, double[:, ::1] sums, int j) noexcept nogil:
        """Add up entry j of the lanes' sums, always in one order."""
        return (((sums[0, j] + sums[1, j]) + (sums[2, j] + sums[3, j]))
                + ((sums[4, j] + sums[5, j]) + (sums[6, j] + sums[7, j])))

    cdef inline int first_mode(self, int chunk) noexcept nogil:
        return GROUP * (chunk * (self.n_modes // GROUP) // self.n_chunks)

    cdef void readout_lane(self, int t, int lane) noexcept nogil:
        """Products of x = C_2(t-1, .) with H_w from both sides and with the symmetric C_w, rows <= t-1."""
        cdef int first = lane * PANEL, last
        cdef long ld = self.ld
        cdef double *x = &self.C_2[t - 1, 0]
        memset(&self.sums[lane, 0], 0, t * sizeof(double))
        memset(&self.second_sums[lane, 0], 0, t * sizeof(double))
        # C_2(t-1, t-1) takes no part in the sums over r < t-1, so row t-1 enters by its dot product alone.
        while first < t - 1:
            last = min(first + PANEL, t - 1)
            march_lower_both(first, last, &self.H_w[0, 0], ld, x, &self.dots[0], &self.sums[lane, 0])
            march_lower_both(first, last, &self.C_w[0, 0], ld, x, &self.second_dots[0],
                             &self.second_sums[lane, 0])
            first += LANES_ * PANEL

    cdef void readout_row(self, int t) noexcept nogil:
        cdef int s
        cdef double eta = self.learning_rate, gain = eta * eta * self.gamma
        cdef double v2_w, total
        cdef double *x = &self.C_2[t - 1, 0]
        cdef double *H_w = &self.H_w[t, 0]
        cdef double *C_w = &self.C_w[t, 0]
        # w(t) = w(t-1) + eta v2(t-1) + eta^2 gamma sum_{r<t-1} C_2(t-1,r) w(r), hence
        # H_w(t,.) = H_w(t-1,.) + eta e_{t-1} + eta^2 gamma sum_r C_2(t-1,r) H_w(r,.)
        # C_w(t,s) = C_w(t-1,s) + eta <v2(t-1) w(s)> + eta^2 gamma sum_r C_2(t-1,r) C_w(r,s)
        # with <v2(t-1) w(s)> = sum_j C_2(t-1,j) H_w(s,j)
        if self.gamma > 0.0:
            self.dots[t - 1] = dot(t - 1, &self.H_w[t - 1, 0], x)
            for s in range(t - 1):
                H_w[s] = self.H_w[t - 1, s] + gain * self.gather(self.sums, s)
                C_w[s] = (self.C_w[t - 1, s] + eta * self.dots[s]
                          + gain * (self.second_dots[s] + self.gather(self.second_sums, s) + x[s] * self.C_w[s, s]))
            C_w[t - 1] = (self.C_w[t - 1, t - 1] + eta * self.dots[t - 1]
                          + gain * dot(t - 1, &self.C_w[t - 1, 0], x))
            H_w[t - 1] = eta
            v2_w = dot(t, H_w, x)
            C_w[t] = C_w[t - 1] + eta * v2_w + gain * dot(t - 1, C_w, x)
        else:
            # H_w = eta tril(1, -1): <v2(t-1) w(s)> is a running sum
            total = 0.0
            for s in range(t):
                H_w[s] = eta
                C_w[s] = self.C_w[t - 1, s] + eta * total
                total += eta * x[s]
            C_w[t] = C_w[t - 1] + eta * total
        # P = H_w + eta gamma tril(C_w, -1)
        for s in range(t):
            self.P[t, s] = H_w[s] + eta * self.gamma * C_w[s]

    cdef void memory_lane(self, int t, int lane) noexcept nogil:
        """Product of P(t, .) with the strictly lower part of R_22."""
        cdef int first = lane * PANEL
        memset(&self.sums[lane, 0], 0, t * sizeof(double))
        while first < t:
            march_lower_sums(first, min(first + PANEL, t), &self.R_22[0, 0], self.ld, &self.P[t, 0],
                             &self.sums[lane, 0])
            first += LANES_ * PANEL

    cdef void memory_row(self, int t) noexcept nogil:
        cdef int i, s, n_sources = self.n_sources
        cdef double minus = -1.0
        # K = P R_22, with 1 on the diagonal of R_22
        for s in range(t):
            self.K[t, s] = self.P[t, s]
            if self.inverse_width > 0.0:
                self.K[t, s] += self.gather(self.sums, s)
        # Source modes: (H_k 1)(t) = 1 - lambda_k sum_s K(t,s) (H_k 1)(s)
        for i in range(n_sources):
            self.source_h[t, i] = 0.0
        if t > 0:
            dgemv(PLAIN, &n_sources, &t, &minus, &self.source_h[0, 0], &n_sources, &self.K[t, 0], &ONE,
                  &ZERO, &self.source_h[t, 0], &ONE)
        for i in range(n_sources):
            self.source_h[t, i] = 1.0 + self.source_eigenvalue[i] * self.source_h[t, i]

    cdef void resolvent_chunk(self, int t, int chunk) noexcept nogil:
        """h_k (1 + lambda_k K) = e_t for the modes of a chunk, from the last column block to the first."""
        cdef int first = self.first_mode(chunk), n = self.first_mode(chunk + 1) - first
        cdef int ld = self.ld, ld_h = <int> self.h.shape[1], edge = MARCH_BLOCK
        cdef int last = t // MARCH_BLOCK, local = t - last * MARCH_BLOCK
        cdef int k, s, j, done
        cdef double *scratch = &self.chunk_scratch[chunk, 0]
        cdef double *sum_1 = &self.chunk_sum[2 * chunk, 0]
        cdef double *sum_0 = &self.chunk_sum[2 * chunk + 1, 0]
        cdef double *h
        cdef double *block
        # Inside the block of t: H_k(t,s) = -lambda_k sum_{s<=r<t} K(t,r) H_k(r,s), from the rows kept there.
        for k in range(first, first + n):
            h = &self.h[k, last * MARCH_BLOCK]
            block = &self.diagonal[k, last, 0, 0]
            march_lower_block_product(local, -self.eigenvalue[k], &self.K[t, last * MARCH_BLOCK], block, h)
            h[local] = 1.0
            for s in range(local + 1):
                block[local * MARCH_BLOCK + s] = h[s]
                self.diagonal_transposed[k, last, s, local] = h[s]
        for j in range(last - 1, -1, -1):
            # h[:, J] = -Lambda (h[:, >J] K[>J, J]) H_k[J, J]
            done = (j + 1) * MARCH_BLOCK
            march_rows_times_matrix(n, t + 1 - done, &self.h[first, done], ld_h,
                                    &self.K[done, done - MARCH_BLOCK], ld, scratch, MARCH_BLOCK)
            for k in range(n):
                march_lower_block_product(edge, -self.eigenvalue[first + k], scratch + k * MARCH_BLOCK,
                                          &self.diagonal[first + k, j, 0, 0],
                                          &self.h[first + k, done - MARCH_BLOCK])
        # Sums for R_13 and R_22.
        memset(sum_1, 0, (t + 1) * sizeof(double))
        memset(sum_0, 0, (t + 1) * sizeof(double))
        for k in range(first, first + n):
            march_add(t + 1, self.mode_weight[k] * self.eigenvalue[k], &self.h[k, 0], sum_1)
            march_add(t + 1, self.mode_weight[k], &self.h[k, 0], sum_0)

    cdef void resolvent_row(self, int t) noexcept nogil:
        cdef int s, chunk
        # R_13 = - sum_k lambda_k H_k
        for chunk in range(self.n_chunks):
            march_add(t + 1, -1.0, &self.chunk_sum[2 * chunk, 0], &self.R_13[t, 0])
        # sum_k H_k(t, .) is kept for C_0
        memset(&self.mode_sum[0], 0, (t + 1) * sizeof(double))
        for chunk in range(self.n_chunks):
            march_add(t + 1, 1.0, &self.chunk_sum[2 * chunk + 1, 0], &self.mode_sum[0])
        # R_22 = 1 + R_13 K/N, and lambda_k H_k K = 1 - H_k: the strictly lower part of (1/N) sum_k H_k
        for s in range(t):
            self.R_22[t, s] = self.inverse_width * self.mode_sum[s]
        self.R_22[t, t] = 1.0

    cdef void feature_lane(self, int t, int lane) noexcept nogil:
        """Products of K(t, .) and R_22(t, .) with the symmetric C_1, rows < t, in one pass."""
        cdef int first = lane * PANEL
        memset(&self.sums[lane, 0], 0, (t + 1) * sizeof(double))
        memset(&self.second_sums[lane, 0], 0, (t + 1) * sizeof(double))
        while first < t:
            march_lower_both_pair(first, min(first + PANEL, t), &self.C_1[0, 0], self.ld, &self.K[t, 0],
                                  &self.R_22[t, 0], &self.dots[0], &self.second_dots[0],
                                  &self.sums[lane, 0], &self.second_sums[lane, 0])
            first += LANES_ * PANEL

    cdef void feature_row(self, int t) noexcept nogil:
        cdef int s
        # row = K C_1, second_row = R_22 C_1 as far as rows < t reach
        for s in range(t):
            self.row[s] = self.dots[s] + self.gather(self.sums, s) + self.C_1[s, s] * self.K[t, s]
            self.second_row[s] = (self.second_dots[s] + self.gather(self.second_sums, s)
                                  + self.C_1[s, s] * self.R_22[t, s])
        self.Z[t, t] = self.inverse_width * dot(t, &self.row[0], &self.K[t, 0])

    cdef void noise_lane(self, int t, int lane) noexcept nogil:
        """Z(t, .) = (K C_1)(t, .) K^T/N, and its mirror image."""
        cdef int first = lane * PANEL, last, s
        while first < t:
            last = min(first + PANEL, t)
            march_lower_dots(first, last, &self.K[0, 0], self.ld, &self.row[0], &self.dots[0])
            for s in range(first, last):
                self.Z[t, s] = self.inverse_width * self.dots[s]
                self.Z[s, t] = self.Z[t, s]
            first += LANES_ * PANEL

    cdef void variance_columns(self, int t, int panel) noexcept nogil:
        """u_k = H_k(t, .) Z of all modes, for a panel of columns: more rows at a time than a chunk has."""
        cdef int first = panel * MARCH_BLOCK
        march_rows_times_matrix(self.n_modes, t + 1, &self.h[0, 0], self.h.shape[1], &self.Z[0, first],
                                self.Z.shape[1], &self.u[0, first], self.u.shape[1])

    cdef void variance_chunk(self, int t, int chunk) noexcept nogil:
        cdef int first = self.first_mode(chunk), n = self.first_mode(chunk + 1) - first
        cdef int k, length = t + 1
        cdef double feature = 0.0, sgd = 0.0
        # (H_k Z H_k^T)(t,t)
        if self.inverse_width > 0.0:
            for k in range(first, first + n):
                feature += self.mode_weight[k] * self.eigenvalue[k] * dot(length, &self.u[k, 0],
                                                                          &self.h[k, 0])
        # ((1 - H_k) diag(D) (1 - H_k)^T)(t,t)/B: the diagonal of 1 - H_k is zero
        if self.inverse_batch > 0.0:
            for k in range(first, first + n):
                sgd += self.mode_weight[k] * march_weighted_square(t, &self.h[k, 0], &self.noise[0])
        self.chunk_loss[chunk, 0] = feature
        self.chunk_loss[chunk, 1] = self.inverse_batch * sgd

    cdef int loss_entry(self, int t) noexcept nogil:
        """L(t) and its parts; returns 1 if it left the finite range."""
        cdef int i, chunk
        cdef double bias = 0.0, feature = 0.0, sgd = 0.0
        for i in range(self.n_sources):
            bias += self.source_power[i] * self.source_h[t, i] * self.source_h[t, i]
        for chunk in range(self.n_chunks):
            feature += self.chunk_loss[chunk, 0]
            sgd += self.chunk_loss[chunk, 1]
        self.bias[t], self.feature_variance[t], self.sgd_variance[t] = bias, feature, sgd
        self.loss[t] = bias + feature + sgd
        # D(t) = L(t) + sigma^2
        self.noise[t] = self.loss[t] + self.noise_power
        return not (isfinite(self.loss[t]) and self.loss[t] <= self.largest_loss)

    cdef void propagate_chunk(self, int t, int chunk) noexcept nogil:
        """x_k = (lambda_k H_k Z + H_k diag(D)/B)(t, .) H_k^T for the modes of a chunk.

        x_k (1 + lambda_k K^T) = u_k, from the first column block to the last.
        """
        cdef int first = self.first_mode(chunk), n = self.first_mode(chunk + 1) - first
        cdef int ld = self.ld, ld_h = <int> self.h.shape[1], edge = MARCH_BLOCK
        cdef int last = t // MARCH_BLOCK, j, k, start, width, s
        cdef double *scratch = &self.chunk_scratch[chunk, 0]
        cdef double *sum_1 = &self.chunk_sum[2 * chunk, 0]
        cdef double *sum_0 = &self.chunk_sum[2 * chunk + 1, 0]
        memset(sum_1, 0, (t + 1) * sizeof(double))
        memset(sum_0, 0, (t + 1) * sizeof(double))
        if self.inverse_width == 0.0 and self.inverse_batch == 0.0:
            return
        for k in range(first, first + n):
            if self.inverse_width == 0.0:
                memset(&self.u[k, 0], 0, (t + 1) * sizeof(double))
            march_source_row(t + 1, self.eigenvalue[k], self.inverse_batch, &self.h[k, 0], &self.noise[0],
                             &self.u[k, 0])
        for j in range(last + 1):
            # x[:, J] = (u[:, J] - Lambda x[:, <J] K[J, <J]^T) H_k[J, J]^T
            start = j * MARCH_BLOCK
            width = min(edge, t + 1 - start)
            if j > 0:
                march_rows_times_transposed(n, start, width, &self.x[first, 0], ld_h, &self.K[start, 0], ld,
                                            scratch)
            for k in range(n):
                if j > 0:
                    for s in range(width):
                        scratch[k * MARCH_BLOCK + s] = (
                            self.u[first + k, start + s]
                            - self.eigenvalue[first + k] * scratch[k * MARCH_BLOCK + s])
                else:
                    for s in range(width):
                        scratch[k * MARCH_BLOCK + s] = self.u[first + k, s]
                march_upper_block_product(width, 1.0, scratch + k * MARCH_BLOCK,
                                          &self.diagonal_transposed[first + k, j, 0, 0],
                                          &self.x[first + k, start])
        for k in range(first, first + n):
            march_add(t + 1, self.mode_weight[k] * self.eigenvalue[k], &self.x[k, 0], sum_1)
            march_add(t + 1, self.mode_weight[k], &self.x[k, 0], sum_0)

    cdef void correlation_row(self, int t) noexcept nogil:
        cdef int n_sources = self.n_sources, length = t + 1, s, i, chunk
        cdef double *C_0 = &self.C_0[t, 0]
        cdef double *C_1 = &self.C_1[t, 0]
        # C_1 = sum_k lambda_k { lambda_k w*_k^2 (H_k 1)(H_k 1)^T + x_k }
        for i in range(n_sources):
            self.source_row[i] = self.source_eigenvalue[i] * self.source_power[i] * self.source_h[t, i]
        dgemv(TRANSPOSED, &n_sources, &length, &UNIT, &self.source_h[0, 0], &n_sources,
              &self.source_row[0], &ONE, &ZERO, C_1, &ONE)
        # C_0 = sum_k { lambda_k w*_k^2 (H_k 1)(H_k 1)^T + x_k - H_k diag(D)/B } below the diagonal
        for i in range(n_sources):
            self.source_row[i] = self.source_power[i] * self.source_h[t, i]
        dgemv(TRANSPOSED, &n_sources, &length, &UNIT, &self.source_h[0, 0], &n_sources,
              &self.source_row[0], &ONE, &ZERO, C_0, &ONE)
        for chunk in range(self.n_chunks):
            march_add(length, 1.0, &self.chunk_sum[2 * chunk, 0], C_1)
            march_add(length, 1.0, &self.chunk_sum[2 * chunk + 1, 0], C_0)
        for s in range(t):
            C_0[s] -= self.inverse_batch * self.noise[s] * self.mode_sum[s]
        C_0[t] = self.loss[t]
        # second_row = (R_22 C_1)(t, .), now with row t of C_1
        if self.inverse_width > 0.0:
            self.second_row[t] = dot(length, &self.R_22[t, 0], C_1)
            for s in range(t):
                self.second_row[s] += C_1[s]
        else:
            # R_22 = 1 at infinite width: C_2 = C_1
            for s in range(length):
                self.C_2[t, s] = C_1[s]

    cdef void response_lane(self, int t, int lane) noexcept nogil:
        """C_2(t, .) = (R_22 C_1)(t, .) R_22^T, with 1 on the diagonal of R_22."""
        cdef int first = lane * PANEL, last, s
        while first < t + 1:
            last = min(first + PANEL, t + 1)
            march_lower_dots(first, last, &self.R_22[0, 0], self.ld, &self.second_row[0], &self.dots[0])
            for s in range(first, last):
                self.C_2[t, s] = self.dots[s] + self.second_row[s]
            first += LANES_ * PANEL


def chunk_count(int n_modes):
    """Number of chunks into which the modes are cut, whatever the number of threads."""
    groups = n_modes // GROUP
    return min(groups, max(2, -(-groups // GROUPS_A_CHUNK)))
