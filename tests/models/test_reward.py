"""Rewards equal transformers row by row, have the same bits beside any neighbours, and failures are values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from engine.errors import ConfigError
from engine.models.reward import REWARD_COLUMNS, Rewards
from engine.schema import ANSWER
from tests.reward_models import make_chat_model, make_pair_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

WORDS = ["write", "a", "poem", "about", "the", "sea", "sort", "list", "why", "is", "water", "wet", "?", "\u6d77"]
KINDS = ("bert", "deberta", "chat")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("rewards")
    texts = [" ".join(WORDS), "user assistant :"]
    made = {kind: str(make_pair_model(folder / kind, texts, kind)) for kind in KINDS[:2]}
    return made | {"chat": str(make_chat_model(folder / "chat", texts * 3))}


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def pool_table(rows: list[tuple[str, ...]], system: str = "") -> pa.Table:
    """A pool's columns from (turn, turn, ..., response), user first; the texts as ingest writes them."""
    out: dict[str, list[str]] = {name: [] for name in (*Rewards.columns_in, "response")}
    for *before, response in rows:
        turns = [{"role": ("user", "assistant")[k % 2], "content": t} for k, t in enumerate([*before, response])]
        turns = [{"role": "system", "content": system}, *turns] if system else turns
        prompt = before[0] if len(before) == 1 else "\n".join(f"{t['role']}: {t['content']}" for t in turns[:-1])
        for name, value in zip(out, (json.dumps(turns), "", system, prompt, response), strict=True):
            out[name].append(value)
    return pa.table({name: pa.array(values, pa.large_string()) for name, values in out.items()})


def mixed_rows(n: int, seed: int = 0) -> list[tuple[str, ...]]:
    rng = np.random.default_rng(seed)
    return [tuple(" ".join(rng.choice(WORDS, min(rng.geometric(0.05), 100))) for _ in range(2)) for _ in range(n)]


def naive(folder: str, *texts: Any, conversation: Any = None) -> float:
    """One row, no padding, as a model card does it, in float64."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float64).eval()
    with torch.inference_mode():
        if conversation is not None:
            text = tokenizer.apply_chat_template(conversation, tokenize=False)
            inputs = {"input_ids": tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]}
        else:
            inputs = tokenizer(*texts, return_tensors="pt")
        return float(model(**inputs).logits[0, 0])


def bits(table: pa.Table) -> list[Any]:
    return [table[name].combine_chunks().to_pylist() for name in table.column_names]


@pytest.mark.parametrize("kind", KINDS)
def test_equals_transformers_row_by_row(models: dict[str, str], kind: str) -> None:
    rows = [*mixed_rows(8), ("", "sea"), ("why ?", "water \u6d77")]
    found = Rewards(models[kind], precision="float32", device="cpu")(pool_table(rows)).to_pylist()
    assert len({row["reward"] for row in found}) == len(rows)
    for (prompt, response), row in zip(rows, found, strict=True):
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        pair = (prompt, response) if kind != "chat" else ()
        expected = naive(models[kind], *pair, conversation=turns if kind == "chat" else None)
        assert row["reward"] == pytest.approx(expected, abs=2e-4)
        assert row["error"] is None and row["tokens_cut"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_bits_do_not_depend_on_neighbours_order_split_or_threads(
    models: dict[str, str], kind: str, two_threads: None
) -> None:
    rows = [*mixed_rows(60), ("sea", "a " * 700), ("sea " * 700, "a")]
    stage = Rewards(models[kind], max_tokens=300, precision="float32", device="cpu")
    torch.set_num_threads(1)
    expected = stage(pool_table(rows))
    assert expected["error"].null_count == len(rows) - 1 and expected["tokens_cut"].to_pylist()[-2] > 400
    torch.set_num_threads(2)
    assert bits(stage(pool_table(rows))) == bits(expected)
    order = np.random.default_rng(1).permutation(len(rows))
    assert bits(stage(pool_table([rows[i] for i in order]))) == bits(expected.take(pa.array(order)))
    table = pool_table(rows)
    split = pa.concat_tables([stage(table.slice(start, 17)) for start in range(0, len(rows), 17)])
    assert bits(split) == bits(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_answer_is_cut_at_its_end_and_what_follows_it_stays(models: dict[str, str], kind: str) -> None:
    words = np.random.default_rng(2).choice(WORDS[:-1], 120).tolist()
    stage = Rewards(models[kind], max_tokens=60, precision="float32", device="cpu")
    table = pool_table([("write a poem", " ".join(words))])
    (cut,) = stage(table).to_pylist()
    whole = Rewards(models[kind], precision="float32", device="cpu").tokenize(table)[0]
    short = stage.tokenize(table)[0]
    assert cut["tokens"] == len(short.ids) == 60 and cut["tokens_cut"] == short.cut == len(whole.ids) - 60
    kept = next(k for k in range(60) if short.ids[k:] == whole.ids[k + short.cut :])
    assert short.ids[:kept] == whole.ids[:kept] and 0 < 60 - kept < 8
    if kind != "chat":
        assert cut["reward"] == pytest.approx(
            naive(models[kind], "write a poem", " ".join(words[: 120 - short.cut])), abs=2e-4
        )
    refused = Rewards(models[kind], max_tokens=60, too_long="error", device="cpu")(table).to_pylist()[0]
    assert refused["reward"] is None and refused["error"].endswith("tokens are more than 60")
    lost = stage(pool_table([("poem " * 300, "sea")])).to_pylist()[0]
    assert lost["error"].endswith("nothing of the answer would be left") and lost["tokens"] is None


def test_several_turns_give_the_last_answer_given_everything_before(models: dict[str, str]) -> None:
    turns = ("why is water wet ?", "sea", "a poem", "write the sea")
    table = pool_table([turns], system="sort")
    pair = Rewards(models["bert"], precision="float32", device="cpu")(table).to_pylist()[0]
    assert pair["reward"] == pytest.approx(naive(models["bert"], f"sort\n{table['prompt'][0]}", turns[-1]), abs=2e-4)
    chat = Rewards(models["chat"], precision="float32", device="cpu")(table).to_pylist()[0]
    conversation = json.loads(table["messages"][0].as_py())
    assert chat["reward"] == pytest.approx(naive(models["chat"], conversation=conversation), abs=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_generated_answer_takes_the_place_of_the_response(models: dict[str, str], kind: str) -> None:
    rows = mixed_rows(5)
    answers = ["the sea", "", None, "why ?", "poem"]
    table = pool_table(rows).append_column(ANSWER, pa.array(answers, pa.large_string()))
    stage = Rewards(models[kind], precision="float32", device="cpu", answer=ANSWER)
    found = stage(table).to_pylist()
    assert [row["error"] for row in found] == [None, None, "there is no answer", None, None]
    own = Rewards(models[kind], precision="float32", device="cpu")
    replaced = own(pool_table([(prompt, answer or "") for (prompt, _), answer in zip(rows, answers, strict=True)]))
    for row, other in zip(found, replaced.to_pylist(), strict=True):
        assert row["reward"] == (None if row["error"] else other["reward"])


def test_no_rows_are_no_rows(models: dict[str, str]) -> None:
    found = Rewards(models["bert"], device="cpu")(pool_table([]))
    assert found.num_rows == 0 and found.schema == pa.schema(REWARD_COLUMNS)


def test_models_that_give_no_reward_are_refused(models: dict[str, str], tmp_path: Path) -> None:
    two = make_pair_model(tmp_path / "two", ["a b"], num_labels=2)
    with pytest.raises(ConfigError, match="2 outputs"):
        Rewards(str(two))
    headless = make_pair_model(tmp_path / "headless", ["a b"])
    config = transformers.AutoConfig.from_pretrained(headless)
    transformers.BertModel(config).save_pretrained(headless)
    with pytest.raises(ConfigError, match=r"lack classifier\.bias"):
        Rewards(str(headless))
    with pytest.raises(ConfigError, match="no chat template"):
        Rewards(models["bert"], template="chat")
