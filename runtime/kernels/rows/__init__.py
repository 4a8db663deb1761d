"""What is computed row by row: norms, activations, gates; each in one pass over memory each way."""

from multiway.runtime.kernels.rows import gated, norms

KERNELS = [*norms.KERNELS, *gated.KERNELS]
