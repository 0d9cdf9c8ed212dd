/* The update of a block of elements in arithmetic of type REAL: hatam/update.py, in one loop.
 *
 * Included once for float and once for double. One loop, not one for each line of the equations, since arithmetic has
 * to overlap with memory. No operation depends on the width of the vectors (contraction is off, each lane has a sum of
 * its own), so that every processor and every number of threads gives the same bits.
 */

typedef struct {
    REAL keep, step_size, beta2, eps, eps_before, grad_factor;    /* keep = 1 - lr wd */
    REAL rate1, rate2;                                            /* 1 - beta, which as a float has more digits than beta */
    REAL h_factor, h_factor_before;                               /* 1 / sqrt(1 - beta2^t), now and one step before */
    REAL reach, reach_before, inv_mean, inv_mean_before;          /* of the offset */
    REAL cap;                                                     /* S / h = min(cap / h, 1 / mean) */
    uint32_t key, key_of_param, key_of_param_before;
} FN(Constants);

/* A block of the tensors of one parameter, widened where they are stored in bfloat16. */
typedef struct {
    REAL *param, *exp_avg, *exp_avg_sq;
    const REAL *grad;
    uint32_t at; /* place of the first element in its tensor */
    int n;
} FN(Block);

/* By lane: of z^2, (S m / h)^2 and, where S is not 1, sqrt(v). */
typedef struct {
    REAL size[LANES], span[LANES], root[LANES];
} FN(Sums);

/* A NaN in x stays one. */
static inline REAL FN(at_most)(REAL x, REAL most) { return most < x ? most : x; }

static inline REAL FN(unless_infinite)(REAL h, REAL x, REAL otherwise) { return h == (REAL)INFINITY ? otherwise : x; }

/* A number as it will be read again: what later steps undo has to be computed from it. */
INLINE REAL FN(as_read)(const int type, REAL value, uint32_t random, const int at_random) {
    return type == BFLOAT16 ? (REAL)rounded((float)value, random, at_random) : value;
}

INLINE REAL FN(store)(REAL *x, const int type, REAL value, uint32_t random, const int at_random) {
    return *x = FN(as_read)(type, value, random, at_random);
}

INLINE uint32_t FN(draw)(uint32_t at, int i, uint32_t key, const int wanted) {
    return wanted ? scatter((at + (uint32_t)i) ^ key) : 0;
}

/* AdamW on z = w + kappa u with the gradient taken at w; then w is ahead of z again, u = S m / h. */
INLINE void FN(advance)(FN(Block) b, FN(Sums) *restrict sums, const FN(Constants) *c, const Types t) {
    const FN(Constants) k = *c;
    SIMD for (int i = 0; i < b.n; i++) {
        REAL w = b.param[i], g = b.grad[i] * k.grad_factor;
        REAL m = b.exp_avg[i], v = b.exp_avg_sq[i];
        uint32_t for_state = FN(draw)(b.at, i, k.key, t.random_state && t.exp_avg == BFLOAT16);
        uint32_t for_param = FN(draw)(b.at, i, k.key_of_param, t.random_param || (t.random_state && t.exp_avg_sq == BFLOAT16));

        /* h before and now; one division serves both, since this loop waits for the divider longer than for memory. One
           is made small, exactly, so that their product does not overflow. Where g^2 did, h stays infinite and 1 / h is 0. */
        REAL small_h_before = FN(at_most)(SQRT(v) * k.h_factor_before + k.eps_before, LARGEST);
        v = FN(store)(b.exp_avg_sq + i, t.exp_avg_sq, v * k.beta2 + k.rate2 * g * g, for_param >> 16, t.random_state);
        REAL root = SQRT(v), h = root * k.h_factor + k.eps, divisor = FN(unless_infinite)(h, h, 1);
        REAL inv_both = 1 / (small_h_before * divisor), inv_h_before = divisor * SMALL * inv_both;
        REAL inv_h = FN(unless_infinite)(h, small_h_before * inv_both, 0);

        /* z = w + kappa u. In bfloat16 the nearest number is mostly the z that was there. */
        uint32_t for_w_before = FN(draw)(b.at, i, k.key_of_param_before, t.random_param) >> 16;
        REAL middle_w = t.random_param ? (REAL)middle((float)w, for_w_before) : w;
        REAL s_over_h = t.uniform ? inv_h_before : FN(at_most)(k.cap * inv_h_before, k.inv_mean_before);
        REAL z = k.reach_before != 0 ? FN(as_read)(t.param, middle_w + k.reach_before * m * s_over_h, 0, 0) : w;

        /* z <- z - lr (m / h + wd z) */
        m = FN(store)(b.exp_avg + i, t.exp_avg, m + k.rate1 * (g - m), for_state, t.random_state);
        REAL plain = m * inv_h;
        z = FN(as_read)(t.param, z * k.keep - k.step_size * plain, for_param, t.random_param);

        /* w = z - kappa u */
        REAL span = t.uniform ? plain : m * FN(at_most)(k.cap * inv_h, k.inv_mean);
        sums->size[i] += z * z, sums->span[i] += span * span;
        if (!t.uniform) sums->root[i] += root;
        FN(store)(b.param + i, t.param, k.reach != 0 ? z - k.reach * span : z, for_param >> 16, t.random_param);
    }
}

CLONES static void FN(widen)(REAL *restrict y, const uint16_t *restrict x, int n) {
    for (int i = 0; i < n; i++) y[i] = widened(x[i]);
}

/* Of numbers that are rounded already. */
CLONES static void FN(narrow)(uint16_t *restrict y, const REAL *restrict x, int n) {
    for (int i = 0; i < n; i++) y[i] = narrowed((float)x[i]);
}

/* One element for each lane, from the i-th of a block. */
INLINE FN(Block) FN(part)(FN(Block) b, int i) {
    return (FN(Block)){b.param + i, b.exp_avg + i, b.exp_avg_sq + i, b.grad + i, b.at + (uint32_t)i,
                       b.n - i < LANES ? b.n - i : LANES};
}

/* The loops of one combination of types: for S = 1, and for S from the mean of h. */
#define LOOP(name, ...)                                                                          \
    CLONES static void FN(name)(FN(Block) b, FN(Sums) *restrict sums, const FN(Constants) * c) { \
        for (int i = 0; i < b.n; i += LANES) FN(advance)(FN(part)(b, i), sums, c, (Types){__VA_ARGS__}); \
    }
#define LOOPS(name, p, m, v, state, param)           \
    LOOP(name##_relative, p, m, v, state, param, 0)   \
    LOOP(name##_uniform, p, m, v, state, param, 1)
