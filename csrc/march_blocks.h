/* Helpers of the two-time march that need plain C: a barrier and the products with small diagonal blocks. */
#ifndef SCALEFIELD_MARCH_BLOCKS_H
#define SCALEFIELD_MARCH_BLOCKS_H

#include <stdatomic.h>

#ifdef _WIN32
#include <windows.h>
static inline void march_yield(void) { SwitchToThread(); }
#else
#include <sched.h>
static inline void march_yield(void) { sched_yield(); }
#endif

/* Edge of the diagonal blocks: long enough for a matrix product per block, short enough that the blocks of
 * all modes stay in cache. */
#define MARCH_BLOCK 32

/* Vector code for whichever x86-64 the wheel runs on; elsewhere the compiler's default. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
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
        if (++spins > 2000) march_yield();
    }
    return 0;
}

/* y_j = scale * sum_{i<n} x_i block[i][j] for all MARCH_BLOCK columns j. */
MARCH_CLONES
static void march_block_product(int n, double scale, const double *restrict x, const double *restrict block,
                                double *restrict y_out) {
    double sum[MARCH_BLOCK] = {0.0};
    for (int i = 0; i < n; ++i) {
        const double value = x[i];
        for (int j = 0; j < MARCH_BLOCK; ++j) sum[j] += value * block[i * MARCH_BLOCK + j];
    }
    for (int j = 0; j < MARCH_BLOCK; ++j) y_out[j] = scale * sum[j];
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
    double sum[8] = {0.0};
    int j = 0;
    for (; j + 8 <= n; j += 8)
        for (int l = 0; l < 8; ++l) sum[l] += h[j + l] * h[j + l] * d[j + l];
    for (; j < n; ++j) sum[0] += h[j] * h[j] * d[j];
    return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

#endif
