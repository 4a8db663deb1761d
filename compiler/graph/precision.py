"""What "float32" means in a formula: at least float32."""

from __future__ import annotations

from typing import Any


def wide(x: Any) -> Any:
    """x in float32 where its type is narrower; float64 stays float64."""
    import torch

    return x.to(torch.promote_types(x.dtype, torch.float32))
