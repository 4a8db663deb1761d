"""Kernels: one module or folder for each op that has one."""

from multiway.runtime.kernels.kernel import Kernel, kernels

__all__ = ["Kernel", "kernels"]
