/* The update of a run of elements in arithmetic of type REAL: hatam/update.py, in one loop.
 *
 * Included once for float and once for double. One loop, not one for each line of the equations, since arithmetic has
 * to overlap with memory. With S = 1, m is divided by h directly: two divisions cost less than one and the care that an
 * infinite h would need. No operation depends on the width of the vectors (contraction is off, each lane has a sum of
 * its own), so that every processor and every number of threads gives the same bits.
 */

typedef struct {
    REAL keep, step_size, beta2, eps, grad_factor;                /* keep = 1 - lr wd */
    REAL rate1, rate2;                                            /* 1 - beta, which as a float has more digits than beta */
    REAL h_factor, h_factor_before;                               /* 1 / sqrt(1 - beta2^t), now and one step before */
    REAL reach, reach_before, inv_mean, inv_mean_before;          /* of the offset */
    REAL cap;                                                     /* S / h = min(cap / h, 1 / mean) */
    uint32_t key, key_of_param, key_of_param_before;
} FN(Constants);

/* A run of elements of one tensor, as they are stored. */
typedef struct {
    void *param, *exp_avg, *exp_avg_sq;
    const void *grad;
    uint32_t at; /* place of the first element in its tensor */
    int n;
} FN(Run);

/* By lane: of z^2, (S m / h)^2 and, where S is not 1, sqrt(v). */
typedef struct {
    REAL z_squares[LANES], u_squares[LANES], roots[LANES];
} FN(Sums);

/* A NaN in x stays one. */
static inline REAL FN(at_most)(REAL x, REAL most) { return most < x ? most : x; }

/* A number as it will be read again: what later steps undo has to be computed from it. */
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

/* AdamW on z = w + kappa u with the gradient taken at w; then w is ahead of z again, u = S m / h. */
INLINE void FN(advance)(FN(Run) r, FN(Sums) *restrict sums, const FN(Constants) *c, const Types t) {
    const FN(Constants) k = *c;
    SIMD for (int i = 0; i < r.n; i++) {
        REAL w = FN(read)(r.param, t.param, i), g = FN(read)(r.grad, t.param, i) * k.grad_factor;
        REAL m = FN(read)(r.exp_avg, t.exp_avg, i), v = FN(read)(r.exp_avg_sq, t.exp_avg_sq, i);
        uint32_t for_state = FN(draw)(r.at, i, k.key, t.random_state && t.exp_avg == BFLOAT16);
        uint32_t for_param = FN(draw)(r.at, i, k.key_of_param, t.random_param || (t.random_state && t.exp_avg_sq == BFLOAT16));

        REAL h_before = SQRT(v) * k.h_factor_before + k.eps;
        v = FN(store)(r.exp_avg_sq, t.exp_avg_sq, i, v * k.beta2 + k.rate2 * g * g, for_param >> 16, t.random_state);
        REAL root = SQRT(v), h = root * k.h_factor + k.eps;

        /* z = w + kappa u. In bfloat16 the nearest number is mostly the z that was there. */
        uint32_t for_w_before = FN(draw)(r.at, i, k.key_of_param_before, t.random_param) >> 16;
        REAL middle_w = t.random_param && k.reach_before != 0 ? (REAL)middle((float)w, for_w_before) : w;
        REAL u_before = t.uniform ? m / h_before : m * FN(at_most)(k.cap / h_before, k.inv_mean_before);
        REAL z = FN(as_read)(t.param, middle_w + k.reach_before * u_before, 0, 0);

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

/* One element for each lane at a time. */
INLINE void FN(walk)(FN(Run) r, FN(Sums) *restrict sums, const FN(Constants) *c, const Types t) {
    for (int i = 0; i < r.n; i += LANES) {
        const int n = r.n - i < LANES ? r.n - i : LANES;
        FN(Run) part = {FN(beyond)(r.param, t.param, i), FN(beyond)(r.exp_avg, t.exp_avg, i),
                        FN(beyond)(r.exp_avg_sq, t.exp_avg_sq, i), FN(beyond)(r.grad, t.param, i), r.at + (uint32_t)i, n};
        FN(advance)(part, sums, c, t);
    }
}

/* The loops of one combination of types: for S = 1, and for S from the mean of h. */
#define LOOP(name, ...)                                                                        \
    CLONES static void FN(name)(FN(Run) r, FN(Sums) *restrict sums, const FN(Constants) * c) { \
        FN(walk)(r, sums, c, (Types){__VA_ARGS__});                                            \
    }
#define LOOPS(name, p, m, v, state, param)           \
    LOOP(name##_relative, p, m, v, state, param, 0)   \
    LOOP(name##_uniform, p, m, v, state, param, 1)
