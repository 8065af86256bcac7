include "_kernels.pxd"
