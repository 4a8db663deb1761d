"""Linears: alone, several of one input, with an activation, added to a residual."""

from multiway.runtime.kernels.linear import (
    linear,
    linear_activation,
    linear_sum,
    packed_linear,
)

KERNELS = [
    *linear.KERNELS,
    *linear_activation.KERNELS,
    *linear_sum.KERNELS,
    *packed_linear.KERNELS,
]
