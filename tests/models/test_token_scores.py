"""Equal to a plain computation row by row, and the same bits however the rows are cut into batches and parts."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from engine.errors import ConfigError, EnvironmentProblem
from engine.models.contexts import Contexts
from engine.models.lm_head import Head
from engine.models.token_rows import TOKEN_SCORE_COLUMNS
from engine.models.token_scores import TokenScores
from tests.token_models import make_tiny_llama

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

WORDS = ["write", "a", "poem", "about", "the", "sea", "sort", "list", "why", "is", "water", "wet", "?", "\u6d77", "\n"]
SCORES = ("nll_conditioned", "nll_alone")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    """Folder of a random Llama with a chat template and 512 positions."""
    return str(make_tiny_llama(tmp_path_factory.mktemp("tiny"), [" ".join(WORDS)] * 3))


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def pool_table(rows: list[tuple[Any, ...]]) -> pa.Table:
    """A pool's columns from (turn, turn, ..., response), user first; the texts as ingest writes them."""
    out: dict[str, list[str]] = {name: [] for name in TokenScores.columns_in}
    for *before, response in rows:
        turns = [
            {"role": "user" if k % 2 == 0 else "assistant", "content": text}
            for k, text in enumerate([*before, response])
        ]
        prompt = before[0] if len(before) == 1 else "\n".join(f"{t['role']}: {t['content']}" for t in turns[:-1])
        for name, value in zip(out, (json.dumps(turns), "", "", prompt, response), strict=True):
            out[name].append(value)
    return pa.table({name: pa.array(values, pa.large_string()) for name, values in out.items()})


def mixed_rows(n: int, seed: int = 0) -> list[tuple[str, str]]:
    """Prompts and responses of 1 to 100 words."""
    rng = np.random.default_rng(seed)
    return [tuple(" ".join(rng.choice(WORDS, min(rng.geometric(0.05), 100))) for _ in range(2)) for _ in range(n)]


def tokens_of(folder: str, before: str, response: str) -> tuple[list[int], list[int]]:
    """Both texts as one tokenisation, cut where the first token begins in the response; by counting bytes."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(before + response, add_special_tokens=False)["input_ids"]
    starts = np.cumsum([0, *(len(token) for token in tokenizer.convert_ids_to_tokens(ids))])[:-1]
    border = int(np.sum(starts < len(before.encode())))
    return ids[:border], ids[border:]


def naive(folder: str, context: list[int], response: list[int]) -> float:
    """Mean NLL in float64, one row, no padding, from the model's own logits."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    with torch.inference_mode():
        logits_LV = model(torch.tensor([[*context, *response]])).logits[0]
    token_nll = torch.nn.functional.cross_entropy(
        logits_LV[len(context) - 1 : -1], torch.tensor(response), reduction="none"
    )
    return float(token_nll.mean())


def scored(stage: TokenScores, rows: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
    return stage(pool_table(rows)).to_pylist()


def bits(table: pa.Table) -> list[Any]:
    return [table[name].combine_chunks().to_pylist() for name in table.column_names]


ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{}\n\n### Response:"
)
CONTEXTS = {
    "chat": ("<s>[user]\n{}</s>\n[assistant]\n", "<s>[assistant]\n"),
    "alpaca": (f"<s>{ALPACA}", "<s>### Response:"),
    "plain": ("<s>{}\n", "<s>"),
}


@pytest.mark.parametrize("template", CONTEXTS)
def test_equals_a_naive_computation_row_by_row(tiny: str, template: Any) -> None:
    rows = [
        *mixed_rows(12),
        ("", "an empty prompt"),
        ("\u00bfqu\u00e9? \U0001f30a", "\u6d77\u6c34 \U0001f30a\u200d\U0001f9dc e\u0301"),
    ]
    found = scored(TokenScores(tiny, 1024, template, "float32", "cpu"), rows)
    with_prompt, alone = CONTEXTS[template]
    if template == "plain":
        with_prompt = {True: with_prompt, False: "<s>"}
    for (prompt, response), row in zip(rows, found, strict=True):
        text = with_prompt[bool(prompt)] if isinstance(with_prompt, dict) else with_prompt
        before, tokens = tokens_of(tiny, text.format(prompt), response)
        bare, _ = tokens_of(tiny, alone, "")
        assert row["nll_conditioned"] == pytest.approx(naive(tiny, before, tokens), abs=1e-4)
        assert row["nll_alone"] == pytest.approx(naive(tiny, bare, tokens), abs=1e-4)
        counts = row["tokens_prompt"], row["tokens_response"], row["tokens_cut"]
        assert counts == (len(before), len(tokens), 0)
        assert row["error"] is None


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_bits_do_not_depend_on_neighbours_order_split_or_threads(tiny: str, precision: Any, two_threads: None) -> None:
    rows = [*mixed_rows(120), ("sea", "x " * 700), ("sea " * 600, "x")]
    stage = TokenScores(tiny, 400, "chat", precision, "cpu", hidden=True)
    torch.set_num_threads(1)
    expected = stage(pool_table(rows))
    assert expected["error"].null_count == len(rows) - 1
    torch.set_num_threads(2)
    assert bits(stage(pool_table(rows))) == bits(expected)
    order = np.random.default_rng(1).permutation(len(rows))
    assert bits(stage(pool_table([rows[i] for i in order]))) == bits(expected.take(pa.array(order)))
    table = pool_table(rows)
    split = pa.concat_tables([stage(table.slice(start, 17)) for start in range(0, len(rows), 17)])
    assert bits(split) == bits(expected)
    singles = pa.concat_tables([stage(table.slice(k, 1)) for k in range(20)])
    assert bits(singles) == bits(expected.slice(0, 20))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_chunks_and_tiles_of_logits_do_not_matter(tiny: str, monkeypatch: pytest.MonkeyPatch, precision: Any) -> None:
    expected = scored(TokenScores(tiny, 1024, "chat", precision, "cpu"), mixed_rows(10))
    monkeypatch.setattr("engine.models.lm_head.CHUNK_POSITIONS", {"cpu": 7})
    monkeypatch.setattr("engine.models.lm_head.TILE_TOKENS", {"cpu": 33})
    for row, other in zip(
        scored(TokenScores(tiny, 1024, "chat", precision, "cpu"), mixed_rows(10)), expected, strict=True
    ):
        assert [row[name] for name in SCORES] == pytest.approx([other[name] for name in SCORES], abs=1e-5)


@pytest.mark.parametrize("kind", ["plain", "bias", "scale", "cap"])
def test_the_head_in_bfloat16_loses_next_to_nothing(kind: str) -> None:
    """Against float64 on the same rounded weights, with logits as large as GPT-2's (about -100, a few units apart)."""
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(64, 5000, bias=kind == "bias")
    with torch.no_grad():
        layer.weight.copy_(torch.randn(5000, 64, generator=generator) * 0.4 - 1.5)
    layer.bfloat16().requires_grad_(False)
    state_PD = (torch.randn(300, 64, generator=generator) + 1.0).bfloat16()
    special = {"cap": {"final_logit_softcapping": 90.0}, "scale": {"logits_scaling": 2.0}}.get(kind, {})
    config = types.SimpleNamespace(**special)
    network = types.SimpleNamespace(
        get_output_embeddings=lambda: layer, config=types.SimpleNamespace(get_text_config=lambda: config)
    )
    logits_PV = torch.nn.functional.linear(
        state_PD.double(), layer.weight.double(), None if layer.bias is None else layer.bias.double()
    )
    if kind == "scale":
        logits_PV /= 2.0
    if kind == "cap":
        logits_PV = 90.0 * torch.tanh(logits_PV / 90.0)
    assert float(logits_PV.mean()) < -40
    likely_P = logits_PV.argmax(1)
    for targets_P in (likely_P, torch.randint(0, 5000, (300,), generator=generator)):
        expected_P = torch.nn.functional.cross_entropy(logits_PV, targets_P, reduction="none")
        with torch.inference_mode():
            found_P = Head(network, "cpu").nll(state_PD, targets_P).double()
        error_P = found_P - expected_P
        assert float((error_P.abs() - expected_P / 256).max()) < 1e-3
        assert abs(float(error_P.mean())) < 3e-3
        if kind == "plain" and targets_P is likely_P:
            rounded_PV = torch.nn.functional.linear(state_PD, layer.weight).double()
            rounded_P = torch.nn.functional.cross_entropy(rounded_PV, targets_P, reduction="none")
            assert float(error_P.abs().mean()) < float((rounded_P - expected_P).abs().mean()) / 20


def test_several_turns_score_the_last_response_given_everything_before(tiny: str) -> None:
    turns = ("why is water wet ?", "is it ?", "sort the list", "the sea")
    stage = TokenScores(tiny, 1024, "chat", "float32", "cpu")
    (row,) = scored(stage, [turns])
    text = "<s>[user]\nwhy is water wet ?</s>\n[assistant]\nis it ?</s>\n[user]\nsort the list</s>\n[assistant]\n"
    before, response = tokens_of(tiny, text, "the sea")
    assert row["nll_conditioned"] == pytest.approx(naive(tiny, before, response), abs=1e-4)
    assert (row["tokens_prompt"], row["tokens_response"]) == (len(before), len(response))
    (last,) = scored(stage, [turns[-2:]])
    assert row["nll_alone"] == last["nll_alone"]
    assert row["nll_conditioned"] != last["nll_conditioned"]
    (plain,) = scored(TokenScores(tiny, 1024, "plain", "float32", "cpu"), [turns])
    text = "<s>user: why is water wet ?\nassistant: is it ?\nuser: sort the list\n"
    assert plain["tokens_prompt"] == len(tokens_of(tiny, text, "the sea")[0])


def test_a_long_response_is_cut_alike_in_both_passes_and_a_long_prompt_is_an_error(tiny: str) -> None:
    stage = TokenScores(tiny, 60, "plain", "float32", "cpu")
    response = "write a poem about the sea " * 20
    found = scored(stage, [("why ?", response), ("sea " * 59, response), ("sea " * 200, "x"), ("why ?", "wet")])
    before, tokens = tokens_of(tiny, "<s>why ?\n", response)
    kept = tokens[: 60 - len(before)]
    assert found[0]["nll_conditioned"] == pytest.approx(naive(tiny, before, kept), abs=1e-4)
    assert found[0]["nll_alone"] == pytest.approx(naive(tiny, [0], kept), abs=1e-4)
    assert (found[0]["tokens_response"], found[0]["tokens_cut"]) == (len(kept), len(tokens) - len(kept))
    for row in found[1:3]:
        assert "leave no room in 60" in row.pop("error")
        assert set(row.values()) == {None}
    assert found[3]["error"] is None
    assert TokenScores(tiny, 10**6, device="cpu").max_tokens == 512  # the model has no more positions


def test_a_refused_conversation_is_an_error_row(tmp_path: Path) -> None:
    refuses = "{% if messages | length > 1 %}{{ raise_exception('one turn') }}{% endif %}{{ messages[0]['content'] }}"
    folder = make_tiny_llama(tmp_path / "m", WORDS, template=refuses)
    stage = TokenScores(str(folder), device="cpu")
    assert stage.contexts.alone == [0]  # the template opens no turn, so the start token stands in
    found = scored(stage, [("a", "b", "c", "d"), ("a", " b"), ("the se", "a"), ("the se", "a sort")])
    assert found[0]["error"] == "the chat template refuses the row: one turn"
    assert found[1]["error"] is None and found[1]["tokens_prompt"] == 1
    assert found[2]["error"] == "the response has no tokens of its own"  # "sea" is one token
    assert found[3]["error"] is None and found[3]["tokens_response"] == len(tokens_of(str(folder), "", " sort")[1])
    empty = stage(pool_table([]))
    assert empty.num_rows == 0 and empty.schema.names == [field.name for field in TOKEN_SCORE_COLUMNS]
    assert stage(pool_table([("a", "b", "c", "d")])).to_pylist()[0]["nll_alone"] is None


def test_a_model_without_a_chat_template_or_a_start_token(tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path / "m", WORDS, template=None)
    assert scored(TokenScores(str(folder), device="cpu"), [("a", "b")]) == scored(
        TokenScores(str(folder), template="plain", device="cpu"), [("a", "b")]
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.bos_token = None
    assert Contexts(tokenizer, "plain").alone == [1]
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="neither a bos nor an eos token"):
        Contexts(tokenizer, "plain")
    assert Contexts(tokenizer, "alpaca").alone == tokenizer("### Response:")["input_ids"]


def test_hidden_is_the_mean_state_of_the_context(tiny: str) -> None:
    stage = TokenScores(tiny, 1024, "plain", "float32", "cpu", hidden=True)
    table = stage(pool_table([("why is water wet ?", "it is"), ("x " * 2000, "y")]))
    assert table.schema.names[-2:] == ["vector", "error"] and table["vector"].to_pylist()[1] is None
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    model = transformers.AutoModel.from_pretrained(tiny, dtype=torch.float32).eval()
    with torch.inference_mode():
        ids = tokenizer("<s>why is water wet ?\n", add_special_tokens=False, return_tensors="pt")["input_ids"]
        mean_D = model(ids).last_hidden_state[0].mean(0).numpy()
    np.testing.assert_allclose(table["vector"].to_pylist()[0], mean_D / np.linalg.norm(mean_D), atol=1e-3)


def test_bfloat16_is_close_to_float32(tiny: str) -> None:
    full, half = (scored(TokenScores(tiny, 1024, "chat", p, "cpu"), mixed_rows(30)) for p in ("float32", "bfloat16"))
    for a, b in zip(full, half, strict=True):
        assert [a[name] for name in SCORES] == pytest.approx([b[name] for name in SCORES], abs=0.05)


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "granite"])
def test_other_ways_to_make_logits(tiny: str, tmp_path: Path, kind: str) -> None:
    size = {"vocab_size": 400, "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.5}
    if kind == "gpt2":
        config = transformers.GPT2Config(**size, n_embd=32, n_layer=1, n_head=2, n_positions=64)
    else:
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        shape |= {"num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 16, "pad_token_id": 0}
        special = {"final_logit_softcapping": 2.0} if kind == "gemma2" else {"logits_scaling": 3.0}
        config = transformers.AutoConfig.for_model(kind, **size, **shape, **special)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path)
    (row,) = scored(TokenScores(str(tmp_path), 1024, "plain", "float32", "cpu"), [("why ?", "the sea")])
    before, response = tokens_of(tiny, "<s>why ?\n", "the sea")
    assert row["nll_conditioned"] == pytest.approx(naive(str(tmp_path), before, response), abs=1e-4)


def test_what_is_no_causal_model_is_refused(tiny: str, tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    transformers.BertLMHeadModel(config).save_pretrained(tmp_path / "bert")
    transformers.AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path / "bert")
    with pytest.raises(ConfigError, match="E233"):
        TokenScores(str(tmp_path / "bert"), device="cpu")
    with pytest.raises(EnvironmentProblem, match="E320"):
        TokenScores(str(tmp_path))
    with pytest.raises(EnvironmentProblem, match="E321"):
        TokenScores(tiny, weights="0" * 16)
