"""Experts of which every token uses some: rows sorted by expert, one product a group of them; and
what routers compute before tokens go anywhere: gates, and the numbers that losses read.
"""

from multiway.runtime.kernels.experts import ops, routers

KERNELS = [*ops.KERNELS, *routers.KERNELS]
