"""HATAM in Hugging Face's Trainer: a small GPT-2 over the bytes of Python's own help texts.

Needs, in a clone: pip install . 'transformers[torch]'. Run it with: python examples/hf_trainer.py
"""

import math
import tempfile
from pydoc_data.topics import topics

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from hatam import HATAM
from hatam.integrations.transformers import SaveStraightened

CONTEXT = 64


class Windows(torch.utils.data.Dataset):
    """Pieces of the text; a language model's labels are its inputs."""

    def __init__(self, text: bytes) -> None:
        self.pieces = torch.tensor(list(text))[: len(text) // CONTEXT * CONTEXT].view(-1, CONTEXT)

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.pieces[i], "labels": self.pieces[i]}


def main() -> None:
    text = "\n".join(topics[key] for key in sorted(topics)).encode()
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=256, n_positions=CONTEXT, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            TrainingArguments(
                folder,
                max_steps=60,
                per_device_train_batch_size=8,
                gradient_accumulation_steps=2,
                max_grad_norm=1.0,
                weight_decay=0.1,  # of the groups that Trainer makes; one among the optimizer's own would not count
                lr_scheduler_type="cosine",
                warmup_steps=10,
                eval_strategy="steps",
                eval_steps=30,
                logging_steps=30,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=not torch.cuda.is_available(),
            ),
            train_dataset=Windows(text[:200_000]),
            eval_dataset=Windows(text[200_000:208_000]),
            optimizer_cls_and_kwargs=(HATAM, {"lr": 3e-3}),  # learning_rate would not count
            callbacks=[SaveStraightened()],
        )
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        after = trainer.evaluate()["eval_loss"]
    print(f"bits per byte: {before / math.log(2):.2f} before, {after / math.log(2):.2f} after")


if __name__ == "__main__":
    main()
