# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The two-time march of online SGD (theory section 3): row t of every matrix from the rows before it.

All arrays are row-major (rows later time, columns earlier), so that a causal matrix is lower triangular here
and upper triangular to Fortran. A row goes through seven phases; those marked * run over the modes in
parallel, in chunks whose number depends on the number of modes only, so that results do not depend on the
number of threads:

    response      H_w, C_w, P, K, the source modes' H_k 1
    resolvents *  H_k(t, .) of all modes
    noise         R_13, R_22, Z
    variances  *  H_k Z and the parts of the loss
    loss          L(t), D(t)
    propagate  *  (H_k [lambda_k Z + D/B] H_k^T)(t, .)
    correlations  C_1, C_0, C_2

No H_k is stored beyond its diagonal blocks. The resolvents' rows of all modes together are a Q x t matrix h
with h (1 + Lambda . K) = unit vector, a triangular system whose matrix K all modes share: solved by column
blocks, its work is matrix-matrix (Q x t by t x block), as are the product with Z and the transposed system
that multiplies by H_k^T from the right. 4 Q t^2 flops a row, (4/3) Q T^3 in all, in O(T^2 + Q T) memory.
"""

from libc.math cimport isfinite
from libc.string cimport memset
from scipy.linalg.cython_blas cimport ddot, dgemm, dgemv, dsymv, dtrmv

cdef extern from "march_blocks.h" nogil:
    enum: MARCH_BLOCK
    ctypedef struct march_barrier:
        pass
    void march_barrier_init(march_barrier *barrier, int n_threads)
    void march_barrier_abandon(march_barrier *barrier)
    int march_barrier_wait(march_barrier *barrier)
    void march_block_product(int n, double scale, const double *x, const double *block, double *y_out)
    void march_add(int n, double scale, const double *x, double *y_out)
    void march_source_row(int n, double lam, double inverse_batch, const double *h, const double *d,
                          double *u_out)
    double march_weighted_square(int n, const double *h, const double *d)

# Modes a chunk: enough rows for an efficient matrix product, enough chunks to share among threads.
cdef enum:
    CHUNK = 24

BLOCK = MARCH_BLOCK

cdef char *UPPER = b"U"
cdef char *PLAIN = b"N"
cdef char *TRANSPOSED = b"T"
cdef int ONE = 1
cdef double UNIT = 1.0
cdef double ZERO = 0.0


cdef inline void row_times_lower(int n, double *matrix, int ld, double *row_out) noexcept nogil:
    """row_j <- sum_{i>=j} row_i matrix[i, j]."""
    dtrmv(UPPER, PLAIN, PLAIN, &n, matrix, &ld, row_out, &ONE)


cdef inline void row_times_lower_transposed(int n, double *matrix, int ld, double *row_out) noexcept nogil:
    """row_i <- sum_{j<=i} row_j matrix[i, j]."""
    dtrmv(UPPER, TRANSPOSED, PLAIN, &n, matrix, &ld, row_out, &ONE)


cdef inline void row_times_symmetric(int n, double *row, double *matrix, int ld,
                                     double *row_out) noexcept nogil:
    """row_out_j <- sum_i row_i matrix[i, j], from the lower triangle."""
    dsymv(UPPER, &n, &UNIT, matrix, &ld, row, &ONE, &ZERO, row_out, &ONE)


cdef inline double dot(int n, double *x, double *y) noexcept nogil:
    return ddot(&n, x, &ONE, y, &ONE)


cdef class TwoTimeMarch:
    """State of one march; `march(worker)` is called by every thread of a team of `n_workers`.

    The two-time arrays are zero on entry, (T, T), and filled row by row in their lower triangle (Z in both).
    """

    # Settings.
    cdef double learning_rate, gamma, inverse_width, inverse_batch, noise_power, largest_loss
    cdef int n_rows, n_modes, n_sources, n_workers, n_chunks
    # Arrays of the caller.
    cdef double[:, ::1] H_w, C_w, P, K, R_13, R_22, Z, C_0, C_1, C_2
    cdef double[::1] bias, feature_variance, sgd_variance, loss
    cdef const double[::1] eigenvalue, mode_weight, source_eigenvalue, source_power
    # Workspace: rows of all modes (h, u), their diagonal blocks and transposes, sums of chunks.
    cdef double[:, ::1] h, u, x, source_h, chunk_sum, chunk_scratch
    cdef double[:, :, :, ::1] diagonal, diagonal_transposed
    cdef double[:, ::1] chunk_loss
    cdef double[::1] row, second_row, source_row, noise
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
        self.n_rows = self.loss.shape[0]
        self.n_modes, self.n_sources = eigenvalue.shape[0], source_eigenvalue.shape[0]
        self.n_workers, self.n_chunks = n_workers, chunk_count(self.n_modes)
        self.h, self.u, self.x = workspace["h"], workspace["u"], workspace["x"]
        self.source_h = workspace["source_h"]
        self.diagonal, self.diagonal_transposed = workspace["diagonal"], workspace["diagonal_transposed"]
        self.chunk_sum, self.chunk_loss = workspace["chunk_sum"], workspace["chunk_loss"]
        self.chunk_scratch = workspace["chunk_scratch"]
        self.row, self.second_row = workspace["row"], workspace["second_row"]
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
        cdef int t, chunk
        for t in range(self.n_rows):
            if worker == 0:
                self.stopping = self.stop_requested
                if not self.stopping:
                    self.response_row(t)
            if march_barrier_wait(&self.barrier) or self.stopping:
                return
            for chunk in range(self.n_chunks):
                if chunk % self.n_workers == worker:
                    self.resolvent_rows(t, chunk)
            if march_barrier_wait(&self.barrier):
                return
            if worker == 0:
                self.noise_row(t)
            if march_barrier_wait(&self.barrier):
                return
            for chunk in range(self.n_chunks):
                if chunk % self.n_workers == worker:
                    self.variance_rows(t, chunk)
            if march_barrier_wait(&self.barrier):
                return
            if worker == 0:
                self.failed = self.loss_entry(t)
            if march_barrier_wait(&self.barrier) or self.failed:
                return
            for chunk in range(self.n_chunks):
                if chunk % self.n_workers == worker:
                    self.propagate_rows(t, chunk)
            if march_barrier_wait(&self.barrier):
                return
            if worker == 0:
                self.correlation_row(t)
                self.rows_finished = t + 1

    cdef void response_row(self, int t) noexcept nogil:
        cdef int ld = self.n_rows, n, s, i, n_sources = self.n_sources
        cdef double eta = self.learning_rate, minus = -1.0
        cdef double *H_w = &self.H_w[t, 0]
        cdef double *row = &self.row[0]
        if t > 0:
            # H_w(t) = H_w(t-1) + eta e_{t-1} + eta^2 gamma sum_{s<t-1} C_2(t-1,s) H_w(s)
            n = t - 1
            for s in range(n):
                H_w[s] = self.H_w[t - 1, s]
            if self.gamma > 0.0 and n > 0:
                for s in range(n):
                    row[s] = self.C_2[t - 1, s]
                row_times_lower(n, &self.H_w[0, 0], ld, row)
                march_add(n, eta * eta * self.gamma, row, H_w)
            H_w[t - 1] = eta
            # C_w = H_w C_2 H_w^T
            row_times_symmetric(t, H_w, &self.C_2[0, 0], ld, row)
            self.C_w[t, t] = dot(t, row, H_w)
            row_times_lower_transposed(t, &self.H_w[0, 0], ld, row)
            # P = H_w + eta gamma tril(C_w, -1)
            for s in range(t):
                self.C_w[t, s] = row[s]
                row[s] = H_w[s] + eta * self.gamma * row[s]
                self.P[t, s] = row[s]
            # K = P R_22
            if self.inverse_width > 0.0:
                row_times_lower(t, &self.R_22[0, 0], ld, row)
            for s in range(t):
                self.K[t, s] = row[s]
        # Source modes: (H_k 1)(t) = 1 - lambda_k sum_s K(t,s) (H_k 1)(s)
        for i in range(n_sources):
            self.source_h[t, i] = 0.0
        if t > 0:
            dgemv(PLAIN, &n_sources, &t, &minus, &self.source_h[0, 0], &n_sources, &self.K[t, 0], &ONE,
                  &ZERO, &self.source_h[t, 0], &ONE)
        for i in range(n_sources):
            self.source_h[t, i] = 1.0 + self.source_eigenvalue[i] * self.source_h[t, i]

    cdef void resolvent_rows(self, int t, int chunk) noexcept nogil:
        """h_k (1 + lambda_k K) = e_t for the modes of a chunk, from the last column block to the first."""
        cdef int first = chunk * self.n_modes // self.n_chunks
        cdef int n = (chunk + 1) * self.n_modes // self.n_chunks - first
        cdef int ld = self.n_rows, ld_h = <int> self.h.shape[1], edge = MARCH_BLOCK
        cdef int last = t // MARCH_BLOCK, local = t - last * MARCH_BLOCK
        cdef int k, s, j, done, rest
        cdef double *scratch = &self.chunk_scratch[chunk, 0]
        cdef double *sum_1 = &self.chunk_sum[2 * chunk, 0]
        cdef double *sum_0 = &self.chunk_sum[2 * chunk + 1, 0]
        cdef double *h
        cdef double *block
        # Inside the block of t: H_k(t,s) = -lambda_k sum_{s<=r<t} K(t,r) H_k(r,s), from the rows kept there.
        for k in range(first, first + n):
            h = &self.h[k, last * MARCH_BLOCK]
            block = &self.diagonal[k, last, 0, 0]
            march_block_product(local, -self.eigenvalue[k], &self.K[t, last * MARCH_BLOCK], block, h)
            h[local] = 1.0
            for s in range(local + 1):
                block[local * MARCH_BLOCK + s] = h[s]
                self.diagonal_transposed[k, last, s, local] = h[s]
        for j in range(last - 1, -1, -1):
            # h[:, J] = -Lambda (h[:, >J] K[>J, J]) H_k[J, J]
            done = (j + 1) * MARCH_BLOCK
            rest = t + 1 - done
            dgemm(PLAIN, PLAIN, &edge, &n, &rest, &UNIT, &self.K[done, done - MARCH_BLOCK], &ld,
                  &self.h[first, done], &ld_h, &ZERO, scratch, &edge)
            for k in range(n):
                march_block_product(edge, -self.eigenvalue[first + k], scratch + k * MARCH_BLOCK,
                                    &self.diagonal[first + k, j, 0, 0],
                                    &self.h[first + k, done - MARCH_BLOCK])
        # Sums for R_13 and R_22.
        memset(sum_1, 0, (t + 1) * sizeof(double))
        memset(sum_0, 0, (t + 1) * sizeof(double))
        for k in range(first, first + n):
            march_add(t + 1, self.mode_weight[k] * self.eigenvalue[k], &self.h[k, 0], sum_1)
            march_add(t + 1, self.mode_weight[k], &self.h[k, 0], sum_0)

    cdef void noise_row(self, int t) noexcept nogil:
        cdef int ld = self.n_rows, s, chunk
        cdef double *row = &self.row[0]
        cdef double *R_13 = &self.R_13[t, 0]
        cdef double *R_22 = &self.R_22[t, 0]
        # R_13 = - sum_k lambda_k H_k
        for chunk in range(self.n_chunks):
            march_add(t + 1, -1.0, &self.chunk_sum[2 * chunk, 0], R_13)
        # sum_k H_k (t,s) is kept for R_22 and for C_0.
        memset(&self.second_row[0], 0, (t + 1) * sizeof(double))
        for chunk in range(self.n_chunks):
            march_add(t + 1, 1.0, &self.chunk_sum[2 * chunk + 1, 0], &self.second_row[0])
        # R_22 = 1 + R_13 K/N, and lambda_k H_k K = 1 - H_k: the strictly lower part of (1/N) sum_k H_k.
        for s in range(t):
            R_22[s] = self.inverse_width * self.second_row[s]
        R_22[t] = 1.0
        # Z = K C_1 K^T/N
        if self.inverse_width > 0.0 and t > 0:
            row_times_symmetric(t, &self.K[t, 0], &self.C_1[0, 0], ld, row)
            self.Z[t, t] = self.inverse_width * dot(t, row, &self.K[t, 0])
            row_times_lower_transposed(t, &self.K[0, 0], ld, row)
            for s in range(t):
                self.Z[t, s] = self.inverse_width * row[s]
                self.Z[s, t] = self.Z[t, s]

    cdef void variance_rows(self, int t, int chunk) noexcept nogil:
        cdef int first = chunk * self.n_modes // self.n_chunks
        cdef int n = (chunk + 1) * self.n_modes // self.n_chunks - first
        cdef int ld = self.n_rows, ld_h = <int> self.h.shape[1], length = t + 1, k
        cdef double feature = 0.0, sgd = 0.0
        # u_k = H_k(t, .) Z, and (H_k Z H_k^T)(t,t)
        if self.inverse_width > 0.0:
            dgemm(PLAIN, PLAIN, &length, &n, &length, &UNIT, &self.Z[0, 0], &ld, &self.h[first, 0], &ld_h,
                  &ZERO, &self.u[first, 0], &ld_h)
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

    cdef void propagate_rows(self, int t, int chunk) noexcept nogil:
        """x_k = (lambda_k H_k Z + H_k diag(D)/B)(t, .) H_k^T for the modes of a chunk.

        x_k (1 + lambda_k K^T) = u_k, from the first column block to the last.
        """
        cdef int first = chunk * self.n_modes // self.n_chunks
        cdef int n = (chunk + 1) * self.n_modes // self.n_chunks - first
        cdef int ld = self.n_rows, ld_h = <int> self.h.shape[1], edge = MARCH_BLOCK
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
                dgemm(TRANSPOSED, PLAIN, &width, &n, &start, &UNIT, &self.K[start, 0], &ld,
                      &self.x[first, 0], &ld_h, &ZERO, scratch, &edge)
            for k in range(n):
                if j > 0:
                    for s in range(width):
                        scratch[k * MARCH_BLOCK + s] = (
                            self.u[first + k, start + s]
                            - self.eigenvalue[first + k] * scratch[k * MARCH_BLOCK + s])
                else:
                    for s in range(width):
                        scratch[k * MARCH_BLOCK + s] = self.u[first + k, s]
                march_block_product(width, 1.0, scratch + k * MARCH_BLOCK,
                                    &self.diagonal_transposed[first + k, j, 0, 0],
                                    &self.x[first + k, start])
        for k in range(first, first + n):
            march_add(t + 1, self.mode_weight[k] * self.eigenvalue[k], &self.x[k, 0], sum_1)
            march_add(t + 1, self.mode_weight[k], &self.x[k, 0], sum_0)

    cdef void correlation_row(self, int t) noexcept nogil:
        cdef int ld = self.n_rows, n_sources = self.n_sources, length = t + 1, s, i, chunk
        cdef double *C_0 = &self.C_0[t, 0]
        cdef double *C_1 = &self.C_1[t, 0]
        cdef double *C_2 = &self.C_2[t, 0]
        cdef double *row = &self.row[0]
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
            C_0[s] -= self.inverse_batch * self.noise[s] * self.second_row[s]
        C_0[t] = self.loss[t]
        # C_2 = R_22 C_1 R_22^T
        if self.inverse_width > 0.0:
            row_times_symmetric(length, &self.R_22[t, 0], &self.C_1[0, 0], ld, row)
            row_times_lower_transposed(length, &self.R_22[0, 0], ld, row)
        else:
            for s in range(length):
                row[s] = C_1[s]
        for s in range(length):
            C_2[s] = row[s]


def chunk_count(int n_modes):
    """Number of chunks into which the modes are cut, whatever the number of threads."""
    return (n_modes + CHUNK - 1) // CHUNK
