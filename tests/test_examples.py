"""The examples of what people train in, each as a process of its own, and what they do not show."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
from conftest import bits, state_bits
from torch import Tensor, nn

from hatam import HATAM

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def output_of(script: str, folder: Path) -> str:
    """What an example prints."""
    started = jobs.Started(EXAMPLES / script, folder=folder, HF_HUB_OFFLINE="1")
    assert started.wait() == 0, started.output
    return started.output


def last_number(script: str, folder: Path) -> float:
    """What an example prints at the end, which is how well it did."""
    words = output_of(script, folder).split()
    return float(words[-1 if words[-1] != "after" else -2])


@pytest.mark.compatible("Hugging Face Trainer", "optimizer_cls_and_kwargs, accumulation, clipping, evaluation")
def test_hf_trainer(tmp_path: Path) -> None:
    """From 8 bits per byte to fewer than text without context needs."""
    assert last_number("hf_trainer.py", tmp_path) < 5.0


@pytest.mark.compatible("accelerate", "bfloat16, accumulation, clipping, save_state and load_state")
def test_accelerate(tmp_path: Path) -> None:
    assert last_number("accelerate_train.py", tmp_path) > 0.85


@pytest.mark.compatible("PyTorch Lightning", "its closure, bfloat16, clipping, validation hooks")
def test_lightning(tmp_path: Path) -> None:
    assert last_number("lightning_train.py", tmp_path) > 0.85


@pytest.mark.compatible("timm", "by name in its registry, with timm's groups without weight decay")
def test_timm(tmp_path: Path) -> None:
    assert last_number("timm_train.py", tmp_path) > 0.8


@pytest.mark.compatible("torch.optim.swa_utils", "an average of the straightened points")
def test_averaged_weights(tmp_path: Path) -> None:
    assert last_number("averaged_weights.py", tmp_path) > 0.85


@pytest.mark.compatible("gradient release", "the step inside backward(), bit for bit that of one optimizer")
def test_gradient_release(tmp_path: Path) -> None:
    said = output_of("gradient_release.py", tmp_path)
    assert "the same as with one optimizer: True" in said
    assert float(said.split()[-1]) > 0.85


class Net(nn.Module):
    """As the Trainer wants it: the loss comes with the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 1)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        outputs = self.layer(x)
        return {"loss": nn.functional.mse_loss(outputs, labels), "logits": outputs}


@pytest.mark.compatible("Hugging Face Trainer", "resume_from_checkpoint, bit for bit")
def test_hf_trainer_resumes(tmp_path: Path) -> None:
    """20 steps are 10 steps, its checkpoint, and 10 more with everything made anew."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import Trainer, TrainingArguments

        rng = torch.Generator().manual_seed(0)
        data = [{"x": torch.randn(8, generator=rng), "labels": torch.randn(1, generator=rng)} for _ in range(64)]
        made = {"max_steps": 20, "save_steps": 10, "learning_rate": 0.01, "lr_scheduler_type": "cosine"}
        quiet: dict[str, Any] = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "logging_strategy": "no"}
        ends = []
        for resume in (None, str(tmp_path / "checkpoint-10")):
            torch.manual_seed(1)
            model = Net()
            arguments = TrainingArguments(str(tmp_path), per_device_train_batch_size=4, **made, **quiet)
            kinds = (HATAM, {"lr": 0.01, "hidden": True})
            trainer = Trainer(model, arguments, train_dataset=data, optimizer_cls_and_kwargs=kinds)
            trainer.train(resume_from_checkpoint=resume)
            ends.append([bits(p) for p in model.parameters()] + state_bits(trainer.optimizer))
    assert ends[0] == ends[1]


def test_hf_trainer_finds_its_best_again(tmp_path: Path) -> None:
    """What was evaluated is what is saved, loaded and evaluated at the end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import Trainer, TrainingArguments

        from hatam.integrations.transformers import SaveStraightened

        rng = torch.Generator().manual_seed(0)
        data = [{"x": torch.randn(8, generator=rng), "labels": torch.randn(1, generator=rng)} for _ in range(64)]
        torch.manual_seed(1)
        arguments = TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=4,
            max_steps=30,
            lr_scheduler_type="linear",
            eval_strategy="steps",
            eval_steps=5,
            save_steps=5,
            load_best_model_at_end=True,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            logging_strategy="no",
        )
        kinds = (HATAM, {"lr": 0.05, "gamma": 2.0, "horizon": 100.0, "hidden": True})
        whole: dict[str, Any] = {"optimizer_cls_and_kwargs": kinds, "callbacks": [SaveStraightened()]}
        trainer = Trainer(Net(), arguments, train_dataset=data[:32], eval_dataset=data[32:], **whole)
        trainer.train()
        best = trainer.state.best_metric
        assert trainer.evaluate()["eval_loss"] == pytest.approx(best, rel=1e-6)
        assert trainer.predict(data[32:]).metrics["test_loss"] == pytest.approx(best, rel=1e-6)
        before = trainer.state.log_history
        assert len({entry["eval_loss"] for entry in before if "eval_loss" in entry}) > 3


def test_lightning_finds_its_best_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the trainer that trained and in a new one."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning
        from lightning.pytorch.callbacks import ModelCheckpoint

        from hatam.integrations.lightning import EvaluateStraightened

        module = importlib.import_module("lightning_train")

        class Digits(module.Digits):  # type: ignore[name-defined,misc]
            def configure_optimizers(self):
                made = super().configure_optimizers()
                made["optimizer"].param_groups[0].update(gamma=3.0, horizon=100.0)
                return made

            def validation_step(self, batch, index):
                self.log("loss", nn.functional.cross_entropy(self.model(batch[0]), batch[1]))

            test_step = validation_step

        lightning.seed_everything(0, verbose=False)
        rng = torch.Generator().manual_seed(0)
        x = torch.randn(160, 64, generator=rng)
        data = torch.utils.data.TensorDataset(x, x[:, :10].argmax(1))
        train, validation = (torch.utils.data.Subset(data, part) for part in (range(96), range(96, 160)))
        loaders = [torch.utils.data.DataLoader(each, batch_size=32) for each in (train, validation)]
        quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        kept = ModelCheckpoint(tmp_path, monitor="loss")
        trainer = lightning.Trainer(max_epochs=6, accelerator="cpu", callbacks=[EvaluateStraightened(), kept], **quiet)
        model = Digits()
        trainer.fit(model, *loaders)
        best = float(kept.best_model_score)
        for one in (trainer, lightning.Trainer(accelerator="cpu", **quiet)):
            for look in (one.validate, one.test):
                found = look(model, loaders[1], ckpt_path=kept.best_model_path, verbose=False)[0]["loss"]
                assert found == pytest.approx(best, rel=1e-5)


@pytest.mark.compatible("PyTorch Lightning", "refuses to clip where fused=True unscales by itself")
def test_lightning_does_not_clip_where_the_step_unscales() -> None:
    """What Lightning asks: by default it may clip."""
    params = [torch.zeros(3, requires_grad=True)]
    assert HATAM(params)._step_supports_amp_scaling is False
    assert HATAM(params, fused=True)._step_supports_amp_scaling is True


@pytest.mark.compatible("PyTorch Lightning", "fit, checkpoint, resume: bit for bit, BatchNorm's statistics at z")
def test_lightning_resumes(tmp_path: Path) -> None:
    """4 epochs are 2 epochs, its checkpoint, and 2 more with everything made anew. What is saved is z."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning
        from lightning.pytorch.callbacks import ModelCheckpoint

        from hatam import update_bn
        from hatam.integrations.lightning import EvaluateStraightened

        rng = torch.Generator().manual_seed(0)
        x = torch.randn(96, 8, generator=rng)
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x[:, :3].argmax(1)), batch_size=32)

        class Module(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))

            def forward(self, x: Tensor) -> Tensor:
                return self.model(x)

            def configure_optimizers(self):
                optimizer = HATAM(self.named_parameters(), lr=0.05, gamma=1.0, travel=0.0, horizon=20.0)
                schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 14)
                return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

            def training_step(self, batch, index):
                return nn.functional.cross_entropy(self(batch[0]), batch[1])

            def validation_step(self, batch, index):
                self.log("loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

        ends, quiet = [], {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        for resume in (None, str(tmp_path / "epoch=1-step=6.ckpt")):
            lightning.seed_everything(1, verbose=False)
            module = Module()
            callbacks = [EvaluateStraightened(bn_loader=loader), ModelCheckpoint(tmp_path, save_top_k=-1)]
            made: dict[str, Any] = {"max_epochs": 4, "accelerator": "cpu", "callbacks": callbacks, **quiet}
            trainer = lightning.Trainer(**made)
            trainer.fit(module, loader, loader, ckpt_path=resume)
            ends.append([bits(x) for x in module.state_dict().values()] + state_bits(trainer.optimizers[0]))
        assert ends[0] == ends[1]

        saved = torch.load(tmp_path / "epoch=1-step=6.ckpt", weights_only=True)
        module = Module()
        module.load_state_dict(saved["state_dict"])
        optimizer = module.configure_optimizers()["optimizer"]
        optimizer.load_state_dict(saved["optimizer_states"][0])
        assert optimizer.state[module.model[0].weight]["reach"] > 0
        z = [bits(p) for p in module.parameters()]
        statistics = [bits(b) for b in module.buffers()]
        with optimizer.straightened():
            assert [bits(p) for p in module.parameters()] == z
        module.model[1].reset_running_stats()
        update_bn(loader, module, optimizer)
        assert [bits(b) for b in module.buffers()] == statistics
        optimizer.train()
        assert [bits(p) for p in module.parameters()] != z


def test_hf_trainer_gathers_the_statistics_of_batch_norm(tmp_path: Path) -> None:
    """What it saves are z and the statistics there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from safetensors.torch import load_model
        from transformers import Trainer, TrainingArguments

        from hatam.integrations.transformers import SaveStraightened

        class Normed(Net):
            def __init__(self) -> None:
                super().__init__()
                self.norm = nn.BatchNorm1d(8)

            def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
                outputs = self.layer(self.norm(x))
                return (
                    {"loss": nn.functional.mse_loss(outputs, labels), "logits": outputs} if labels is not None else {}
                )

        rng = torch.Generator().manual_seed(0)
        data = [{"x": torch.randn(8, generator=rng), "labels": torch.randn(1, generator=rng)} for _ in range(64)]
        inputs = torch.stack([one["x"] for one in data]).split(16)
        model = Normed()
        quiet: dict[str, Any] = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "logging_strategy": "no"}
        arguments = TrainingArguments(
            str(tmp_path), per_device_train_batch_size=4, max_steps=20, save_steps=10, **quiet
        )
        kinds = (HATAM, {"lr": 0.05, "gamma": 2.0, "travel": 0.0, "horizon": 100.0, "hidden": True})
        callbacks = [SaveStraightened(bn_loader=list(inputs))]
        trainer = Trainer(model, arguments, train_dataset=data, optimizer_cls_and_kwargs=kinds, callbacks=callbacks)
        trainer.train()
        saved = Normed()
        load_model(saved, tmp_path / "checkpoint-10/model.safetensors")
        statistics = [bits(b) for b in saved.norm.buffers()]
        torch.optim.swa_utils.update_bn(list(inputs), saved)
        assert [bits(b) for b in saved.norm.buffers()] == statistics
