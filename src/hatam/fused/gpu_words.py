"""Helpers of :mod:`hatam.fused.gpu_kernels`: indices into its tables, arithmetic, loads and stores."""

import triton
import triton.language as tl

# The columns of the table: first addresses, then integers.
PARAM = tl.constexpr(0)
GRAD = tl.constexpr(1)
EXP_AVG = tl.constexpr(2)
EXP_AVG_SQ = tl.constexpr(3)
STEP = tl.constexpr(4)
REACH = tl.constexpr(5)
RMS_RATIO = tl.constexpr(6)
PATH_LENGTH = tl.constexpr(7)
DENOM_MEAN = tl.constexpr(8)
REACH_MEAN = tl.constexpr(9)
SHARD_SUMS = tl.constexpr(10)  # of a local part of a DTensor, else 0
NUMEL = tl.constexpr(11)
PARAM_INDEX = tl.constexpr(12)  # among the optimizer's parameters, for random numbers
FIRST = tl.constexpr(13)  # index of the tensor's first chunk
COLUMNS = tl.constexpr(14)

# The constants of one tensor's step, with the names of cpu_loops.h.
KEEP = tl.constexpr(0)
STEP_SIZE = tl.constexpr(1)
BETA2 = tl.constexpr(2)
RATE1 = tl.constexpr(3)  # 1 - beta1 in float64, then rounded
RATE2 = tl.constexpr(4)
EPS = tl.constexpr(5)
GRAD_FACTOR = tl.constexpr(6)
H_FACTOR = tl.constexpr(7)
H_FACTOR_BEFORE = tl.constexpr(8)
CAP = tl.constexpr(9)
REACH_NOW = tl.constexpr(10)
REACH_BEFORE = tl.constexpr(11)
INV_MEAN = tl.constexpr(12)
INV_MEAN_BEFORE = tl.constexpr(13)
CONSTANTS = tl.constexpr(14)


@triton.jit
def root(x):
    return tl.sqrt(x) if x.dtype == tl.float64 else tl.sqrt_rn(x)


@triton.jit
def divide(x, y):
    return x / y if y.dtype == tl.float64 else tl.div_rn(x, y)


@triton.jit
def at_most(x, most):
    """The lesser of the two; NaN if x is NaN."""
    return tl.where(most <= x, most, x)


@triton.jit
def mean_or_inf(mean, no_gradient_yet):
    """The mean, or infinity if it is eps: v = 0 then, sharpness is not known yet, and S has to be 0."""
    return tl.where(mean > no_gradient_yet, mean, float("inf"))


@triton.jit
def one_minus_power(log_base, exponent):
    """1 - base^exponent."""
    return 1 - tl.exp(exponent * log_base)


@triton.jit
def scatter(x):
    """``scatter`` of hatam/rounding.py."""
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    x ^= x >> 16
    return x


@triton.jit
def draw(place, key, WANTED: tl.constexpr):
    return scatter(place.to(tl.uint32) ^ key) if WANTED else key


@triton.jit
def widened(x):
    return (x.to(tl.uint32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def narrowed(x, random, AT_RANDOM: tl.constexpr):
    """The bits of x rounded to bfloat16, stochastically or to nearest. Infinity and NaN are kept."""
    bits = x.to(tl.uint32, bitcast=True)
    raised = bits + ((random & 0xFFFF) if AT_RANDOM else (0x7FFF + ((bits >> 16) & 1)))
    special = tl.where((bits & 0x7FFFFF) != 0, bits | 0x400000, bits)
    return (tl.where((bits & 0x7F800000) == 0x7F800000, special, raised) >> 16).to(tl.uint16)


@triton.jit
def center(x, random):
    """``center`` of hatam/rounding.py."""
    found = (x.to(tl.uint32, bitcast=True) - (random & 0xFFFF) + 0x7FFF + (random & 1)).to(tl.float32, bitcast=True)
    return tl.where((tl.abs(x) < float("inf")) & (x != 0), found, x)


@triton.jit
def column(row, name: tl.constexpr):
    return tl.load(row + name)


@triton.jit
def scalar_addresses(row, name: tl.constexpr, TYPE: tl.constexpr, inside):
    """The addresses of one 0-dim state tensor of each of many tensors."""
    return tl.load(row + name, mask=inside, other=0).to(tl.pointer_type(TYPE))


@triton.jit
def wide(x):
    """A float64 argument as float64. Triton's interpreter would round Python's floats to float32."""
    return tl.full((), x, tl.float64)


@triton.jit
def number_or_at(x, at):
    """An option as float64: from the device at address ``at``, or ``x`` if ``at`` is None."""
    return wide(x) if at is None else tl.load(at).to(tl.float64)


@triton.jit
def address(row, name: tl.constexpr, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    at = column(row, name).to(tl.pointer_type(TYPE))
    if ALIGNED:
        at = tl.multiple_of(at, 16)  # bytes; without this, elements are loaded one by one
    return at


@triton.jit
def read(at, inside):
    x = tl.load(at, mask=inside)
    return widened(x) if at.dtype.element_ty == tl.uint16 else x


@triton.jit
def as_read(at, x, random, AT_RANDOM: tl.constexpr):
    """The value that a load from ``at`` gives after x was stored there."""
    return widened(narrowed(x, random, AT_RANDOM)) if at.dtype.element_ty == tl.uint16 else x


@triton.jit
def write(at, x, random, inside, AT_RANDOM: tl.constexpr):
    """Store x and return the stored value: this step must compute with what later steps read."""
    if at.dtype.element_ty == tl.uint16:
        bits = narrowed(x, random, AT_RANDOM)
        tl.store(at, bits, mask=inside)
        stored = widened(bits)
    else:
        tl.store(at, x, mask=inside)
        stored = x
    return stored


@triton.jit
def skipped(found_inf):
    """Whether a GradScaler skips this step."""
    return tl.full((), 0, tl.int1) if found_inf is None else tl.load(found_inf) != 0
