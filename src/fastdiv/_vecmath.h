/* Branch-free exp, log and log1p, inlined so that the compiler can put them in vector lanes.
 *
 * exp(x) = 2^n exp(r) with n = round(x / ln 2) and |r| <= ln(2)/2. Adding MAGIC rounds to an integer and leaves it
 * in the low bits of the sum, from where a shift moves it to the exponent. ln 2 is split in two so that n * LN2_HI
 * is exact (Cody & Waite 1980). (exp(r) - 1 - r) / r^2 is a polynomial by Estrin's scheme: in double the one through
 * its values at ten Chebyshev nodes, off by 2^-55 of exp(r) at most; in float Taylor's, off by 2^-28. Where the
 * result would be subnormal, n reaches the exponent field 0, and it is 0; in the last binade before overflow n
 * reaches the field of inf, and it is inf. Sums whose largest term is 1 notice neither. The clamps keep n inside the
 * field; NaN passes through them.
 *
 * log(x) = k ln 2 + log(m) with sqrt(1/2) <= m < sqrt(2), and log(1 + f) = f - f^2/2 + s (f^2/2 + R(s^2)) with
 * s = f / (2 + f), as in fdlibm's e_log.c; R is the polynomial through its values at seven Chebyshev nodes, off by
 * 2^-57. It is for normal positive numbers, 0, inf and NaN.
 */
#ifndef FASTDIV_VECMATH_H
#define FASTDIV_VECMATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define FASTDIV_LN2_HI 6.93147180369123816490e-01
#define FASTDIV_LN2_LO 1.90821492927058770002e-10

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

static inline double fastdiv_exp(double x)
{
    const double MAGIC = 6755399441055744.0; /* 1.5 * 2^52 */
    double shifted, n, r, r2, r4, low, high;
    x = x < -709.1 ? -709.1 : x;
    x = x > 709.8 ? 709.8 : x;
    shifted = x * 1.44269504088896340736 + MAGIC;
    n = shifted - MAGIC;
    r = (x - n * FASTDIV_LN2_HI) - n * FASTDIV_LN2_LO;
    r2 = r * r;
    r4 = r2 * r2;
    low = (0.5000000000000001 + r * 0.16666666666666669) + r2 * (0.04166666666662413 + r * 0.008333333333330062);
    high = (0.0013888888917213717 + r * 0.00019841269863053618)
         + r2 * (2.4801521295954376e-05 + r * 2.7557268459997064e-06)
         + r4 * (2.7620088445409746e-07 + r * 2.510038549551032e-08);
    return (1.0 + (r + r2 * (low + r4 * high)))
         * fastdiv_from_bits((fastdiv_to_bits(shifted) << 52) + UINT64_C(0x3ff0000000000000));
}

static inline float fastdiv_expf(float x)
{
    const float MAGIC = 12582912.0f; /* 1.5 * 2^23 */
    const float LN2_HI = 0.693359375f;
    const float LN2_LO = -2.12194440e-4f;
    float shifted, n, r, r2, tail, power;
    uint32_t bits;
    x = x < -88.0f ? -88.0f : x;
    x = x > 89.0f ? 89.0f : x;
    shifted = x * 1.44269504088896340736f + MAGIC;
    n = shifted - MAGIC;
    r = (x - n * LN2_HI) - n * LN2_LO;
    r2 = r * r;
    tail = (1.0f / 2.0f + r * (1.0f / 6.0f)) + r2 * (1.0f / 24.0f + r * (1.0f / 120.0f));
    tail += r2 * r2 * (1.0f / 720.0f + r * (1.0f / 5040.0f));
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 23) + UINT32_C(0x3f800000);
    memcpy(&power, &bits, sizeof power);
    return (1.0f + (r + r2 * tail)) * power;
}

static inline double fastdiv_log(double x)
{
    const uint64_t ROOT_HALF = UINT64_C(0x3fe6a09e667f3bcd);
    const uint64_t ONE = UINT64_C(0x3ff0000000000000);
    uint64_t bits = fastdiv_to_bits(x) + (ONE - ROOT_HALF);
    /* The exponent k + 1023 becomes a double as the low bits of 2^52. */
    double k = fastdiv_from_bits((bits >> 52) | UINT64_C(0x4330000000000000)) - (4503599627370496.0 + 1023.0);
    double f = fastdiv_from_bits((bits & UINT64_C(0x000fffffffffffff)) + ROOT_HALF) - 1.0;
    double s = f / (2.0 + f);
    double z = s * s;
    double z2 = z * z;
    double half_square = 0.5 * f * f;
    double remainder = (0.666666666666667 + z * 0.39999999999899444)
                     + z2 * (0.2857142862600327 + z * 0.22222211130259878)
                     + z2 * z2 * ((0.18182889455674947 + z * 0.15331710618210773) + z2 * 0.14616585424888623);
    double y = k * FASTDIV_LN2_HI
             + (f - (half_square - (s * (half_square + z * remainder) + k * FASTDIV_LN2_LO)));
    y = x < INFINITY ? y : x;
    return x == 0.0 ? -INFINITY : y;
}

/* For 0 <= x < inf. The second term is what rounding 1 + x took from x (Kahan 1965). */
static inline double fastdiv_log1p(double x)
{
    double w = 1.0 + x;
    return fastdiv_log(w) + (x - (w - 1.0)) / w;
}

#if defined(__GNUC__)
#define fastdiv_prefetch(address) __builtin_prefetch(address)
#else
#define fastdiv_prefetch(address) ((void)(address))
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
