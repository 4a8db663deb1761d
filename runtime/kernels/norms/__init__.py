"""Norms where torch's own lose time: rms_norm, and two of one input."""

from multiway.runtime.kernels.norms.ops import KERNELS, norm_pair, rms_norm

__all__ = ["KERNELS", "norm_pair", "rms_norm"]
