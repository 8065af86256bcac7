/* The functions of _vecmath.h over arrays, libm's beside them, and the distance between the two. */
#include "_vecmath.h"

#include <float.h>
#include <stddef.h>

static double sigmoid(double x) { return x < 0 ? exp(x) / (1 + exp(x)) : 1 / (1 + exp(-x)); }
static double softplus(double x) { return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x)); }

#define OVER_ARRAYS(name) \
    void name##_double(const double *x, double *y, ptrdiff_t n) { for (ptrdiff_t i = 0; i < n; i++) y[i] = fastdiv_##name(x[i]); } \
    void name##_float(const float *x, float *y, ptrdiff_t n) { for (ptrdiff_t i = 0; i < n; i++) y[i] = fastdiv_##name##f(x[i]); } \
    void name##_libm(const float *x, double *y, ptrdiff_t n) { for (ptrdiff_t i = 0; i < n; i++) y[i] = name(x[i]); }

OVER_ARRAYS(exp)
OVER_ARRAYS(expm1)
OVER_ARRAYS(log)
OVER_ARRAYS(log1p)
OVER_ARRAYS(sigmoid)
OVER_ARRAYS(softplus)

void softplus_slope_double(const double *x, double *y, double *slope, ptrdiff_t n)
{
    for (ptrdiff_t i = 0; i < n; i++)
        y[i] = fastdiv_softplus_slope(x[i], &slope[i]);
}

void softplus_slope_float(const float *x, float *y, float *slope, ptrdiff_t n)
{
    for (ptrdiff_t i = 0; i < n; i++)
        y[i] = fastdiv_softplus_slopef(x[i], &slope[i]);
}

void float_pattern(uint32_t first, uint32_t stride, float *x, ptrdiff_t n)
{
    for (ptrdiff_t i = 0; i < n; i++)
        x[i] = fastdiv_from_bitsf(first + (uint32_t) i * stride);
}

/* The largest error of floats in units of the truth's last place; infinite if one is NaN, zero or infinite alone. */
double worst_ulp(const float *y, const double *truth, ptrdiff_t n)
{
    double worst = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        float rounded = (float) truth[i];
        double ulp = fabsf(rounded) < FLT_MIN ? 0x1p-149
                   : fastdiv_from_bits((fastdiv_to_bits(truth[i]) & UINT64_C(0x7ff0000000000000)) - (UINT64_C(23) << 52));
        double error = fabs(y[i] - truth[i]) / ulp;
        int same = (y[i] != y[i] && rounded != rounded) || (y[i] == rounded && signbit(y[i]) == signbit(rounded));
        error = same && !(error < INFINITY) ? 0 : error;
        worst = error <= worst ? worst : error < INFINITY ? error : INFINITY;
    }
    return worst;
}
