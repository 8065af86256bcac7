"""Which instruction sets this CPU and operating system support."""

cdef extern from "_vecmath.h" nogil:
    int fastdiv_cpu_level() noexcept


def cpu_level():
    """Return 0 for the baseline, 1 for AVX2 with FMA, 2 for AVX-512."""
    return fastdiv_cpu_level()
