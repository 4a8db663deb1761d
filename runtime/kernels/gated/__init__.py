"""act(gate) * x, and its gradients, in one pass of C each way."""

from multiway.runtime.kernels.gated.compiled import KINDS, Back, backward, forward

__all__ = ["KINDS", "Back", "backward", "forward"]
