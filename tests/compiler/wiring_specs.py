"""Small models that tests lay wirings over: a pre-norm decoder, and two modalities with experts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

Mappings = dict[str, Any]

ORDERS = ["sequential", "parallel"]
BOTH = pytest.mark.parametrize("order", ORDERS)
TOKENS = torch.tensor([[1, 5, 2, 9, 3, 3], [7, 0, 10, 4, 1, 8]])
ROUTED = {"experts": {"route": "modality"}}


def decoder(
    wiring: str | Mappings, order: str = "sequential", *, eps: float = 1e-6, **dims: int
) -> Mappings:
    """Rotary positions by neighbours, gated SiLU, no biases, one matrix for words in and out."""
    return {
        "multiway": 1,
        "name": "wired",
        "dims": {"depth": 3, "width": 16, "heads": 2, "hidden": 24, "vocab": 11, **dims},
        "inputs": {"tokens": {"modality": "text", "vocab": "vocab", "context": 16}},
        "block": {
            "norm": {"kind": "rms_norm", "eps": eps},
            "attention": {
                "heads": "heads",
                "mask": "causal",
                "position": {"kind": "rotary", "pairs": "adjacent"},
            },
            "ffn": {"hidden": "hidden", "activation": "silu", "gate": True},
            "order": order,
        },
        "wiring": wiring,
        "output": {"norm": True},
        "heads": {"lm": {"kind": "causal_lm", "tie": True}},
    }


def pair(wiring: str | Mappings, order: str = "sequential") -> Mappings:
    """An image and a text with a copy of every part for each, as in BEiT-3."""
    return {
        "multiway": 1,
        "name": "wired-pair",
        "dims": {"depth": 3, "width": 8, "image": 4, "vocab": 11},
        "inputs": {
            "image": {"modality": "vision", "size": "image", "channels": 2},
            "text": {"modality": "text", "vocab": "vocab", "context": 16, "padding": "right"},
        },
        "embed": {
            "vision": {"patch": {"size": 2}, "cls": True, "position": {"kind": "learned"}},
            "text": {"position": {"kind": "learned"}},
        },
        "block": {
            "norm": {"kind": "layer_norm", "eps": 1e-5, **ROUTED},
            "attention": {"heads": 2, "bias": True, "sub_norm": True, **ROUTED},
            "ffn": {"hidden": 12, "bias": True, "sub_norm": True, **ROUTED},
            "order": order,
        },
        "wiring": wiring,
        "output": {"norm": dict(ROUTED)},
        "heads": {"features": {"kind": "features"}},
    }


def wired(path: str) -> bool:
    """Whether a parameter belongs to a wiring: to a mix, a lane, a residual, a further norm."""
    parts = path.split(".")
    own = {"mix", "edges", "lanes", "residual", "history", "sum_norm", "output_norm"}
    return bool(own & set(parts))
