/* Helpers of the two-time march that need plain C: a barrier and the products with small diagonal blocks. */
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

/* Edge of the diagonal blocks: long enough for a matrix product per block, short enough that the blocks of
 * all modes stay in cache. */
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

/* y_j = scale * sum_{i<n} x_i block[i][j] for all MARCH_BLOCK columns j of a triangular block, lower (j <= i) or
 * upper (j >= i), whose other entries are zero. A whole block goes by tiles of four rows and skips the tiles that
 * are zero. */
static inline __attribute__((always_inline)) void march_block_kernel(
    const int lower, int n, double scale, const double *restrict x, const double *restrict block,
    double *restrict y_out) {
    enum { TILES = MARCH_BLOCK / 4 };
    march_vec sum[TILES] = {{0.0}};
    if (n == MARCH_BLOCK) {
#pragma GCC unroll 8
        for (int row_tile = 0; row_tile < TILES; ++row_tile) {
#pragma GCC unroll 4
            for (int r = 0; r < 4; ++r) {
                const int i = 4 * row_tile + r;
                const double *row = block + i * MARCH_BLOCK;
#pragma GCC unroll 8
                for (int tile = 0; tile < TILES; ++tile)
                    if (lower ? tile <= row_tile : tile >= row_tile)
                        sum[tile] += x[i] * *(const march_vec *)(row + 4 * tile);
            }
        }
    } else {
        for (int i = 0; i < n; ++i)
            for (int tile = 0; tile < TILES; ++tile)
                sum[tile] += x[i] * *(const march_vec *)(block + i * MARCH_BLOCK + 4 * tile);
    }
    for (int tile = 0; tile < TILES; ++tile) *(march_vec *)(y_out + 4 * tile) = scale * sum[tile];
}

MARCH_CLONES
static void march_lower_block_product(int n, double scale, const double *x, const double *block, double *y_out) {
    march_block_kernel(1, n, scale, x, block, y_out);
}

MARCH_CLONES
static void march_upper_block_product(int n, double scale, const double *x, const double *block, double *y_out) {
    march_block_kernel(0, n, scale, x, block, y_out);
}

/* Products of the rows of several modes (their number a multiple of 4) with a matrix they share. The shapes are too
 * narrow for a general matrix product, which spends much of its time on copies of the shared matrix. Here its rows
 * begin at cache lines and are read in place, a piece at a time that stays in the first-level cache for all modes.
 *
 *     out[k][c] = sum_{r<n} x[k][r] a[r][c]      for MARCH_BLOCK columns c, out with rows of length ld_out
 */
MARCH_CLONES
static void march_rows_times_matrix(int n_modes, int n, const double *restrict x, long ld_x,
                                    const double *restrict a, long ld, double *restrict out, long ld_out) {
    enum { PIECE = 96 };
    for (int k = 0; k < n_modes; ++k)
        for (int c = 0; c < MARCH_BLOCK; ++c) out[k * ld_out + c] = 0.0;
    for (int first = 0; first < n; first += PIECE) {
        const int length = first + PIECE < n ? PIECE : n - first;
        for (int k = 0; k < n_modes; k += 4) {
            const double *x0 = x + k * ld_x + first, *x1 = x0 + ld_x, *x2 = x1 + ld_x, *x3 = x2 + ld_x;
            for (int c = 0; c < MARCH_BLOCK; c += 8) {
                const double *row = a + first * ld + c;
                march_vec sum[4][2];
                for (int m = 0; m < 4; ++m)
                    for (int v = 0; v < 2; ++v) sum[m][v] = *(march_vec *)(out + (k + m) * ld_out + c + 4 * v);
                for (int r = 0; r < length; ++r, row += ld) {
                    const march_vec left = *(const march_vec *)row, right = *(const march_vec *)(row + 4);
                    sum[0][0] += x0[r] * left;
                    sum[0][1] += x0[r] * right;
                    sum[1][0] += x1[r] * left;
                    sum[1][1] += x1[r] * right;
                    sum[2][0] += x2[r] * left;
                    sum[2][1] += x2[r] * right;
                    sum[3][0] += x3[r] * left;
                    sum[3][1] += x3[r] * right;
                }
                for (int m = 0; m < 4; ++m)
                    for (int v = 0; v < 2; ++v) *(march_vec *)(out + (k + m) * ld_out + c + 4 * v) = sum[m][v];
            }
        }
    }
}

/* out[k][s] = sum_{r<n} x[k][r] a[s][r] for the first `width` rows s of a; n a multiple of 4, out with rows of
 * length MARCH_BLOCK. */
MARCH_CLONES
static void march_rows_times_transposed(int n_modes, int n, int width, const double *restrict x, long ld_x,
                                        const double *restrict a, long ld, double *restrict out) {
    for (int k = 0; k < n_modes; k += 4) {
        const double *x0 = x + k * ld_x, *x1 = x0 + ld_x, *x2 = x1 + ld_x, *x3 = x2 + ld_x;
        double *row = out + k * MARCH_BLOCK;
        for (int s = 0; s < width; s += 2) {
            /* The last row of an odd number goes with itself. */
            const int pair = s + 1 < width ? s + 1 : s;
            const double *a0 = a + s * ld, *a1 = a + pair * ld;
            march_vec sum[4][2] = {{{0.0}}};
            for (int r = 0; r < n; r += 4) {
                const march_vec left = *(const march_vec *)(a0 + r), right = *(const march_vec *)(a1 + r);
                const march_vec f0 = *(const march_vec *)(x0 + r), f1 = *(const march_vec *)(x1 + r);
                const march_vec f2 = *(const march_vec *)(x2 + r), f3 = *(const march_vec *)(x3 + r);
                sum[0][0] += f0 * left;
                sum[0][1] += f0 * right;
                sum[1][0] += f1 * left;
                sum[1][1] += f1 * right;
                sum[2][0] += f2 * left;
                sum[2][1] += f2 * right;
                sum[3][0] += f3 * left;
                sum[3][1] += f3 * right;
            }
            for (int m = 0; m < 4; ++m) {
                row[m * MARCH_BLOCK + s] = march_vec_sum(sum[m][0]);
                row[m * MARCH_BLOCK + pair] = march_vec_sum(sum[m][1]);
            }
        }
    }
}

/* y_j += scale * x_j */
MARCH_CLONES
static void march_add(int n, double scale, const double *restrict x, double *restrict y_out) {
    for (int j = 0; j < n; ++j) y_out[j] += scale * x[j];
}

/* u_j = lambda u_j + inverse_batch h_j d_j */
MARCH_CLONES
static void march_source_row(int n, double lambda, double inverse_batch, const double *restrict h,
                             const double *restrict d, double *restrict u_out) {
    for (int j = 0; j < n; ++j) u_out[j] = lambda * u_out[j] + inverse_batch * h[j] * d[j];
}

/* sum_j h_j^2 d_j */
MARCH_CLONES
static double march_weighted_square(int n, const double *restrict h, const double *restrict d) {
    march_vec sum = {0.0}, more = {0.0};
    int j = 0;
    for (; j + 8 <= n; j += 8) {
        const march_vec a = *(const march_vec *)(h + j), b = *(const march_vec *)(h + j + 4);
        sum += a * a * *(const march_vec *)(d + j);
        more += b * b * *(const march_vec *)(d + j + 4);
    }
    double rest = 0.0;
    for (; j < n; ++j) rest += h[j] * h[j] * d[j];
    return march_vec_sum(sum + more) + rest;
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
