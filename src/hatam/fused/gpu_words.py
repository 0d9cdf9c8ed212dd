"""The words that :mod:`hatam.fused.gpu_kernels` is written in: its tables, its arithmetic, how it reads and writes."""

import triton
import triton.language as tl

# The columns of the table: addresses, then numbers.
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
SHARD_SUMS = tl.constexpr(10)  # of a part of a tensor, else 0
NUMEL = tl.constexpr(11)
PARAM_INDEX = tl.constexpr(12)  # of the parameter, for random numbers
FIRST = tl.constexpr(13)  # number of the tensor's first chunk
COLUMNS = tl.constexpr(14)

# The constants of one tensor's step, named as in cpu_loops.h.
KEEP = tl.constexpr(0)
STEP_SIZE = tl.constexpr(1)
BETA2 = tl.constexpr(2)
RATE1 = tl.constexpr(3)  # 1 - beta1, which as a float32 has more digits than beta1
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
def ratio(x, y):
    return x / y if y.dtype == tl.float64 else tl.div_rn(x, y)


@triton.jit
def at_most(x, most):
    """A NaN in x stays one."""
    return tl.where(most <= x, most, x)


@triton.jit
def known(mean, no_gradient_yet):
    """A mean of eps is that of v = 0: nothing is known of sharpness yet, and S = 0."""
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
    """Raised by a random number, or by half a unit for the nearest, and cut; infinity and NaN stay what they are."""
    bits = x.to(tl.uint32, bitcast=True)
    raised = bits + ((random & 0xFFFF) if AT_RANDOM else (0x7FFF + ((bits >> 16) & 1)))
    special = tl.where((bits & 0x7FFFFF) != 0, bits | 0x400000, bits)
    return (tl.where((bits & 0x7F800000) == 0x7F800000, special, raised) >> 16).to(tl.uint16)


@triton.jit
def middle(x, random):
    """``middle`` of hatam/rounding.py."""
    found = (x.to(tl.uint32, bitcast=True) - (random & 0xFFFF) + 0x7FFF + (random & 1)).to(tl.float32, bitcast=True)
    return tl.where((tl.abs(x) < float("inf")) & (x != 0), found, x)


@triton.jit
def column(row, name: tl.constexpr):
    return tl.load(row + name)


@triton.jit
def scalars(row, name: tl.constexpr, TYPE: tl.constexpr, inside):
    """Where one 0-dim state tensor of many tensors lies."""
    return tl.load(row + name, mask=inside, other=0).to(tl.pointer_type(TYPE))


@triton.jit
def wide(x):
    """A float64 argument as one also in Triton's interpreter, which rounds Python's floats to float32."""
    return tl.full((), x, tl.float64)


@triton.jit
def number_or_at(x, at):
    """An option as a number of the host, or where ``at`` is given one that lives on the device."""
    return wide(x) if at is None else tl.load(at).to(tl.float64)


@triton.jit
def address(row, name: tl.constexpr, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    at = column(row, name).to(tl.pointer_type(TYPE))
    if ALIGNED:
        at = tl.multiple_of(at, 16)  # bytes; else nothing is known of it, and words are loaded one by one
    return at


@triton.jit
def read(at, inside):
    x = tl.load(at, mask=inside)
    return widened(x) if at.dtype.element_ty == tl.uint16 else x


@triton.jit
def as_read(at, x, random, AT_RANDOM: tl.constexpr):
    """A number as it would be read again from there."""
    return widened(narrowed(x, random, AT_RANDOM)) if at.dtype.element_ty == tl.uint16 else x


@triton.jit
def write(at, x, random, inside, AT_RANDOM: tl.constexpr):
    """Returns what was stored: whatever a later step reads again has to be computed with as it will be read."""
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
    """Whether a GradScaler wants this step to move nothing."""
    return tl.full((), 0, tl.int1) if found_inf is None else tl.load(found_inf) != 0
