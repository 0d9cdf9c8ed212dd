"""The pass over memory of :mod:`hatam.fused.gpu_kernels`, with a program for every chunk of every tensor."""

import triton
import triton.language as tl

from . import gpu_words as words  # its numbers by its name: Triton would compare them at every launch
from .gpu_words import address, as_read, at_most, column, draw, middle, ratio, read, root, skipped, write


@triton.jit
def update(
    table, chunks, constants, keys, sums, spans, sizes, found_inf,
    P: tl.constexpr, M: tl.constexpr, V: tl.constexpr, FORM: tl.constexpr, OWN_E: tl.constexpr,
    ROUND_PARAM: tl.constexpr, ROUND_M: tl.constexpr, ROUND_V: tl.constexpr, ALIGNED: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One chunk of one tensor, and its sums of sqrt(v), (S e / h)^2 and z^2; None for those that nobody keeps."""
    chunk = tl.program_id(0)
    t = tl.load(chunks + chunk)
    row, k = table + t * words.COLUMNS, constants + t * words.CONSTANTS
    key = tl.load(keys + 2 * t).to(tl.uint32, bitcast=True)
    key_before = tl.load(keys + 2 * t + 1).to(tl.uint32, bitcast=True)
    begin = (chunk - column(row, words.FIRST)) * CHUNK
    numel = column(row, words.NUMEL)
    place = begin + tl.arange(0, CHUNK)
    if skipped(found_inf) == 0:
        if begin + CHUNK <= numel:  # whole: without a mask, which would keep memory from being read 16 bytes at a time
            total, span, size = advance(
                row, k, key, key_before, place, None, P, M, V, FORM, OWN_E, ROUND_PARAM, ROUND_M, ROUND_V, ALIGNED
            )  # fmt: skip
        else:
            inside = place < numel
            total, span, size = advance(
                row, k, key, key_before, place, inside, P, M, V, FORM, OWN_E, ROUND_PARAM, ROUND_M, ROUND_V, ALIGNED
            )  # fmt: skip
        if sums is not None:
            tl.store(sums + chunk, total)
        if spans is not None:
            tl.store(spans + chunk, span)
            tl.store(sizes + chunk, size)


@triton.jit
def advance(
    row, k, key, key_before, place, inside,
    P: tl.constexpr, M: tl.constexpr, V: tl.constexpr, FORM: tl.constexpr, OWN_E: tl.constexpr,
    ROUND_PARAM: tl.constexpr, ROUND_M: tl.constexpr, ROUND_V: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """The elements at ``place``, and their sums; what nobody stores the compiler leaves out."""
    param, grad = address(row, words.PARAM, P, ALIGNED) + place, address(row, words.GRAD, P, ALIGNED) + place
    m_at, v_at = address(row, words.EXP_AVG, M, ALIGNED) + place, address(row, words.EXP_AVG_SQ, V, ALIGNED) + place
    e_at = address(row, words.EXP_AVG_GRAD, M, ALIGNED) + place
    for_state = draw(place, key, ROUND_M)
    for_param = draw(place, key ^ 0xFFFFFFFF, ROUND_PARAM or ROUND_V)
    if FORM == "decoupled":
        for_w_before = draw(place, key_before ^ 0xFFFFFFFF, ROUND_PARAM) >> 16
        r, span, z = decoupled(
            param, grad, m_at, v_at, e_at, k, for_state, for_param, for_w_before, inside,
            OWN_E, ROUND_PARAM, ROUND_M, ROUND_V,
        )  # fmt: skip
    else:
        raw: tl.constexpr = FORM == "raw"
        r = corrected(
            param, grad, m_at, v_at, e_at, k, for_state, for_param, inside, raw, ROUND_PARAM, ROUND_M, ROUND_V
        )  # fmt: skip
        span, z = r, r
    return added(r, inside), added(span * span, inside), added(z * z, inside)


@triton.jit
def added(x, inside):
    if inside is not None:
        x = tl.where(inside, x, 0.0)
    return tl.sum(x).to(tl.float64)


@triton.jit
def decoupled(
    param, grad, m_at, v_at, e_at, k, for_state, for_param, for_w_before, inside,
    OWN_E: tl.constexpr, ROUND_PARAM: tl.constexpr, ROUND_M: tl.constexpr, ROUND_V: tl.constexpr,
):  # fmt: skip
    """AdamW on z = w + d with the gradient taken at w; then w is displaced from z again.

    Returns sqrt(v), S e / h and z.
    """
    w, g = read(param, inside), read(grad, inside) * tl.load(k + words.GRAD_FACTOR)
    m, v = read(m_at, inside), read(v_at, inside)
    e = read(e_at, inside) if OWN_E else m
    cap = tl.load(k + words.CAP)

    # h before and now
    h_before = root(v) * tl.load(k + words.H_FACTOR_BEFORE) + tl.load(k + words.EPS)
    v = write(v_at, v * tl.load(k + words.BETA2) + tl.load(k + words.RATE2) * g * g, for_param >> 16, inside, ROUND_V)
    r = root(v)
    inv_h = ratio(1.0, r * tl.load(k + words.H_FACTOR) + tl.load(k + words.EPS))

    # z = w + d_{t-1}, d = rho S e / h. In bfloat16 the nearest number is mostly the z that was there
    radius = tl.load(k + words.RADIUS_BEFORE)
    s_over_h = at_most(ratio(cap, h_before), tl.load(k + words.INV_MEAN_BEFORE))
    middle_w = middle(w, for_w_before) if ROUND_PARAM else w
    z = tl.where(radius != 0, as_read(param, middle_w + radius * e * s_over_h, for_param, False), w)

    # z <- z - lr (m / h + wd z)
    if OWN_E:
        e = write(e_at, e + tl.load(k + words.RATE_C) * (g - e), for_state >> 16, inside, ROUND_M)
    m = write(m_at, m + tl.load(k + words.RATE1) * (g - m), for_state, inside, ROUND_M)
    if not OWN_E:
        e = m
    z = z * tl.load(k + words.KEEP) - tl.load(k + words.STEP_SIZE) * m * inv_h
    z = as_read(param, z, for_param, ROUND_PARAM)

    # w = z - d_t
    radius = tl.load(k + words.RADIUS)
    span = e * at_most(cap * inv_h, tl.load(k + words.INV_MEAN))
    write(param, tl.where(radius != 0, z - radius * span, z), for_param >> 16, inside, ROUND_PARAM)
    return r, span, z


@triton.jit
def corrected(
    param, grad, m_at, v_at, e_at, k, for_state, for_param, inside,
    RAW: tl.constexpr, ROUND_PARAM: tl.constexpr, ROUND_M: tl.constexpr, ROUND_V: tl.constexpr,
):  # fmt: skip
    """AdamW on the corrected gradient; "raw" builds v from the gradient itself. Returns sqrt(v)."""
    w, g = read(param, inside), read(grad, inside) * tl.load(k + words.GRAD_FACTOR)
    m, v, e = read(m_at, inside), read(v_at, inside), read(e_at, inside)
    eps = tl.load(k + words.EPS)

    # g^ = g + gamma S c, c = (1 - beta_c)(g - e), S from v_{t-1}
    h = root(v) * tl.load(k + words.H_FACTOR_BEFORE) + eps
    s = at_most(h * tl.load(k + words.SLOPE) + tl.load(k + words.LEVEL), tl.load(k + words.CAP))
    g_hat = g + tl.load(k + words.GAIN) * (s * (g - e))
    write(e_at, e + tl.load(k + words.RATE_C) * (g - e), for_state >> 16, inside, ROUND_M)

    # w <- w - lr (m / h + wd w)
    for_v = g if RAW else g_hat
    m = write(m_at, m + tl.load(k + words.RATE1) * (g_hat - m), for_state, inside, ROUND_M)
    v = write(
        v_at,
        v * tl.load(k + words.BETA2) + tl.load(k + words.RATE2) * for_v * for_v,
        for_param >> 16,
        inside,
        ROUND_V,
    )
    r = root(v)
    step = ratio(tl.load(k + words.STEP_SIZE) * m, r * tl.load(k + words.H_FACTOR) + eps)
    write(param, w * tl.load(k + words.KEEP) - step, for_param, inside, ROUND_PARAM)
    return r
