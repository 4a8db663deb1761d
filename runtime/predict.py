"""What a model says to an image and a text: files in, plain data out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from multiway.runtime.generate import caption, greedy
from multiway.runtime.media import read_image
from multiway.runtime.model import Model
from multiway.runtime.tokenizer import Tokenizer, checked_ids, open_tokenizer
from multiway.specs.errors import MultiwayError
from multiway.specs.language.inputs import Form

_MASKED_SHARE = 0.4  # of the patches, where a model predicts hidden ones


@dataclass(frozen=True, kw_only=True)
class Example:
    """What one prediction reads."""

    images: tuple[Path, ...] = ()
    text: str | None = None


class Predictor:
    """Runs a model on examples. `top`: classes listed; `tokens`: longest text written."""

    def __init__(
        self, model: Model, *, tokenizer: Path | None = None, top: int = 5, tokens: int = 32
    ) -> None:
        self.model, self.top, self.tokens = model, top, tokens
        self.kind = str(getattr(model.spec.head, "kind", ""))
        self.names = self._inputs()
        self.tokenizer = self._tokenizer(tokenizer)

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
        return open_tokenizer(
            path, self.model.spec.inputs[texts[0]], end=self.kind not in ("causal_lm", "prefix_lm")
        )

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
            elif not self._optional(name, form):
                option = "--image FILE" if form == Form.IMAGE else '--text "..."'
                message = f"the head reads {name!r}"
                raise MultiwayError.one("missing-input", message, place="input", expected=option)
        if images:
            message = f"head {self.model.spec.head_name!r} reads no image {str(images[0])!r}"
            raise MultiwayError.one("unknown-input", message, place="input")
        return {name: value.to(self.model.device) for name, value in found.items()}

    def _optional(self, name: str, form: str) -> bool:
        """A tower may be embedded alone, and a caption is written from nothing."""
        return self.kind == "contrastive" or (self.kind == "prefix_lm" and form == Form.TOKENS)

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
        inputs = self.inputs(example)
        match self.kind:
            case "classification":
                return {"classes": self._classes(self.model(**inputs)[0])}
            case "contrastive":
                return self._match(inputs)
            case "prefix_lm":
                return self._caption(inputs)
            case "causal_lm":
                return self._continue(inputs)
            case "masked":
                return self._fill(inputs)
            case _:
                return _described(self.model(**inputs))

    @torch.inference_mode()
    def embed(self, example: Example) -> dict[str, torch.Tensor]:
        """The embedding [width] of every tower that the example has. model: contrastive."""
        if self.kind != "contrastive":
            raise MultiwayError.one(
                "unknown-head",
                f"head {self.model.spec.head_name!r} has no embeddings",
                place="--embed",
                expected="a head of kind contrastive, e.g. retrieval",
            )
        given = self.inputs(example)
        return {n: self.model.run(f"encode_{n}", **{n: x})[0].cpu() for n, x in given.items()}

    def _classes(self, logits: torch.Tensor) -> list[dict[str, Any]]:
        several = str(getattr(self.model.spec.head, "loss", "")).startswith("bce")
        scores = logits.float().sigmoid() if several else logits.float().softmax(-1)
        return _best(scores, self.top)

    def _match(self, inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
        found = {n: self.model.run(f"encode_{n}", **{n: x})[0] for n, x in inputs.items()}
        result: dict[str, Any] = {
            f"{name}_embedding": [round(v, 6) for v in vector[:4].tolist()] + ["..."]
            for name, vector in found.items()
        }
        if len(found) == 2:
            first, second = found.values()
            result["similarity"] = round(float(first @ second), 6)
        return result

    def _caption(self, inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
        (prefix,) = [x for n, x in inputs.items() if x.is_floating_point()]
        (ids,) = caption(self.model, prefix, tokens=self.tokens)
        assert self.tokenizer is not None
        return {"caption": self.tokenizer.decode(ids), "ids": ids}

    def _continue(self, inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
        ((name, prompt),) = inputs.items()
        special = self.model.spec.inputs[name].special
        end = special.end if special else None
        (ids,) = greedy(self.model, [prompt[0].tolist()], tokens=self.tokens, end=end)
        assert self.tokenizer is not None
        return {"text": self.tokenizer.decode(ids), "ids": ids}

    def _fill(self, inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Words under the masks of a text, or visual tokens under hidden patches."""
        predict = str(getattr(self.model.spec.head, "predict", ""))
        source = self.model.spec.inputs[predict]
        if source.form() == Form.IMAGE:
            return self._fill_image(predict, inputs)
        mask = source.special.mask if source.special else None
        places = [i for i, token in enumerate(inputs[predict][0].tolist()) if token == mask]
        if not places:
            message = f"the text has no {'<mask>'}, so there is nothing to predict"
            raise MultiwayError.one("missing-input", message, place="text")
        logits = self.model(**inputs)[0].float()
        words = [{"position": i, "words": _best(logits[i].softmax(-1), self.top)} for i in places]
        return {"masks": words}

    def _fill_image(self, name: str, inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
        shape = next(e.shape for e in self.model.expected("forward") if e.name == f"{name}_masked")
        patches = int(shape[1])
        order = torch.randperm(patches, generator=torch.Generator().manual_seed(0))
        hidden = sorted(order[: max(1, int(_MASKED_SHARE * patches))].tolist())
        masked = torch.zeros(1, patches, dtype=torch.bool)
        masked[0, hidden] = True
        logits = self.model(**inputs, **{f"{name}_masked": masked.to(self.model.device)})[0]
        return {"masked_patches": hidden, "visual_tokens": logits[hidden].argmax(-1).tolist()}


def _best(scores: torch.Tensor, count: int) -> list[dict[str, Any]]:
    best = scores.topk(min(count, scores.shape[-1]))
    pairs: Sequence[tuple[float, int]] = list(
        zip(best.values.tolist(), best.indices.tolist(), strict=True)
    )
    return [{"id": i, "probability": round(p, 6)} for p, i in pairs]


def _described(features: torch.Tensor) -> dict[str, Any]:
    numbers = features.float()
    return {
        "shape": list(features.shape),
        "mean": round(float(numbers.mean()), 6),
        "std": round(float(numbers.std()), 6),
    }
