"""Hand-written inference in C++, compiled by this machine's compiler where it is first asked for."""

from zoo.kernels.build import Compiled, compile_kernels
from zoo.kernels.painn import PaiNNKernel, painn_kernel

__all__ = ["Compiled", "PaiNNKernel", "compile_kernels", "painn_kernel"]
