# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The two-time march of online SGD (theory section 3) and of full-batch descent on P samples (section 4).

Row t of every matrix follows from the rows before it.

All arrays are row-major (rows later time, columns earlier), so causal matrices are lower triangular. A row goes
through the phases below; those marked * are shared among the threads of a team, the others are short and done by
worker 0. Modes are cut into groups and matrices into panels of rows (dealt to LANES sums) in a way that depends
on sizes only, so results do not depend on the number of threads.

    readout    * products of C_2(t-1, .) with H_w and C_w    ->  H_w, C_w, P
    memory     * product of P(t, .) with R_22                ->  K, H_k 1 of the source modes
    resolvents * H_k(t, .) of all modes                      ->  R_13, R_22
    filter     * offline: product with the strictly lower part of sum_k H_k
    features   * products of K(t, .), R_22(t, .) with C_1
    noise      * product with K                              ->  Z
    variances  * H_k Z of all modes                          ->  L(t), D(t)
    propagate  * (H_k [lambda_k Z + D/B] H_k^T)(t, .)        ->  C_1, C_0
    data       * offline: product of D(t, .) with R_13       ->  C_1
    responses  * product with R_22                           ->  C_2

Offline, all responses are power series in P and commute. From R_r = (1 - R_0/P)^-1 and lambda_k H_k K R_r = 1 - H_k

    R_r = 1 + S/P ,   R_22 = 1 + S/N ,   S = sum_k (H_k - 1) ,   1 - E_k K = H_k ,

and with C_g = R_r C_1 R_r^T section 4 becomes section 3 with K R_r for K, R_22 R_r for R_22, and for diag(D)/B the
matrix D/P, D(t, s) = C_0(t, s) + sigma^2:

    C_0 = sum_k { lambda_k H_k [w*_k^2 1 1^T + Z] H_k^T + (1/P) (1 - H_k) D (1 - H_k)^T }
    C_1 = sum_k { lambda_k^2 H_k [w*_k^2 1 1^T + Z] H_k^T + (lambda_k/P) H_k D H_k^T }

In the arrays, K is then K R_r, R_22 is R_22 R_r and R_13 is -sum_k lambda_k H_k. Since 1 - H_k is strictly causal,
row t of C_0 needs only rows before it: g_k = (H_k - 1)(t, .) D there, and

    ((1 - H_k) D (1 - H_k)^T)(t, .) = g_k H_k^T - g_k ,   (H_k D H_k^T)(t, .) = (D(t, .) + g_k) H_k^T .

At infinite width R_22 = 1 and Z = 0, so K is P and C_1 is C_2: one array each, and only readout, resolvents,
variances and propagate are left. In that form the march also solves finite widths (theory section 6), with the
nodes of the spectral measures of the random features in place of the modes.

No H_k is stored. The resolvents' rows of all modes together are a t x Q matrix h with h_k (1 + lambda_k K) = unit
vector, a triangular system whose matrix K all modes share: solved by blocks, its work is matrix-matrix (block x t
by t x Q), as are the product with Z and the transposed system that multiplies by H_k^T from the right.
4 Q t^2 flops a row, (4/3) Q T^3 in all, in O(T^2 + Q T) memory; half of that at infinite width, half as much again
offline. Beside it a row makes six passes over the lower triangle of a T x T matrix, two at infinite width, bound by
memory.
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
    void march_matrix_times_modes(int n_modes, int n_out, int n, const double *a, long ld, const double *x,
                                  double *out)
    void march_transposed_times_modes(int n_modes, int n_out, int n, const double *a, long ld, const double *x,
                                      double *out)
    void march_solve_row(int n_unknown, int n, int n_modes, const double *lam, const double *a, long ld,
                         double *h)
    void march_solve_column(int n, int n_modes, const double *lam, const double *a, long ld,
                            const double *before, double *x)
    void march_source_rows(int n, int n_modes, const double *lam, double inverse_batch, const double *h,
                           const double *d, double *u)
    void march_group_sums(int n, int n_modes, const double *weight, const double *lam, const double *x, long ld,
                          double *sum_out, double *weighted_sum_out)
    void march_group_squares(int n, int n_modes, int with_u, const double *weight, const double *lam,
                             const double *h, const double *u, const double *d, double *out)
    void march_group_add(int n, int n_modes, const double *weight, double scale, const double *x, long ld,
                         double *sum_out)
    void march_group_dots(int n, int n_modes, const double *weight, const double *x, const double *y, double *out)
    void march_data_rows(int n, int n_modes, const double *lam, double scale, const double *g, double *u)
    void march_add(int n, double scale, const double *x, double *y_out)
    void march_lower_dots(int first, int last, const double *a, long ld, const double *x, double *dot_out)
    void march_lower_sums(int first, int last, const double *a, long ld, const double *x, double *sum_out)
    void march_lower_both(int first, int last, const double *a, long ld, const double *x, double *dot_out,
                          double *sum_out)
    void march_lower_both_pair(int first, int last, const double *a, long ld, const double *x,
                               const double *second_x, double *dot_out, double *second_dot_out,
                               double *sum_out, double *second_sum_out)

# Modes come in groups of 4, one vector register; each worker takes a range of groups.
cdef enum:
    GROUP = 4

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
    FILTER_SUMS
    FILTER_ROW
    FEATURE_SUMS
    FEATURE_ROW
    NOISE
    VARIANCES
    LOSS
    PROPAGATE
    CORRELATION_ROW
    DATA_SUMS
    DATA_ROW
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

    The two-time arrays are zero on entry and filled row by row in their lower triangle (Z and D in both). They have T
    rows, all of one length: T or more, a whole number of blocks. Online at infinite width K is the array P, C_1 is C_2,
    and R_22 and Z are absent; R_13 may be absent there. S and D are present offline. With `memory_given`, P is given,
    and H_w and C_w are left alone.
    The number of modes is a multiple of MODE_GROUP; modes of weight 0 fill it up.
    """

    # Settings.
    cdef double learning_rate, gamma, inverse_width, inverse_batch, inverse_n_samples, noise_power, largest_loss
    cdef bint rich, finite_width, noisy, offline, filtered, memory_given, with_modes
    cdef int n_rows, ld, n_modes, n_groups, n_sources, n_workers
    # Arrays of the caller.
    cdef double[:, ::1] H_w, C_w, P, K, R_13, R_22, S, Z, C_0, C_1, C_2, D
    cdef double[::1] bias, feature_variance, sgd_variance, loss
    cdef const double[::1] eigenvalue, mode_weight, source_eigenvalue, source_power
    # Workspace: rows of all modes (worker by worker, time by time), scratch of workers, sums of groups.
    cdef double[:, ::1] h, u, g, scratch, group_sum, group_weighted_sum, group_loss
    cdef double[:, ::1] source_h
    cdef double[::1] row, second_row, mode_sum, dots, second_dots, source_row, noise
    cdef double[:, ::1] sums, second_sums
    # Shared progress; written by worker 0 only, stop_requested by the caller.
    cdef march_barrier barrier
    cdef volatile int rows_finished, stop_requested, stopping, failed

    def __init__(self, dict arrays, dict workspace, *, eigenvalue, mode_weight, source_eigenvalue,
                 source_power, double learning_rate, double gamma, double inverse_width,
                 double inverse_batch, double inverse_n_samples, double noise_power, double largest_loss,
                 bint memory_given, int n_workers):
        self.H_w, self.C_w, self.P, self.K = arrays["H_w"], arrays["C_w"], arrays["P"], arrays["K"]
        self.C_0, self.C_1, self.C_2 = arrays["C_0"], arrays["C_1"], arrays["C_2"]
        self.R_13, self.R_22, self.Z = arrays.get("R_13"), arrays.get("R_22"), workspace.get("Z")
        self.S, self.D = arrays.get("S"), arrays.get("D")
        self.bias, self.loss = arrays["bias"], arrays["loss"]
        self.feature_variance, self.sgd_variance = arrays["feature_variance"], arrays["sgd_variance"]
        self.eigenvalue, self.mode_weight = eigenvalue, mode_weight
        self.source_eigenvalue, self.source_power = source_eigenvalue, source_power
        self.learning_rate, self.gamma = learning_rate, gamma
        self.inverse_width, self.inverse_batch = inverse_width, inverse_batch
        self.inverse_n_samples, self.noise_power, self.largest_loss = inverse_n_samples, noise_power, largest_loss
        self.rich, self.finite_width, self.noisy = gamma > 0.0, inverse_width > 0.0, inverse_batch > 0.0
        self.offline, self.memory_given, self.with_modes = inverse_n_samples > 0.0, memory_given, "R_13" in arrays
        self.filtered = self.finite_width or self.offline
        self.n_rows, self.ld = self.loss.shape[0], self.H_w.shape[1]
        self.n_modes, self.n_sources = eigenvalue.shape[0], source_eigenvalue.shape[0]
        self.n_groups, self.n_workers = self.n_modes // GROUP, n_workers
        self.h, self.u, self.scratch = workspace["h"], workspace["u"], workspace["scratch"]
        self.g = workspace.get("g")
        self.group_sum, self.group_weighted_sum = workspace["group_sum"], workspace["group_weighted_sum"]
        self.group_loss, self.source_h = workspace["group_loss"], workspace["source_h"]
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
        cdef bint finite_width = self.finite_width, offline = self.offline, filtered = self.filtered
        cdef bint needs_features = filtered or self.noisy, needs_resolvents = needs_features or self.with_modes
        cdef bint both = offline and finite_width, reads_out = not self.memory_given
        for t in range(self.n_rows):
            if worker == 0:
                self.stopping = self.stop_requested
            if self.meet() or self.stopping:
                return
            if (
                (t > 0 and reads_out and self.rich and self.share(READOUT_SUMS, LANES_, t, worker))
                or (t > 0 and reads_out and self.alone(READOUT_ROW, t, worker))
                or (t > 0 and filtered and self.share(MEMORY_SUMS, LANES_, t, worker))
                or self.alone(MEMORY_ROW, t, worker)
                or (needs_resolvents and self.share(RESOLVENTS, self.n_workers, t, worker))
                or (needs_resolvents and self.alone(RESOLVENT_ROW, t, worker))
                or (both and self.share(FILTER_SUMS, LANES_, t, worker))
                or (both and self.alone(FILTER_ROW, t, worker))
                or (filtered and self.share(FEATURE_SUMS, LANES_, t, worker))
                or (filtered and self.alone(FEATURE_ROW, t, worker))
                or (finite_width and self.share(NOISE, LANES_, t, worker))
                or (needs_features and self.share(VARIANCES, self.n_workers, t, worker))
                or self.alone(LOSS, t, worker)
                or self.failed
                or (needs_features and self.share(PROPAGATE, self.n_workers, t, worker))
                or self.alone(CORRELATION_ROW, t, worker)
                or (offline and self.share(DATA_SUMS, LANES_, t, worker))
                or (offline and self.alone(DATA_ROW, t, worker))
                or (filtered and self.share(RESPONSES, LANES_, t, worker))
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
            self.resolvent_rows(t, item)
        elif phase == RESOLVENT_ROW:
            self.resolvent_row(t)
        elif phase == FILTER_SUMS:
            self.filter_lane(t, item)
        elif phase == FILTER_ROW:
            self.filter_row(t)
        elif phase == FEATURE_SUMS:
            self.feature_lane(t, item)
        elif phase == FEATURE_ROW:
            self.feature_row(t)
        elif phase == NOISE:
            self.noise_lane(t, item)
        elif phase == VARIANCES:
            self.variance_rows(t, item)
        elif phase == LOSS:
            self.failed = self.loss_entry(t)
        elif phase == PROPAGATE:
            self.propagate_rows(t, item)
        elif phase == CORRELATION_ROW:
            self.correlation_row(t)
        elif phase == DATA_SUMS:
            self.data_lane(t, item)
        elif phase == DATA_ROW:
            self.data_row(t)
        elif phase == RESPONSES:
            self.response_lane(t, item)

    cdef inline int meet(self) noexcept nogil:
        return march_barrier_wait(&self.barrier)

    cdef inline double gather(self, double[:, ::1] sums, int j) noexcept nogil:
        """Add up entry j of the lanes' sums, always in one order."""
        return (((sums[0, j] + sums[1, j]) + (sums[2, j] + sums[3, j]))
                + ((sums[4, j] + sums[5, j]) + (sums[6, j] + sums[7, j])))

    cdef inline int first_mode(self, int worker) noexcept nogil:
        """The first of the modes of a worker; the rows of its modes begin at this mode's share of h and u."""
        return GROUP * (worker * self.n_groups // self.n_workers)

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
        if self.rich:
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
        if self.filtered:
            for s in range(t):
                self.K[t, s] = self.P[t, s] + self.gather(self.sums, s)
        # Source modes: (H_k 1)(t) = 1 - lambda_k sum_s K(t,s) (H_k 1)(s)
        for i in range(n_sources):
            self.source_h[t, i] = 0.0
        if t > 0:
            dgemv(PLAIN, &n_sources, &t, &minus, &self.source_h[0, 0], &n_sources, &self.K[t, 0], &ONE,
                  &ZERO, &self.source_h[t, 0], &ONE)
        for i in range(n_sources):
            self.source_h[t, i] = 1.0 + self.source_eigenvalue[i] * self.source_h[t, i]

    cdef void resolvent_rows(self, int t, int worker) noexcept nogil:
        """h_k (1 + lambda_k K) = e_t for the modes of a worker, from the last block of times to the first."""
        cdef int first = self.first_mode(worker), n = self.first_mode(worker + 1) - first
        cdef int last = t // MARCH_BLOCK, local = t - last * MARCH_BLOCK, j, k, start
        cdef const double *eigenvalue = &self.eigenvalue[first]
        cdef double *h = &self.h[first, 0]
        # h[s] collects sum_{r>s} h[r] K[r, s] from the blocks after its own.
        memset(h, 0, <size_t> t * n * sizeof(double))
        for k in range(n):
            h[<long> t * n + k] = 1.0
        for j in range(last, -1, -1):
            # h[J] = -Lambda h[>J] K[>J, J] H_k[J, J], then to the blocks before it
            start = j * MARCH_BLOCK
            if j == last:
                march_solve_row(local, local + 1, n, eigenvalue, &self.K[start, start], self.ld, h + <long> start * n)
            else:
                march_solve_row(MARCH_BLOCK, MARCH_BLOCK, n, eigenvalue, &self.K[start, start], self.ld,
                                h + <long> start * n)
            march_transposed_times_modes(n, start, min(MARCH_BLOCK, t + 1 - start), &self.K[start, 0], self.ld,
                                         h + <long> start * n, h)
        march_group_sums(t + 1, n, &self.mode_weight[first], eigenvalue, h, self.group_sum.shape[1],
                         &self.group_sum[first // GROUP, 0], &self.group_weighted_sum[first // GROUP, 0])

    cdef void resolvent_row(self, int t) noexcept nogil:
        cdef int s, group
        # R_13 = - sum_k lambda_k H_k
        if self.with_modes:
            for group in range(self.n_groups):
                march_add(t + 1, -1.0, &self.group_weighted_sum[group, 0], &self.R_13[t, 0])
        # sum_k H_k(t, .) is kept for C_0
        memset(&self.mode_sum[0], 0, (t + 1) * sizeof(double))
        for group in range(self.n_groups):
            march_add(t + 1, 1.0, &self.group_sum[group, 0], &self.mode_sum[0])
        if self.offline:
            for s in range(t):
                self.S[t, s] = self.mode_sum[s]
        # R_22 = 1 + R_13 K/N, and lambda_k H_k K = 1 - H_k: the strictly lower part of (1/N) sum_k H_k
        # Offline R_22 R_r = (1 + S/N)(1 + S/P), less S S/(N P) as yet
        if self.filtered:
            for s in range(t):
                self.R_22[t, s] = (self.inverse_width + self.inverse_n_samples) * self.mode_sum[s]
            self.R_22[t, t] = 1.0

    cdef void filter_lane(self, int t, int lane) noexcept nogil:
        """Product of S(t, .) with S."""
        cdef int first = lane * PANEL
        memset(&self.sums[lane, 0], 0, t * sizeof(double))
        while first < t:
            march_lower_sums(first, min(first + PANEL, t), &self.S[0, 0], self.ld, &self.S[t, 0], &self.sums[lane, 0])
            first += LANES_ * PANEL

    cdef void filter_row(self, int t) noexcept nogil:
        cdef int s
        cdef double scale = self.inverse_width * self.inverse_n_samples
        # R_22 R_r = 1 + (1/N + 1/P) S + S S/(N P)
        for s in range(t):
            self.R_22[t, s] += scale * self.gather(self.sums, s)

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
        if self.finite_width:
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

    cdef void variance_rows(self, int t, int worker) noexcept nogil:
        """Diagonal elements (t, t) of the feature and SGD variance, for the modes of a worker."""
        cdef int first = self.first_mode(worker), n = self.first_mode(worker + 1) - first
        cdef double *h = &self.h[first, 0]
        cdef double *u = &self.u[first, 0]
        memset(u, 0, <size_t> (t + 1) * n * sizeof(double))
        # u_k = H_k(t, .) Z
        if self.finite_width:
            march_matrix_times_modes(n, t + 1, t + 1, &self.Z[0, 0], self.ld, h, u)
        # (H_k Z H_k^T)(t,t), and ((1 - H_k) diag(D) (1 - H_k)^T)(t,t): the diagonal of 1 - H_k is zero
        march_group_squares(t, n, self.finite_width, &self.mode_weight[first], &self.eigenvalue[first], h, u,
                            &self.noise[0], &self.group_loss[first // GROUP, 0])
        if self.offline:
            self.data_rows(t, first, n)

    cdef void data_rows(self, int t, int first, int n) noexcept nogil:
        """g_k = (H_k - 1)(t, .) D for n modes, and (1 - H_k) D (1 - H_k)^T at (t, t)."""
        cdef double *h = &self.h[first, 0]
        cdef double *g = &self.g[first, 0]
        memset(g, 0, <size_t> (t + 1) * n * sizeof(double))
        march_matrix_times_modes(n, t, t, &self.D[0, 0], self.ld, h, g)
        march_group_dots(t, n, &self.mode_weight[first], h, g, &self.group_loss[first // GROUP, 1])

    cdef int loss_entry(self, int t) noexcept nogil:
        """L(t) and its parts; returns 1 if it left the finite range."""
        cdef int i, group
        cdef double bias = 0.0, feature = 0.0, sgd = 0.0
        for i in range(self.n_sources):
            bias += self.source_power[i] * self.source_h[t, i] * self.source_h[t, i]
        for group in range(self.n_groups):
            feature += self.group_loss[group, 0]
            sgd += (self.inverse_batch + self.inverse_n_samples) * self.group_loss[group, 1]
        self.bias[t], self.feature_variance[t], self.sgd_variance[t] = bias, feature, sgd
        self.loss[t] = bias + feature + sgd
        # D(t) = L(t) + sigma^2
        if self.offline:
            self.D[t, t] = self.loss[t] + self.noise_power
        else:
            self.noise[t] = self.loss[t] + self.noise_power
        return not (isfinite(self.loss[t]) and self.loss[t] <= self.largest_loss)

    cdef void propagate_rows(self, int t, int worker) noexcept nogil:
        """x_k = (lambda_k H_k Z + H_k diag(D)/B)(t, .) H_k^T for the modes of a worker, in place of u; offline
        lambda_k H_k Z + g_k/P.

        x_k (1 + lambda_k K^T) = u_k, from the first block of times to the last.
        """
        cdef int first = self.first_mode(worker), n = self.first_mode(worker + 1) - first
        cdef int j, start, width
        cdef const double *eigenvalue = &self.eigenvalue[first]
        cdef double *x = &self.u[first, 0]
        cdef double *before = &self.scratch[worker, 0]
        if self.offline:
            march_data_rows(t + 1, n, eigenvalue, self.inverse_n_samples, &self.g[first, 0], x)
        else:
            march_source_rows(t + 1, n, eigenvalue, self.inverse_batch, &self.h[first, 0], &self.noise[0], x)
        for j in range(t // MARCH_BLOCK + 1):
            # x[J] = (u[J] - Lambda K[J, <J] x[<J]) H_k[J, J]^T
            start = j * MARCH_BLOCK
            width = min(MARCH_BLOCK, t + 1 - start)
            memset(before, 0, MARCH_BLOCK * n * sizeof(double))
            march_matrix_times_modes(n, width, start, &self.K[start, 0], self.ld, x, before)
            march_solve_column(width, n, eigenvalue, &self.K[start, start], self.ld, before, x + <long> start * n)
        march_group_sums(t + 1, n, &self.mode_weight[first], eigenvalue, x, self.group_sum.shape[1],
                         &self.group_sum[first // GROUP, 0], &self.group_weighted_sum[first // GROUP, 0])
        if self.offline:
            march_group_add(t, n, &self.mode_weight[first], -self.inverse_n_samples, &self.g[first, 0],
                            self.group_sum.shape[1], &self.group_sum[first // GROUP, 0])

    cdef void correlation_row(self, int t) noexcept nogil:
        cdef int n_sources = self.n_sources, length = t + 1, s, i, group
        cdef double *C_0 = &self.C_0[t, 0]
        cdef double *C_1 = &self.C_1[t, 0]
        # C_1 = sum_k lambda_k { lambda_k w*_k^2 (H_k 1)(H_k 1)^T + x_k }
        for i in range(n_sources):
            self.source_row[i] = self.source_eigenvalue[i] * self.source_power[i] * self.source_h[t, i]
        dgemv(TRANSPOSED, &n_sources, &length, &UNIT, &self.source_h[0, 0], &n_sources,
              &self.source_row[0], &ONE, &ZERO, C_1, &ONE)
        # C_0 = sum_k { lambda_k w*_k^2 (H_k 1)(H_k 1)^T + x_k - H_k diag(D)/B } below the diagonal; offline x_k - g_k/P
        for i in range(n_sources):
            self.source_row[i] = self.source_power[i] * self.source_h[t, i]
        dgemv(TRANSPOSED, &n_sources, &length, &UNIT, &self.source_h[0, 0], &n_sources,
              &self.source_row[0], &ONE, &ZERO, C_0, &ONE)
        if self.filtered or self.noisy:
            for group in range(self.n_groups):
                march_add(length, 1.0, &self.group_weighted_sum[group, 0], C_1)
                march_add(length, 1.0, &self.group_sum[group, 0], C_0)
        if self.noisy:
            for s in range(t):
                C_0[s] -= self.inverse_batch * self.noise[s] * self.mode_sum[s]
        C_0[t] = self.loss[t]
        if self.offline:
            for s in range(length):
                self.D[t, s] = C_0[s] + self.noise_power
                self.D[s, t] = self.D[t, s]
        elif self.finite_width:
            self.complete_second_row(t)

    cdef void data_lane(self, int t, int lane) noexcept nogil:
        """Products of D(t, .) with rows of R_13."""
        cdef int first = lane * PANEL, last
        while first < t + 1:
            last = min(first + PANEL, t + 1)
            march_lower_dots(first, last, &self.R_13[0, 0], self.ld, &self.D[t, 0], &self.dots[0])
            first += LANES_ * PANEL

    cdef void data_row(self, int t) noexcept nogil:
        cdef int s
        # C_1 += (1/P) sum_k lambda_k D(t, .) H_k^T, and what g_k(t), which had to wait for D(t, .), adds at (t, t)
        for s in range(t + 1):
            self.C_1[t, s] -= self.inverse_n_samples * (self.dots[s] + self.R_13[s, s] * self.D[t, s])
        self.C_1[t, t] -= self.inverse_n_samples * self.dots[t]
        self.complete_second_row(t)

    cdef void complete_second_row(self, int t) noexcept nogil:
        """second_row = (R_22 C_1)(t, .), now with row t of C_1."""
        cdef int length = t + 1, s
        cdef double *C_1 = &self.C_1[t, 0]
        self.second_row[t] = dot(length, &self.R_22[t, 0], C_1)
        for s in range(t):
            self.second_row[s] += C_1[s]

    cdef void response_lane(self, int t, int lane) noexcept nogil:
        """C_2(t, .) = (R_22 C_1)(t, .) R_22^T, with 1 on the diagonal of R_22."""
        cdef int first = lane * PANEL, last, s
        while first < t + 1:
            last = min(first + PANEL, t + 1)
            march_lower_dots(first, last, &self.R_22[0, 0], self.ld, &self.second_row[0], &self.dots[0])
            for s in range(first, last):
                self.C_2[t, s] = self.dots[s] + self.second_row[s]
            first += LANES_ * PANEL
