/* Helpers of the two-time march that need plain C: a barrier, and products and solves for many modes at once. */
#ifndef SCALEFIELD_MARCH_BLOCKS_H
#define SCALEFIELD_MARCH_BLOCKS_H

#include <stdatomic.h>
#include <stdlib.h>

#if defined(__x86_64__) || defined(__i386__)
#define MARCH_PAUSE() __builtin_ia32_pause()
#else
#define MARCH_PAUSE() ((void)0)
#endif

#ifdef _WIN32
#include <windows.h>
static inline void march_yield(void) { SwitchToThread(); }
#else
#include <sched.h>
static inline void march_yield(void) { sched_yield(); }
#endif

/* Edge of the diagonal blocks of the triangular solves: long enough for a matrix product per block, short enough
 * that a column of a block stays in registers. */
#define MARCH_BLOCK 16

/* Vector code for whichever x86-64 the wheel runs on; elsewhere (also where libc cannot choose at load time) the
 * compiler's default. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__GLIBC__)
#define MARCH_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define MARCH_CLONES
#endif

/* A barrier for a few threads that meet several times a row: they spin, and yield when a core is shared. */
typedef struct {
    atomic_int arrived;
    atomic_int generation;
    atomic_int abandoned;
    int n_threads;
} march_barrier;

static inline void march_barrier_init(march_barrier *barrier, int n_threads) {
    atomic_init(&barrier->arrived, 0);
    atomic_init(&barrier->generation, 0);
    atomic_init(&barrier->abandoned, 0);
    barrier->n_threads = n_threads;
}

/* Let every thread through for good; called when a thread of the team could not be started. */
static inline void march_barrier_abandon(march_barrier *barrier) { atomic_store(&barrier->abandoned, 1); }

/* Returns 0 when all threads have arrived, 1 if the barrier was abandoned. */
static inline int march_barrier_wait(march_barrier *barrier) {
    int generation, spins = 0;
    if (barrier->n_threads == 1) return 0;
    generation = atomic_load(&barrier->generation);
    if (atomic_fetch_add(&barrier->arrived, 1) + 1 == barrier->n_threads) {
        atomic_store(&barrier->arrived, 0);
        atomic_fetch_add(&barrier->generation, 1);
        return 0;
    }
    while (atomic_load(&barrier->generation) == generation) {
        if (atomic_load(&barrier->abandoned)) return 1;
        if (++spins > 500)
            march_yield();
        else
            MARCH_PAUSE();
    }
    return 0;
}

/* Four doubles that the compiler keeps in whatever vector registers the target has. */
typedef double march_vec __attribute__((vector_size(32), aligned(8), may_alias));

static inline __attribute__((always_inline)) double march_vec_sum(march_vec v) {
    return (v[0] + v[1]) + (v[2] + v[3]);
}

/* Rows of modes: x[r][k] is the value of mode k at time r, modes side by side, their number a multiple of 4. A
 * register holds four modes, so what all modes share, an entry of a two-time matrix, enters as one factor. */

/* out[c][k] += sum_{r<n} a(c, r) x[r][k] for VECS x 4 modes and OUTS rows of out; one order of summation for
 * every tile, so that results do not depend on how modes and rows are dealt to tiles. */
static inline __attribute__((always_inline)) void march_product_tile(
    const int OUTS, const int VECS, long n, const double *restrict a, long to_out, long to_inner,
    const double *restrict x, long ld, double *restrict out) {
    march_vec sum[4][3];
#pragma GCC unroll 4
    for (int c = 0; c < OUTS; ++c)
#pragma GCC unroll 3
        for (int v = 0; v < VECS; ++v) sum[c][v] = *(march_vec *)(out + c * ld + 4 * v);
    for (long r = 0; r < n; ++r) {
#pragma GCC unroll 4
        for (int c = 0; c < OUTS; ++c)
#pragma GCC unroll 3
            for (int v = 0; v < VECS; ++v)
                sum[c][v] += a[c * to_out + r * to_inner] * *(const march_vec *)(x + r * ld + 4 * v);
    }
#pragma GCC unroll 4
    for (int c = 0; c < OUTS; ++c)
#pragma GCC unroll 3
        for (int v = 0; v < VECS; ++v) *(march_vec *)(out + c * ld + 4 * v) = sum[c][v];
}

static inline __attribute__((always_inline)) void march_product_strip(
    const int OUTS, int n_modes, long n, const double *restrict a, long to_out, long to_inner,
    const double *restrict x, double *restrict out) {
    int k = 0;
    while (k < n_modes) {
        /* Three vectors at a time; a remainder of four as two and two. */
        const int left = (n_modes - k) / 4;
        if (left == 1) {
            march_product_tile(OUTS, 1, n, a, to_out, to_inner, x + k, n_modes, out + k);
            k += 4;
        } else if (left == 2 || left == 4) {
            march_product_tile(OUTS, 2, n, a, to_out, to_inner, x + k, n_modes, out + k);
            k += 8;
        } else {
            march_product_tile(OUTS, 3, n, a, to_out, to_inner, x + k, n_modes, out + k);
            k += 12;
        }
    }
}

/* Ask for the entries of a that are needed some strips later: too many rows at once for the processor to foresee. */
static inline __attribute__((always_inline)) void march_prefetch(const double *a, long n, long step) {
    for (long i = 0; i < n; ++i) __builtin_prefetch(a + i * step, 0, 2);
}

static inline __attribute__((always_inline)) void march_product_kernel(
    int n_modes, long n_out, long n, const double *restrict a, long to_out, long to_inner,
    const double *restrict x, double *restrict out) {
    /* A piece of x at a time that stays in the first-level cache for all rows of out. */
    enum { PIECE = 64, AHEAD = 32 };
    for (long first = 0; first < n; first += PIECE) {
        const long length = first + PIECE < n ? PIECE : n - first;
        const double *part = a + first * to_inner, *x_part = x + first * n_modes;
        long c = 0;
        for (; c + 4 <= n_out; c += 4) {
            if (to_inner == 1)
                for (int row = 0; row < 4; ++row) march_prefetch(part + (c + row) * to_out + PIECE, PIECE / 8, 8);
            else if (c % 8 == 0)
                march_prefetch(part + c + AHEAD, length, to_inner);
            march_product_strip(4, n_modes, length, part + c * to_out, to_out, to_inner, x_part, out + c * n_modes);
        }
        for (; c < n_out; ++c)
            march_product_strip(1, n_modes, length, part + c * to_out, to_out, to_inner, x_part, out + c * n_modes);
    }
}

/* out[c][k] += sum_{r<n} a[c][r] x[r][k] for c < n_out, with rows of a of length ld. */
MARCH_CLONES
static void march_matrix_times_modes(int n_modes, int n_out, int n, const double *a, long ld, const double *x,
                                     double *out) {
    march_product_kernel(n_modes, n_out, n, a, ld, 1, x, out);
}

/* out[c][k] += sum_{r<n} a[r][c] x[r][k] for c < n_out, with rows of a of length ld. */
MARCH_CLONES
static void march_transposed_times_modes(int n_modes, int n_out, int n, const double *a, long ld, const double *x,
                                         double *out) {
    march_product_kernel(n_modes, n_out, n, a, 1, ld, x, out);
}

/* Solve h_k (1 + lambda_k a) = right-hand side in a diagonal block of n <= MARCH_BLOCK times, a strictly lower
 * triangular, for the first n_unknown of them from the last to the first; h[c] holds sum_{r>=n} h[r] a[r][c] on
 * entry:
 *
 *     h[c][k] = -lambda_k ( h[c][k] + sum_{c<r<n} h[r][k] a[r][c] ) */
static inline __attribute__((always_inline)) void march_row_kernel(
    const int n_unknown, const int n, int n_modes, const double *restrict lambda, const double *restrict a, long ld,
    double *restrict h) {
    for (int k = 0; k < n_modes; k += 4) {
        const march_vec minus_lambda = -*(const march_vec *)(lambda + k);
        march_vec value[MARCH_BLOCK];
#pragma GCC unroll 16
        for (int c = n_unknown; c < n; ++c) value[c] = *(march_vec *)(h + c * n_modes + k);
#pragma GCC unroll 16
        for (int c = n_unknown - 1; c >= 0; --c) {
            march_vec sum = *(march_vec *)(h + c * n_modes + k);
#pragma GCC unroll 16
            for (int r = n - 1; r > c; --r) sum += a[r * ld + c] * value[r];
            value[c] = minus_lambda * sum;
            *(march_vec *)(h + c * n_modes + k) = value[c];
        }
    }
}

MARCH_CLONES
static void march_solve_row(int n_unknown, int n, int n_modes, const double *lambda, const double *a, long ld,
                            double *h) {
    if (n_unknown == MARCH_BLOCK)
        march_row_kernel(MARCH_BLOCK, MARCH_BLOCK, n_modes, lambda, a, ld, h);
    else
        march_row_kernel(n_unknown, n, n_modes, lambda, a, ld, h);
}

/* Solve x_k (1 + lambda_k a^T) = u_k in a diagonal block of n <= MARCH_BLOCK times, from the first to the last; x
 * holds u on entry and `before` the sums over the times before the block:
 *
 *     x[s][k] = u[s][k] - lambda_k ( before[s][k] + sum_{r<s} a[s][r] x[r][k] ) */
static inline __attribute__((always_inline)) void march_column_kernel(
    const int n, int n_modes, const double *restrict lambda, const double *restrict a, long ld,
    const double *restrict before, double *restrict x) {
    for (int k = 0; k < n_modes; k += 4) {
        const march_vec factor = *(const march_vec *)(lambda + k);
        march_vec value[MARCH_BLOCK];
#pragma GCC unroll 16
        for (int s = 0; s < n; ++s) {
            march_vec sum = *(const march_vec *)(before + s * n_modes + k);
#pragma GCC unroll 16
            for (int r = 0; r < s; ++r) sum += a[s * ld + r] * value[r];
            value[s] = *(march_vec *)(x + s * n_modes + k) - factor * sum;
            *(march_vec *)(x + s * n_modes + k) = value[s];
        }
    }
}

MARCH_CLONES
static void march_solve_column(int n, int n_modes, const double *lambda, const double *a, long ld,
                               const double *before, double *x) {
    if (n == MARCH_BLOCK)
        march_column_kernel(MARCH_BLOCK, n_modes, lambda, a, ld, before, x);
    else
        march_column_kernel(n, n_modes, lambda, a, ld, before, x);
}

/* u[s][k] = lambda_k u[s][k] + inverse_batch d[s] h[s][k]  for s < n */
MARCH_CLONES
static void march_source_rows(int n, int n_modes, const double *restrict lambda, double inverse_batch,
                              const double *restrict h, const double *restrict d, double *restrict u) {
    for (int s = 0; s < n; ++s) {
        const double noise = inverse_batch * d[s];
        for (int k = 0; k < n_modes; ++k)
            u[(long)s * n_modes + k] = lambda[k] * u[(long)s * n_modes + k] + noise * h[(long)s * n_modes + k];
    }
}

/* Sums over each group of 4 modes, one row of length ld a group:
 *
 *     sum_out[g][s]          = sum_{k in g} weight_k x[s][k]
 *     weighted_sum_out[g][s] = sum_{k in g} weight_k lambda_k x[s][k] */
MARCH_CLONES
static void march_group_sums(int n, int n_modes, const double *restrict weight, const double *restrict lambda,
                             const double *restrict x, long ld, double *restrict sum_out,
                             double *restrict weighted_sum_out) {
    for (int g = 0; g < n_modes / 4; ++g) {
        const march_vec w = *(const march_vec *)(weight + 4 * g);
        const march_vec w_lambda = w * *(const march_vec *)(lambda + 4 * g);
        for (int s = 0; s < n; ++s) {
            const march_vec value = *(const march_vec *)(x + (long)s * n_modes + 4 * g);
            sum_out[g * ld + s] = march_vec_sum(w * value);
            weighted_sum_out[g * ld + s] = march_vec_sum(w_lambda * value);
        }
    }
}

/* Sums over times and over each group of 4 modes, two numbers a group:
 *
 *     out[g][0] = sum_{k in g} weight_k lambda_k sum_{s<=n} u[s][k] h[s][k]     if with_u, else 0
 *     out[g][1] = sum_{k in g} weight_k sum_{s<n} d[s] h[s][k]^2 */
MARCH_CLONES
static void march_group_squares(int n, int n_modes, int with_u, const double *restrict weight, const double *restrict lambda,
                                const double *restrict h, const double *restrict u, const double *restrict d,
                                double *restrict out) {
    for (int g = 0; g < n_modes / 4; ++g) {
        const march_vec w = *(const march_vec *)(weight + 4 * g);
        const double *h_g = h + 4 * g, *u_g = u + 4 * g;
        march_vec product = {0.0}, square = {0.0}, more = {0.0};
        int s = 0;
        for (; s + 2 <= n; s += 2) {
            const march_vec first = *(const march_vec *)(h_g + (long)s * n_modes);
            const march_vec second = *(const march_vec *)(h_g + (long)(s + 1) * n_modes);
            square += d[s] * (first * first);
            more += d[s + 1] * (second * second);
        }
        for (; s < n; ++s) {
            const march_vec value = *(const march_vec *)(h_g + (long)s * n_modes);
            square += d[s] * (value * value);
        }
        if (with_u)
            for (s = 0; s <= n; ++s)
                product += *(const march_vec *)(u_g + (long)s * n_modes) *
                           *(const march_vec *)(h_g + (long)s * n_modes);
        out[2 * g] = march_vec_sum(w * *(const march_vec *)(lambda + 4 * g) * product);
        out[2 * g + 1] = march_vec_sum(w * (square + more));
    }
}

/* sum_out[g][s] += scale sum_{k in g} weight_k x[s][k], one row of length ld a group of 4 modes */
MARCH_CLONES
static void march_group_add(int n, int n_modes, const double *restrict weight, double scale, const double *restrict x,
                            long ld, double *restrict sum_out) {
    for (int g = 0; g < n_modes / 4; ++g) {
        const march_vec w = scale * *(const march_vec *)(weight + 4 * g);
        for (int s = 0; s < n; ++s)
            sum_out[g * ld + s] += march_vec_sum(w * *(const march_vec *)(x + (long)s * n_modes + 4 * g));
    }
}

/* out[2 g] = sum_{k in g} weight_k sum_{s<n} x[s][k] y[s][k]: every other number, a group of 4 modes each */
MARCH_CLONES
static void march_group_dots(int n, int n_modes, const double *restrict weight, const double *restrict x,
                             const double *restrict y, double *restrict out) {
    for (int g = 0; g < n_modes / 4; ++g) {
        march_vec product = {0.0};
        for (int s = 0; s < n; ++s)
            product += *(const march_vec *)(x + (long)s * n_modes + 4 * g) *
                       *(const march_vec *)(y + (long)s * n_modes + 4 * g);
        out[2 * g] = march_vec_sum(*(const march_vec *)(weight + 4 * g) * product);
    }
}

/* u[s][k] = lambda_k u[s][k] + scale g[s][k]  for s < n */
MARCH_CLONES
static void march_data_rows(int n, int n_modes, const double *restrict lambda, double scale, const double *restrict g,
                            double *restrict u) {
    for (int s = 0; s < n; ++s)
        for (int k = 0; k < n_modes; ++k)
            u[(long)s * n_modes + k] = lambda[k] * u[(long)s * n_modes + k] + scale * g[(long)s * n_modes + k];
}

/* y_j += scale * x_j */
MARCH_CLONES
static void march_add(int n, double scale, const double *restrict x, double *restrict y_out) {
    for (int j = 0; j < n; ++j) y_out[j] += scale * x[j];
}

/* Products of the strictly lower part of rows first..last-1 of a row-major matrix a with one or two vectors x,
 * reading each entry once:
 *
 *     dot_out[i]  = sum_{j<i} a[i][j] x[j]      if dots
 *     sum_out[j] += sum_{i>j} x[i] a[i][j]      if sums
 *
 * Both together over all rows make the product with the symmetric matrix, less its diagonal. Four rows go
 * together, so that the vectors are read and written once for four entries of the matrix. The number of rows is
 * a multiple of 4 or ends the matrix; rows are independent of how many are given at once. */
static inline __attribute__((always_inline)) void march_lower_kernel(
    const int dots, const int sums, const int pair, int first, int last, const double *restrict a, long ld,
    const double *restrict x, const double *restrict second_x, double *restrict dot_out,
    double *restrict second_dot_out, double *restrict sum_out, double *restrict second_sum_out) {
    int i = first;
    for (; i + 4 <= last; i += 4) {
        const double *row[4] = {a + i * ld, a + (i + 1) * ld, a + (i + 2) * ld, a + (i + 3) * ld};
        march_vec dot[4] = {{0.0}}, second_dot[4] = {{0.0}};
        double tail[4] = {0.0}, second_tail[4] = {0.0};
        int j = 0;
        for (; j + 4 <= i; j += 4) {
            march_vec entry[4];
            for (int r = 0; r < 4; ++r) entry[r] = *(const march_vec *)(row[r] + j);
            if (dots) {
                const march_vec factor = *(const march_vec *)(x + j);
                for (int r = 0; r < 4; ++r) dot[r] += entry[r] * factor;
            }
            if (sums) {
                march_vec sum = *(march_vec *)(sum_out + j);
                for (int r = 0; r < 4; ++r) sum += entry[r] * x[i + r];
                *(march_vec *)(sum_out + j) = sum;
            }
            if (pair) {
                const march_vec factor = *(const march_vec *)(second_x + j);
                march_vec sum = *(march_vec *)(second_sum_out + j);
                for (int r = 0; r < 4; ++r) second_dot[r] += entry[r] * factor;
                for (int r = 0; r < 4; ++r) sum += entry[r] * second_x[i + r];
                *(march_vec *)(second_sum_out + j) = sum;
            }
        }
        for (int r = 0; r < 4; ++r) {
            for (int l = j; l < i + r; ++l) {
                const double entry = row[r][l];
                if (dots) tail[r] += entry * x[l];
                if (sums) sum_out[l] += entry * x[i + r];
                if (pair) {
                    second_tail[r] += entry * second_x[l];
                    second_sum_out[l] += entry * second_x[i + r];
                }
            }
            if (dots) dot_out[i + r] = march_vec_sum(dot[r]) + tail[r];
            if (pair) second_dot_out[i + r] = march_vec_sum(second_dot[r]) + second_tail[r];
        }
    }
    for (; i < last; ++i) {
        double dot = 0.0, second_dot = 0.0;
        for (int j = 0; j < i; ++j) {
            const double entry = a[i * ld + j];
            if (dots) dot += entry * x[j];
            if (sums) sum_out[j] += entry * x[i];
            if (pair) {
                second_dot += entry * second_x[j];
                second_sum_out[j] += entry * second_x[i];
            }
        }
        if (dots) dot_out[i] = dot;
        if (pair) second_dot_out[i] = second_dot;
    }
}

MARCH_CLONES
static void march_lower_dots(int first, int last, const double *a, long ld, const double *x, double *dot_out) {
    march_lower_kernel(1, 0, 0, first, last, a, ld, x, 0, dot_out, 0, 0, 0);
}

MARCH_CLONES
static void march_lower_sums(int first, int last, const double *a, long ld, const double *x, double *sum_out) {
    march_lower_kernel(0, 1, 0, first, last, a, ld, x, 0, 0, 0, sum_out, 0);
}

MARCH_CLONES
static void march_lower_both(int first, int last, const double *a, long ld, const double *x, double *dot_out,
                             double *sum_out) {
    march_lower_kernel(1, 1, 0, first, last, a, ld, x, 0, dot_out, 0, sum_out, 0);
}

MARCH_CLONES
static void march_lower_both_pair(int first, int last, const double *a, long ld, const double *x,
                                  const double *second_x, double *dot_out, double *second_dot_out,
                                  double *sum_out, double *second_sum_out) {
    march_lower_kernel(1, 1, 1, first, last, a, ld, x, second_x, dot_out, second_dot_out, sum_out,
                       second_sum_out);
}

#endif
