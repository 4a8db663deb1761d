"""What routers compute before tokens go anywhere: gates, and the numbers that losses read."""

from multiway.runtime.kernels.routers.ops import KERNELS, router_statistics, top_k_gates

__all__ = ["KERNELS", "router_statistics", "top_k_gates"]
