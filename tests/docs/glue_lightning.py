"""A model in Lightning, as docs/integrations.md shows it."""

from __future__ import annotations

import lightning as L
import torch


class Lit(L.LightningModule):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def training_step(self, batch, _):
        return self.model.loss(**batch)[0]

    def validation_step(self, batch, _):
        self.log("val_loss", self.model.loss(**batch)[0])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)
