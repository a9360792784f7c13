"""Gold files of every shape read as the same pairs, and a bad row is named by file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.errors import DataError
from engine.judging.agreement import cohen_kappa, confusion, length_preference, longest
from engine.judging.gold import Pair, read_gold

ROW = {"instruction": "Add.", "input": "1 + 1", "answer_a": "2", "answer_b": "3", "verdict": "a"}
USER = [{"role": "user", "content": "Add.\n1 + 1"}]


def gold_file(folder: Path, *rows: dict[str, Any], name: str = "gold.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    "prompt",
    [
        {"instruction": "Add.", "input": "1 + 1"},
        {"instruction": "Add.\n1 + 1"},
        {"instruction": "Add.\n1 + 1", "input": ""},
        {"prompt": "Add.\n1 + 1"},
        {"prompt": USER},
        {"messages": USER},
        {"messages": USER, "prompt": "not this one"},
    ],
)
def test_the_ways_to_write_a_conversation(tmp_path, prompt):
    (pair,) = read_gold(gold_file(tmp_path, {**prompt, "answer_a": "2", "answer_b": "3", "verdict": "b"}))
    assert pair.conversation == USER
    assert (pair.answer_a, pair.answer_b, pair.gold) == ("2", "3", "B")


def test_several_turns_and_a_system_message(tmp_path):
    turns = [*USER, {"role": "assistant", "content": "2"}, {"role": "user", "content": "And 2 + 2?"}]
    system = {"role": "system", "content": "Be brief."}
    answers = {"answer_a": "4", "answer_b": "", "verdict": "tie"}
    path = gold_file(
        tmp_path, {"messages": [system, *turns], **answers}, {"messages": turns, "system": "Be brief.", **answers}
    )
    first, second = read_gold(path)
    assert first.conversation == second.conversation == [system, *turns]
    assert second.id == f"{first.id}-2"


@pytest.mark.parametrize("names", [("answer_a", "answer_b"), ("reference", "answer"), ("output_1", "output_2")])
def test_the_names_of_the_answers(tmp_path, names):
    (pair,) = read_gold(gold_file(tmp_path, {"prompt": "Hi", names[0]: "x", names[1]: "y", "verdict": "a"}))
    assert (pair.answer_a, pair.answer_b) == ("x", "y")


@pytest.mark.parametrize(
    ("verdict", "gold"),
    [("a", "A"), ("B", "B"), (" Tie ", "tie"), (1, "A"), (2, "B"), (1.0, "A"), (2.0, "B"), (1.5, "tie"), (0, "tie")],
)
def test_the_verdicts(tmp_path, verdict, gold):
    sure = {**ROW, "verdict": 2}  # a file with only 0 and 1 would be refused
    for name in ("verdict", "preference"):
        row = {key: value for key, value in ROW.items() if key != "verdict"} | {name: verdict}
        assert read_gold(gold_file(tmp_path, row, sure))[0].gold == gold


def test_numbers_that_may_mean_something_else(tmp_path):
    rows = [{**ROW, "verdict": number} for number in (0, 1, 1, 0)]
    with pytest.raises(DataError, match="E463"):
        read_gold(gold_file(tmp_path, *rows))
    assert len(read_gold(gold_file(tmp_path, *rows[1:3]))) == 2
    assert len(read_gold(gold_file(tmp_path, *rows, {**ROW, "verdict": 2}))) == 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"verdict": "c"}, "`verdict` is 'c'"),
        ({"verdict": 3}, "`verdict` is 3"),
        ({"verdict": 1.2}, "`verdict` is 1.2"),
        ({"verdict": True}, "`verdict` is True"),
        ({"verdict": None}, "there is no `verdict`"),
        ({"answer_b": None}, "`answer_b` holds null"),
        ({"answer_a": 5}, "`answer_a` holds a number"),
        ({"instruction": None}, "no `messages`, `instruction` or `prompt`"),
        ({"instruction": "", "input": ""}, "empty"),
        ({"messages": [*USER, {"role": "assistant", "content": "2"}]}, "assistant after assistant"),
        ({"messages": [{"role": "robot", "content": "2"}]}, "unknown role"),
        ({"messages": json.dumps(USER)}, "`messages` holds text, not a list"),
        ({"id": True}, "`id` holds true or false"),
        ({"source": 3}, "`source` holds a number"),
    ],
)
def test_a_bad_row_is_named(tmp_path, change, said):
    path = gold_file(tmp_path, ROW, {**ROW, **change}, ROW)
    with pytest.raises(DataError, match="E460") as caught:
        read_gold(path)
    assert caught.value.where == f"{path}:2"
    assert said in caught.value.why
    for field in (
        "messages",
        "instruction",
        "input",
        "prompt",
        "answer_a",
        "output_2",
        "reference",
        "verdict",
        "source",
    ):
        assert f"`{field}`" in caught.value.fix


def test_broken_files(tmp_path):
    (tmp_path / "broken.jsonl").write_text(json.dumps(ROW) + "\n{not json\n")
    with pytest.raises(DataError, match=r"broken.jsonl:2.*(?s:.)*E460"):
        read_gold(str(tmp_path / "broken.jsonl"))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="E461"):
        read_gold(str(tmp_path / "empty.jsonl"))
    with pytest.raises(DataError, match="E401"):
        read_gold(str(tmp_path / "absent.jsonl"))


def test_ids(tmp_path):
    named = read_gold(gold_file(tmp_path, {**ROW, "id": "x"}, {**ROW, "id": 7}, ROW, ROW, {**ROW, "answer_b": "4"}))
    assert [pair.id for pair in named[:2]] == ["x", "7"]
    assert len({pair.id for pair in named}) == 5
    assert read_gold(gold_file(tmp_path, {**ROW, "answer_b": "4"}, ROW))[0].id == named[4].id  # whatever its place
    with pytest.raises(DataError, match="E462") as caught:
        read_gold(gold_file(tmp_path, {**ROW, "id": "x"}, ROW, {**ROW, "id": "x"}))
    assert caught.value.where.endswith("gold.jsonl:3")
    assert caught.value.why.endswith("gold.jsonl:1")


def test_parquet_json_and_compressed_files_read_the_same(tmp_path):
    rows = [{**ROW, "id": "1", "source": "s"}, {**ROW, "id": "2", "source": "t", "verdict": "tie"}]
    expected = read_gold(gold_file(tmp_path, *rows))
    assert expected[0] == Pair("1", USER, "2", "3", "A", "s")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "gold.parquet")
    (tmp_path / "gold.json").write_text(json.dumps(rows, indent=1))
    with gzip.open(tmp_path / "gold.jsonl.gz", "wt") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)
    for name in ("gold.parquet", "gold.json", "gold.jsonl.gz"):
        assert read_gold(str(tmp_path / name)) == expected


@pytest.fixture(scope="module")
def gpt4(real_data, tmp_path_factory) -> dict[str, list[Pair]]:
    """GPT-4's verdicts of AlpacaEval as gold pairs, in AlpacaEval's own columns, by model."""
    verdicts = pd.read_parquet(real_data / "alpaca_eval_gpt4_verdicts_dev.parquet")
    outputs = pd.read_parquet(real_data / "alpaca_eval_outputs_8models.parquet")
    table = verdicts.merge(pd.read_parquet(real_data / "alpaca_eval_805_prompts.parquet"), on="prompt_id")
    for side in ("1", "2"):
        column = outputs.rename(columns={"generator": f"generator_{side}", "output": f"output_{side}"})
        table = table.merge(column, on=["prompt_id", f"generator_{side}"])
    folder = tmp_path_factory.mktemp("gold")
    pairs = {}
    for model, rows in table.groupby("generator_2"):
        rows.to_parquet(folder / f"{model}.parquet")
        pairs[str(model)] = read_gold(str(folder / f"{model}.parquet"))
        rows.to_json(folder / f"{model}.jsonl", orient="records", lines=True, force_ascii=False)
        assert read_gold(str(folder / f"{model}.jsonl")) == pairs[str(model)]
    return pairs


@pytest.mark.parametrize(
    ("model", "counts", "kappa", "decisive_kappa", "longer"),
    [
        ("alpaca-7b", (584, 205, 16), 0.366, 0.336, 0.677),
        ("guanaco-65b", (227, 578, 0), 0.137, 0.135, 0.730),
        ("all", (811, 783, 16), 0.424, 0.411, 0.704),
    ],
)
def test_alpaca_eval(gpt4, model, counts, kappa, decisive_kappa, longer):
    """How far length alone agrees with GPT-4, which a judge has to beat."""
    pairs = gpt4[model] if model in gpt4 else [pair for pairs in gpt4.values() for pair in pairs]
    gold = [pair.gold for pair in pairs]
    assert tuple(gold.count(label) for label in ("A", "B", "tie")) == counts
    chars = [[len(pair.answer_a) for pair in pairs], [len(pair.answer_b) for pair in pairs]]
    table = confusion(gold, [longest(a, b) for a, b in zip(*chars, strict=True)])
    assert cohen_kappa(table)["value"] == pytest.approx(kappa, abs=0.001)
    assert cohen_kappa(table[:2, :2])["value"] == pytest.approx(decisive_kappa, abs=0.001)
    assert length_preference(gold, *chars)["share"] == pytest.approx(longer, abs=0.001)
