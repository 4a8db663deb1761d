"""Experts of which every token uses some: rows sorted by expert, one product a group of them."""

from multiway.runtime.kernels.experts.ops import KERNELS

__all__ = ["KERNELS"]
