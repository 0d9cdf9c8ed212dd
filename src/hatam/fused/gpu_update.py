"""The kernel of :mod:`hatam.fused.gpu_kernels` that updates tensors, with one program for each of their chunks."""

import triton
import triton.language as tl

from . import gpu_words as words  # used as words.NAME: Triton checks global names at every launch
from .gpu_words import address, as_read, at_most, center, column, divide, draw, read, root, skipped, write


@triton.jit
def update(
    table, chunks, constants, keys, z_squares, u_squares, roots, found_inf,
    P: tl.constexpr, M: tl.constexpr, V: tl.constexpr, UNIFORM: tl.constexpr,
    ROUND_PARAM: tl.constexpr, ROUND_M: tl.constexpr, ROUND_V: tl.constexpr, ALIGNED: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Update one chunk of one tensor, and store its sums of z^2, u^2 and sqrt(v), unless their pointer is None."""
    chunk = tl.program_id(0)
    t = tl.load(chunks + chunk)
    row, k = table + t * words.COLUMNS, constants + t * words.CONSTANTS
    key = tl.load(keys + 2 * t).to(tl.uint32, bitcast=True)
    key_before = tl.load(keys + 2 * t + 1).to(tl.uint32, bitcast=True)
    begin = (chunk - column(row, words.FIRST)) * CHUNK
    numel = column(row, words.NUMEL)
    place = begin + tl.arange(0, CHUNK)
    if skipped(found_inf) == 0:
        if begin + CHUNK <= numel:  # a full chunk needs no mask, which would prevent 16-byte loads
            z, u, r = advance(
                row, k, key, key_before, place, None, P, M, V, UNIFORM, ROUND_PARAM, ROUND_M, ROUND_V, ALIGNED
            )  # fmt: skip
            z_square, u_square, total = added(z * z, None), added(u * u, None), added(r, None)
        else:
            inside = place < numel
            z, u, r = advance(
                row, k, key, key_before, place, inside, P, M, V, UNIFORM, ROUND_PARAM, ROUND_M, ROUND_V, ALIGNED
            )  # fmt: skip
            z_square, u_square, total = added(z * z, inside), added(u * u, inside), added(r, inside)
        if z_squares is not None:
            tl.store(z_squares + chunk, z_square)
            tl.store(u_squares + chunk, u_square)
        if roots is not None:
            tl.store(roots + chunk, total)


@triton.jit
def advance(
    row, k, key, key_before, place, inside,
    P: tl.constexpr, M: tl.constexpr, V: tl.constexpr, UNIFORM: tl.constexpr,
    ROUND_PARAM: tl.constexpr, ROUND_M: tl.constexpr, ROUND_V: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """One step: z = w + kappa u, AdamW on z with the gradient at w, and w = z - kappa u, where u = S m / h.

    Returns z, u and sqrt(v) of the elements at ``place``. The compiler removes those that are not used.
    """
    param, grad = address(row, words.PARAM, P, ALIGNED) + place, address(row, words.GRAD, P, ALIGNED) + place
    m_at, v_at = address(row, words.EXP_AVG, M, ALIGNED) + place, address(row, words.EXP_AVG_SQ, V, ALIGNED) + place
    for_state = draw(place, key, ROUND_M)
    for_param = draw(place, key ^ 0xFFFFFFFF, ROUND_PARAM or ROUND_V)
    for_w_before = draw(place, key_before ^ 0xFFFFFFFF, ROUND_PARAM) >> 16
    w, g = read(param, inside), read(grad, inside) * tl.load(k + words.GRAD_FACTOR)
    m, v = read(m_at, inside), read(v_at, inside)

    # h of the last step and of this one
    h_before = root(v) * tl.load(k + words.H_FACTOR_BEFORE) + tl.load(k + words.EPS)
    v = write(v_at, v * tl.load(k + words.BETA2) + tl.load(k + words.RATE2) * g * g, for_param >> 16, inside, ROUND_V)
    r = root(v)
    h = r * tl.load(k + words.H_FACTOR) + tl.load(k + words.EPS)

    # z = w + kappa u. In bfloat16, rounding to nearest mostly restores the z of the last step.
    reach, cap = tl.load(k + words.REACH_BEFORE), tl.load(k + words.CAP)
    most = tl.load(k + words.INV_MEAN_BEFORE)
    u_before = divide(m, h_before) if UNIFORM else m * at_most(divide(cap, h_before), most)
    center_w = center(w, for_w_before) if ROUND_PARAM else w
    z = tl.where(reach != 0, as_read(param, center_w + reach * u_before, for_param, False), w)

    # z <- z - lr (m / h + wd z)
    m = write(m_at, m + tl.load(k + words.RATE1) * (g - m), for_state, inside, ROUND_M)
    plain = divide(m, h)
    z = z * tl.load(k + words.KEEP) - tl.load(k + words.STEP_SIZE) * plain
    z = as_read(param, z, for_param, ROUND_PARAM)

    # w = z - kappa u
    reach = tl.load(k + words.REACH_NOW)
    u = plain if UNIFORM else m * at_most(divide(cap, h), tl.load(k + words.INV_MEAN))
    write(param, tl.where(reach != 0, z - reach * u, z), for_param >> 16, inside, ROUND_PARAM)
    return z, u, r


@triton.jit
def added(x, inside):
    if inside is not None:
        x = tl.where(inside, x, 0.0)
    return tl.sum(x).to(tl.float64)
