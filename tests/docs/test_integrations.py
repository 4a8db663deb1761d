"""docs/integrations.md is true: a model trains in the tools that it names as in a plain loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset

import multiway as mw
from multiway.runtime.model import Model
from multiway.specs.errors import MultiwayError

STEPS, ROWS, RATE = 5, 8, 1e-2
SPECS = ("prenorm-test", "vit-test")  # next tokens, and classes of images
Batch = Mapping[str, Tensor]

pytestmark = pytest.mark.parametrize("name", SPECS)


class Rows(Dataset[Batch]):
    """The same few examples for every tool."""

    def __init__(self, name: str) -> None:
        draw = torch.Generator().manual_seed(7)
        if name == "vit-test":
            image = torch.randn(ROWS, 3, 32, 32, generator=draw)
            self.all = {"image": image, "labels": torch.arange(ROWS) % 10}
        else:
            tokens = torch.randint(0, 256, (ROWS, 17), generator=draw)
            self.all = {"tokens": tokens[:, :-1], "labels": tokens[:, 1:]}

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> Batch:
        return {name: each[row] for name, each in self.all.items()}

    @property
    def given(self) -> Batch:
        """What the program forward takes."""
        return {name: each for name, each in self.all.items() if name != "labels"}


def optimizer(model: Model) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=RATE)


def plain_losses(name: str) -> list[float]:
    """The losses of a plain loop, each step over all rows."""
    model, rows, losses = mw.compile(name), Rows(name), []
    steps = optimizer(model)
    for _ in range(STEPS):
        loss, _ = model.loss(**rows.all)
        loss.backward()
        steps.step()
        steps.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0], "nothing is learned"
    return losses


def check_losses(found: list[float], name: str) -> None:
    """The order of rows within a batch, and how it is cut, is the tool's."""
    torch.testing.assert_close(found, plain_losses(name), rtol=1e-4, atol=0)


def check_same(found: Model, want: Model, name: str) -> None:
    assert torch.equal(found(**Rows(name).given), want(**Rows(name).given))


class TestTrainer:
    """transformers' Trainer."""

    @pytest.fixture
    def glue(self) -> Iterator[Any]:
        pytest.importorskip("transformers", reason="transformers is not installed")
        pytest.importorskip("accelerate", reason="accelerate is not installed")
        import glue_trainer
        from accelerate.state import AcceleratorState

        yield glue_trainer
        AcceleratorState._reset_state(reset_partial_state=True)  # one for a process

    def trainer(self, glue: Any, kind: str, name: str, folder: Path, **settings: Any) -> Any:
        from transformers import TrainingArguments

        model, rows = mw.compile(name), Rows(name)
        defaults = {
            "max_steps": STEPS,
            "per_device_train_batch_size": ROWS,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "logging_steps": 1,
            "save_steps": STEPS,
            "use_cpu": True,
            "report_to": [],
            "disable_tqdm": True,
        }
        return getattr(glue, kind)(
            model=model,
            args=TrainingArguments(str(folder), **{**glue.SETTINGS, **defaults, **settings}),
            train_dataset=rows,
            eval_dataset=rows,
            optimizers=(optimizer(model), None),
            compute_metrics=accuracy if kind == "LogitsTrainer" else None,
        )

    def losses(self, trainer: Any) -> list[float]:
        trainer.train()
        return [each["loss"] for each in trainer.state.log_history if "loss" in each]

    def test_trains_as_a_plain_loop(self, glue: Any, name: str, tmp_path: Path) -> None:
        trainer = self.trainer(glue, "LossTrainer", name, tmp_path)
        check_losses(self.losses(trainer), name)
        file = tmp_path / f"checkpoint-{STEPS}" / "model.safetensors"
        check_same(mw.compile(name, weights=file), trainer.model, name)
        loss, _ = trainer.model.loss(**Rows(name).all)
        assert trainer.evaluate()["eval_loss"] == pytest.approx(loss.item(), rel=1e-5)

    @pytest.mark.parametrize(
        ("setting", "said"),
        [
            ("remove_unused_columns", "'loss' needs"),
            ("label_names", "'labels' is not an input of 'forward'"),
        ],
    )
    def test_needs_its_settings(
        self, glue: Any, name: str, tmp_path: Path, setting: str, said: str
    ) -> None:
        default = {"remove_unused_columns": True, "label_names": None}[setting]
        trainer = self.trainer(glue, "LossTrainer", name, tmp_path, **{setting: default})
        with pytest.raises(MultiwayError, match=said):
            trainer.evaluate() if setting == "label_names" else trainer.train()

    def test_goes_on_from_a_checkpoint(self, glue: Any, name: str, tmp_path: Path) -> None:
        self.trainer(glue, "LossTrainer", name, tmp_path, max_steps=3, save_steps=3).train()
        trainer = self.trainer(glue, "LossTrainer", name, tmp_path)
        trainer.train(resume_from_checkpoint=True)
        found = [each["loss"] for each in trainer.state.log_history if "loss" in each]
        check_losses(found, name)

    def test_accumulates_gradients(self, glue: Any, name: str, tmp_path: Path) -> None:
        """A loss is the mean of its batch: Trainer must divide by the number of batches."""
        cut = {"per_device_train_batch_size": ROWS // 4, "gradient_accumulation_steps": 4}
        trainer = self.trainer(glue, "LossTrainer", name, tmp_path, **cut)
        check_losses(self.losses(trainer), name)

    def test_checkpoints_activations(self, glue: Any, name: str, tmp_path: Path) -> None:
        trainer = self.trainer(glue, "LossTrainer", name, tmp_path, gradient_checkpointing=True)
        check_losses(self.losses(trainer), name)
        assert trainer.model._source.stages["loss"][-1].graph.recompute

    def test_refuses_checkpoints_that_there_are_not(
        self, glue: Any, name: str, tmp_path: Path
    ) -> None:
        asked = {"gradient_checkpointing_kwargs": {"use_reentrant": True}}
        trainer = self.trainer(
            glue, "LossTrainer", name, tmp_path, gradient_checkpointing=True, **asked
        )
        with pytest.raises(MultiwayError, match="memory_budget"):
            trainer.train()

    def test_measures_logits(self, glue: Any, name: str, tmp_path: Path) -> None:
        trainer, rows = self.trainer(glue, "LogitsTrainer", name, tmp_path), Rows(name)
        trainer.train()
        logits = trainer.model(**rows.given)
        found = trainer.evaluate()["eval_accuracy"]
        assert found == pytest.approx((logits.argmax(-1) == rows.all["labels"]).float().mean())
        assert found > 0
        torch.testing.assert_close(torch.from_numpy(trainer.predict(rows).predictions), logits)


def accuracy(found: Any) -> dict[str, float]:
    return {"accuracy": (found.predictions.argmax(-1) == found.label_ids).mean()}


class TestLightning:
    @pytest.fixture
    def glue(self) -> Iterator[Any]:
        pytest.importorskip("lightning", reason="lightning is not installed")
        import glue_lightning

        return glue_lightning

    def fit(self, glue: Any, lit: Any, name: str, folder: Path, **settings: Any) -> Any:
        import lightning as L

        losses: list[float] = []

        class Recorder(L.Callback):
            def on_train_batch_end(self, _: Any, module: Any, outputs: Any, *rest: Any) -> None:
                losses.append(outputs["loss"].item())

        trainer = L.Trainer(
            max_steps=STEPS,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            default_root_dir=folder,
            callbacks=[Recorder()],
            **settings,
        )
        batches = DataLoader(Rows(name), batch_size=ROWS)
        trainer.fit(lit, batches, batches)
        return SimpleNamespace(trainer=trainer, losses=losses, batches=batches)

    def test_trains_as_a_plain_loop(self, glue: Any, name: str, tmp_path: Path) -> None:
        lit = glue.Lit(mw.compile(name))
        fitted = self.fit(glue, lit, name, tmp_path)
        check_losses(fitted.losses, name)
        (found,) = fitted.trainer.validate(lit, fitted.batches, verbose=False)
        loss, _ = lit.model.loss(**Rows(name).all)
        assert found["val_loss"] == pytest.approx(loss.item(), rel=1e-5)
        fitted.trainer.save_checkpoint(tmp_path / "last.ckpt")
        other = mw.compile(name, seed=1)
        again = glue.Lit.load_from_checkpoint(tmp_path / "last.ckpt", model=other)
        check_same(again.model, lit.model, name)

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_a_summary_of_parts_is_refused(self, glue: Any, name: str, tmp_path: Path) -> None:
        """It puts a hook on every part. docs/integrations.md says so."""
        from lightning.pytorch.utilities.model_summary import ModelSummary

        lit = glue.Lit(mw.compile(name))
        assert "Model" in str(ModelSummary(lit, max_depth=1))
        with pytest.raises(MultiwayError, match="takes no hooks"):
            str(ModelSummary(lit, max_depth=2))


class TestAccelerate:
    @pytest.fixture
    def glue(self) -> Iterator[Any]:
        pytest.importorskip("accelerate", reason="accelerate is not installed")
        import glue_accelerate
        from accelerate.state import AcceleratorState

        yield glue_accelerate
        AcceleratorState._reset_state(reset_partial_state=True)  # one for a process

    def run(self, glue: Any, name: str, **settings: Any) -> Any:
        accelerator = glue.Accelerator(cpu=True, **settings)
        model = mw.compile(name)
        batches = DataLoader(ConcatDataset([Rows(name)] * STEPS), batch_size=ROWS)
        losses = glue.train(accelerator, model, optimizer(model), batches)
        return SimpleNamespace(accelerator=accelerator, model=model, losses=losses)

    def test_trains_as_a_plain_loop(self, glue: Any, name: str, tmp_path: Path) -> None:
        found = self.run(glue, name)
        check_losses(found.losses, name)
        found.accelerator.save_model(found.model, tmp_path / "weights")
        file = tmp_path / "weights" / "model.safetensors"
        check_same(mw.compile(name, weights=file), found.model, name)
        found.accelerator.save_state(tmp_path / "state")
        want = found.model(**Rows(name).given)
        with torch.no_grad():
            next(found.model.parameters()).zero_()
        assert not torch.equal(found.model(**Rows(name).given), want)
        found.accelerator.load_state(tmp_path / "state")
        assert torch.equal(found.model(**Rows(name).given), want)

    def test_trains_in_mixed_precision(self, glue: Any, name: str) -> None:
        losses = self.run(glue, name, mixed_precision="bf16").losses
        torch.testing.assert_close(losses, plain_losses(name), rtol=0.05, atol=0)
        assert losses != plain_losses(name)
