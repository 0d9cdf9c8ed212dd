/* What the Python side hands over: hatam/fused/cpu.py has these structures as ctypes, line for line. */
#ifndef HATAM_CPU_H
#define HATAM_CPU_H

#include <stdint.h>

#define HATAM_LAYOUT 12 /* counts the changes of this file and of what is rounded how, so that a binary of another version is noticed */

enum dtype { FLOAT32, FLOAT64, BFLOAT16 };

/* Columns of one pointer per tensor. Columns that are not there are NULL: those of a reach where there is none. */
typedef struct {
    int64_t tensors;
    const int64_t *numel;
    const uint32_t *param_index; /* place among the optimizer's parameters, for random numbers of its own */
    void *const *param, *const *grad, *const *exp_avg, *const *exp_avg_sq;
    void *const *step, *const *reach, *const *rms_ratio, *const *path_length, *const *denom_mean, *const *reach_mean;
    void *const *shard_sums; /* of a part of a tensor: three doubles for what is measured of the whole elsewhere */
} Table;

typedef struct {
    double lr, beta1, beta2, eps, weight_decay;
    double lr_peak;
    double reach_factor;            /* gamma times what lr leaves to the reach */
    double travel;             /* of z, over which the reach grows to the whole */
    double max_reach;           /* upper bound of kappa */
    double cap;                /* of S */
    double grad_factor;        /* 1 / loss scale, negative to maximize */
    double no_gradient_yet;    /* a mean of h up to this is that of v = 0 */
    double growth;             /* the factor by which a ratio may grow in a step */
    int32_t uniform;           /* S = 1 */
    int32_t param_dtype, exp_avg_dtype, exp_avg_sq_dtype; /* the gradient's is the parameter's */
    int32_t step_dtype, scalar_dtype;
    int32_t round_param, round_state; /* to bfloat16: 1 at random, 0 to nearest */
    uint32_t seed;
    int32_t threads;
} Options;

/* GOMP_parallel of the OpenMP runtime that torch has loaded already, so that both share one pool of threads. */
typedef void (*Parallel)(void (*work)(void *), void *data, unsigned threads, unsigned flags);

#endif
