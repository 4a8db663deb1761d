"""What labels mean: for ops and kernels of losses, and for checks of inputs. Imports no torch."""

IGNORED = -100  # the label of what does not count, as in torch
