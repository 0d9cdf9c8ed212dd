/* The arguments from Python. hatam/fused/cpu.py declares the same structures with ctypes, field by field. */
#ifndef HATAM_CPU_H
#define HATAM_CPU_H

#include <stdint.h>

#define HATAM_LAYOUT 13 /* raised at each change of this file or of rounding, to detect binaries of another version */

enum dtype { FLOAT32, FLOAT64, BFLOAT16 };

/* Columns with one entry per tensor. A column that these tensors do not have is NULL, such as reach. */
typedef struct {
    int64_t tensors;
    const int64_t *numel;
    const uint32_t *param_index; /* index among the optimizer's parameters; each has its own random numbers */
    void *const *param, *const *grad, *const *exp_avg, *const *exp_avg_sq;
    void *const *step, *const *reach, *const *rms_ratio, *const *path_length, *const *denom_mean, *const *reach_mean;
    void *const *shard_sums; /* of local parts of DTensors: three sums, which Python adds over processes */
} Table;

typedef struct {
    double lr, beta1, beta2, eps, weight_decay;
    double lr_peak;
    double reach_factor;       /* gamma lr_factor(lr): kappa before rho, tau and the horizon */
    double travel;             /* N - 1 at which tau is 1 */
    double max_reach;          /* upper bound of kappa */
    double cap;                /* upper bound of S */
    double grad_factor;        /* 1 / loss scale, negative to maximize */
    double no_gradient_yet;    /* a mean of h up to this means v = 0 */
    double growth;             /* largest factor by which rho may grow in a step */
    int32_t uniform;           /* whether S = 1 */
    int32_t param_dtype, exp_avg_dtype, exp_avg_sq_dtype; /* the gradient has param_dtype */
    int32_t step_dtype, scalar_dtype;
    int32_t round_param, round_state; /* rounding to bfloat16: 1 is stochastic, 0 is to nearest */
    uint32_t seed;
    int32_t threads;
} Options;

/* The type of GOMP_parallel. The kernel calls that of torch's OpenMP runtime, so that both share one thread pool. */
typedef void (*Parallel)(void (*work)(void *), void *data, unsigned threads, unsigned flags);

#endif
