/* What the Python side hands over: hatam/fused/cpu.py has these structures as ctypes, line for line. */
#ifndef HATAM_CPU_H
#define HATAM_CPU_H

#include <stdint.h>

#define HATAM_LAYOUT 8 /* counts the changes of this file and of what is rounded how, so that a binary of another version is noticed */

/* Decoupled where e is m, decoupled with e of its own; both with a radius that is scaled for each tensor; the other forms. */
enum loop { SHARED, OWN, SHARED_SCALED, OWN_SCALED, RAW, PUBLISHED };
enum dtype { FLOAT32, FLOAT64, BFLOAT16 };

/* Columns of one pointer per tensor. Columns that the loop does not use are NULL. */
typedef struct {
    int64_t tensors;
    const int64_t *numel;
    const uint32_t *number; /* place among the optimizer's parameters, for random numbers of its own */
    void *const *param, *const *grad, *const *exp_avg, *const *exp_avg_sq, *const *exp_avg_grad;
    void *const *step, *const *denom_mean, *const *displacement_mean, *const *displacement_radius;
    void *const *displacement_scale;
    void *const *shard_sums; /* of a part of a tensor: three doubles for what the means and scales are made of elsewhere */
} Table;

typedef struct {
    double lr, beta1, beta2, eps, weight_decay, gamma, beta_c, cap, radius;
    double grad_factor;     /* 1 / loss scale, negative to maximize */
    double no_gradient_yet; /* a mean of h up to this is that of v = 0 */
    double least_span;      /* the least mean of (S e / h)^2 that counts */
    double growth;          /* the factor by which a scale may grow in a step */
    double ramp;            /* beta2 where the radius begins small, as sqrt(1 - beta2^t), else 0 */
    double pace;            /* the share of the radius that each step so far allows */
    int32_t loop, uniform;
    int32_t param_dtype, exp_avg_dtype, exp_avg_sq_dtype; /* the gradient's is the parameter's, e's is m's */
    int32_t step_dtype, scalar_dtype;
    int32_t round_param, round_state; /* to bfloat16: 1 at random, 0 to nearest */
    uint32_t seed;
    int32_t threads;
} Options;

/* GOMP_parallel of the OpenMP runtime that torch has loaded already, so that both share one pool of threads. */
typedef void (*Parallel)(void (*work)(void *), void *data, unsigned threads, unsigned flags);

#endif
