"""Attention, and what stands between a projection and it: heads, their norm, rotary positions."""

from multiway.runtime.kernels.attention import heads, sdpa

KERNELS = [*sdpa.KERNELS, *heads.KERNELS]
