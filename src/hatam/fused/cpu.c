/* One step of HATAM for all tensors of a batch in one pass over memory; see hatam/update.py for the equations.
 *
 * Tensors are cut into chunks. Each thread takes the next free chunk. Each chunk has its own sums, and these are added
 * in the order of the chunks, so that results do not depend on the threads. The interface has pointers and numbers
 * only, and nothing of torch's or Python's ABI.
 */

#include "cpu.h"

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>

#include "cpu_bfloat16.h"

/* Compiles a function for several instruction sets. The loader chooses one, on systems that support this. */
#if defined(__x86_64__) && defined(__linux__) && defined(__GLIBC__) && !defined(HATAM_ONE_TARGET)
#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define CLONES
#endif
#define INLINE __attribute__((always_inline)) static inline
#define SIMD _Pragma("omp simd")

/* Up to GRAIN elements are updated by one thread: waking a second one takes longer. */
enum { LANES = 128, GRAIN = 1 << 15, CHUNK = 1 << 16, LONGEST_CHUNK = 1 << 18 };

/* Constants at compile time: there is one loop for each combination of them. */
typedef struct {
    int param, exp_avg, exp_avg_sq, random_state, random_param, uniform;
} Types;

/* Sums of z^2, u^2 and sqrt(v) over a chunk or a tensor. */
typedef struct {
    double z_squares, u_squares, roots;
} Sum;

static int64_t size_of(int32_t dtype) { return dtype == FLOAT64 ? 8 : dtype == FLOAT32 ? 4 : 2; }

static double scalar(const void *x, int32_t dtype) { return dtype == FLOAT64 ? *(const double *)x : *(const float *)x; }

static void set_scalar(void *x, int32_t dtype, double value) {
    if (dtype == FLOAT64)
        *(double *)x = value;
    else
        *(float *)x = (float)value;
}

/* A mean of eps means v = 0: sharpness is not known yet. An infinite mean gives S = 0. */
static double mean_or_inf(double mean, const Options *o) { return mean > o->no_gradient_yet ? mean : INFINITY; }

/* kappa of this step, from rho and N of the step before; 0 for tensors without a reach. */
static double reach_of(const Table *table, const Options *o, int64_t t) {
    if (table->reach == NULL) return 0;
    const double rest = fmax(0, scalar(table->path_length[t], o->scalar_dtype) - 1);
    const double travel_factor = o->travel > 0 ? fmin(1, rest / o->travel) : 1;
    return fmin(o->reach_factor * scalar(table->rms_ratio[t], o->scalar_dtype) * travel_factor * travel_factor, o->max_reach);
}

/* Dtypes of parameter and gradient, of m and of v; then whether rounding is stochastic for state and for parameter. */
#define FLOAT_COMBINATIONS(ROW)                                  \
    ROW(plain, FLOAT32, FLOAT32, FLOAT32, 0, 0)                  \
    ROW(narrow_state, FLOAT32, BFLOAT16, FLOAT32, 0, 0)          \
    ROW(narrow_state_random, FLOAT32, BFLOAT16, FLOAT32, 1, 0)   \
    ROW(narrow, BFLOAT16, BFLOAT16, BFLOAT16, 0, 0)              \
    ROW(narrow_random, BFLOAT16, BFLOAT16, BFLOAT16, 1, 1)       \
    ROW(wide_state, BFLOAT16, FLOAT32, FLOAT32, 0, 0)            \
    ROW(wide_state_random, BFLOAT16, FLOAT32, FLOAT32, 0, 1)     \
    ROW(wide_v, BFLOAT16, BFLOAT16, FLOAT32, 1, 0)               \
    ROW(wide_v_random, BFLOAT16, BFLOAT16, FLOAT32, 1, 1)
#define DOUBLE_COMBINATIONS(ROW) ROW(plain, FLOAT64, FLOAT64, FLOAT64, 0, 0)

#define REAL float
#define FN(name) name##_float
#define SQRT sqrtf
#define LEAST_EPS FLT_MIN
#define COMBINATIONS FLOAT_COMBINATIONS
#include "cpu_loops.h"
#include "cpu_chunk.h"
#undef REAL
#undef FN
#undef SQRT
#undef LEAST_EPS
#undef COMBINATIONS
#define REAL double
#define FN(name) name##_double
#define SQRT sqrt
#define LEAST_EPS DBL_MIN
#define COMBINATIONS DOUBLE_COMBINATIONS
#include "cpu_loops.h"
#include "cpu_chunk.h"

typedef struct {
    const Table *table;
    const Options *options;
    const int64_t *first; /* index of each tensor's first chunk; the last entry is the number of all chunks */
    Sum *sums;            /* of each chunk */
    int64_t next;         /* index of the next free chunk */
} Job;

/* A quarter of the tensor, within limits: long chunks read memory faster, and every chunk has sums to add. */
static int64_t chunk_size(int64_t numel) {
    const int64_t quarter = (numel / 4 + LANES - 1) / LANES * LANES;
    return quarter < CHUNK ? CHUNK : quarter > LONGEST_CHUNK ? LONGEST_CHUNK : quarter;
}

static void work(void *data) {
    Job *job = data;
    const Table *table = job->table;
    int64_t t = 0, chunk;
    while ((chunk = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)) < job->first[table->tensors]) {
        while (job->first[t + 1] <= chunk) t++;
        const int64_t size = chunk_size(table->numel[t]);
        const int64_t begin = (chunk - job->first[t]) * size, rest = table->numel[t] - begin;
        const int64_t end = begin + (rest < size ? rest : size);
        job->sums[chunk] = job->options->param_dtype == FLOAT64 ? chunk_double(table, job->options, t, begin, end)
                                                                : chunk_float(table, job->options, t, begin, end);
    }
}

/* Updates the scalars of one tensor after all its chunks. If rho or mean(h) is not finite, the last one is kept. */
static void finish(const Table *table, const Options *o, int64_t t, const Sum *sums, int64_t chunks) {
    const double step = scalar(table->step[t], o->step_dtype) + 1, numel = (double)table->numel[t];
    set_scalar(table->step[t], o->step_dtype, step);
    if (table->reach == NULL) return;
    const double n = numel > 0 ? numel : 1, last = scalar(table->rms_ratio[t], o->scalar_dtype);
    set_scalar(table->reach[t], o->scalar_dtype, reach_of(table, o, t));
    Sum sum = {0, 0, 0};
    for (int64_t i = 0; i < chunks; i++)
        sum.z_squares += sums[i].z_squares, sum.u_squares += sums[i].u_squares, sum.roots += sums[i].roots;
    const double mean = sum.roots / n / sqrt(1 - pow(o->beta2, step)) + o->eps;
    double known = INFINITY;
    if (!o->uniform) {
        known = mean_or_inf(scalar(table->denom_mean[t], o->scalar_dtype), o);
        set_scalar(table->reach_mean[t], o->scalar_dtype, known);
    }
    double *parts = table->shard_sums == NULL ? NULL : table->shard_sums[t];
    if (parts != NULL) {
        parts[0] = sum.z_squares, parts[1] = sum.u_squares, parts[2] = numel * mean;
        return;
    }
    const double ratio = sqrt(sum.z_squares / sum.u_squares);
    const int begun = last > 0 || o->reach_factor > 0;
    const int good = begun && sum.u_squares > 0 && sum.u_squares < INFINITY && ratio < INFINITY;
    const double now = !good ? last : last > 0 ? fmin(ratio, o->growth * last) : ratio;
    const double way = last > 0 ? o->lr : step * o->lr_peak;
    set_scalar(table->rms_ratio[t], o->scalar_dtype, now);
    if (now > 0) set_scalar(table->path_length[t], o->scalar_dtype, scalar(table->path_length[t], o->scalar_dtype) + way / now);
    if (!o->uniform) set_scalar(table->denom_mean[t], o->scalar_dtype, !begun ? INFINITY : mean < INFINITY && numel > 0 ? mean : known);
}

int32_t hatam_layout(void) { return HATAM_LAYOUT; }

/* Whether there is a loop for these dtypes and this eps. */
int32_t hatam_supports(const Options *o) {
    return o->param_dtype == FLOAT64 ? choose_double(o) != NULL : choose_float(o) != NULL;
}

/* Returns 1, or 0 if memory for chunks could not be allocated; no tensor has changed then. */
int32_t hatam_step(const Table *table, const Options *options, Parallel parallel) {
    const int64_t tensors = table->tensors;
    int64_t *first = malloc(sizeof *first * (size_t)(tensors + 1));
    if (first == NULL) return 0;
    int64_t elements = 0;
    first[0] = 0;
    for (int64_t t = 0; t < tensors; t++) {
        elements += table->numel[t];
        const int64_t size = chunk_size(table->numel[t]);
        first[t + 1] = first[t] + (table->numel[t] + size - 1) / size;
    }
    Sum *sums = malloc(sizeof *sums * (size_t)(first[tensors] + 1));
    if (sums != NULL) {
        Job job = {table, options, first, sums, 0};
        if (parallel != NULL && options->threads > 1 && elements > GRAIN)
            parallel(work, &job, (unsigned)options->threads, 0);
        else
            work(&job);
        for (int64_t t = 0; t < tensors; t++) finish(table, options, t, sums + first[t], first[t + 1] - first[t]);
        free(sums);
    }
    free(first);
    return sums != NULL;
}
