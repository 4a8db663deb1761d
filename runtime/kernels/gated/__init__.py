"""act(gate) * x, and its gradients, in one pass of C each way."""

from multiway.runtime.kernels.gated.compiled import KINDS
from multiway.runtime.kernels.gated.ops import KERNELS, gated_activation

__all__ = ["KERNELS", "KINDS", "gated_activation"]
