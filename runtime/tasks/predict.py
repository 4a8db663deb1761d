"""What a model says to an image and a text: files in, plain data out.

What is said is the matter of the model's head, which hands over an `Answer` (runtime/answers.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from multiway.runtime.answers import Answer
from multiway.runtime.model import Model
from multiway.runtime.tasks.images import read_image
from multiway.runtime.tasks.tokenizer import Tokenizer, checked_ids, open_tokenizer
from multiway.specs.errors import MultiwayError
from multiway.specs.language.inputs import Form


@dataclass(frozen=True, kw_only=True)
class Example:
    """What one prediction reads."""

    images: tuple[Path, ...] = ()
    text: str | None = None


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a head's answer is made from: one example, read, and what was asked.

    inputs: those of the head that the example has, each a batch of one on the model's device.
    top: how many classes or words to list. tokens: length of the longest text to write.
    """

    model: Model
    inputs: Mapping[str, torch.Tensor]
    tokenizer: Tokenizer | None
    top: int
    tokens: int

    def decode(self, ids: Sequence[int]) -> str:
        assert self.tokenizer is not None, "there is one where the head reads token ids"
        return self.tokenizer.decode(ids)


class Predictor:
    """Runs a model on examples. `top`: classes listed; `tokens`: longest text written.

    Raises MultiwayError where the model's head answers nothing.
    """

    def __init__(
        self, model: Model, *, tokenizer: Path | None = None, top: int = 5, tokens: int = 32
    ) -> None:
        self.model, self.top, self.tokens = model, top, tokens
        self.answer = self._answer()
        self.names = self._inputs()
        self.tokenizer = self._tokenizer(tokenizer)

    def _answer(self) -> Answer:
        if self.model.answer is None:
            raise MultiwayError.one(
                "unknown-head",
                f"head {self.model.spec.head_name!r} predicts nothing from files",
                place=self.model.spec.name,
                expected="a head whose kind defines `answer`; see docs/adding_a_head.md",
            )
        return self.model.answer

    def _inputs(self) -> list[tuple[str, str]]:
        """(name in the program, input of the spec) of everything that the head reads."""
        spec, found = self.model.spec, []
        for each in self.model.expected(next(iter(self.model.programs))):
            base = each.name if each.name in spec.inputs else each.name.rpartition("_")[0]
            if base in spec.inputs and not each.name.endswith(("_padding", "_masked")):
                found.append((each.name, base))
        return found

    def _tokenizer(self, path: Path | None) -> Tokenizer | None:
        texts = [
            base for _, base in self.names if self.model.spec.inputs[base].form() == Form.TOKENS
        ]
        if not texts:
            return None
        source = self.model.spec.inputs[texts[0]]
        return open_tokenizer(path, source, end=self.answer.end_token)

    # Reading an example

    def inputs(self, example: Example) -> dict[str, torch.Tensor]:
        """The head's inputs. Raises MultiwayError where one is missing or does not fit."""
        images, found = list(example.images), {}
        for name, base in self.names:
            form = self.model.spec.inputs[base].form()
            if form == Form.IMAGE and images:
                found[name] = self._image(images.pop(0), base)
            elif form == Form.TOKENS and example.text is not None:
                found[name] = self._text(example.text, base)
            elif form == Form.FEATURES:
                raise MultiwayError.one(
                    "missing-input",
                    f"{name!r} are vectors, which no file holds",
                    place="input",
                    expected="mw.compile(...) in Python",
                )
            elif base not in self.answer.optional:
                option = "--image FILE" if form == Form.IMAGE else '--text "..."'
                message = f"the head reads {name!r}"
                raise MultiwayError.one("missing-input", message, place="input", expected=option)
        if images:
            message = f"head {self.model.spec.head_name!r} reads no image {str(images[0])!r}"
            raise MultiwayError.one("unknown-input", message, place="input")
        return {name: value.to(self.model.device) for name, value in found.items()}

    def _image(self, path: Path, base: str) -> torch.Tensor:
        size = self.model.spec.inputs[base].size
        assert size is not None
        preprocess = self.model.spec.head.image_preprocess()
        dtype = next(self.model.parameters()).dtype
        return read_image(path, size=size, preprocess=preprocess).to(dtype)

    def _text(self, text: str, base: str) -> torch.Tensor:
        assert self.tokenizer is not None
        longest = self.model.spec.tokens_of(base)
        source = self.model.spec.inputs[base]
        ids = checked_ids(self.tokenizer.encode(text), source, longest=longest, place="text")
        return torch.tensor([ids])

    # Saying something

    @torch.inference_mode()
    def __call__(self, example: Example) -> dict[str, Any]:
        """What the head says of an example, as plain data. Raises MultiwayError."""
        return self.answer.predict(self._request(example))

    @torch.inference_mode()
    def embed(self, example: Example) -> dict[str, torch.Tensor]:
        """The embedding [width] of every input that the example has, on the CPU.

        Raises MultiwayError where the head has no embeddings.
        """
        if self.answer.embed is None:
            raise MultiwayError.one(
                "unknown-head",
                f"head {self.model.spec.head_name!r} has no embeddings",
                place="--embed",
                expected="a head of kind contrastive, e.g. retrieval",
            )
        found = self.answer.embed(self._request(example))
        return {name: vector.cpu() for name, vector in found.items()}

    def _request(self, example: Example) -> Request:
        return Request(
            model=self.model,
            inputs=self.inputs(example),
            tokenizer=self.tokenizer,
            top=self.top,
            tokens=self.tokens,
        )
