"""Heads out of a projection, normalised and turned by position, in one pass over memory."""

from multiway.runtime.kernels.attention.heads.rotate import KERNELS, rotate_heads

__all__ = ["KERNELS", "rotate_heads"]
