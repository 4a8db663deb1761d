"""Linears of several inputs at once: of modalities, apart or joined, and of streams of a mix."""

from multiway.runtime.kernels.linears.ops import (
    KERNELS,
    joined_linears,
    joined_sums,
    linear_sums,
    linears,
)

__all__ = ["KERNELS", "joined_linears", "joined_sums", "linear_sums", "linears"]
