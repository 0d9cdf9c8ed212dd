/* The update of hatam/update.py for a run of elements, in one loop with arithmetic of type REAL.
 *
 * Included once for float and once for double. There is one loop, not one per equation, so that arithmetic overlaps
 * with memory accesses. With S = 1, m is divided by the last h and by the new one. One shared division would cost more,
 * because an infinite h needs extra code. No operation depends on the vector width: contraction is off, and each lane
 * has its own sum. So every processor and number of threads gives the same bits.
 */

typedef struct {
    REAL keep, step_size, beta2, eps, grad_factor;                /* keep = 1 - lr wd */
    REAL rate1, rate2;                                            /* 1 - beta in double, then rounded to REAL */
    REAL h_factor, h_factor_before;                               /* 1 / sqrt(1 - beta2^t), of this step and the last */
    REAL reach, reach_before, inv_mean, inv_mean_before;          /* kappa and 1 / mean(h), of this step and the last */
    REAL cap;                                                     /* S / h = min(cap / h, 1 / mean) */
    uint32_t key, key_of_param, key_of_param_before;
} FN(Constants);

/* Consecutive elements of one tensor, in their stored dtypes. */
typedef struct {
    void *param, *exp_avg, *exp_avg_sq;
    const void *grad;
    uint32_t first_index; /* index of the first element in its tensor */
    int n;
} FN(Run);

/* Sums of each lane: of z^2, of (S m / h)^2 and, if S is not 1, of sqrt(v). */
typedef struct {
    REAL z_squares[LANES], u_squares[LANES], roots[LANES];
} FN(Sums);

/* The lesser of the two; NaN if x is NaN. */
static inline REAL FN(at_most)(REAL x, REAL most) { return most < x ? most : x; }

/* The value after rounding to its dtype. Offsets are computed from such values: the undo reads no others. */
INLINE REAL FN(as_read)(const int type, REAL value, uint32_t random, const int at_random) {
    return type == BFLOAT16 ? (REAL)rounded((float)value, random, at_random) : value;
}

INLINE REAL FN(read)(const void *x, const int type, int i) {
    return type == BFLOAT16 ? (REAL)widened(((const uint16_t *)x)[i]) : ((const REAL *)x)[i];
}

INLINE REAL FN(store)(void *x, const int type, int i, REAL value, uint32_t random, const int at_random) {
    value = FN(as_read)(type, value, random, at_random);
    if (type == BFLOAT16)
        ((uint16_t *)x)[i] = narrowed((float)value);
    else
        ((REAL *)x)[i] = value;
    return value;
}

INLINE uint32_t FN(draw)(uint32_t at, int i, uint32_t key, const int wanted) {
    return wanted ? scatter((at + (uint32_t)i) ^ key) : 0;
}

/* One step: z = w + kappa u, AdamW on z with the gradient at w, and w = z - kappa u, where u = S m / h. */
INLINE void FN(update_run)(FN(Run) r, FN(Sums) *restrict sums, const FN(Constants) *c, const Types t) {
    const FN(Constants) k = *c;
    SIMD for (int i = 0; i < r.n; i++) {
        REAL w = FN(read)(r.param, t.param, i), g = FN(read)(r.grad, t.param, i) * k.grad_factor;
        REAL m = FN(read)(r.exp_avg, t.exp_avg, i), v = FN(read)(r.exp_avg_sq, t.exp_avg_sq, i);
        uint32_t for_state = FN(draw)(r.first_index, i, k.key, t.random_state && t.exp_avg == BFLOAT16);
        uint32_t for_param = FN(draw)(r.first_index, i, k.key_of_param, t.random_param || (t.random_state && t.exp_avg_sq == BFLOAT16));

        REAL h_before = SQRT(v) * k.h_factor_before + k.eps;
        v = FN(store)(r.exp_avg_sq, t.exp_avg_sq, i, v * k.beta2 + k.rate2 * g * g, for_param >> 16, t.random_state);
        REAL root = SQRT(v), h = root * k.h_factor + k.eps;

        /* z = w + kappa u. In bfloat16, rounding to nearest mostly restores the z of the last step. */
        uint32_t for_w_before = FN(draw)(r.first_index, i, k.key_of_param_before, t.random_param) >> 16;
        REAL center_w = t.random_param && k.reach_before != 0 ? (REAL)center((float)w, for_w_before) : w;
        REAL u_before = t.uniform ? m / h_before : m * FN(at_most)(k.cap / h_before, k.inv_mean_before);
        REAL z = FN(as_read)(t.param, center_w + k.reach_before * u_before, 0, 0);

        /* z <- z - lr (m / h + wd z) */
        m = FN(store)(r.exp_avg, t.exp_avg, i, m + k.rate1 * (g - m), for_state, t.random_state);
        REAL plain = m / h;
        z = FN(as_read)(t.param, z * k.keep - k.step_size * plain, for_param, t.random_param);

        /* w = z - kappa u */
        REAL u = t.uniform ? plain : m * FN(at_most)(k.cap / h, k.inv_mean);
        sums->z_squares[i] += z * z, sums->u_squares[i] += u * u;
        if (!t.uniform) sums->roots[i] += root;
        FN(store)(r.param, t.param, i, z - k.reach * u, for_param >> 16, t.random_param);
    }
}

INLINE void *FN(beyond)(const void *x, const int type, int i) {
    return type == BFLOAT16 ? (void *)((uint16_t *)x + i) : (void *)((REAL *)x + i);
}

/* Updates LANES elements at a time, one per lane. */
INLINE void FN(update_lanes)(FN(Run) r, FN(Sums) *restrict sums, const FN(Constants) *c, const Types t) {
    for (int i = 0; i < r.n; i += LANES) {
        const int n = r.n - i < LANES ? r.n - i : LANES;
        FN(Run) part = {FN(beyond)(r.param, t.param, i), FN(beyond)(r.exp_avg, t.exp_avg, i),
                        FN(beyond)(r.exp_avg_sq, t.exp_avg_sq, i), FN(beyond)(r.grad, t.param, i), r.first_index + (uint32_t)i, n};
        FN(update_run)(part, sums, c, t);
    }
}

/* The two loops of one combination of dtypes: with S from the mean of h, and with S = 1. */
#define LOOP(name, ...)                                                                        \
    CLONES static void FN(name)(FN(Run) r, FN(Sums) *restrict sums, const FN(Constants) * c) { \
        FN(update_lanes)(r, sums, c, (Types){__VA_ARGS__});                                            \
    }
#define LOOPS(name, p, m, v, state, param)           \
    LOOP(name##_relative, p, m, v, state, param, 0)   \
    LOOP(name##_uniform, p, m, v, state, param, 1)
