"""Many products of matrices in one call: in C each on one thread, or in batches of MKL."""

from multiway.runtime.kernels.blas.batch import add_products, product
from multiway.runtime.kernels.blas.compiled import Kind, products, takes

__all__ = ["Kind", "add_products", "product", "products", "takes"]
