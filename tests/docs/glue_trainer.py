"""A model in transformers' Trainer, as docs/integrations.md shows it."""

from __future__ import annotations

from typing import Any

from transformers import Trainer


class LossTrainer(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **_):
        loss, _ = model(**inputs, program="loss")
        return (loss, {"loss": loss}) if return_outputs else loss


class LogitsTrainer(LossTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss = super().compute_loss(model, inputs)
        given = {name: each for name, each in inputs.items() if name != "labels"}
        return (loss, {"logits": model(**given)}) if return_outputs else loss


SETTINGS: dict[str, Any] = {"remove_unused_columns": False, "label_names": ["labels"]}
