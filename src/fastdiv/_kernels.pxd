# The kernels for `cimport fastdiv._kernels`, the build that runs on every CPU. For CPUs that have AVX2 or AVX-512,
# `fastdiv._kernels_avx2` and `fastdiv._kernels_avx512` have the same.

ctypedef fused floating:
    float
    double

cpdef void advi_mixture_steps(
    const floating[:, ::1] x,
    const Py_ssize_t[:, ::1] rows,
    const double[:, :, ::1] noise,
    const double[:, ::1] whitener,
    const double[::1] concentration,
    const double[::1] prior,
    Py_ssize_t solver,
    double learning_rate,
    double momentum,
    double decay,
    double epsilon,
    Py_ssize_t n_steps,
    double[::1] phi,
    double[:, ::1] state,
    double[::1] losses,
) except *
cpdef void column_moments(
    const floating[:, ::1] X,
    const floating[::1] sample_weight,
    double[::1] means,
    double[::1] squares,
    double[::1] out,
) except *
cpdef void log_ratio_moments(const floating[::1] log_p, const floating[::1] log_q, double[::1] out) except *
cpdef void logistic_newton_pass(
    const floating[:, ::1] X,
    const floating[::1] centre,
    const floating[::1] scale,
    const floating[::1] y,
    const floating[::1] sample_weight,
    const floating[::1] coef,
    double[:, ::1] sums,
    double[:, ::1] hessian,
    double[:, ::1] squares,
    double[::1] out,
) except *
cpdef void logistic_newton_steps(
    const floating[:, ::1] X,
    const floating[::1] centre,
    const floating[::1] scale,
    const floating[::1] y,
    const floating[::1] sample_weight,
    const double[::1] ridge,
    double mass,
    double tol,
    double slack,
    double[:, ::1] metric,
    double[::1] coef,
    double[::1] step,
    double[:, ::1] sums,
    double[:, ::1] hessian,
    double[:, ::1] squares,
    double[::1] out,
    double[::1] losses,
    double[::1] state,
) except *
cpdef void logistic_sgd_epoch(
    const floating[:, ::1] X,
    const floating[::1] centre,
    const floating[::1] scale,
    const floating[::1] y,
    const floating[::1] sample_weight,
    const Py_ssize_t[::1] permutation,
    Py_ssize_t batch_size,
    double learning_rate,
    double power_t,
    double momentum,
    double alpha,
    Py_ssize_t n_steps,
    floating[::1] coef,
    floating[::1] velocity,
    double[::1] coef_sum,
    double[::1] out,
) except *
cpdef void logsumexp_rows(const floating[:, ::1] a, floating[::1] out) except *
cpdef void merge_moments(const double[::1] other, double[::1] out) except *
cpdef void metropolis_mixture_steps(
    const floating[:, ::1] x,
    const double[:, ::1] noise,
    const double[:, ::1] thresholds,
    const double[::1] scales,
    const double[:, ::1] whitener,
    const double[::1] concentration,
    const double[::1] prior,
    double[::1] theta,
    double[:, ::1] terms,
    double[:, ::1] draws,
    double[::1] logps,
    double[::1] accepted,
) except *
cpdef void mixture_logpdf(
    const floating[::1] x,
    const floating[::1] log_weights,
    const floating[::1] means,
    const floating[::1] stds,
    floating[::1] out,
) except *
cpdef void mixture_logpdf_diag(
    const floating[:, ::1] x,
    const floating[::1] log_weights,
    const floating[:, ::1] means,
    const floating[:, ::1] stds,
    floating[::1] out,
) except *
cpdef void mixture_logpdf_full(
    const floating[:, ::1] x,
    const floating[::1] log_weights,
    const floating[:, ::1] means,
    const floating[:, :, ::1] whiteners,
    floating[::1] out,
) except *
cpdef void mixture_model_logp_grad(
    const floating[:, ::1] x,
    const Py_ssize_t[::1] rows,
    const double[:, ::1] whitener,
    const double[::1] concentration,
    const double[::1] prior,
    const double[::1] theta,
    double[::1] out,
) except *
cpdef void mixture_score(
    const floating[::1] x,
    const floating[::1] log_weights,
    const floating[::1] means,
    const floating[::1] stds,
    floating[::1] out,
) except *
cpdef void mixture_score_diag(
    const floating[:, ::1] x,
    const floating[::1] log_weights,
    const floating[:, ::1] means,
    const floating[:, ::1] stds,
    floating[:, ::1] out,
) except *
cpdef void mixture_score_full(
    const floating[:, ::1] x,
    const floating[::1] log_weights,
    const floating[:, ::1] means,
    const floating[:, :, ::1] whiteners,
    floating[:, ::1] out,
) except *
cpdef void mlp_epoch(
    const floating[:, ::1] X,
    const floating[::1] y,
    const floating[::1] sample_weight,
    const Py_ssize_t[::1] permutation,
    Py_ssize_t batch_size,
    const Py_ssize_t[::1] layer_sizes,
    Py_ssize_t activation,
    Py_ssize_t solver,
    double learning_rate,
    double momentum,
    double decay,
    double epsilon,
    double alpha,
    Py_ssize_t n_steps,
    floating[::1] params,
    floating[::1] velocity,
    floating[::1] square,
    double[::1] out,
) except *
cpdef void mlp_log_odds(
    const floating[:, ::1] X,
    const Py_ssize_t[::1] layer_sizes,
    Py_ssize_t activation,
    const floating[::1] params,
    floating[::1] out,
) except *
cpdef void neighbor_distances(
    const floating[::1] points, const floating[::1] x, Py_ssize_t k, floating[::1] out, floating[::1] following
) except *
cpdef void radix_sort(const floating[::1] values, floating[::1] scratch, floating[::1] out) except *
cpdef void trapezoid_cross_entropy(
    const floating[::1] locs,
    const floating[::1] scales,
    const floating[::1] mass,
    double lower,
    double upper,
    const floating[::1] log_weights,
    const floating[::1] means,
    const floating[::1] stds,
    double[::1] out,
) except *
cpdef void trapezoid_kl(
    const floating[::1] log_weights_p,
    const floating[::1] means_p,
    const floating[::1] stds_p,
    const floating[::1] log_weights_q,
    const floating[::1] means_q,
    const floating[::1] stds_q,
    double lower,
    double upper,
    Py_ssize_t num,
    Py_ssize_t start,
    Py_ssize_t stop,
    double[::1] out,
) except *
