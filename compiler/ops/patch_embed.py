"""Cuts an image into square patches, row by row, and projects each."""

from __future__ import annotations

from typing import Any

from multiway.compiler.graph.init import NORMAL, ZEROS
from multiway.compiler.graph.op import Letters, Op, Reject, Sample


def patch_embed(image: Any, weight: Any, bias: Any = None) -> Any:
    import torch

    y = torch.nn.functional.conv2d(image, weight, bias, stride=weight.shape[-1])
    return y.flatten(2).transpose(1, 2)


def formula(image: Any, weight: Any, bias: Any = None) -> Any:
    import numpy as np

    size = weight.shape[-1]
    across = image.shape[-1] // size
    y = np.zeros((len(image), across**2, len(weight)))
    for i, j in np.ndindex(across, across):
        patch = image[:, :, i * size : (i + 1) * size, j * size : (j + 1) * size]
        y[:, across * i + j] = np.einsum("bcpq,dcpq->bd", patch, weight)
    return y if bias is None else np.add(y, bias)


def _patches(letters: dict[str, Any]) -> dict[str, Any]:
    return {"N": (letters["I"] // letters["P"]) ** 2}


def _flops(n: Letters) -> float:
    return 2 * n["B"] * n["N"] * n["D"] * n["C"] * n["P"] ** 2


OP = Op(
    signature="image[B,C,I,I], weight[D,C,P,P], bias?[D] -> y[B,N,D]",
    reference=patch_embed,
    formula=formula,
    doc="A convolution whose stride is its kernel; patches in row-major order.",
    params={"weight": NORMAL, "bias": ZEROS},
    derive=_patches,
    flops=_flops,
    samples=[
        Sample(shapes={"image": (2, 3, 8, 8), "weight": (5, 3, 4, 4), "bias": (5,)}),
        Sample(shapes={"image": (1, 1, 6, 6), "weight": (5, 1, 2, 2)}),
    ],
    rejects=[
        Reject(
            shapes={"image": (2, 1, 8, 8), "weight": (5, 3, 4, 4)},
            error="C is 1 in image but 3 in weight",
        )
    ],
    cite="arXiv:2010.11929",
)
