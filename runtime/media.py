"""Images and text as the inputs of a model, for a first look.

Text is turned into bytes, because a spec names no tokenizer; an image is resized to the square
that the model reads.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from multiway.specs.errors import MultiwayError
from multiway.specs.language import Input

BYTES = 256


def read_image(path: Path, *, size: int) -> torch.Tensor:
    """An image file as [1, 3, size, size], resized (bicubic) and scaled to -1 .. 1.

    Raises MultiwayError for what is not an image.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise MultiwayError.one(
            "missing-package", "reading images needs Pillow", place=str(path),
            expected='pip install "multiway[image]"',
        ) from None  # fmt: skip
    try:
        with Image.open(path) as image:
            square = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    except FileNotFoundError:
        raise MultiwayError.one("no-such-file", "there is no such file", place=str(path)) from None
    except UnidentifiedImageError:
        raise MultiwayError.one("not-an-image", "this is not an image", place=str(path)) from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        message = f"this image cannot be read: {error}"
        raise MultiwayError.one("not-an-image", message, place=str(path)) from None
    pixels = torch.from_numpy(np.asarray(square, dtype=np.float32) / 255)
    return ((pixels - 0.5) / 0.5).permute(2, 0, 1)[None].contiguous()


def first_byte(source: Input) -> int:
    """The id of byte 0: the first behind the special tokens that stand at the front."""
    special = source.special
    named = (special.start, special.padding, special.end) if special else ()
    return max((i for i in named if i is not None), default=-1) + 1


def text_ids(text: str, source: Input, *, longest: int | None, end: bool) -> torch.Tensor:
    """Text as byte ids [1, T], behind the ids of special tokens and between start and end.

    longest: tokens that there are positions for. Raises MultiwayError.
    """
    special, first = source.special, first_byte(source)
    assert source.vocab is not None
    if first + BYTES > source.vocab:
        raise MultiwayError.one(
            "out-of-vocabulary",
            f"a vocabulary of {source.vocab} has no room for bytes behind id {first - 1}",
            place="--text",
            expected=f"a vocabulary of at least {first + BYTES}",
        )
    ids = [first + byte for byte in text.encode()]
    if special and special.start is not None:
        ids = [special.start, *ids]
    if end and special and special.end is not None:
        ids = [*ids, special.end]
    if not ids:
        raise MultiwayError.one("empty", "the text is empty", place="--text")
    if longest is not None and len(ids) > longest:
        raise MultiwayError.one(
            "too-long",
            f"the text has {len(ids)} tokens, there are positions for {longest}",
            place="--text",
        )
    return torch.tensor([ids])


def ids_text(ids: list[int], source: Input) -> str:
    """Byte ids as text; what is no byte is shown as a dot."""
    first = first_byte(source)
    known = bytes(i - first if first <= i < first + BYTES else ord(".") for i in ids)
    return known.decode("utf-8", "replace")
