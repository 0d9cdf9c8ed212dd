"""The Triton kernels of :mod:`hatam.fused.gpu`. They compute what hatam/fused/cpu.c and its headers compute.

A step has three launches for any number of tensors. ``prepare`` computes every tensor's constants in float64, and sets
its step and kappa. ``update`` makes one pass over memory, with one program for each chunk of each tensor. ``finish``
adds the chunks' sums in a fixed order, so that all runs have the same bits, and stores rho, N and mean(h).

Each tensor has one row of ``table`` with its addresses. An address that is not needed is 0. bfloat16 is read and
written as its 16 bits, so that both kinds of rounding have the same bits as on the CPU. Square roots and divisions
follow IEEE 754, and products are not fused with sums: memory, not arithmetic, limits the speed.
"""

import triton
import triton.language as tl

from . import gpu_words as words  # used as words.NAME: Triton checks global names at every launch
from .gpu_update import update
from .gpu_words import column, mean_or_inf, number_or_at, one_minus_power, scalar_addresses, scatter, skipped, wide

__all__ = ["finish", "nothing", "prepare", "tl", "update", "words"]

# The constants ------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["tensors", "seed"])
def prepare(
    table, constants, keys, tensors, seed, found_inf, lr_at, reach_factor_at, max_reach_at, grad_factor_at,
    lr: tl.float64, reach_factor: tl.float64, travel: tl.float64, max_reach: tl.float64, grad_factor: tl.float64,
    beta1: tl.float64, beta2: tl.float64, log_beta1: tl.float64, log_beta2: tl.float64, eps: tl.float64,
    weight_decay: tl.float64, cap: tl.float64,
    no_gradient_yet: tl.float64,
    REACHES: tl.constexpr, UNIFORM: tl.constexpr, STEP_TYPE: tl.constexpr, SCALAR_TYPE: tl.constexpr,
    LANES: tl.constexpr,
):  # fmt: skip
    """Compute every tensor's constants, and store its step, its kappa and the mean that goes with it."""
    t = tl.program_id(0) * LANES + tl.arange(0, LANES)
    inside = t < tensors
    moves = inside & (skipped(found_inf) == 0)
    row, k = table + t * words.COLUMNS, constants + t * words.CONSTANTS

    step_at = scalar_addresses(row, words.STEP, STEP_TYPE, inside)
    before = tl.load(step_at, mask=inside, other=0).to(tl.float64)
    step = before + 1
    tl.store(step_at, step, mask=moves)
    param_index = tl.load(row + words.PARAM_INDEX, mask=inside, other=0).to(tl.uint32)
    start = scatter(scatter(tl.full((LANES,), seed, tl.int64).to(tl.uint32)) + param_index)
    key = scatter(start + step.to(tl.int64).to(tl.uint32))
    key_before = scatter(start + before.to(tl.int64).to(tl.uint32))
    tl.store(keys + 2 * t, key.to(tl.int32, bitcast=True), mask=inside)
    tl.store(keys + 2 * t + 1, key_before.to(tl.int32, bitcast=True), mask=inside)

    lr, log_beta1, log_beta2 = number_or_at(lr, lr_at), wide(log_beta1), wide(log_beta2)
    tl.store(k + words.KEEP, 1 - lr * wide(weight_decay), mask=inside)
    tl.store(k + words.STEP_SIZE, lr / one_minus_power(log_beta1, step), mask=inside)
    tl.store(k + words.H_FACTOR, 1 / tl.sqrt(one_minus_power(log_beta2, step)), mask=inside)
    tl.store(k + words.H_FACTOR_BEFORE, 1 / tl.sqrt(one_minus_power(log_beta2, tl.maximum(before, 1.0))), mask=inside)
    tl.store(k + words.GRAD_FACTOR, number_or_at(grad_factor, grad_factor_at), mask=inside)
    tl.store(k + words.BETA2, wide(beta2), mask=inside)
    tl.store(k + words.RATE1, 1 - wide(beta1), mask=inside)
    tl.store(k + words.RATE2, 1 - wide(beta2), mask=inside)
    tl.store(k + words.EPS, wide(eps), mask=inside)
    tl.store(k + words.CAP, wide(cap), mask=inside)

    if REACHES:
        factor, most = number_or_at(reach_factor, reach_factor_at), number_or_at(max_reach, max_reach_at)
        prepare_reach(row, k, factor, wide(travel), most, wide(no_gradient_yet), inside, moves, UNIFORM, SCALAR_TYPE)
    else:
        tl.store(k + words.REACH_BEFORE, 0.0, mask=inside)
        tl.store(k + words.REACH_NOW, 0.0, mask=inside)


@triton.jit
def prepare_reach(
    row, k, reach_factor, travel, max_reach, no_gradient_yet, inside, moves,
    UNIFORM: tl.constexpr, SCALAR_TYPE: tl.constexpr,
):  # fmt: skip
    """Compute kappa from rho and N of the step before and, if S is not 1, the means of h."""
    ratio = tl.load(scalar_addresses(row, words.RMS_RATIO, SCALAR_TYPE, inside), mask=inside, other=0).to(tl.float64)
    path_length = tl.load(scalar_addresses(row, words.PATH_LENGTH, SCALAR_TYPE, inside), mask=inside, other=0).to(
        tl.float64
    )
    share = tl.maximum(path_length - 1, 0.0) / tl.where(travel > 0, travel, 1.0)
    share = tl.where(travel > 0, tl.minimum(share, 1.0), 1.0)
    now = tl.minimum(reach_factor * ratio * share * share, max_reach)
    reach_at = scalar_addresses(row, words.REACH, SCALAR_TYPE, inside)
    tl.store(k + words.REACH_BEFORE, tl.load(reach_at, mask=inside, other=0), mask=inside)
    tl.store(k + words.REACH_NOW, now, mask=inside)
    tl.store(reach_at, now, mask=moves)
    if not UNIFORM:
        mean_before_at = scalar_addresses(row, words.REACH_MEAN, SCALAR_TYPE, inside)
        mean_before = tl.load(mean_before_at, mask=inside, other=1).to(tl.float64)
        mean = tl.load(scalar_addresses(row, words.DENOM_MEAN, SCALAR_TYPE, inside), mask=inside, other=1).to(
            tl.float64
        )
        mean = mean_or_inf(mean, no_gradient_yet)
        tl.store(k + words.INV_MEAN, 1 / mean, mask=inside)
        tl.store(k + words.INV_MEAN_BEFORE, 1 / mean_before, mask=inside)
        tl.store(mean_before_at, mean, mask=moves)


# What the next step needs --------------------------------------------------------------------------------------------


@triton.jit
def finish(
    table, z_squares, u_squares, roots, found_inf, reach_factor_at, lr_at, lr_peak_at,
    reach_factor: tl.float64, lr: tl.float64, lr_peak: tl.float64,
    log_beta2: tl.float64, eps: tl.float64, no_gradient_yet: tl.float64, growth: tl.float64,
    STEP_TYPE: tl.constexpr, SCALAR_TYPE: tl.constexpr, CHUNK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Store rho, N and, if S needs it, mean(h) of one tensor; for a local part of a DTensor store sums instead."""
    row = table + tl.program_id(0) * words.COLUMNS
    numel, first = column(row, words.NUMEL), column(row, words.FIRST)
    moves = skipped(found_inf) == 0
    chunks = tl.where(moves, (numel + CHUNK - 1) // CHUNK, 0)  # a skipped step has left no sums to read
    parts = column(row, words.SHARD_SUMS)  # address for the sums of a local part of a DTensor, else 0
    is_part, is_whole = moves & (parts != 0), moves & (parts == 0)
    parts, n = parts.to(tl.pointer_type(tl.float64)), numel.to(tl.float64)

    z_square, u_square = (
        mean_of(z_squares, first, chunks, numel, WIDTH),
        mean_of(u_squares, first, chunks, numel, WIDTH),
    )
    ratio_at = column(row, words.RMS_RATIO).to(tl.pointer_type(SCALAR_TYPE))
    last = tl.load(ratio_at).to(tl.float64)
    ratio = tl.sqrt(z_square / tl.where(u_square > 0, u_square, 1.0))
    begun = (last > 0) | (number_or_at(reach_factor, reach_factor_at) > 0)
    good = begun & (u_square > 0) & (u_square < float("inf")) & (ratio < float("inf"))
    ratio = tl.minimum(ratio, tl.where(last > 0, last, float("inf")) * wide(growth))
    ratio = tl.where(good, ratio, last)
    tl.store(ratio_at, ratio, mask=is_whole)
    step = tl.load(column(row, words.STEP).to(tl.pointer_type(STEP_TYPE))).to(tl.float64)
    way = tl.where(last > 0, number_or_at(lr, lr_at), step * number_or_at(lr_peak, lr_peak_at))
    path_length_at = column(row, words.PATH_LENGTH).to(tl.pointer_type(SCALAR_TYPE))
    path_length = tl.load(path_length_at).to(tl.float64) + way / tl.where(ratio > 0, ratio, 1.0)
    tl.store(path_length_at, path_length, mask=is_whole & (ratio > 0))
    tl.store(parts, z_square * n, mask=is_part)
    tl.store(parts + 1, u_square * n, mask=is_part)
    if roots is not None:
        step = tl.maximum(step, 1.0)  # it is 0 if the first step is skipped
        mean = mean_of(roots, first, chunks, numel, WIDTH)  # of sqrt(v)
        mean = mean / tl.sqrt(one_minus_power(wide(log_beta2), step)) + wide(eps)
        mean_at = column(row, words.DENOM_MEAN).to(tl.pointer_type(SCALAR_TYPE))
        last = mean_or_inf(tl.load(mean_at).to(tl.float64), wide(no_gradient_yet))
        tl.store(mean_at, tl.where((mean < float("inf")) & (numel > 0), mean, last), mask=is_whole & begun)
        tl.store(parts + 2, mean * n, mask=is_part)


@triton.jit
def mean_of(sums, first, chunks, numel, WIDTH: tl.constexpr):
    """The mean over one tensor from its chunks' sums, which are added in a fixed order."""
    lanes = tl.arange(0, WIDTH)
    total = tl.zeros((WIDTH,), tl.float64)
    for i in range(0, chunks, WIDTH):
        total += tl.load(sums + first + i + lanes, mask=i + lanes < chunks, other=0)
    return tl.sum(total) / tl.maximum(numel, 1).to(tl.float64)


@triton.jit
def nothing(number):
    """A trivial kernel, to test whether Triton can compile and run one here."""
    tl.device_assert(number == 0)
