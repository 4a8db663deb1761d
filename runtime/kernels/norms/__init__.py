"""Norms where torch's own lose time: rms_norm, two of one input, layer_norm in bfloat16."""

from multiway.runtime.kernels.norms.ops import KERNELS, layer_norm, norm_pair, rms_norm

__all__ = ["KERNELS", "layer_norm", "norm_pair", "rms_norm"]
