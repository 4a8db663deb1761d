"""Text to ids and back: bytes, a sentencepiece model, or a tokenizers file."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from multiway.specs.errors import MultiwayError
from multiway.specs.language.inputs import Input, Special

BYTES = 256
MASK = "<mask>"  # in a text, stands for the mask token


class Tokenizer(Protocol):
    """Turns a text into ids, special tokens included, and ids into text."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class Bytes:
    """Every byte is a token, behind the ids of the special tokens that stand at the front.

    For a first look: no released model was trained on bytes.
    """

    def __init__(self, source: Input, *, end: bool) -> None:
        self.special, self.end = source.special or Special(node=source.node), end
        named = (self.special.start, self.special.padding, self.special.end)
        self.first: int = max((i for i in named if i is not None), default=-1) + 1
        assert source.vocab is not None
        if self.first + BYTES > source.vocab:
            raise MultiwayError.one(
                "out-of-vocabulary",
                f"a vocabulary of {source.vocab} has no room for bytes behind id {self.first - 1}",
                place="text",
                expected=f"a vocabulary of at least {self.first + BYTES}, or a tokenizer",
            )

    def encode(self, text: str) -> list[int]:
        ids: list[int] = [] if self.special.start is None else [self.special.start]
        for part in split_masks(text, self.special):
            ids += [self.first + b for b in part.encode()] if isinstance(part, str) else [part]
        return [*ids, self.special.end] if self.end and self.special.end is not None else ids

    def decode(self, ids: Sequence[int]) -> str:
        known = [i - self.first for i in ids if 0 <= i - self.first < BYTES]
        return bytes(known).decode("utf-8", "replace")


class SentencePiece:
    """A sentencepiece model with the ids of XLM-R: <s> 0, <pad> 1, </s> 2, <unk> 3, pieces + 1."""

    START, PADDING, END, UNKNOWN, SHIFT = 0, 1, 2, 3, 1

    def __init__(self, path: Path, source: Input) -> None:
        with _needs("sentencepiece", path):
            import sentencepiece
        self.special = source.special or Special(node=source.node)
        try:
            self.model: Any = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError, TypeError):
            raise _unreadable(path, "not a sentencepiece model") from None

    def encode(self, text: str) -> list[int]:
        ids = [self.START]
        for part in split_masks(text, self.special):
            if isinstance(part, str):
                unknown = self.model.unk_id()
                pieces = self.model.encode(part)
                ids += [self.UNKNOWN if p == unknown else p + self.SHIFT for p in pieces]
            else:
                ids.append(part)
        return [*ids, self.END]

    def decode(self, ids: Sequence[int]) -> str:
        size = self.model.get_piece_size()
        pieces = [i - self.SHIFT for i in ids if self.UNKNOWN < i < size + self.SHIFT]
        return str(self.model.decode(pieces))


class TokenizersFile:
    """A tokenizer.json of the tokenizers library, with the special tokens that it adds itself."""

    def __init__(self, path: Path, source: Input) -> None:
        with _needs("tokenizers", path):
            import tokenizers
        self.special = source.special or Special(node=source.node)
        try:
            self.model: Any = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for every fault of a file
            raise _unreadable(path, f"not a tokenizers file: {error}") from None

    def encode(self, text: str) -> list[int]:
        return list(self.model.encode(text).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.model.decode(list(ids)))


def open_tokenizer(path: Path | None, source: Input, *, end: bool) -> Tokenizer:
    """The tokenizer of a file, or bytes for None. Raises MultiwayError.

    end: whether bytes end with the end token, as a text that is read as a whole does.
    """
    if path is None:
        return Bytes(source, end=end)
    if not path.is_file():
        raise MultiwayError.one("no-such-file", "there is no such file", place=str(path))
    if path.suffix == ".json":
        return TokenizersFile(path, source)
    if path.suffix in (".spm", ".model"):
        return SentencePiece(path, source)
    raise MultiwayError.one(
        "unknown-tokenizer",
        f"{path.suffix or 'a file without suffix'} is not a known kind of tokenizer",
        place=str(path),
        expected=".json (tokenizers), .spm or .model (sentencepiece)",
    )


def checked_ids(ids: Sequence[int], source: Input, *, longest: int | None, place: str) -> list[int]:
    """The ids, if all are in the vocabulary and there are positions for them."""
    assert source.vocab is not None
    if not ids:
        raise MultiwayError.one("empty", "the text is empty", place=place)
    for i in ids:
        if not 0 <= i < source.vocab:
            message = f"the id {i} is outside the vocabulary, which ends at {source.vocab - 1}"
            raise MultiwayError.one("out-of-vocabulary", message, place=place)
    if longest is not None and len(ids) > longest:
        message = f"the text has {len(ids)} tokens, there are positions for {longest}"
        raise MultiwayError.one("too-long", message, place=place)
    return list(ids)


def split_masks(text: str, special: Special) -> list[str | int]:
    """The parts of a text around `<mask>`, with the id of the mask token between them."""
    if special.mask is None or MASK not in text:
        return [text]
    parts: list[str | int] = []
    for i, part in enumerate(re.split(re.escape(MASK), text)):
        parts += [special.mask] if i else []
        parts += [part] if part else []
    return parts


@contextlib.contextmanager
def _needs(name: str, path: Path) -> Iterator[None]:
    """Says what to install where the package that is imported inside is missing."""
    try:
        yield
    except ImportError:
        raise MultiwayError.one(
            "missing-package",
            f"this tokenizer needs the package {name}",
            place=str(path),
            expected='pip install "multiway[text]"',
        ) from None


def _unreadable(path: Path, message: str) -> MultiwayError:
    return MultiwayError.one("unknown-tokenizer", message, place=str(path))
