"""Many products of matrices in one call of C, each on one thread."""

from multiway.runtime.kernels.blas.compiled import Kind, products, takes

__all__ = ["Kind", "products", "takes"]
