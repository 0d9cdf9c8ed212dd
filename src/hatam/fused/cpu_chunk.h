/* The update of one chunk of one tensor: chooses the loop for its dtypes, and computes the constants of its step.
 *
 * Included once for float and once for double, after cpu_loops.h.
 */

COMBINATIONS(LOOPS)

typedef void (*FN(Loop))(FN(Run), FN(Sums) *, const FN(Constants) *);

static FN(Loop) FN(choose)(const Options *o) {
#define ROW(name, p, m, v, state, param) {p, m, v, state, param, {FN(name##_relative), FN(name##_uniform)}},
    static const struct {
        int param, exp_avg, exp_avg_sq, random_state, random_param;
        FN(Loop) loops[2];
    } rows[] = {COMBINATIONS(ROW)};
#undef ROW
    if (o->eps < LEAST_EPS) return NULL; /* cap / h must not overflow */
    const int random_state = o->round_state && (o->exp_avg_dtype == BFLOAT16 || o->exp_avg_sq_dtype == BFLOAT16);
    const int random_param = o->round_param && o->param_dtype == BFLOAT16;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (rows[i].param == o->param_dtype && rows[i].exp_avg == o->exp_avg_dtype &&
            rows[i].exp_avg_sq == o->exp_avg_sq_dtype && rows[i].random_state == random_state &&
            rows[i].random_param == random_param)
            return rows[i].loops[o->uniform != 0];
    return NULL;
}

static FN(Constants) FN(constants)(const Table *table, const Options *o, int64_t t) {
    const double before = scalar(table->step[t], o->step_dtype), step = before + 1;
    const uint32_t key = key_of(o->seed, table->param_index[t], (uint32_t)step);
    FN(Constants) c = {
        .keep = (REAL)(1 - o->lr * o->weight_decay),
        .step_size = (REAL)(o->lr / (1 - pow(o->beta1, step))),
        .beta2 = (REAL)o->beta2,
        .rate1 = (REAL)(1 - o->beta1),
        .rate2 = (REAL)(1 - o->beta2),
        .eps = (REAL)o->eps,
        .grad_factor = (REAL)o->grad_factor,
        .h_factor = (REAL)(1 / sqrt(1 - pow(o->beta2, step))),
        .h_factor_before = (REAL)(1 / sqrt(1 - pow(o->beta2, before > 1 ? before : 1))),
        .reach = (REAL)reach_of(table, o, t),
        .reach_before = table->reach == NULL ? 0 : (REAL)scalar(table->reach[t], o->scalar_dtype),
        .cap = (REAL)o->cap,
        .key = key,
        .key_of_param = ~key,
        .key_of_param_before = ~key_of(o->seed, table->param_index[t], (uint32_t)before),
    };
    if (!o->uniform) {
        c.inv_mean = (REAL)(1 / mean_or_inf(scalar(table->denom_mean[t], o->scalar_dtype), o));
        c.inv_mean_before = (REAL)(1 / scalar(table->reach_mean[t], o->scalar_dtype));
    }
    return c;
}

static double FN(added)(const REAL *x) {
    double lanes[16] = {0}, sum = 0;
    for (int i = 0; i < LANES; i += 16)
        for (int j = 0; j < 16; j++) lanes[j] += x[i + j];
    for (int j = 0; j < 16; j++) sum += lanes[j];
    return sum;
}

static Sum FN(chunk)(const Table *table, const Options *o, int64_t t, int64_t begin, int64_t end) {
    FN(Sums) sums = {0};
    const FN(Constants) c = FN(constants)(table, o, t);
    const int64_t p = size_of(o->param_dtype), m = size_of(o->exp_avg_dtype), v = size_of(o->exp_avg_sq_dtype);
    const FN(Run) run = {(char *)table->param[t] + begin * p,      (char *)table->exp_avg[t] + begin * m,
                         (char *)table->exp_avg_sq[t] + begin * v, (char *)table->grad[t] + begin * p,
                         (uint32_t)begin,                          (int)(end - begin)};
    FN(choose)(o)(run, &sums, &c);
    return (Sum){FN(added)(sums.z_squares), FN(added)(sums.u_squares), FN(added)(sums.roots)};
}
