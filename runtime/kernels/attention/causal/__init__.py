"""Causal attention in C that leaves out what no query sees, in both directions."""

from multiway.runtime.kernels.attention.causal.op import attend, takes

__all__ = ["attend", "takes"]
