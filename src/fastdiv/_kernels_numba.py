"""The kernel set compiled by Numba at first call.

The loops are those of the Cython set. `FASTDIV_NUMBA_CACHE=1` keeps the compiled code beside this file, which
must then be writable; without it nothing is written.
"""

import os
from collections import namedtuple
from math import fabs, inf, isfinite, log, log1p, sqrt

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.errors import NumbaTypeError
from numba.extending import intrinsic, overload
from numba.np import arrayobj

__all__ = [
    "advi_mixture_steps",
    "column_moments",
    "log_ratio_moments",
    "logistic_newton_pass",
    "logistic_newton_steps",
    "logistic_sgd_epoch",
    "logsumexp_rows",
    "merge_moments",
    "metropolis_mixture_steps",
    "mixture_logpdf",
    "mixture_logpdf_diag",
    "mixture_logpdf_full",
    "mixture_model_logp_grad",
    "mixture_score",
    "mixture_score_diag",
    "mixture_score_full",
    "mlp_epoch",
    "mlp_log_odds",
    "neighbor_distances",
    "radix_sort",
    "trapezoid_cross_entropy",
    "trapezoid_kl",
]

BLOCK = 64
GRID = 2 * BLOCK
GENTLE = 100
GROUP = 8
ALIKE = 14
FEW = 4
LANES = 8
CHUNK = 256
LINE = 64
AHEAD = 32
DIGITS = 256
HALF_LOG_2PI = 0.5 * log(2 * np.pi)
SQRT_HALF = sqrt(0.5)
LOG2_E = 1 / log(2)
LOWEST = np.finfo(np.float64).min

# Of the state of `logistic_newton_steps`.
STAGE, STATUS, SHARE, VALUE, DECREMENT, BORROWED, N_LOSSES = range(7)
GRADIENT, HESSIAN, SCORES = range(3)
RUNNING, FULL, CONVERGED, STUCK = range(4)
LEAST_RIDGE = 1e-12
SUFFICIENT_DECREASE = 1e-4
LEAST_SHARE = 2.0**-30
# Of the prior of `mixture_model_logp_grad`.
SCALE_PRIOR, MEAN_PRECISION, SCALE_A, SCALE_B, CONSTANT = range(5)
FIXED, HALF_NORMAL, INVERSE_GAMMA = range(3)

# Multiplications and additions may fuse, as C compilers have them.
OPTIONS = {"error_model": "numpy", "fastmath": {"contract"}}
_kernel = njit(nogil=True, cache=os.environ.get("FASTDIV_NUMBA_CACHE") == "1", **OPTIONS)
# What only kernels call: wrappers for Python would take a tenth of the time to compile, or more.
INTERNAL = {"nogil": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
_internal = njit(**INTERNAL, **OPTIONS)
# A loop is put in vectors only if what it calls is inlined.
_inline = njit(forceinline=True, **INTERNAL, **OPTIONS)
# Nor is a sum, unless it may be taken in any order.
_inline_any_order = njit(forceinline=True, **INTERNAL, **{**OPTIONS, "fastmath": {"contract", "reassoc"}})


# The polynomials and the bits are those of _vecmath.h, where they are explained. Float32 constants keep float32
# arithmetic from becoming float64.
MAGIC = 6755399441055744.0 + 1023
EVEN = (0.24022650695910097, 0.009618129107606888, 0.0001540353044173605, 1.321544258792169e-06, 7.072585949269223e-09)
ODD = (0.6931471805599453, 0.0555041086648216, 0.0013333558146416936, 1.525273382983612e-05, 1.0178062445845774e-07)
LAST = 4.4549605981865186e-10
MAGIC32 = np.float32(12582912 + 127)
TERM32 = tuple(map(np.float32, (1, 0.6931472, 0.24022651, 0.05550357, 0.009618083, 0.0013390863, 0.00015453163)))
LEAST32 = np.float32(-127)
LOG_SERIES = (
    0.666666666666667,
    0.39999999999899444,
    0.2857142862600327,
    0.22222211130259878,
    0.18182889455674947,
    0.15331710618210773,
    0.14616585424888623,
)
LOG_SERIES32 = tuple(map(np.float32, (0.6666667, 0.40000123, 0.28550822, 0.23330468)))
ROOT_HALF = 0x3FE6A09E667F3BCD
ONE = 0x3FF0000000000000
ROOT_HALF32 = np.int32(0x3F3504F3)
ONE32 = np.int32(0x3F800000)
MANTISSA32 = np.int32(0x007FFFFF)
LN2_HI = 6.93147180369123816490e-01
LN2_LO = 1.90821492927058770002e-10
LN2_HI32 = np.float32(0.693359375)
LN2_LO32 = np.float32(-2.12194440e-4)
HALF32 = np.float32(0.5)
# Of 2 atanh(s) / s - 2 over s squared, s up to 1/3: the series of log(1 + odds) in s = odds / (2 + odds).
ATANH_SERIES = (
    0.666666666666666586,
    0.400000000000145827,
    0.285714285671087572,
    0.22222222717427863,
    0.181817894361328582,
    0.153855700649586231,
    0.133141442096549362,
    0.120010728095907125,
    0.0880073848614467388,
    0.161640456119435322,
)


def _exp2_term(x):
    """2**x for x <= 1023.4, and 0 instead of a subnormal number: a term of a sum whose largest is near 1."""


@overload(_exp2_term, jit_options={"forceinline": True, **OPTIONS})
def _exp2_term_of_type(x):
    def in_double(x):
        x = -1023.0 if x < -1023.0 else x
        shifted = x + MAGIC
        r = x - (shifted - MAGIC)
        r2 = r * r
        even = 1 + r2 * (EVEN[0] + r2 * (EVEN[1] + r2 * (EVEN[2] + r2 * (EVEN[3] + r2 * EVEN[4]))))
        odd = ODD[0] + r2 * (ODD[1] + r2 * (ODD[2] + r2 * (ODD[3] + r2 * (ODD[4] + r2 * LAST))))
        return (even + r * odd) * np.int64(np.float64(shifted).view(np.int64) << 52).view(np.float64)

    def in_float(x):
        x = LEAST32 if x < LEAST32 else x
        shifted = x + MAGIC32
        r = x - (shifted - MAGIC32)
        r2 = r * r
        even = TERM32[0] + r2 * (TERM32[2] + r2 * TERM32[4])
        odd = TERM32[1] + r2 * (TERM32[3] + r2 * (TERM32[5] + r * TERM32[6]))
        return (even + r * odd) * np.int32(np.float32(shifted).view(np.int32) << 23).view(np.float32)

    return in_float if x == types.float32 else in_double


def _log_normal(x):
    """Log of a normal positive number."""


@overload(_log_normal, jit_options={"forceinline": True, **OPTIONS})
def _log_normal_of_type(x):
    def in_double(x):
        bits = np.float64(x).view(np.int64) + (ONE - ROOT_HALF)
        k = np.float64((bits >> 52) - 1023)
        f = np.int64((bits & 0x000FFFFFFFFFFFFF) + ROOT_HALF).view(np.float64) - 1
        s = f / (2 + f)
        z = s * s
        z2 = z * z
        half_square = 0.5 * f * f
        series = LOG_SERIES[0] + z * LOG_SERIES[1] + z2 * (LOG_SERIES[2] + z * LOG_SERIES[3])
        series += z2 * z2 * (LOG_SERIES[4] + z * LOG_SERIES[5] + z2 * LOG_SERIES[6])
        return k * LN2_HI + (f - (half_square - (s * (half_square + z * series) + k * LN2_LO)))

    def in_float(x):
        bits = np.int32(np.float32(x).view(np.int32) + (ONE32 - ROOT_HALF32))
        k = np.float32(np.int32(bits >> 23) - np.int32(127))
        f = np.int32((bits & MANTISSA32) + ROOT_HALF32).view(np.float32) - np.float32(1)
        s = f / (np.float32(2) + f)
        z = s * s
        half_square = HALF32 * f * f
        series = LOG_SERIES32[0] + z * LOG_SERIES32[1] + z * z * (LOG_SERIES32[2] + z * LOG_SERIES32[3])
        return k * LN2_HI32 + (f - (half_square - (s * (half_square + z * series) + k * LN2_LO32)))

    return in_float if x == types.float32 else in_double


@_inline_any_order
def _sum(values):
    """Add values up in any order, so that the compiler can put them in vector lanes."""
    total = 0.0
    for i in range(len(values)):
        total += values[i]
    return total


def _softplus_slope(x):
    """log(1 + exp(x)) and its derivative, as in _vecmath.h."""


@overload(_softplus_slope, jit_options={"forceinline": True, **OPTIONS})
def _softplus_slope_of_type(x):
    number = np.float32 if x == types.float32 else np.float64
    log2_e, zero, one, two = map(number, (LOG2_E, 0, 1, 2))
    a, b, c, d, e, f, g, h, i, j = map(number, ATANH_SERIES)

    def softplus_slope(x):
        odds = _exp2_term(-abs(x) * log2_e)
        inverse = one / ((one + odds) * (two + odds))
        s = odds * (one + odds) * inverse
        z = s * s
        z2 = z * z
        z4 = z2 * z2
        series = (a + z * b) + z2 * (c + z * d) + z4 * (((e + z * f) + z2 * (g + z * h)) + z4 * (i + z * j))
        slope = (odds if x < zero else one) * ((two + odds) * inverse)
        return (x if x > zero else zero) + (two * s + s * (z * series)), slope

    return softplus_slope


@_inline
def _two_sum(total, compensation, term):
    """Return the sum and what rounding took from it, added to the compensation (Neumaier 1974)."""
    s = total + term
    if not isfinite(s):
        return s, 0.0
    if fabs(total) >= fabs(term):
        return s, compensation + ((total - s) + term)
    return s, compensation + ((term - s) + total)


@_inline
def _exp(x):
    """Exp without libm, and so in vectors. 2**n is two factors, because n may be beyond the exponents of one."""
    x = -746.0 if x < -746.0 else x
    x = 710.0 if x > 710.0 else x
    n = (np.float64(x) * LOG2_E + MAGIC) - MAGIC
    half = np.int64(n) >> 1
    high = np.int64((half + 1023) << 52).view(np.float64)
    low = np.int64((np.int64(n) - half + 1023) << 52).view(np.float64)
    return _exp2_term(((x - n * LN2_HI) - n * LN2_LO) * LOG2_E) * high * low


@_inline_any_order
def _sum_of_exps(values, shift):
    """Sum the exponentials of values less the shift, without those that are 1, and count these."""
    total = 0.0
    ties = 0
    for i in range(len(values)):
        x = values[i] - shift
        ties += x == 0
        total += 0.0 if x == 0 else _exp(x)
    return total, ties


@intrinsic
def _block(typing_context, dtype):
    """Return BLOCK numbers on the stack, which the compiler can keep in vector registers while they are summed.

    Nor can they overlap what a function is given. So a helper has blocks of its own; they end with it.
    """

    def make(context, builder, signature, args):
        number = context.get_data_type(dtype.dtype)
        data = cgutils.alloca_once(builder, number, BLOCK)
        data.align = LINE
        shape, itemsize = (context.get_constant(types.intp, n) for n in (BLOCK, context.get_abi_sizeof(number)))
        array = context.make_array(signature.return_type)(context, builder)
        arrayobj.populate_array(array, data, [shape], [itemsize], itemsize, None)
        return array._getvalue()

    return types.Array(dtype.dtype, 1, "C")(dtype), make


@intrinsic
def _borrowed(typing_context, array):
    """Return an array that counts no references, which would cost as much as some rows do. Its owner outlives it."""

    def make(context, builder, signature, args):
        view = context.make_array(array)(context, builder, args[0])
        view.meminfo = cgutils.get_null_value(view.meminfo.type)
        view.parent = cgutils.get_null_value(view.parent.type)
        return view._getvalue()

    return array(array), make


@intrinsic
def _matrix(typing_context, array, start, n_rows, n_columns):
    """Return a matrix that is borrowed from a contiguous array."""
    matrix = types.Array(array.dtype, 2, "C")

    def make(context, builder, signature, args):
        data = builder.gep(context.make_array(array)(context, builder, args[0]).data, [args[1]])
        itemsize = context.get_constant(types.intp, array.dtype.bitwidth // 8)
        view = context.make_array(matrix)(context, builder)
        strides = [builder.mul(args[3], itemsize), itemsize]
        arrayobj.populate_array(view, data, args[2:], strides, itemsize, None)
        return view._getvalue()

    return matrix(array, start, n_rows, n_columns), make


@intrinsic
def _prefetch(typing_context, x, index, line):
    """Have this cache line, counted from an element of x as it lies in memory, brought to the second cache."""

    def make(context, builder, signature, args):
        data = context.make_array(x)(context, builder, args[0]).data
        element = builder.bitcast(builder.gep(data, [args[1]]), cgutils.voidptr_t)
        address = builder.gep(element, [builder.mul(args[2], args[2].type(LINE))])
        read, second, cache = (context.get_constant(types.int32, n) for n in (0, 2, 1))
        arguments = [address, read, second, cache]
        of_types = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
        builder.call(builder.module.declare_intrinsic("llvm.prefetch", [address.type], of_types), arguments)
        return context.get_dummy_value()

    return types.void(x, index, line), make


def _lanes(context, builder, array_type, array, start):
    """Return the address of LANES of an array, as one vector: LLVM would unroll so short a loop into single numbers."""
    if array_type.layout != "C":
        raise NumbaTypeError(f"expected a contiguous array, got {array_type}")
    data = context.make_array(array_type)(context, builder, array).data
    lanes = ir.VectorType(context.get_data_type(array_type.dtype), LANES)
    return builder.bitcast(builder.gep(data, [start]), lanes.as_pointer())


def _load_lanes(context, builder, array_type, array, start):
    return builder.load(_lanes(context, builder, array_type, array, start), align=array_type.dtype.bitwidth // 8)


def _store_lanes(context, builder, lanes, array_type, array, start):
    address = _lanes(context, builder, array_type, array, start)
    builder.store(lanes, address, align=array_type.dtype.bitwidth // 8)


@intrinsic
def _standardise_lanes(typing_context, x, centre, scale, out, start):
    """Write (x - centre) * scale for the LANES from the start."""

    def make(context, builder, signature, args):
        *arrays, first = args
        point, mean, factor = (
            _load_lanes(context, builder, *array, first) for array in zip(signature.args[:3], arrays[:3], strict=True)
        )
        standardised = builder.fmul(builder.fsub(point, mean), factor)
        _store_lanes(context, builder, standardised, out, arrays[3], first)
        return context.get_dummy_value()

    return types.void(x, centre, scale, out, start), make


@intrinsic
def _add_rows(typing_context, factors, rows, out, start):
    """Add the rows times their factors to out for the LANES from the start."""

    def make(context, builder, signature, args):
        factor_of, terms, sums, first = args
        n_rows, width = cgutils.unpack_tuple(builder, context.make_array(rows)(context, builder, terms).shape)
        numbers = context.make_array(factors)(context, builder, factor_of).data
        last = _load_lanes(context, builder, out, sums, first)
        total = cgutils.alloca_once_value(builder, last)
        undefined = ir.Constant(last.type, ir.Undefined)
        same = ir.VectorType(ir.IntType(32), LANES)([0] * LANES)
        with cgutils.for_range(builder, n_rows) as loop:
            lanes = _load_lanes(context, builder, rows, terms, builder.add(builder.mul(loop.index, width), first))
            factor = builder.load(builder.gep(numbers, [loop.index]))
            factor = builder.insert_element(undefined, factor, ir.IntType(32)(0))
            product = builder.fmul(builder.shuffle_vector(factor, undefined, same), lanes, flags=("contract",))
            builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)
        _store_lanes(context, builder, builder.load(total), out, sums, first)
        return context.get_dummy_value()

    return types.void(factors, rows, out, start), make


@intrinsic
def _lanes_product(typing_context, x, y, start):
    """Sum the products of x and y for the LANES from the start, in any order."""

    def make(context, builder, signature, args):
        number = context.get_data_type(x.dtype)
        first, second = (_load_lanes(context, builder, *array, args[2]) for array in ((x, args[0]), (y, args[1])))
        product = builder.fmul(first, second)
        of_types = ir.FunctionType(number, [number, product.type])
        total = builder.module.declare_intrinsic(f"llvm.vector.reduce.fadd.v{LANES}f{x.dtype.bitwidth}", (), of_types)
        return builder.call(total, [number(-0.0), product], fastmath=("reassoc",))

    return x.dtype(x, y, start), make


@_kernel
def _empty_rows(n_rows, dtype):
    """Return an array (n_rows, BLOCK) that begins a cache line: vectors that cross lines are slow."""
    size = n_rows * BLOCK
    scratch = np.empty(size + LINE, dtype)
    skip = -scratch.ctypes.data % LINE // scratch.itemsize
    return scratch[skip : skip + size].reshape(n_rows, BLOCK)


@_inline
def _load_block(x, start, points):
    """Copy the next BLOCK of the points, the last one again to fill it."""
    # Indices that start at 0 cannot be negative, which would keep a loop out of vectors.
    left = x[start : start + BLOCK]
    for i in range(len(left)):
        points[i] = left[i]
    for i in range(len(left), BLOCK):
        points[i] = left[len(left) - 1]


@_inline
def _store_block(block, start, out):
    left = out[start : start + BLOCK]
    for i in range(len(left)):
        left[i] = block[i]


@_inline
def _load_columns(x, start, columns):
    """Write the next BLOCK points as columns (n_dims, BLOCK), the last one again to fill them."""
    left = x[start : start + BLOCK]
    for d in range(len(columns)):
        for i in range(BLOCK):
            columns[d, i] = left[min(i, len(left) - 1), d]


@_inline
def _store_rows(columns, start, out):
    left = out[start : start + BLOCK]
    for i in range(len(left)):
        for d in range(len(columns)):
            left[i, d] = columns[d, i]


@_inline
def _column_shifts(terms, shift):
    """Find the largest of each column of terms (n_terms, BLOCK).

    A column without a finite maximum is not shifted: its -inf and NaN then come out as exp and log make them.
    """
    largest = _block(terms.dtype)
    for i in range(BLOCK):
        largest[i] = -inf
    for k in range(len(terms)):
        for i in range(BLOCK):
            term, before = terms[k, i], largest[i]
            largest[i] = term if term > before else before
    for i in range(BLOCK):
        shift[i] = largest[i] if isfinite(largest[i]) else terms.dtype.type(0)


@_kernel
def _logsumexp_columns(terms, out):
    """Reduce terms (n_terms, BLOCK) over its rows."""
    number = terms.dtype.type
    n_terms = len(terms)
    if n_terms == 1:
        for i in range(BLOCK):
            out[i] = terms[0, i]
        return
    shift, partial, total = _block(terms.dtype), _block(terms.dtype), _block(np.float64)
    _column_shifts(terms, shift)
    for i in range(BLOCK):
        total[i] = 0
    for first in range(0, n_terms, GROUP):
        for i in range(BLOCK):
            partial[i] = 0
        for k in range(first, min(first + GROUP, n_terms)):
            for i in range(BLOCK):
                partial[i] += _exp2_term((terms[k, i] - shift[i]) * number(LOG2_E))
        for i in range(BLOCK):
            total[i] += partial[i]
    for i in range(BLOCK):
        # A total is 1 or more, or 0 or NaN.
        out[i] = shift[i] + (_log_normal(total[i]) if total[i] > 0 else total[i] - inf)


@_kernel
def _responsibilities(terms):
    """Make each column of terms (n_terms, BLOCK) its softmax: NaN where all of them are -inf."""
    number = terms.dtype.type
    shift, total = _block(terms.dtype), _block(np.float64)
    _column_shifts(terms, shift)
    for i in range(BLOCK):
        total[i] = 0
    for k in range(len(terms)):
        for i in range(BLOCK):
            term = _exp2_term((terms[k, i] - shift[i]) * number(LOG2_E))
            terms[k, i] = term
            total[i] += term
    for i in range(BLOCK):
        shift[i] = 1 / total[i]
    for k in range(len(terms)):
        for i in range(BLOCK):
            terms[k, i] *= shift[i]


@_kernel
def _log_coefficients(log_weights, scales):
    """Log of weight over the product of a component's scales, a row of them, and sqrt(2 pi)."""
    log_coefs = np.empty_like(log_weights)
    for k in range(len(log_weights)):
        log_coef = log_weights[k] - scales.shape[1] * HALF_LOG_2PI
        for scale in scales[k]:
            log_coef -= log(scale)
        log_coefs[k] = log_coef
    return log_coefs


@_kernel
def _line_table(log_weights, stds, table):
    """Fill a mixture's table and return its largest log-coefficient.

    Its rows are log-coefficients and scales; and the same in base 2, the coefficients less the largest.
    """
    log_coefs = _log_coefficients(log_weights, stds.reshape(-1, 1))
    top = np.float64(log_coefs.max())
    for k in range(len(stds)):
        table[0, k] = log_coefs[k]
        table[1, k] = SQRT_HALF / stds[k]
        table[2, k] = (log_coefs[k] - top) * LOG2_E
        table[3, k] = sqrt(0.5 * LOG2_E) / stds[k]
    return top


@_kernel
def _relevant(low, high, means, table, extra, bounds, relevant):
    """List the components that can move the density between two points by half a last place, or some bits less.

    There a component's term lies between its values at the nearest and the farthest point: its bounds, the upper ones
    first. A component counts if its upper bound reaches the largest lower one. Return how many do, and the largest
    upper bound, in base 2.
    """
    number = means.dtype.type
    uppers, lowers = bounds
    floor = peak = number(-inf)
    for k in range(len(means)):
        near = max(low - means[k], means[k] - high, number(0)) * table[3, k]
        far = max(high - means[k], means[k] - low) * table[3, k]
        uppers[k] = table[2, k] - near * near
        lowers[k] = table[2, k] - far * far
        floor = lowers[k] if lowers[k] > floor else floor
        peak = uppers[k] if uppers[k] > peak else peak
    slack = (40 if means.itemsize == 4 else 70) + extra
    n_relevant = 0
    for k in range(len(means)):
        relevant[n_relevant] = k
        n_relevant += uppers[k] >= floor - slack
    return n_relevant, peak if isfinite(peak) else number(0)


@_inline
def _shifted_terms(points, means, table, terms):
    """Terms of a mixture on the line, to be shifted by the largest at each point."""
    for k in range(len(means)):
        log_coef, scale, mean = table[0, k], table[1, k], means[k]
        for i in range(BLOCK):
            z = (points[i] - mean) * scale
            terms[k, i] = log_coef - z * z


@_inline
def _normal_slopes(points, responsibilities, means, scales, out):
    """Sum the components' scores (mean - x) / std^2 by their responsibilities; nothing is 0 times infinity."""
    half = _block(points.dtype)
    for i in range(BLOCK):
        half[i] = 0
    for k in range(len(means)):
        mean, scale = means[k], scales[k]
        for i in range(BLOCK):
            share = responsibilities[k, i]
            slope = share * ((mean - points[i]) * scale * scale)
            half[i] += slope if share != 0 else points.dtype.type(0)
    for i in range(BLOCK):
        out[i] = 2 * half[i]


@_kernel
def _line(x, means, table, top, unit, out):
    """Log-density of a mixture on the line, or its derivative.

    Which is wanted is known when the function is compiled: the density if unit is None.

    One pass sums the exponentials of all terms less a bound that a chunk shares. Where nearly nothing of a sum is left,
    or slopes are too unlike for one unit, which is 0 then, each point's terms are written down and shifted by their own
    maximum.
    """
    n_components = len(means)
    number = x.dtype.type
    least = 1e-26 if x.itemsize == 4 else 1e-280
    points, partial, partial_slope, result = _block(x.dtype), _block(x.dtype), _block(x.dtype), _block(x.dtype)
    total, slope = _block(np.float64), _block(np.float64)
    terms, bounds = _empty_rows(n_components, x.dtype), np.empty((2, n_components), x.dtype)
    relevant = np.arange(n_components)
    n_relevant, peak = n_components, number(0)
    for start in range(0, len(x), BLOCK):
        if n_components >= FEW and start % CHUNK == 0:
            low, high = number(inf), number(-inf)
            for value in x[start : start + CHUNK]:
                low = value if value < low else low
                high = value if value > high else high
            n_relevant, peak = _relevant(low, high, means, table, 0 if unit is None else 2 * ALIKE, bounds, relevant)
        _load_block(x, start, points)
        n_lost = 0
        if n_components == 1 or (unit is not None and unit == 0):
            n_lost = 1
        else:
            for i in range(BLOCK):
                total[i] = 0
                slope[i] = 0
            for first in range(0, n_relevant, GROUP):
                for i in range(BLOCK):
                    partial[i] = 0
                    partial_slope[i] = 0
                for j in range(first, min(first + GROUP, n_relevant)):
                    k = relevant[j]
                    mean, scale, log2_coef = means[k], table[3, k], table[2, k] - peak
                    relative_scale = scale if unit is None else scale / unit
                    for i in range(BLOCK):
                        z = (points[i] - mean) * scale
                        term = _exp2_term(log2_coef - z * z)
                        partial[i] += term
                        if unit is not None:
                            partial_slope[i] += term * (z * relative_scale)
                for i in range(BLOCK):
                    total[i] += partial[i]
                    slope[i] += partial_slope[i]
            for i in range(BLOCK):
                n_lost += not total[i] >= least
            if unit is None:
                offset = top + peak / LOG2_E
                for i in range(BLOCK):
                    result[i] = offset + _log_normal(number(total[i]))
            else:
                for i in range(BLOCK):
                    result[i] = -2 / LOG2_E * unit * (slope[i] / total[i])
                    n_lost += not isfinite(result[i])
        if n_lost:
            _shifted_terms(points, means, table, terms)
            if unit is None:
                _logsumexp_columns(terms, result)
            else:
                _responsibilities(terms)
                _normal_slopes(points, terms, means, table[1], result)
        _store_block(result, start, out)


@_kernel
def mixture_logpdf(x, log_weights, means, stds, out):
    table = np.empty((4, len(means)), x.dtype)
    top = _line_table(log_weights, stds, table)
    _line(x, means, table, top, None, out)


@_kernel
def mixture_score(x, log_weights, means, stds, out):
    table = np.empty((4, len(means)), x.dtype)
    top = _line_table(log_weights, stds, table)
    unit = table[3].max()
    unit = unit if unit <= table[3].min() * (1 << ALIKE) else x.dtype.type(0)
    _line(x, means, table, top, unit, out)


# Whether the density or the score is wanted, the dimensions of `out` tell, when the function is compiled.
@_kernel
def _diag(x, log_weights, means, stds, out):
    n_components, n_dims = means.shape
    log_coefs = _log_coefficients(log_weights, stds)
    scales = np.empty_like(stds)
    for k in range(n_components):
        for d in range(n_dims):
            scales[k, d] = SQRT_HALF / stds[k, d]
    terms = _empty_rows(n_components, x.dtype)
    columns = _empty_rows(n_dims, x.dtype)
    slopes = _empty_rows(n_dims, x.dtype)
    square, result = _block(x.dtype), _block(x.dtype)
    for start in range(0, len(x), BLOCK):
        _load_columns(x, start, columns)
        for k in range(n_components):
            for i in range(BLOCK):
                square[i] = 0
            for d in range(n_dims):
                mean, scale = means[k, d], scales[k, d]
                for i in range(BLOCK):
                    z = (columns[d, i] - mean) * scale
                    square[i] += z * z
            log_coef = log_coefs[k]
            for i in range(BLOCK):
                terms[k, i] = log_coef - square[i]
        if out.ndim == 1:
            _logsumexp_columns(terms, result)
            _store_block(result, start, out)
        else:
            _responsibilities(terms)
            for d in range(n_dims):
                _normal_slopes(columns[d], terms, means[:, d], scales[:, d], slopes[d])
            _store_rows(slopes, start, out)


@_kernel
def mixture_logpdf_diag(x, log_weights, means, stds, out):
    _diag(x, log_weights, means, stds, out)


@_kernel
def mixture_score_diag(x, log_weights, means, stds, out):
    _diag(x, log_weights, means, stds, out)


# Not inlined: where its sums are, twice in one function, LLVM keeps them in memory.
@_kernel
def _triangle_product(triangle, columns, mean, top, z, terms):
    """Multiply a lower triangle by columns (n_dims, BLOCK) less a mean; terms are the squared norms from the top."""
    n_dims = len(mean)
    square, z_d, z_b = _block(columns.dtype), _block(columns.dtype), _block(columns.dtype)
    factor, centre = triangle[0, 0], mean[0]
    for i in range(BLOCK):
        # The one row that is beside no other has a single factor. No sum starts at 0: LLVM would clear it in memory.
        z_d[i] = factor * (columns[0, i] - centre)
        square[i] = z_d[i] * z_d[i] if n_dims % 2 else columns.dtype.type(0)
        if z is not None:
            z[0, i] = z_d[i]
    for d in range(n_dims % 2, n_dims, 2):
        factor, factor_b, centre = triangle[d, 0], triangle[d + 1, 0], mean[0]
        for i in range(BLOCK):
            z_d[i] = factor * (columns[0, i] - centre)
            z_b[i] = factor_b * (columns[0, i] - centre)
        for e in range(1, d + 1):
            factor, factor_b, centre = triangle[d, e], triangle[d + 1, e], mean[e]
            for i in range(BLOCK):
                z_d[i] += factor * (columns[e, i] - centre)
                z_b[i] += factor_b * (columns[e, i] - centre)
        factor, centre = triangle[d + 1, d + 1], mean[d + 1]
        for i in range(BLOCK):
            z_b[i] += factor * (columns[d + 1, i] - centre)
            square[i] += z_d[i] * z_d[i] + z_b[i] * z_b[i]
        if z is not None:
            for i in range(BLOCK):
                z[d, i] = z_d[i]
            for i in range(BLOCK):
                z[d + 1, i] = z_b[i]
    for i in range(BLOCK):
        terms[i] = top - square[i]


@_kernel
def _full(x, log_weights, means, whiteners, out):
    n_components, n_dims = means.shape
    number = x.dtype.type
    inverses, zeros = np.empty_like(means), np.zeros_like(means[0])
    lower, upper = np.empty_like(whiteners), np.empty_like(whiteners)
    for k in range(n_components):
        for d in range(n_dims):
            inverses[k, d] = 1 / whiteners[k, d, d]
            for e in range(n_dims):
                # So that squares overflow only where their halves do.
                lower[k, d, e] = whiteners[k, d, e] * number(SQRT_HALF)
                # From its last element backwards the transpose is a lower triangle too.
                upper[k, n_dims - 1 - e, n_dims - 1 - d] = lower[k, d, e]
    log_coefs = _log_coefficients(log_weights, inverses)
    terms = _empty_rows(n_components, x.dtype)
    columns = _empty_rows(n_dims, x.dtype)
    slopes = _empty_rows(n_dims, x.dtype)
    pulls = _empty_rows(n_dims, x.dtype)
    # The score needs every component's z once more, the density none.
    stored = 0 if out.ndim == 1 else n_components
    z = _empty_rows(stored * n_dims, x.dtype).reshape(stored, n_dims, BLOCK)
    unused, result = _block(x.dtype), _block(x.dtype)
    for start in range(0, len(x), BLOCK):
        _load_columns(x, start, columns)
        for k in range(n_components):
            z_k = None if out.ndim == 1 else z[k]
            _triangle_product(lower[k], columns, means[k], log_coefs[k], z_k, terms[k])
        if out.ndim == 1:
            _logsumexp_columns(terms, result)
            _store_block(result, start, out)
        else:
            _responsibilities(terms)
            slopes[:] = 0
            for k in range(n_components):
                for d in range(n_dims):
                    for i in range(BLOCK):
                        share = number(-2) * terms[k, i]
                        columns[n_dims - 1 - d, i] = share * z[k, d, i] if share != 0 else number(0)
                _triangle_product(upper[k], columns, zeros, number(0), pulls, unused)
                for d in range(n_dims):
                    for i in range(BLOCK):
                        slopes[d, i] += pulls[n_dims - 1 - d, i]
            _store_rows(slopes, start, out)


@_kernel
def mixture_logpdf_full(x, log_weights, means, whiteners, out):
    _full(x, log_weights, means, whiteners, out)


@_kernel
def mixture_score_full(x, log_weights, means, whiteners, out):
    _full(x, log_weights, means, whiteners, out)


@_kernel
def logsumexp_rows(a, out):
    n_terms = a.shape[1]
    for row in range(len(a)):
        shift = -inf
        for k in range(n_terms):
            shift = a[row, k] if a[row, k] > shift else shift
        shift = shift if isfinite(shift) else 0.0
        total = compensation = 0.0
        ties = -1
        for start in range(0, n_terms, CHUNK):
            remainder, n_ties = _sum_of_exps(a[row, start : start + CHUNK], shift)
            ties += n_ties
            total, compensation = _two_sum(total, compensation, remainder)
        out[row] = shift + log1p(total + compensation + ties)


@_kernel
def _grid_table(log_weights, means, stds, step):
    """Return a mixture's table and top in double; its further rows are means and how ratios decay in `_grid_sums`."""
    table = np.empty((6, len(means)))
    top = _line_table(log_weights.astype(np.float64), stds.astype(np.float64), table)
    for k in range(len(means)):
        table[4, k] = means[k]
    _set_decays(table, step)
    return table, top


@_kernel
def _set_decays(table, step):
    for k in range(table.shape[1]):
        z = LANES * step * table[3, k]
        table[5, k] = _exp2_term(-2 * z * z)


@_kernel
def _grid_sums(lower, step, first, table, bounds, relevant, total):
    """Sum a block's densities on a uniform grid; return their offset in base 2 and how many are lost.

    LANES points on, a Gaussian is multiplied by a ratio, and the ratio by a constant. Both start anew in the middle of
    each block, before rounding adds up, and where the Gaussian changes too much within a block every point has an exp.
    """
    before, after = _block(np.float64), _block(np.float64)
    for i in range(BLOCK):
        before[i] = after[i] = 0
    low, high = lower + first * step, lower + (first + GRID - 1) * step
    n_relevant, peak = _relevant(low, high, table[4], table, 0, bounds, relevant)
    stride = LANES * step
    for j in range(n_relevant):
        k = relevant[j]
        mean, scale, decay = table[4, k], table[3, k], table[5, k]
        log2_coef = table[2, k] - peak
        if bounds[0, k] - bounds[1, k] < GENTLE:
            for lane in range(LANES):
                z = ((lower + (first + BLOCK + lane) * step) - mean) * scale
                term = _exp2_term(log2_coef - z * z)
                ratio = _exp2_term(-(2 * z + stride * scale) * stride * scale)
                back_ratio = decay / ratio
                back_term = term * back_ratio
                for i in range(0, BLOCK, LANES):
                    after[i + lane] += term
                    term *= ratio
                    ratio *= decay
                    before[BLOCK - LANES - i + lane] += back_term
                    back_ratio *= decay
                    back_term *= back_ratio
        else:
            for i in range(BLOCK):
                z = ((lower + (first + i) * step) - mean) * scale
                before[i] += _exp2_term(log2_coef - z * z)
                z = ((lower + (first + BLOCK + i) * step) - mean) * scale
                after[i] += _exp2_term(log2_coef - z * z)
    n_lost = 0
    for i in range(BLOCK):
        n_lost += not before[i] >= 1e-280
        n_lost += not after[i] >= 1e-280
        total[i] = before[i]
    for i in range(BLOCK):
        total[BLOCK + i] = after[i]
    return peak, n_lost


@_kernel
def _shifted_grid(lower, step, first, table, terms, out):
    """Log-density at GRID points of a uniform grid, each point's terms shifted by their own maximum."""
    points = _block(np.float64)
    for start in range(0, GRID, BLOCK):
        for i in range(BLOCK):
            points[i] = lower + (first + start + i) * step
        _shifted_terms(points, table[4], table, terms)
        _logsumexp_columns(terms, out[start : start + BLOCK])


@_kernel
def trapezoid_kl(log_weights_p, means_p, stds_p, log_weights_q, means_q, stds_q, lower, upper, num, start, stop, out):
    step = (upper - lower) / (num - 1)
    table_p, top_p = _grid_table(log_weights_p, means_p, stds_p, step)
    table_q, top_q = _grid_table(log_weights_q, means_q, stds_q, step)
    n_terms = max(len(means_p), len(means_q))
    bounds, relevant = np.empty((2, n_terms)), np.empty(n_terms, np.intp)
    terms = _empty_rows(n_terms, np.float64)
    sum_p, sum_q, integrand = np.empty(GRID), np.empty(GRID), np.empty(GRID)
    total = compensation = 0.0
    for first in range(start, stop, GRID):
        n_points = min(stop - first, GRID)
        peak_p, n_lost_p = _grid_sums(lower, step, first, table_p, bounds, relevant, sum_p)
        peak_q, n_lost_q = _grid_sums(lower, step, first, table_q, bounds, relevant, sum_q)
        if n_lost_p + n_lost_q == 0:
            offset_p, offset_q = top_p + peak_p / LOG2_E, top_q + peak_q / LOG2_E
            density = np.exp(offset_p)
            for i in range(GRID):
                log_ratio = _log_normal(sum_p[i] / sum_q[i]) + (offset_p - offset_q)
                integrand[i] = density * sum_p[i] * log_ratio
        else:
            _shifted_grid(lower, step, first, table_p, terms[: len(means_p)], sum_p)
            _shifted_grid(lower, step, first, table_q, terms[: len(means_q)], sum_q)
            for i in range(GRID):
                density = _exp(sum_p[i])
                log_ratio = sum_p[i] - sum_q[i]
                integrand[i] = density * log_ratio if density != 0 else 0.0
        if first == 0:
            integrand[0] *= 0.5
        if first + n_points == num:
            integrand[n_points - 1] *= 0.5
        total, compensation = _two_sum(total, compensation, _sum(integrand[:n_points]))
    out[0] = total + compensation


@_kernel
def trapezoid_cross_entropy(locs, scales, mass, lower, upper, log_weights, means, stds, out):
    n_components, num = len(means), len(mass)
    step = (upper - lower) / (num - 1)
    table, top = _grid_table(log_weights, means, stds, step)
    # The mixture in the coordinate z of a Gaussian, its densities per unit of x.
    local = table.copy()
    bounds, relevant = np.empty((2, n_components)), np.empty(n_components, np.intp)
    terms = _empty_rows(n_components, np.float64)
    log_q, integrand = np.empty(GRID), np.empty(GRID)
    for j in range(len(locs)):
        is_far = False
        for k in range(n_components):
            local[1, k] = table[1, k] * scales[j]
            local[3, k] = table[3, k] * scales[j]
            local[4, k] = (table[4, k] - locs[j]) / scales[j]
            is_far |= not (isfinite(local[4, k]) and 0 < local[1, k] < inf)
        _set_decays(local, step)
        total = compensation = 0.0
        for first in range(0, num, GRID):
            peak, n_lost = 0.0, 0
            if is_far:
                # Only x has room for it.
                _shifted_grid(locs[j] + lower * scales[j], step * scales[j], first, table, terms, log_q)
            else:
                peak, n_lost = _grid_sums(lower, step, first, local, bounds, relevant, log_q)
                if n_lost:
                    _shifted_grid(lower, step, first, local, terms, log_q)
                else:
                    offset = top + peak / LOG2_E
                    for i in range(GRID):
                        log_q[i] = offset + _log_normal(log_q[i])
            masses = mass[first : first + GRID]
            for i in range(len(masses)):
                integrand[i] = masses[i] * log_q[i] if masses[i] != 0 else 0.0
            total, compensation = _two_sum(total, compensation, _sum(integrand[: len(masses)]))
        out[j] = -(total + compensation)


@_kernel
def _merge_moments(moments, count, mean, residual, m2, low, high):
    """Merge a sample's moments into the running ones (Chan, Golub & LeVeque 1979).

    A mean is carried with what rounding took from it: the running ones in moments[5], the sample's in residual.
    """
    if count == 0:
        return
    total = moments[0] + count
    delta = (mean - moments[1]) + (residual - moments[5])
    moments[2] += m2 + delta * delta * (moments[0] * count / total)
    if isfinite(delta):
        moments[1], moments[5] = _two_sum(moments[1], moments[5], delta * (count / total))
    else:
        moments[1] += mean
        moments[5] = 0.0
    moments[0] = total
    moments[3] = low if low < moments[3] else moments[3]
    moments[4] = high if high > moments[4] else moments[4]


@_kernel
def merge_moments(other, out):
    _merge_moments(out, other[0], other[1], other[5], other[2], other[3], other[4])


@_kernel
def log_ratio_moments(log_p, log_q, out):
    values, squares = np.empty(CHUNK), np.empty(CHUNK)
    lows, highs = _block(np.float64), _block(np.float64)
    for i in range(BLOCK):
        lows[i], highs[i] = inf, -inf
    for start in range(0, len(log_p), CHUNK):
        p, q = log_p[start : start + CHUNK], log_q[start : start + CHUNK]
        n = len(p)
        for i in range(n):
            values[i] = np.float64(p[i]) - q[i]
        for i in range(n, CHUNK):
            values[i] = values[n - 1]
        for first in range(0, CHUNK, BLOCK):
            for i in range(BLOCK):
                value, low, high = values[first + i], lows[i], highs[i]
                lows[i] = value if value < low else low
                highs[i] = value if value > high else high
        mean = _sum(values[:n]) / n
        for i in range(n):
            values[i] -= mean
            squares[i] = values[i] * values[i]
        drift = _sum(values[:n]) / n
        drift = drift if isfinite(drift) else 0.0
        _merge_moments(out, n, mean, drift, _sum(squares[:n]) - n * drift * drift, inf, -inf)
    for i in range(BLOCK):
        out[3] = lows[i] if lows[i] < out[3] else out[3]
        out[4] = highs[i] if highs[i] > out[4] else out[4]


def _bits(values):
    """View floats as integers of their size."""


@overload(_bits, jit_options=OPTIONS)
def _bits_of_type(values):
    def of_doubles(values):
        return values.view(np.int64)

    def of_floats(values):
        return values.view(np.int32)

    return of_floats if values.dtype == types.float32 else of_doubles


@_inline
def _flip(bits, n_places):
    """Turn a float's bits into an integer of its rank, or back: those of negative ones grow with the magnitude."""
    return bits ^ ((1 << (8 * n_places - 1)) - 1 if bits < 0 else 0)


@_inline
def _digit(key, place, n_places):
    """Return a byte of a key; the last has the sign, and its negatives come first."""
    digit = (key >> 8 * place) & (DIGITS - 1)
    return digit ^ (DIGITS // 2) if place == n_places - 1 else digit


@_kernel
def radix_sort(values, scratch, out):
    bits, target, source = _bits(values), _bits(scratch), _bits(out)
    n_places = values.itemsize
    counts = np.zeros((n_places, DIGITS), np.intp)
    for i in range(len(source)):
        source[i] = _flip(bits[i], n_places)
        for place in range(n_places):
            counts[place, _digit(source[i], place, n_places)] += 1
    for place in range(n_places):
        if len(source) == 0 or counts[place, _digit(source[0], place, n_places)] == len(source):
            continue
        start = 0
        for digit in range(DIGITS):
            count = counts[place, digit]
            counts[place, digit] = start
            start += count
        for i in range(len(source)):
            digit = _digit(source[i], place, n_places)
            target[counts[place, digit]] = source[i]
            counts[place, digit] += 1
        source, target = target, source
    in_order = _bits(out)
    for i in range(len(source)):
        in_order[i] = _flip(source[i], n_places)


@_kernel
def neighbor_distances(points, x, k, out, following):
    n_points = len(points)
    number = points.dtype.type
    first = 0
    if len(x):
        first = max(min(np.searchsorted(points, x[0]) - k, n_points - k), 0)
    for i in range(len(x)):
        # The k nearest begin at `first`: never further back than those of the x before.
        while first + k < n_points and points[first + k] - x[i] < x[i] - points[first]:
            first += 1
        out[i] = max(x[i] - points[first], points[first + k - 1] - x[i])
        below = x[i] - points[first - 1] if first > 0 else number(inf)
        above = points[first + k] - x[i] if first + k < n_points else number(inf)
        following[i] = min(below, above)


@_inline_any_order
def _weighted_sums(weights, values):
    total = squares = 0.0
    for i in range(CHUNK):
        product = weights[i] * values[i]
        total += product
        squares += product * values[i]
    return total, squares


@_kernel
def column_moments(X, sample_weight, means, squares, out):
    weights, values = np.empty(CHUNK), np.zeros(CHUNK)
    means[:] = 0
    squares[:] = 0
    out[0] = 0
    for start in range(0, len(X), CHUNK):
        left, mass = X[start : start + CHUNK], sample_weight[start : start + CHUNK]
        weights[:] = 0
        for i in range(len(mass)):
            weights[i] = mass[i]
        out[0] += _sum(weights)
        following = start + CHUNK
        n_lines = CHUNK * X.itemsize // LINE if following + CHUNK <= len(X) else 0
        for j in range(X.shape[1]):
            # As many lines of the next block as a column of it takes.
            for line in range(n_lines):
                _prefetch(X, following * X.shape[1] + j * CHUNK, line)
            shift = np.float64(X[0, j])
            for i in range(len(left)):
                values[i] = left[i, j] - shift
            first, second = _weighted_sums(weights, values)
            means[j] += first
            squares[j] += second
    for j in range(X.shape[1]):
        delta = means[j] / out[0]
        squares[j] -= means[j] * delta
        means[j] = X[0, j] + delta


@_inline
def _standardised_row(point, centre, scale, out):
    """Write a standardised row; its last LANES begin as early as makes them whole."""
    n_features = len(centre)
    if n_features < LANES:
        for j in range(n_features):
            out[j] = (point[j] - centre[j]) * scale[j]
    else:
        for start in range(0, n_features - LANES, LANES):
            _standardise_lanes(point, centre, scale, out, start)
        _standardise_lanes(point, centre, scale, out, n_features - LANES)


@_kernel
def _load_rows(X, centre, scale, y, sample_weight, permutation, first, rows, targets, weights):
    """Take rows of the permutation, those from the first on, while later ones come from memory."""
    n_features = X.shape[1]
    n_lines = (n_features * X.itemsize + LINE - 1) // LINE
    for i in range(len(rows)):
        row = permutation[min(first + i + AHEAD, len(permutation) - 1)]
        for line in range(n_lines):
            _prefetch(X, row * n_features, line)
        _prefetch(X, (row + 1) * n_features - 1, 0)
        _prefetch(y, row, 0)
        _prefetch(sample_weight, row, 0)
        row = permutation[first + i]
        _standardised_row(X[row], centre, scale, rows[i])
        targets[i] = y[row]
        weights[i] = sample_weight[row]


@_kernel
def _logits(rows, coef, logits):
    for i in range(len(rows)):
        row = rows[i]
        logit = _lanes_product(row, coef, 0)
        for start in range(LANES, len(coef), LANES):
            logit += _lanes_product(row, coef, start)
        logits[i] = logit


@_kernel
def logistic_sgd_epoch(
    X,
    centre,
    scale,
    y,
    sample_weight,
    permutation,
    batch_size,
    learning_rate,
    power_t,
    momentum,
    alpha,
    n_steps,
    coef,
    velocity,
    coef_sum,
    out,
):
    n_rows = len(permutation)
    n_features = X.shape[1]
    number = X.dtype.type
    width = (n_features + LANES) // LANES * LANES
    rows = _empty_rows(width, X.dtype).reshape(BLOCK, width)
    state = _empty_rows(2 * width // BLOCK + 1, X.dtype).ravel()
    step, current = state[:width], state[width : 2 * width]
    rows[:] = 0
    rows[:, n_features] = 1
    state[:] = 0
    step[: n_features + 1] = velocity
    current[: n_features + 1] = coef
    logits, targets, weights = _block(X.dtype), _block(X.dtype), _block(X.dtype)
    losses, steps = _block(X.dtype), _block(X.dtype)
    total = compensation = 0.0
    for start in range(0, n_rows, batch_size):
        stop = min(start + batch_size, n_rows)
        rate_now = learning_rate
        if power_t != 0:
            rate_now /= np.float64(n_steps + start // batch_size + 1) ** power_t
        rate = number(rate_now / (stop - start))
        for j in range(n_features):
            step[j] = number(momentum) * step[j] - number(rate_now * alpha) * current[j]
        step[n_features] *= number(momentum)
        loss = 0.0
        for first in range(start, stop, BLOCK):
            batch = rows[: min(stop - first, BLOCK)]
            _load_rows(X, centre, scale, y, sample_weight, permutation, first, batch, targets, weights)
            _logits(batch, current, logits)
            for i in range(len(batch)):
                softplus, slope = _softplus_slope(logits[i])
                losses[i] = weights[i] * (softplus - targets[i] * logits[i])
                steps[i] = rate * weights[i] * (targets[i] - slope)
            for i in range(len(batch)):
                loss += losses[i]
            for lane in range(0, width, LANES):
                _add_rows(steps, batch, step, lane)
        for j in range(width):
            current[j] += step[j]
        for j in range(len(coef_sum)):
            coef_sum[j] += current[j]
        total, compensation = _two_sum(total, compensation, loss)
    velocity[:] = step[: n_features + 1]
    coef[:] = current[: n_features + 1]
    out[0] = total + compensation


@_inline
def _standardised_columns(x, centre, scale, columns):
    """Write standardised points as columns (n_features, CHUNK), zeros behind the last."""
    for j in range(len(centre)):
        mean, factor, column = centre[j], scale[j], columns[j]
        for i in range(len(x)):
            column[i] = (x[i, j] - mean) * factor
        for i in range(len(x), CHUNK):
            column[i] = 0


@_inline
def _logistic_block(columns, first, y, sample_weight, coef, logits, rows):
    """Fill in the log-odds of BLOCK points and the factors of their products; return the sum of their losses.

    The factors are the residuals of class 0 and of class 1, the same by weight, the curvatures and the squares.
    """
    number = coef.dtype.type
    one = number(1)
    logit, loss = _block(coef.dtype), _block(coef.dtype)
    targets, weights = _block(coef.dtype), _block(coef.dtype)
    in_q, in_p, squared, curvatures = _block(coef.dtype), _block(coef.dtype), _block(coef.dtype), _block(coef.dtype)
    n_features = len(coef) - 1
    for i in range(BLOCK):
        logit[i] = coef[n_features]
        targets[i] = 0
        weights[i] = 0
    for i in range(len(y)):
        targets[i] = y[i]
        weights[i] = sample_weight[i]
    for j in range(n_features):
        factor, column = coef[j], columns[j, first : first + BLOCK]
        for i in range(BLOCK):
            logit[i] += factor * column[i]
    for i in range(BLOCK):
        softplus, probability = _softplus_slope(logit[i])
        residual = weights[i] * (probability - targets[i])
        loss[i] = weights[i] * (softplus - targets[i] * logit[i])
        in_q[i] = residual * (one - targets[i])
        in_p[i] = residual * targets[i]
        squared[i] = residual * residual
        curvatures[i] = weights[i] * probability * (one - probability)
    part = rows[:, first : first + BLOCK]
    for i in range(BLOCK):
        part[0, i] = in_q[i]
        part[1, i] = in_p[i]
        part[2, i] = weights[i] * in_q[i]
        part[3, i] = weights[i] * in_p[i]
        part[4, i] = curvatures[i]
        part[5, i] = squared[i]
    logits[first : first + BLOCK] = logit
    return _sum(loss)


@_inline_any_order
def _four_products(row, columns, j):
    """Multiply a row of CHUNK by four columns."""
    first, second, third, fourth = columns[j], columns[j + 1], columns[j + 2], columns[j + 3]
    a = b = c = d = row.dtype.type(0)
    for i in range(CHUNK):
        a += row[i] * first[i]
        b += row[i] * second[i]
        c += row[i] * third[i]
        d += row[i] * fourth[i]
    return a, b, c, d


@_inline
def _add_products(row, columns, n, out):
    """Add the products of a row with the first n columns to out; there are columns up to a multiple of four."""
    for j in range(0, n, 4):
        products = _four_products(row, columns, j)
        for k in range(min(n - j, 4)):
            out[j + k] += products[k]


@_kernel
def _triangle_products(weights, columns, row, out):
    """Add the weighted products of all columns to the lower triangle of a matrix."""
    for k in range(len(out)):
        column = columns[k]
        for i in range(CHUNK):
            row[i] = weights[i] * column[i]
        _add_products(row, columns, k + 1, out[k])


@_kernel
def _logistic_pass(X, centre, scale, y, sample_weight, coef, n_sums, sums, hessian, squares, out):
    """Do what `logistic_newton_pass` does, with the first sums alone."""
    n_columns = X.shape[1] + 1
    n_blocks = CHUNK // BLOCK
    columns = _empty_rows((n_columns + 3) // 4 * 4 * n_blocks, X.dtype).reshape(-1, CHUNK)
    rows = _empty_rows(8 * n_blocks, X.dtype).reshape(-1, CHUNK)
    logits = rows[7]
    columns[n_columns - 1 :] = 1
    total = compensation = 0.0
    for start in range(0, len(X), CHUNK):
        targets, weights = y[start : start + CHUNK], sample_weight[start : start + CHUNK]
        _standardised_columns(X[start : start + CHUNK], centre, scale, columns)
        for first in range(0, CHUNK, BLOCK):
            target, weight = targets[first : first + BLOCK], weights[first : first + BLOCK]
            loss = _logistic_block(columns, first, target, weight, coef, logits, rows)
            total, compensation = _two_sum(total, compensation, loss)
        for k in range(n_sums):
            _add_products(rows[k], columns, n_columns, sums[k])
        _triangle_products(rows[4], columns, rows[6], hessian)
        if len(squares) > 0:
            _triangle_products(rows[5], columns, rows[6], squares)
            for i in range(len(targets)):
                logit, weight, label = logits[i], np.float64(weights[i]), int(targets[i] != 0)
                if weight == 0:
                    continue
                if label:
                    out[1] = min(out[1], logit)
                else:
                    out[2] = max(out[2], logit)
                out[3 + label] += weight
                out[5 + label] += weight * weight
    out[0] += total + compensation


@_kernel
def logistic_newton_pass(X, centre, scale, y, sample_weight, coef, sums, hessian, squares, out):
    _logistic_pass(X, centre, scale, y, sample_weight, coef, len(sums), sums, hessian, squares, out)


@_kernel
def _factorise(matrix, ridge, pivots):
    """Factorise a matrix with a ridge added, given its lower triangle; tell if it is positive definite.

    It is U' diag(1 / pivots) U; above the diagonal is what U has there, on it U has the pivots.
    """
    n = len(matrix)
    for i in range(n):
        pivots[i] = matrix[i, i] + ridge
        for j in range(i):
            matrix[j, i] = matrix[i, j]
    for j in range(n):
        if not pivots[j] > 0:
            return False
        for i in range(j + 1, n):
            factor = matrix[j, i] / pivots[j]
            pivots[i] -= factor * matrix[j, i]
            for k in range(i + 1, n):
                matrix[i, k] -= factor * matrix[j, k]
    return True


@_kernel
def _newton_step(matrix, vector):
    """Make a gradient the step that the Hessian, its lower triangle, makes of it; return their product.

    To the diagonal is added as much as makes the Hessian positive definite.
    """
    n, pivots = len(vector), np.empty(len(vector))
    largest = np.finfo(np.float64).tiny
    for i in range(n):
        largest = max(largest, matrix[i, i])
    ridge, damping, decrement = LEAST_RIDGE * largest, 0.0, 0.0
    while ridge < largest:
        damping += ridge
        if _factorise(matrix, damping, pivots):
            for j in range(n):
                decrement += vector[j] * vector[j] / pivots[j]
                vector[j] /= pivots[j]
                for i in range(j + 1, n):
                    vector[i] -= matrix[j, i] * vector[j]
            for j in range(n - 1, -1, -1):
                for i in range(j + 1, n):
                    vector[j] -= matrix[j, i] / pivots[j] * vector[i]
            return decrement
        ridge *= 1000
    for j in range(n):
        decrement += vector[j] * vector[j] / largest
        vector[j] /= largest
    return decrement


@_kernel
def _newton_update(ridge, mass, tol, slack, coef, step, metric, sums, hessian, out, losses, state):
    """Judge the pass at the end of a step, and make or shorten the next; tell if that needs a pass."""
    n, share, value, penalty = len(coef), state[SHARE], out[0] / mass, 0.0
    is_borrowed = state[STAGE] == GRADIENT
    for j in range(n):
        trial = coef[j] - share * step[j]
        penalty += 0.5 * ridge[j] * trial * trial
    if not value + penalty <= state[VALUE] * (1 + slack) - SUFFICIENT_DECREASE * share * state[DECREMENT]:
        state[SHARE] = share / 2
        if share / 2 > LEAST_SHARE:
            return True
        if state[BORROWED] == 0:
            state[STATUS] = STUCK
            return False
        # The rows that its Hessian came from were too unlike these.
        state[BORROWED], state[SHARE], state[STAGE] = 0, 0, HESSIAN
        return True
    if state[N_LOSSES] == len(losses):
        state[STATUS] = FULL
        return False
    losses[int(state[N_LOSSES])] = value
    state[N_LOSSES] += 1
    for j in range(n):
        coef[j] -= share * step[j]
        step[j] = (sums[0, j] + sums[1, j]) / mass + ridge[j] * coef[j]
    if not is_borrowed:
        for j in range(n):
            for k in range(j + 1):
                metric[j, k] = hessian[j, k] / mass
            metric[j, j] += ridge[j]
    decrement = _newton_step(metric, step)
    state[DECREMENT], state[VALUE], state[SHARE], state[BORROWED] = decrement, value + penalty, 1, is_borrowed
    if not is_borrowed and decrement <= tol:
        state[STATUS] = CONVERGED
        return False
    # The next decrement will be about the square of this one.
    state[STAGE] = SCORES if decrement * decrement <= tol else HESSIAN
    return True


@_kernel
def logistic_newton_steps(
    X,
    centre,
    scale,
    y,
    sample_weight,
    ridge,
    mass,
    tol,
    slack,
    metric,
    coef,
    step,
    sums,
    hessian,
    squares,
    out,
    losses,
    state,
):
    trial = np.empty(len(coef), X.dtype)
    state[STATUS] = RUNNING
    state[N_LOSSES] = 0
    while True:
        if len(X) > 0:
            for j in range(len(coef)):
                trial[j] = coef[j] - state[SHARE] * step[j]
            sums[:] = 0
            hessian[:] = 0
            squares[:] = 0
            out[:] = 0
            out[1], out[2] = inf, -inf
            n_sums = 4 if state[STAGE] == SCORES else 2
            curved = hessian if state[STAGE] != GRADIENT else hessian[:0]
            squared = squares if state[STAGE] == SCORES else squares[:0]
            _logistic_pass(X, centre, scale, y, sample_weight, trial, n_sums, sums, curved, squared, out)
        is_open = _newton_update(ridge, mass, tol, slack, coef, step, metric, sums, hessian, out, losses, state)
        if not is_open or len(X) == 0:
            return


@_inline
def _affine(weights, inputs, out):
    """Multiply weights (n_out, n_in) by inputs (n_in, BLOCK)."""
    total = _block(out.dtype)
    for unit in range(len(out)):
        total[:] = 0
        for i in range(len(inputs)):
            weight, terms = weights[unit, i], inputs[i]
            for row in range(BLOCK):
                total[row] += weight * terms[row]
        out[unit] = total


@_inline
def _activate(activation, values, slopes):
    number = values.dtype.type
    for row in range(BLOCK):
        if activation == 0:
            values[row], slopes[row] = _softplus_slope(values[row])
        elif activation == 1:
            value = np.tanh(values[row])
            values[row] = value
            slopes[row] = number(1) - value * value
        else:
            slopes[row] = number(values[row] > 0)
            values[row] = number(0) if values[row] <= 0 else values[row]


@_kernel
def _forward(layer_sizes, activation, params, values, slopes):
    """Fill in the values of all layers after the first; the last one's are the log-odds."""
    at = first = 0
    for layer in range(len(layer_sizes) - 1):
        n_in, n_out = layer_sizes[layer] + 1, layer_sizes[layer + 1]
        weights = params[at : at + n_out * n_in].reshape(n_out, n_in)
        inputs, out = values[first : first + n_in], values[first + n_in : first + n_in + n_out]
        _affine(weights, inputs, out)
        at += n_out * n_in
        first += n_in
        if layer < len(layer_sizes) - 2:
            for unit in range(n_out):
                _activate(activation, out[unit], slopes[first + unit])


@_inline_any_order
def _dot(a, b):
    total = a.dtype.type(0)
    for i in range(BLOCK):
        total += a[i] * b[i]
    return total


@_kernel
def _backward(layer_sizes, params, values, slopes, gradient):
    """Add to the gradient, given the loss's derivatives in the log-odds in the place of the last layer's slopes."""
    at, first = len(params), len(values) - 2
    total = _block(values.dtype)
    for layer in range(len(layer_sizes) - 2, -1, -1):
        n_in, n_out = layer_sizes[layer] + 1, layer_sizes[layer + 1]
        at -= n_out * n_in
        deltas = slopes[first : first + n_out]
        first -= n_in
        inputs = values[first : first + n_in]
        for unit in range(n_out):
            for i in range(n_in):
                gradient[at + unit * n_in + i] += _dot(deltas[unit], inputs[i])
        if layer == 0:
            return
        for i in range(n_in - 1):
            total[:] = 0
            for unit in range(n_out):
                weight, terms = params[at + unit * n_in + i], deltas[unit]
                for row in range(BLOCK):
                    total[row] += weight * terms[row]
            slope = slopes[first + i]
            for row in range(BLOCK):
                slope[row] *= total[row]


@_kernel
def mlp_log_odds(X, layer_sizes, activation, params, out):
    n_units = np.sum(layer_sizes) + len(layer_sizes)
    values, slopes = _empty_rows(n_units, X.dtype), _empty_rows(n_units, X.dtype)
    values[:] = 1
    for start in range(0, len(X), BLOCK):
        n_rows = min(len(X) - start, BLOCK)
        for i in range(layer_sizes[0]):
            for row in range(n_rows):
                values[i, row] = X[start + row, i]
        _forward(layer_sizes, activation, params, values, slopes)
        for row in range(n_rows):
            out[start + row] = values[n_units - 2, row]


@_inline
def _descend(solver, learning_rate, momentum, decay, epsilon, n_steps, gradient, params, velocity, square):
    """Make one step of RMSprop (Tieleman & Hinton 2012), Adam (Kingma & Ba 2015) or descent with momentum."""
    number = params.dtype.type
    memory, fresh = number(momentum), number(1 - momentum)
    square_memory, square_fresh, tiny = number(decay), number(1 - decay), number(epsilon)
    rate = number(learning_rate)
    if solver == 1:
        rate = number(learning_rate * sqrt(1 - decay**n_steps) / (1 - momentum**n_steps))
    for i in range(len(params)):
        if solver == 2:
            velocity[i] = memory * velocity[i] - rate * gradient[i]
            params[i] += velocity[i]
            continue
        square[i] = square_memory * square[i] + square_fresh * gradient[i] * gradient[i]
        if solver == 0:
            params[i] -= rate * gradient[i] / np.sqrt(square[i] + tiny)
        else:
            velocity[i] = memory * velocity[i] + fresh * gradient[i]
            params[i] -= rate * velocity[i] / (np.sqrt(square[i]) + tiny)


@_kernel
def mlp_epoch(
    X,
    y,
    sample_weight,
    permutation,
    batch_size,
    layer_sizes,
    activation,
    solver,
    learning_rate,
    momentum,
    decay,
    epsilon,
    alpha,
    n_steps,
    params,
    velocity,
    square,
    out,
):
    number = X.dtype.type
    n_units = np.sum(layer_sizes) + len(layer_sizes)
    values, slopes = _empty_rows(n_units, X.dtype), _empty_rows(n_units, X.dtype)
    values[:] = 1
    log_odds, deltas = values[n_units - 2], slopes[n_units - 2]
    gradient = np.empty_like(params)
    targets, weights, losses = _block(X.dtype), _block(X.dtype), _block(X.dtype)
    total = compensation = 0.0
    for start in range(0, len(permutation), batch_size):
        stop = min(start + batch_size, len(permutation))
        share = number(1 / (stop - start))
        gradient[:] = 0
        for first in range(start, stop, BLOCK):
            rows = permutation[first : min(first + BLOCK, stop)]
            targets[:] = 0
            weights[:] = 0
            for row in range(len(rows)):
                for i in range(layer_sizes[0]):
                    values[i, row] = X[rows[row], i]
                targets[row] = y[rows[row]]
                weights[row] = sample_weight[rows[row]]
            _forward(layer_sizes, activation, params, values, slopes)
            for row in range(BLOCK):
                softplus, slope = _softplus_slope(log_odds[row])
                losses[row] = weights[row] * (softplus - targets[row] * log_odds[row])
                deltas[row] = share * weights[row] * (slope - targets[row])
            loss = 0.0
            for row in range(len(rows)):
                loss += losses[row]
            total, compensation = _two_sum(total, compensation, loss)
            _backward(layer_sizes, params, values, slopes, gradient)
        at = 0
        for layer in range(len(layer_sizes) - 1):
            for _ in range(layer_sizes[layer + 1]):
                for i in range(at, at + layer_sizes[layer]):
                    gradient[i] += number(alpha) * params[i]
                at += layer_sizes[layer] + 1
        n_steps += 1
        _descend(solver, learning_rate, momentum, decay, epsilon, n_steps, gradient, params, velocity, square)
    out[0] = total + compensation


# A Bayesian mixture: what it is, and room for where its components are and for a block of rows.
_Posterior = namedtuple(
    "_Posterior", "whitener concentration prior log_weights shares log_coefs means slopes sums columns terms"
)


@_inline
def _room_for_posterior(n_dims, n_components):
    """Return what a posterior and a block of rows take; a function that is given it may borrow from it."""
    return _empty_rows(n_dims + n_components + n_components * (4 + 4 * n_dims) // BLOCK + 1, np.float64)


@_inline
def _posterior(n_dims, whitener, concentration, prior, room):
    """Lay a posterior out in its room; what is in it lasts from call to call."""
    n_components = len(concentration)
    n_means = n_components * n_dims
    first = (n_dims + n_components) * BLOCK
    vectors = _matrix(room, first, 3, n_components)
    first += 3 * n_components
    return _Posterior(
        _borrowed(whitener),
        _borrowed(concentration),
        _borrowed(prior),
        vectors[0],
        vectors[1],
        vectors[2],
        _matrix(room, first, n_components, n_dims),
        _matrix(room, first + n_means, n_components, n_dims),
        _matrix(room, first + 2 * n_means, n_components, 1 + 2 * n_dims),
        _matrix(room, 0, n_dims, BLOCK),
        _matrix(room, n_dims * BLOCK, n_components, BLOCK),
    )


@_inline
def _break_sticks(theta, of):
    """Find the log weights that sticks break off, and the share of the rest that each takes."""
    rest = 0.0
    n_sticks = len(of.log_weights) - 1
    for k in range(n_sticks):
        odds = theta[k] - log(n_sticks - k)
        # Of the larger part, taken or left: minus its logarithm, and the other's share.
        loss, share = _softplus_slope(-abs(odds))
        of.shares[k] = 1 - share if odds > 0 else share
        of.log_weights[k] = rest - (loss if odds > 0 else loss - odds)
        rest -= loss + odds if odds > 0 else loss
    of.log_weights[n_sticks] = rest


@_inline
def _place_component(theta, k, of):
    """Find a component's mean, whitened, its reciprocal stds, and minus the sum of their logarithms."""
    n_components, n_dims = of.means.shape
    mean = theta[n_components - 1 + k * n_dims :]
    log_coef = 0.0
    for d in range(n_dims):
        if of.prior[SCALE_PRIOR] == FIXED:
            total = 0.0
            for j in range(n_dims):
                total += of.whitener[d, j] * mean[j]
            of.means[k, d] = total
            of.slopes[k, d] = 1
        else:
            log_std = mean[n_components * n_dims + d]
            of.means[k, d] = mean[d]
            of.slopes[k, d] = _exp(-log_std)
            log_coef -= log_std
    of.log_coefs[k] = log_coef


@_inline
def _log_prior(theta, of):
    """Find the log-density of the prior in the unconstrained space, with the constant."""
    n_components, n_dims = of.means.shape
    n_means = n_components * n_dims
    mean, log_std = theta[n_components - 1 :], theta[n_components - 1 + n_means :]
    prior, slopes = of.prior, of.slopes.ravel()
    value, squares = prior[CONSTANT], 0.0
    for k in range(n_components):
        value += of.concentration[k] * of.log_weights[k]
    for i in range(n_means):
        squares += mean[i] * mean[i]
    if prior[SCALE_PRIOR] == HALF_NORMAL:
        for i in range(n_means):
            value += log_std[i] - 0.5 * prior[SCALE_A] / (slopes[i] * slopes[i])
    elif prior[SCALE_PRIOR] == INVERSE_GAMMA:
        for i in range(n_means):
            value -= prior[SCALE_A] * log_std[i] + prior[SCALE_B] * slopes[i]
    return value - 0.5 * prior[MEAN_PRECISION] * squares


@_inline
def _gather(x, rows, start, columns):
    """Write a block of rows, or of all where none are named, as columns, the last one again to fill them."""
    if len(rows) == 0:
        left = x[start : start + BLOCK]
        for d in range(len(columns)):
            column = columns[d]
            if len(left) == BLOCK:
                for i in range(BLOCK):
                    column[i] = left[i, d]
            else:
                for i in range(BLOCK):
                    column[i] = left[min(i, len(left) - 1), d]
    else:
        batch = rows[start : start + BLOCK]
        for i in range(BLOCK):
            row = x[batch[min(i, len(batch) - 1)]]
            for d in range(len(columns)):
                columns[d, i] = row[d]


@_inline
def _component_terms(of, k, terms):
    """Find the log-densities of a block under a component, in base 2."""
    total = _block(np.float64)
    for i in range(BLOCK):
        total[i] = 0
    for d in range(len(of.columns)):
        mean, slope, column = of.means[k, d], of.slopes[k, d], of.columns[d]
        for i in range(BLOCK):
            z = (column[i] - mean) * slope
            total[i] += z * z
    for i in range(BLOCK):
        terms[i] = LOG2_E * of.log_coefs[k] - (0.5 * LOG2_E) * total[i]


@_inline
def _densities(terms, largest, total):
    """Make terms densities, relative to each point's largest term."""
    for i in range(BLOCK):
        largest[i] = -inf
        total[i] = 0
    for k in range(len(terms)):
        term = terms[k]
        for i in range(BLOCK):
            t, before = term[i], largest[i]
            largest[i] = t if t > before else before
    for k in range(len(terms)):
        term = terms[k]
        for i in range(BLOCK):
            t = _exp2_term(term[i] - (largest[i] if largest[i] > -inf else 0.0))
            term[i] = t
            total[i] += t


@_inline
def _densities_of_two(first, second, largest, total):
    """Do what `_densities` does for two terms, with one exponential: the larger becomes 1."""
    for i in range(BLOCK):
        a, b = first[i], second[i]
        # -inf less itself would be NaN.
        t = _exp2_term(-abs((LOWEST if b < LOWEST else b) - a))
        largest[i] = b if b > a else a
        total[i] = 1 + t
        first[i] = t if b > a else 1.0
        second[i] = 1.0 if b > a else t


@_inline
def _shifted_densities(of, n_points, shift, total):
    """Make the terms densities, relative to each point's largest, whose logarithm in base 2 is the shift.

    Beyond the points the shift is 0 and their sum 1.
    """
    terms, largest, sums = of.terms, _block(np.float64), _block(np.float64)
    for k in range(len(terms)):
        _component_terms(of, k, terms[k])
    if len(terms) == 2:
        _densities_of_two(terms[0], terms[1], largest, sums)
    else:
        _densities(terms, largest, sums)
    for i in range(BLOCK):
        shift[i] = largest[i] if i < n_points else 0.0
        total[i] = sums[i] if i < n_points else 1.0


@_inline_any_order
def _sum_of_logs(factors, exponents):
    """Sum the logarithms of factors times powers of 2, four at a time: no product of four leaves the normal range."""
    value = 0.0
    for i in range(BLOCK // 4):
        product, exponent = factors[i], exponents[i]
        for j in range(BLOCK // 4, BLOCK, BLOCK // 4):
            product *= factors[j + i]
            exponent += exponents[j + i]
        # Nor is the logarithm of NaN a number.
        value += _log_normal(product) + exponent / LOG2_E + 0 * product
    return value


@_inline_any_order
def _shares_of_block(densities, inverse, shares):
    total = 0.0
    for i in range(BLOCK):
        share = densities[i] * inverse[i]
        shares[i] = share
        total += share
    return total


@_inline_any_order
def _first_moment(shares, column, mean, slope):
    first = 0.0
    for i in range(BLOCK):
        first += shares[i] * ((column[i] - mean) * slope)
    return first


@_inline_any_order
def _two_moments(shares, column, mean, slope):
    first = second = 0.0
    for i in range(BLOCK):
        z = (column[i] - mean) * slope
        part = shares[i] * z
        first += part
        second += part * z
    return first, second


@_inline
def _add_block(of, n_points):
    """Return a block's log-likelihood, up to a constant; add responsibilities, and these by z and by its square, up."""
    n_components, n_dims = of.means.shape
    shift, total, inverse, shares = _block(np.float64), _block(np.float64), _block(np.float64), _block(np.float64)
    _shifted_densities(of, n_points, shift, total)
    for i in range(BLOCK):
        inverse[i] = (i < n_points) / total[i]
    is_fixed = of.prior[SCALE_PRIOR] == FIXED
    for k in range(n_components):
        sums = of.sums[k]
        sums[0] += _shares_of_block(of.terms[k], inverse, shares)
        for d in range(n_dims):
            mean, slope, column = of.means[k, d], of.slopes[k, d], of.columns[d]
            if is_fixed:
                sums[1 + d] += _first_moment(shares, column, mean, slope)
            else:
                first, second = _two_moments(shares, column, mean, slope)
                sums[1 + d] += first
                sums[1 + n_dims + d] += second
    return _sum_of_logs(total, shift)


@_inline
def _gradient_of_sums(of, factor, theta, gradient):
    """Find the gradient from the sums over the rows, each of which counts `factor` times."""
    n_components, n_dims = of.means.shape
    prior, sums = of.prior, of.sums
    beyond = 0.0
    for k in range(n_components - 1, -1, -1):
        count = factor * sums[k, 0] + of.concentration[k]
        if k < n_components - 1:
            gradient[k] = count * (1 - of.shares[k]) - of.shares[k] * beyond
        beyond += count
    mean, slopes = theta[n_components - 1 :], gradient[n_components - 1 :]
    for k in range(n_components):
        for d in range(n_dims):
            i, slope, total = k * n_dims + d, of.slopes[k, d], 0.0
            if prior[SCALE_PRIOR] == FIXED:
                for j in range(n_dims):
                    total += sums[k, 1 + j] * of.whitener[j, d]
            else:
                total = sums[k, 1 + d] * slope
                pull = factor * (sums[k, 1 + n_dims + d] - sums[k, 0])
                if prior[SCALE_PRIOR] == HALF_NORMAL:
                    pull += 1 - prior[SCALE_A] / (slope * slope)
                else:
                    pull += prior[SCALE_B] * slope - prior[SCALE_A]
                slopes[n_components * n_dims + i] = pull
            slopes[i] = factor * total - prior[MEAN_PRECISION] * mean[i]


@_internal
def _logp_grad(data, rows, theta, gradient):
    """Return the log-density, given the rows, what is known of the mixture and its room; write its gradient."""
    x, rows, theta, gradient = _borrowed(data[0]), _borrowed(rows), _borrowed(theta), _borrowed(gradient)
    of = _posterior(x.shape[1], data[1], data[2], data[3], data[4])
    n_rows = len(rows) if len(rows) else len(x)
    factor = len(x) / n_rows
    _break_sticks(theta, of)
    for k in range(len(of.terms)):
        _place_component(theta, k, of)
        of.log_coefs[k] += of.log_weights[k]
    of.sums[:] = 0
    value = 0.0
    for start in range(0, n_rows, BLOCK):
        _gather(x, rows, start, of.columns)
        value += _add_block(of, n_rows - start)
    _gradient_of_sums(of, factor, theta, gradient)
    return factor * value + _log_prior(theta, of)


@_kernel
def mixture_model_logp_grad(x, rows, whitener, concentration, prior, theta, out):
    room = _room_for_posterior(x.shape[1], len(concentration))
    out[0] = _logp_grad((x, whitener, concentration, prior, room), rows, theta, out[1:])


@_internal
def _ascend(solver, learning_rate, momentum, decay, epsilon, n_steps, gradient, phi, state):
    """Make one step up by SGD (0), Adagrad (1), Adagrad over a window (2), RMSprop (3) or Adam (4)."""
    first, window = state[0], state[(n_steps - 1) % len(state)]
    if solver == 0:
        for i in range(len(phi)):
            first[i] = momentum * first[i] + learning_rate * gradient[i]
            phi[i] += first[i]
    elif solver == 4:
        second = state[1]
        rate = learning_rate * sqrt(1 - decay**n_steps) / (1 - momentum**n_steps)
        for i in range(len(phi)):
            g = gradient[i]
            first[i] = decay * first[i] + (1 - decay) * (g * g)
            second[i] = momentum * second[i] + (1 - momentum) * g
            phi[i] += rate * second[i] / (sqrt(first[i]) + epsilon)
    else:
        for i in range(len(phi)):
            g = gradient[i]
            if solver == 1:
                first[i] += g * g
            elif solver == 2:
                window[i] = g * g
            else:
                first[i] = decay * first[i] + (1 - decay) * (g * g)
        for i in range(len(phi)):
            total = first[i]
            for j in range(1, len(state)):
                total += state[j, i]
            phi[i] += learning_rate * gradient[i] / sqrt(total + epsilon)


def _density(data, rows, theta, gradient):
    """Return a log-density and write its gradient: that of a mixture's data, or of a function that returns both."""


@overload(_density, jit_options=OPTIONS)
def _density_of_type(data, rows, theta, gradient):
    def of_mixture(data, rows, theta, gradient):
        return _logp_grad(data, rows, theta, gradient)

    def of_function(data, rows, theta, gradient):
        value, gradient[:] = data(theta, rows)
        return value

    return of_mixture if isinstance(data, types.BaseTuple) else of_function


@_internal
def _advi_steps(data, rows, noise, solver, learning_rate, momentum, decay, epsilon, n_steps, phi, state, losses):
    """Do what `advi_steps` does, for data of a mixture too."""
    n_draws, n_params = noise.shape[1:]
    is_full = len(phi) > 2 * n_params
    noise, rows = _borrowed(noise), _borrowed(rows)
    gradient, scale = np.empty_like(phi), np.empty(n_params)
    theta, slope = np.empty(n_params), np.empty(n_params)
    for step in range(len(noise)):
        value, entropy = 0.0, n_params * (0.5 + HALF_LOG_2PI)
        for i in range(n_params):
            scale[i] = _exp(phi[n_params + i])
            entropy += phi[n_params + i]
        gradient[:] = 0
        for draw in range(n_draws):
            z = noise[step, draw]
            below = 2 * n_params
            for i in range(n_params):
                theta[i] = phi[i] + scale[i] * z[i]
                if is_full:
                    for j in range(i):
                        theta[i] += phi[below + j] * z[j]
                    below += i
            value += _density(data, rows[step], theta, slope)
            below = 2 * n_params
            for i in range(n_params):
                gradient[i] += slope[i] / n_draws
                gradient[n_params + i] += slope[i] * z[i] * scale[i] / n_draws
                if is_full:
                    for j in range(i):
                        gradient[below + j] += slope[i] * z[j] / n_draws
                    below += i
        for i in range(n_params):
            gradient[n_params + i] += 1
        losses[step] = -value / n_draws - entropy
        _ascend(solver, learning_rate, momentum, decay, epsilon, n_steps + step + 1, gradient, phi, state)


@_kernel
def advi_mixture_steps(
    x,
    rows,
    noise,
    whitener,
    concentration,
    prior,
    solver,
    learning_rate,
    momentum,
    decay,
    epsilon,
    n_steps,
    phi,
    state,
    losses,
):
    data = x, whitener, concentration, prior, _room_for_posterior(x.shape[1], len(concentration))
    _advi_steps(data, rows, noise, solver, learning_rate, momentum, decay, epsilon, n_steps, phi, state, losses)


# Not kept: it is compiled for a function of the user's.
@njit(nogil=True, **OPTIONS)
def advi_steps(logp_grad, rows, noise, solver, learning_rate, momentum, decay, epsilon, n_steps, phi, state, losses):
    """Do what `advi_mixture_steps` does, for any compiled function of parameters and rows, as in the NumPy set."""
    _advi_steps(logp_grad, rows, noise, solver, learning_rate, momentum, decay, epsilon, n_steps, phi, state, losses)


@_inline
def _keep_densities(of, x, order, terms):
    """Write down the components' densities at all rows, each row's relative to its largest, whose logs are summed."""
    n_components = len(order) - 1
    shift, total = _block(np.float64), _block(np.float64)
    sum_of_shifts = 0.0
    for start in range(0, len(x), BLOCK):
        _gather(x, order[:0], start, of.columns)
        _shifted_densities(of, len(x) - start, shift, total)
        for k in range(n_components):
            _store_block(of.terms[k], start, terms[order[k]])
        _store_block(shift, start, terms[n_components + 1])
        sum_of_shifts += _sum(shift)
    return sum_of_shifts / LOG2_E


@_inline
def _changed_likelihood(of, x, changed, weights, order, terms):
    """Find the log-likelihood relative to the shifts, with the densities of one component, or none (-1), taken anew.

    These are written after the others'. Logarithms are taken of products. NaN if a sum of densities is beyond what
    keeps all digits.
    """
    n_components = len(weights)
    fresh, total, product = _block(np.float64), _block(np.float64), _block(np.float64)
    exponents, exponent = _block(np.int64), _block(np.float64)
    n_lost = 0
    for i in range(BLOCK):
        product[i] = 1
        exponents[i] = 0
    for start in range(0, len(x), BLOCK):
        n_points = min(BLOCK, len(x) - start)
        for i in range(BLOCK):
            total[i] = 0
        if changed >= 0:
            _gather(x, order[:0], start, of.columns)
            _component_terms(of, changed, fresh)
            weight, shifts = weights[changed], terms[n_components + 1, start : start + BLOCK]
            for i in range(n_points):
                t = fresh[i] - shifts[i]
                # Infinity where a double cannot hold the density, and for NaN.
                t = _exp2_term(t if t < 1024 else 1024.0)
                fresh[i] = t
                total[i] = weight * t
            _store_block(fresh, start, terms[order[n_components]])
        for k in range(n_components):
            if k != changed:
                weight, densities = weights[k], terms[order[k], start : start + BLOCK]
                for i in range(n_points):
                    total[i] += weight * densities[i]
        for i in range(BLOCK):
            t = total[i] if i < n_points else 1.0
            n_lost += not (t > 1e-280 and t < 1e280)
            bits = np.float64(product[i] * t).view(np.int64)
            exponents[i] += (bits >> 52) - 1023
            product[i] = np.int64((bits & 0x000FFFFFFFFFFFFF) | ONE).view(np.float64)
    for i in range(BLOCK):
        exponent[i] = exponents[i]
    return np.nan if n_lost else _sum_of_logs(product, exponent)


@_inline
def _place(theta, changed, of, weights):
    """Take a component's place, or the weights (-1), from theta."""
    if changed >= 0:
        _place_component(theta, changed, of)
    else:
        _break_sticks(theta, of)
        for k in range(len(weights)):
            weights[k] = _exp(of.log_weights[k])


@_internal
def _metropolis_steps(data, noise, thresholds, scales, theta, terms, draws, logps, accepted):
    x, terms, moved, unused = _borrowed(data[0]), _borrowed(terms), theta.copy(), np.empty_like(theta)
    of = _posterior(x.shape[1], data[1], data[2], data[3], data[4])
    n_components, n_dims = of.means.shape
    order, weights = np.arange(n_components + 1), np.empty(n_components)
    current = _logp_grad(data, order[:0], theta, unused)
    for changed in range(-1, n_components):
        _place(theta, changed, of, weights)
    shift = _keep_densities(of, x, order, terms)
    for step in range(len(noise)):
        first = 0
        for block in range(len(accepted)):
            size = n_dims if block else n_components - 1
            if size == 0:
                continue
            changed = (block - 1) % n_components if block else -1
            for i in range(first, first + size):
                moved[i] = theta[i] + scales[block] * noise[step, i]
            _place(moved, changed, of, weights)
            value = shift + _changed_likelihood(of, x, changed, weights, order, terms) + _log_prior(moved, of)
            is_kept = value == value
            if not is_kept:
                value = _logp_grad(data, order[:0], moved, unused)
                for k in range(n_components):
                    _place_component(moved, k, of)
            if value - current > -thresholds[step, block]:
                current = value
                accepted[block] += 1
                for i in range(first, first + size):
                    theta[i] = moved[i]
                if not is_kept:
                    shift = _keep_densities(of, x, order, terms)
                elif changed >= 0:
                    order[changed], order[n_components] = order[n_components], order[changed]
            else:
                for i in range(first, first + size):
                    moved[i] = theta[i]
                _place(moved, changed, of, weights)
            first += size
        for i in range(len(theta)):
            draws[step, i] = theta[i]
        logps[step] = current


@_kernel
def metropolis_mixture_steps(
    x, noise, thresholds, scales, whitener, concentration, prior, theta, terms, draws, logps, accepted
):
    data = x, whitener, concentration, prior, _room_for_posterior(x.shape[1], len(concentration))
    _metropolis_steps(data, noise, thresholds, scales, theta, terms, draws, logps, accepted)
