"""Image files as inputs of a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from multiway.specs.errors import MultiwayError
from multiway.specs.language.inputs import Preprocess

if TYPE_CHECKING:
    from PIL import Image as PillowImage


def read_image(path: Path, *, size: int, preprocess: Preprocess) -> torch.Tensor:
    """An image file as [1, 3, size, size], resized and normalised as `preprocess` says.

    Raises MultiwayError for what is not an image.
    """
    pillow = _pillow(path)
    try:
        with pillow.open(path) as image:
            pixels = np.asarray(_resized(image.convert("RGB"), size, preprocess), dtype=np.float32)
    except FileNotFoundError:
        raise MultiwayError.one("no-such-file", "there is no such file", place=str(path)) from None
    except pillow.UnidentifiedImageError:
        raise MultiwayError.one("not-an-image", "this is not an image", place=str(path)) from None
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
        message = f"this image cannot be read: {error}"
        raise MultiwayError.one("not-an-image", message, place=str(path)) from None
    mean, std = (torch.tensor(v, dtype=torch.float32) for v in (preprocess.mean, preprocess.std))
    normalised = (torch.from_numpy(pixels / 255) - mean) / std
    return normalised.permute(2, 0, 1)[None].contiguous()


def _pillow(path: Path) -> Any:
    try:
        import PIL.Image
    except ImportError:
        raise MultiwayError.one(
            "missing-package",
            "reading images needs Pillow",
            place=str(path),
            expected='pip install "multiway[image]"',
        ) from None
    return PIL.Image


def _resized(image: PillowImage.Image, size: int, preprocess: Preprocess) -> PillowImage.Image:
    """The square that the model reads: the whole image pressed into it, or its centre."""
    bicubic = 3  # PIL.Image.Resampling.BICUBIC
    if preprocess.resize == "square":
        return image.resize((size, size), bicubic)
    short = int(size / preprocess.crop)
    width, height = image.size
    scale = short / min(width, height)
    wide = short if width <= height else int(width * scale)
    high = short if height <= width else int(height * scale)
    left, top = round((wide - size) / 2), round((high - size) / 2)
    return image.resize((wide, high), bicubic).crop((left, top, left + size, top + size))
