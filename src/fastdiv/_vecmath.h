/* Branch-free elementary functions, inlined so that the compiler can put them in vector lanes.
 *
 * They are right over the whole line: subnormal arguments and results, both zeros, both infinities and NaN as IEEE
 * 754 and C's Annex F have them; within 1 ulp (exp, log) or 2 (the others). The exceptions, for the inside of sums,
 * say so: fastdiv_exp2_term and fastdiv_log_normal.
 *
 * exp(x) = 2^n exp(r) with n = round(x / ln 2) and |r| <= ln(2)/2. Adding MAGIC rounds to an integer and leaves it
 * in the low bits of the sum. ln 2 is split in two so that n times the first is exact (Cody & Waite 1980), and what
 * rounding takes from r is given back. exp(r) - 1 is r + r^2 P(r), P through its values at Chebyshev nodes: off by
 * 2^-55 of exp(r) in double, 2^-30 in float. 2^n is two factors, because n may be beyond the exponents of one.
 *
 * log(x) = k ln 2 + log(1 + f) with sqrt(1/2) <= 1 + f < sqrt(2), and log(1 + f) = f - f^2/2 + s (f^2/2 + z R(z))
 * with s = f / (2 + f) and z = s^2, as in fdlibm's e_log.c; R through its values at Chebyshev nodes is off by 2^-57 in
 * double, 2^-31 in float. log1p(x) adds what rounding took from 1 + x to log(1 + x) (Kahan 1965).
 */
#ifndef FASTDIV_VECMATH_H
#define FASTDIV_VECMATH_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline double fastdiv_from_bits(uint64_t bits)
{
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline uint64_t fastdiv_to_bits(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float fastdiv_from_bitsf(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline uint32_t fastdiv_to_bitsf(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* Return exp(r) - 1, and 2^n as the factors high and low, for x = n ln 2 + r between -746 and 710. */
static inline double fastdiv_reduced_expm1(double x, double *high, double *low)
{
    const double MAGIC = 6755399441055744.0 + 2046.0; /* 1.5 * 2^52 and twice the exponent's bias */
    double shifted = x * 1.44269504088896340736 + MAGIC;
    double n = shifted - MAGIC;
    double difference = x - n * 6.93147180369123816490e-01;
    double r = difference - n * 1.90821492927058770002e-10;
    double lost = (difference - r) - n * 1.90821492927058770002e-10;
    double r2 = r * r;
    double r4 = r2 * r2;
    double tail = (0.5000000000000001 + r * 0.16666666666666669)
                + r2 * (0.04166666666662413 + r * 0.008333333333330062)
                + r4 * ((0.0013888888917213717 + r * 0.00019841269863053618)
                        + r2 * (2.4801521295954376e-05 + r * 2.7557268459997064e-06)
                        + r4 * (2.7620088445409746e-07 + r * 2.510038549551032e-08));
    uint64_t exponent = fastdiv_to_bits(shifted) & 0xfff;
    *high = fastdiv_from_bits((exponent >> 1) << 52);
    *low = fastdiv_from_bits((exponent - (exponent >> 1)) << 52);
    return r + (r2 * tail + lost);
}

static inline float fastdiv_reduced_expm1f(float x, float *high, float *low)
{
    const float MAGIC = 12582912.0f + 254.0f; /* 1.5 * 2^23 and twice the exponent's bias */
    float shifted = x * 1.44269504088896340736f + MAGIC;
    float n = shifted - MAGIC;
    float difference = x - n * 0.693359375f;
    float r = difference - n * -2.12194440e-4f;
    float lost = (difference - r) - n * -2.12194440e-4f;
    float r2 = r * r;
    float tail = (0.5f + r * 0.16666667f) + r2 * (0.041666467f + r * 0.0083333105f);
    uint32_t exponent = fastdiv_to_bitsf(shifted) & 0x1ff;
    tail += r2 * r2 * (0.0013933642f + r * 0.00019890981f);
    *high = fastdiv_from_bitsf((exponent >> 1) << 23);
    *low = fastdiv_from_bitsf((exponent - (exponent >> 1)) << 23);
    return r + (r2 * tail + lost);
}

static inline double fastdiv_exp(double x)
{
    double high, low, y;
    x = x < -746.0 ? -746.0 : x;
    x = x > 710.0 ? 710.0 : x;
    y = fastdiv_reduced_expm1(x, &high, &low);
    return (1.0 + y) * high * low;
}

static inline float fastdiv_expf(float x)
{
    float high, low, y;
    x = x < -104.0f ? -104.0f : x;
    x = x > 89.0f ? 89.0f : x;
    y = fastdiv_reduced_expm1f(x, &high, &low);
    return (1.0f + y) * high * low;
}

static inline double fastdiv_expm1(double x)
{
    double high, low, y, clamped;
    clamped = x < -40.0 ? -40.0 : x;
    clamped = clamped > 710.0 ? 710.0 : clamped;
    y = fastdiv_reduced_expm1(clamped, &high, &low);
    y = (high * y + (high - 1.0 / low)) * low;
    return fabs(x) < 0x1p-54 ? x : y;
}

static inline float fastdiv_expm1f(float x)
{
    float high, low, y, clamped;
    clamped = x < -20.0f ? -20.0f : x;
    clamped = clamped > 89.0f ? 89.0f : clamped;
    y = fastdiv_reduced_expm1f(clamped, &high, &low);
    y = (high * y + (high - 1.0f / low)) * low;
    return fabsf(x) < 0x1p-25f ? x : y;
}

/* 2^x for x <= 1023.4, and 0 instead of a subnormal number: a term of a sum whose largest is near 1. */
static inline double fastdiv_exp2_term(double x)
{
    const double MAGIC = 6755399441055744.0 + 1023.0;
    double shifted, r, r2, even, odd;
    x = x < -1023.0 ? -1023.0 : x;
    shifted = x + MAGIC;
    r = x - (shifted - MAGIC);
    r2 = r * r;
    even = 0.009618129107606888 + r2 * (0.0001540353044173605 + r2 * (1.321544258792169e-06 + r2 * 7.072585949269223e-09));
    odd = 0.0013333558146416936 + r2 * (1.525273382983612e-05 + r2 * (1.0178062445845774e-07 + r2 * 4.4549605981865186e-10));
    even = 1.0 + r2 * (0.24022650695910097 + r2 * even);
    odd = 0.6931471805599453 + r2 * (0.0555041086648216 + r2 * odd);
    return (even + r * odd) * fastdiv_from_bits(fastdiv_to_bits(shifted) << 52);
}

static inline float fastdiv_exp2_termf(float x)
{
    const float MAGIC = 12582912.0f + 127.0f;
    float shifted, r, r2, even, odd;
    x = x < -127.0f ? -127.0f : x;
    shifted = x + MAGIC;
    r = x - (shifted - MAGIC);
    r2 = r * r;
    even = 1.0f + r2 * (0.24022651f + r2 * 0.009618083f);
    odd = 0.6931472f + r2 * (0.05550357f + r2 * (0.0013390863f + r * 0.00015453163f));
    return (even + r * odd) * fastdiv_from_bitsf(fastdiv_to_bitsf(shifted) << 23);
}

/* A normal positive number is its mantissa, between 1 and 2, times 2 to the power of its exponent. */
static inline double fastdiv_mantissa(double x)
{
    return fastdiv_from_bits((fastdiv_to_bits(x) & UINT64_C(0x000fffffffffffff)) | UINT64_C(0x3ff0000000000000));
}

static inline double fastdiv_exponent(double x)
{
    /* It becomes a double as the low bits of 2^52. */
    return fastdiv_from_bits((fastdiv_to_bits(x) >> 52) | UINT64_C(0x4330000000000000)) - (4503599627370496.0 + 1023.0);
}

/* log(x) for normal positive numbers. */
static inline double fastdiv_log_normal(double x)
{
    const uint64_t ROOT_HALF = UINT64_C(0x3fe6a09e667f3bcd);
    const uint64_t ONE = UINT64_C(0x3ff0000000000000);
    uint64_t bits = fastdiv_to_bits(x) + (ONE - ROOT_HALF);
    double k = fastdiv_exponent(fastdiv_from_bits(bits));
    double f = fastdiv_from_bits((bits & UINT64_C(0x000fffffffffffff)) + ROOT_HALF) - 1.0;
    double s = f / (2.0 + f);
    double z = s * s;
    double z2 = z * z;
    double half_square = 0.5 * f * f;
    double remainder = (0.666666666666667 + z * 0.39999999999899444)
                     + z2 * (0.2857142862600327 + z * 0.22222211130259878)
                     + z2 * z2 * ((0.18182889455674947 + z * 0.15331710618210773) + z2 * 0.14616585424888623);
    return k * 6.93147180369123816490e-01
         + (f - (half_square - (s * (half_square + z * remainder) + k * 1.90821492927058770002e-10)));
}

static inline float fastdiv_log_normalf(float x)
{
    const uint32_t ROOT_HALF = UINT32_C(0x3f3504f3);
    const uint32_t ONE = UINT32_C(0x3f800000);
    uint32_t bits = fastdiv_to_bitsf(x) + (ONE - ROOT_HALF);
    float k = fastdiv_from_bitsf((bits >> 23) | UINT32_C(0x4b000000)) - (8388608.0f + 127.0f);
    float f = fastdiv_from_bitsf((bits & UINT32_C(0x007fffff)) + ROOT_HALF) - 1.0f;
    float s = f / (2.0f + f);
    float z = s * s;
    float half_square = 0.5f * f * f;
    float remainder = (0.6666667f + z * 0.40000123f) + z * z * (0.28550822f + z * 0.23330468f);
    return k * 0.693359375f + (f - (half_square - (s * (half_square + z * remainder) + k * -2.12194440e-4f)));
}

static inline double fastdiv_log(double x)
{
    int is_subnormal = x < 0x1p-1022;
    double y = fastdiv_log_normal(is_subnormal ? x * 0x1p54 : x);
    y -= is_subnormal ? 54 * 6.93147180559945309417e-01 : 0.0;
    y = x < INFINITY ? y : x;
    y = x == 0.0 ? -INFINITY : y;
    return x < 0.0 ? NAN : y;
}

static inline float fastdiv_logf(float x)
{
    int is_subnormal = x < 0x1p-126f;
    float y = fastdiv_log_normalf(is_subnormal ? x * 0x1p25f : x);
    y -= is_subnormal ? 25 * 6.93147180559945309417e-01f : 0.0f;
    y = x < INFINITY ? y : x;
    y = x == 0.0f ? -INFINITY : y;
    return x < 0.0f ? NAN : y;
}

static inline double fastdiv_log1p(double x)
{
    double w = 1.0 + x;
    double y = fastdiv_log_normal(w) + (x - (w - 1.0)) / w;
    y = x < INFINITY ? y : x;
    y = fabs(x) < 0x1p-54 ? x : y;
    y = x == -1.0 ? -INFINITY : y;
    return x < -1.0 ? NAN : y;
}

static inline float fastdiv_log1pf(float x)
{
    float w = 1.0f + x;
    float y = fastdiv_log_normalf(w) + (x - (w - 1.0f)) / w;
    y = x < INFINITY ? y : x;
    y = fabsf(x) < 0x1p-25f ? x : y;
    y = x == -1.0f ? -INFINITY : y;
    return x < -1.0f ? NAN : y;
}

/* 1 / (1 + exp(-x)), less what rounding the denominator w took from it. */
static inline double fastdiv_sigmoid(double x)
{
    double odds = fastdiv_exp(-fabs(x));
    double w = 1.0 + odds;
    double y = (x < 0.0 ? odds : 1.0) / w;
    return y - y * (odds - (w - 1.0)) * (x < 0.0 ? 1.0 - y : y);
}

static inline float fastdiv_sigmoidf(float x)
{
    float odds = fastdiv_expf(-fabsf(x));
    float w = 1.0f + odds;
    float y = (x < 0.0f ? odds : 1.0f) / w;
    return y - y * (odds - (w - 1.0f)) * (x < 0.0f ? 1.0f - y : y);
}

/* log(1 + exp(x)) */
static inline double fastdiv_softplus(double x)
{
    return (x > 0.0 ? x : 0.0) + fastdiv_log1p(fastdiv_exp(-fabs(x)));
}

static inline float fastdiv_softplusf(float x)
{
    return (x > 0.0f ? x : 0.0f) + fastdiv_log1pf(fastdiv_expf(-fabsf(x)));
}

/* log(1 + exp(x)) and its derivative for one exp and one division, within 4 ulp, and |x| more where x < 0. With
   odds = exp(-|x|) and s = odds / (2 + odds), log(1 + odds) is 2 atanh(s). */
static inline double fastdiv_softplus_slope(double x, double *slope)
{
    double odds = fastdiv_exp2_term(-fabs(x) * 1.44269504088896340736);
    double inverse = 1.0 / ((1.0 + odds) * (2.0 + odds));
    double s = odds * (1.0 + odds) * inverse;
    double z = s * s;
    double z2 = z * z;
    double z4 = z2 * z2;
    double remainder = ((0.666666666666666586 + z * 0.400000000000145827)
                     + z2 * (0.285714285671087572 + z * 0.22222222717427863))
                     + z4 * (((0.181817894361328582 + z * 0.153855700649586231)
                     + z2 * (0.133141442096549362 + z * 0.120010728095907125))
                     + z4 * (0.0880073848614467388 + z * 0.161640456119435322));
    *slope = (x < 0.0 ? odds : 1.0) * ((2.0 + odds) * inverse);
    return (x > 0.0 ? x : 0.0) + (2.0 * s + s * (z * remainder));
}

static inline float fastdiv_softplus_slopef(float x, float *slope)
{
    float odds = fastdiv_exp2_termf(-fabsf(x) * 1.44269504f);
    float inverse = 1.0f / ((1.0f + odds) * (2.0f + odds));
    float s = odds * (1.0f + odds) * inverse;
    float z = s * s;
    float remainder = (0.666666673f + z * 0.399997063f)
                    + z * z * ((0.28592358f + z * 0.217065758f) + z * z * 0.232243292f);
    *slope = (x < 0.0f ? odds : 1.0f) * ((2.0f + odds) * inverse);
    return (x > 0.0f ? x : 0.0f) + (2.0f * s + s * (z * remainder));
}

/* Apart, because GCC finds no vectors in these, or keeps sums in memory, where they are inlined. */
#if defined(__GNUC__)
#define FASTDIV_APART static __attribute__((noinline, unused))
#else
#define FASTDIV_APART static
#endif

/* Multiply a lower triangle by columns less a mean, in strips of 32 points whose sums stay in vector registers.
 *
 * The product is written to out, if not NULL, or added to it; its squared norms from top are the terms. The mean is
 * subtracted anew for every three rows, since that costs less than to store the differences. With steps backwards from
 * the last elements, an upper triangle and its columns are lower ones.
 */
#define FASTDIV_STRIP 32
#define FASTDIV_TRIANGLE_PRODUCT(name, real)                                                                         \
    FASTDIV_APART void name(const real *triangle, ptrdiff_t row_step, ptrdiff_t step, ptrdiff_t n_rows,              \
                            const real *columns, ptrdiff_t column_step, const real *mean, ptrdiff_t n_points,        \
                            int is_sum, real *out, real top, real *terms)                                            \
    {                                                                                                                \
        for (ptrdiff_t start = 0; start < n_points; start += FASTDIV_STRIP) {                                        \
            const real *x = columns + start, *x1 = x + column_step;                                                  \
            real *z = out ? out + start : NULL;                                                                      \
            real sum[FASTDIV_STRIP] = {0};                                                                           \
            ptrdiff_t row = n_rows % 3;                                                                              \
            if (row > 0) {                                                                                           \
                for (int i = 0; i < FASTDIV_STRIP; i++) {                                                            \
                    real z0 = triangle[0] * (x[i] - mean[0]);                                                        \
                    sum[i] = z0 * z0;                                                                                \
                    if (out)                                                                                         \
                        z[i] = z0 + (is_sum ? z[i] : 0);                                                             \
                }                                                                                                    \
            }                                                                                                        \
            if (row > 1) {                                                                                           \
                const real *t = triangle + row_step;                                                                 \
                for (int i = 0; i < FASTDIV_STRIP; i++) {                                                            \
                    real z1 = t[0] * (x[i] - mean[0]) + t[step] * (x1[i] - mean[1]);                                 \
                    sum[i] += z1 * z1;                                                                               \
                    if (out)                                                                                         \
                        z[column_step + i] = z1 + (is_sum ? z[column_step + i] : 0);                                 \
                }                                                                                                    \
            }                                                                                                        \
            for (; row < n_rows; row += 3) {                                                                         \
                const real *t0 = triangle + row * row_step, *t1 = t0 + row_step, *t2 = t1 + row_step;                \
                const real *next = x + (row + 1) * column_step, *last = next + column_step;                          \
                real z0[FASTDIV_STRIP] = {0}, z1[FASTDIV_STRIP] = {0}, z2[FASTDIV_STRIP] = {0};                      \
                for (ptrdiff_t k = 0; k <= row; k++) {                                                               \
                    for (int i = 0; i < FASTDIV_STRIP; i++) {                                                        \
                        real difference = x[k * column_step + i] - mean[k];                                          \
                        z0[i] += t0[k * step] * difference;                                                          \
                        z1[i] += t1[k * step] * difference;                                                          \
                        z2[i] += t2[k * step] * difference;                                                          \
                    }                                                                                                \
                }                                                                                                    \
                for (int i = 0; i < FASTDIV_STRIP; i++) {                                                            \
                    real difference = next[i] - mean[row + 1];                                                       \
                    z1[i] += t1[(row + 1) * step] * difference;                                                      \
                    z2[i] += t2[(row + 1) * step] * difference;                                                      \
                }                                                                                                    \
                for (int i = 0; i < FASTDIV_STRIP; i++)                                                              \
                    z2[i] += t2[(row + 2) * step] * (last[i] - mean[row + 2]);                                       \
                for (int i = 0; i < FASTDIV_STRIP; i++)                                                              \
                    sum[i] += z0[i] * z0[i] + z1[i] * z1[i] + z2[i] * z2[i];                                         \
                for (int i = 0; out && i < FASTDIV_STRIP; i++) {                                                     \
                    z[row * column_step + i] = z0[i] + (is_sum ? z[row * column_step + i] : 0);                      \
                    z[(row + 1) * column_step + i] = z1[i] + (is_sum ? z[(row + 1) * column_step + i] : 0);          \
                    z[(row + 2) * column_step + i] = z2[i] + (is_sum ? z[(row + 2) * column_step + i] : 0);          \
                }                                                                                                    \
            }                                                                                                        \
            for (int i = 0; i < FASTDIV_STRIP; i++)                                                                  \
                terms[start + i] = top - sum[i];                                                                     \
        }                                                                                                            \
    }

FASTDIV_TRIANGLE_PRODUCT(fastdiv_triangle_product, double)
FASTDIV_TRIANGLE_PRODUCT(fastdiv_triangle_productf, float)

/* Add the products of two rows with four columns, over points in steps of 8, to the lanes of totals (8, 8).
 *
 * The lanes stay in vector registers.
 */
#define FASTDIV_TILE_PRODUCTS(name, real)                                                                            \
    FASTDIV_APART void name(const real *first, const real *second, const real *columns, ptrdiff_t stride,            \
                            ptrdiff_t n_points, double *totals)                                                      \
    {                                                                                                                \
        real a0[8] = {0}, a1[8] = {0}, a2[8] = {0}, a3[8] = {0};                                                     \
        real b0[8] = {0}, b1[8] = {0}, b2[8] = {0}, b3[8] = {0};                                                     \
        const real *c0 = columns, *c1 = c0 + stride, *c2 = c1 + stride, *c3 = c2 + stride;                           \
        for (ptrdiff_t i = 0; i < n_points; i += 8) {                                                                \
            for (int lane = 0; lane < 8; lane++) {                                                                   \
                a0[lane] += first[i + lane] * c0[i + lane];                                                          \
                a1[lane] += first[i + lane] * c1[i + lane];                                                          \
                a2[lane] += first[i + lane] * c2[i + lane];                                                          \
                a3[lane] += first[i + lane] * c3[i + lane];                                                          \
                b0[lane] += second[i + lane] * c0[i + lane];                                                         \
                b1[lane] += second[i + lane] * c1[i + lane];                                                         \
                b2[lane] += second[i + lane] * c2[i + lane];                                                         \
                b3[lane] += second[i + lane] * c3[i + lane];                                                         \
            }                                                                                                        \
        }                                                                                                            \
        for (int lane = 0; lane < 8; lane++) {                                                                       \
            totals[lane] += a0[lane];                                                                                \
            totals[8 + lane] += a1[lane];                                                                            \
            totals[16 + lane] += a2[lane];                                                                           \
            totals[24 + lane] += a3[lane];                                                                           \
            totals[32 + lane] += b0[lane];                                                                           \
            totals[40 + lane] += b1[lane];                                                                           \
            totals[48 + lane] += b2[lane];                                                                           \
            totals[56 + lane] += b3[lane];                                                                           \
        }                                                                                                            \
    }

FASTDIV_TILE_PRODUCTS(fastdiv_tile_products, double)
FASTDIV_TILE_PRODUCTS(fastdiv_tile_productsf, float)

/* Multiply 8 lanes by n values, a multiple of 8: mantissas of the products are kept and their exponents added up.
 *
 * Return whether a value is not between 1e-280 and 1e280; then the lanes are of no use. A smaller one may be a sum that
 * lacks terms which were too small for a double.
 */
FASTDIV_APART int fastdiv_multiply_lanes(const double *values, ptrdiff_t n, double *product, double *exponent)
{
    double mantissas[8], exponents[8];
    int64_t is_beyond = 0;
    for (ptrdiff_t i = 0; i < n; i++)
        is_beyond |= !(values[i] > 1e-280 && values[i] < 1e280);
    for (int lane = 0; lane < 8; lane++) {
        mantissas[lane] = product[lane];
        exponents[lane] = exponent[lane];
    }
    for (ptrdiff_t i = 0; i < n; i += 8) {
        for (int lane = 0; lane < 8; lane++) {
            double value = values[i + lane] * mantissas[lane];
            exponents[lane] += fastdiv_exponent(value);
            mantissas[lane] = fastdiv_mantissa(value);
        }
    }
    for (int lane = 0; lane < 8; lane++) {
        product[lane] = mantissas[lane];
        exponent[lane] = exponents[lane];
    }
    return is_beyond != 0;
}

/* To the first cache, or to the second, to which more lines can be under way. */
#if defined(__GNUC__)
#define fastdiv_prefetch(address) __builtin_prefetch(address)
#define fastdiv_prefetch_second(address) __builtin_prefetch(address, 0, 2)
#else
#define fastdiv_prefetch(address) ((void)(address))
#define fastdiv_prefetch_second(address) ((void)(address))
#endif

/* How far this CPU and system go: 0 baseline, 1 AVX2 and FMA, 2 AVX-512 as in Skylake. */
static inline int fastdiv_cpu_level(void)
{
#if defined(__GNUC__) && defined(__x86_64__)
    __builtin_cpu_init();
    if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")))
        return 0;
    if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")
          && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")))
        return 1;
    return 2;
#else
    return 0;
#endif
}

#endif
