"""Sums of two tensors with weights that share a total, in one pass of C each way."""

from multiway.runtime.kernels.balance.ops import KERNELS, balanced_add

__all__ = ["KERNELS", "balanced_add"]
