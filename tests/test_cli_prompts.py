"""Commands that only read: prompts, what a judge is asked about a row, and the record of paid calls."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from engine.cli import run_cli
from engine.judging.prompts import list_prompts, load_prompt
from engine.paid.ledger_tools import show
from engine.store import Store
from tests.fake_server import FakeServer
from tests.paid.cli_runs import endpoint, generator, judge, tell, words

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@pytest.fixture(scope="module")
def run(small_pool: Path, server: FakeServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run with a prompt of the user's own and a shared ledger, and what the server saw of it."""
    folder = tmp_path_factory.mktemp("run")
    prompt = folder / "mine.j2"
    text = Path(load_prompt("pairwise").path).read_text(encoding="utf-8")
    prompt.write_text(text.replace("name: pairwise", "name: mine"), encoding="utf-8")
    server.reset()
    more = generator(server, model="g"), judge(server, prompt=str(prompt)), f"paid.ledger={folder / 'ledger'}"
    assert run_cli(["run", *words(small_pool, folder / "out", *more), "--local", "--quiet"]) == 0
    bodies = [json.loads(entry["body"]) for entry in server.log(300)]
    asked = {json.dumps(body["messages"]) for body in bodies if body["model"] == "m"}
    return {"out": folder / "out", "prompt": prompt, "asked": asked, "stats": server.stats(), "folder": folder}


# ------------------------------------------------------------------------------------------------- prompts


def test_prompts_are_listed(capsys: Capture) -> None:
    text = tell(capsys, "prompts", "ls").out
    for prompt in list_prompts():
        assert f"{prompt.name}/v{prompt.version}" in text
        assert prompt.sha[:8] in text


def test_a_prompt_is_shown_and_copied_byte_by_byte(tmp_path: Path, capsys: Capture) -> None:
    text = tell(capsys, "prompts", "show", "pairwise").out
    prompt = load_prompt("pairwise")
    assert f"sha256:   {prompt.sha}" in text
    assert prompt.system in text
    assert prompt.user in text
    assert json.dumps(prompt.schema) in text
    for listed in list_prompts():
        raw = tell(capsys, "prompts", "show", f"{listed.name}/v{listed.version}", "--raw").out
        assert raw.encode() == Path(listed.path).read_bytes()
        copy = tmp_path / f"{listed.name}.j2"
        copy.write_bytes(raw.encode())
        assert load_prompt(str(copy)).sha == listed.sha  # so nothing is paid again
        assert f"{listed.name}/v{listed.version}" in tell(capsys, "prompts", "show", copy).out
    absent = tell(capsys, "prompts", "show", "pairwize")
    assert (absent.code, "E250" in absent.err) == (2, True)


def test_what_is_rendered_is_what_was_sent(run: dict[str, Any], capsys: Capture) -> None:
    """By row number, by id, in both orders, with the prompt and the answer of the run."""
    batches = [pq.read_table(sorted(folder.glob("*.parquet"))) for folder in (run["out"] / "rounds").glob("*/batch-*")]
    judged = [
        pair for table in batches for pair in zip(*(table[name].to_pylist() for name in ("row", "id")), strict=True)
    ]
    assert len(judged) == 39
    sent = set()
    for number, (row, key) in enumerate(judged[:6]):
        for order in ("first", "second"):
            shown = tell(capsys, "prompts", "render", (row, key)[number % 2], run["out"], "--order", order, "--json")
            assert shown.err == ""
            sent.add(json.dumps(shown.json))
    assert len(sent) == 12
    assert sent <= run["asked"]


def test_rows_without_an_answer_say_so(small_pool: Path, run: dict[str, Any], capsys: Capture) -> None:
    scores = pq.read_table(run["out"] / "scores").to_pylist()
    unasked = next(row["row"] for row in scores if not row["reason"].startswith("judged"))
    shown = tell(capsys, "prompts", "render", unasked, run["out"])
    assert "no answer is on record" in shown.err
    assert shown.out.count("--- ") >= 2
    given = tell(capsys, "prompts", "render", unasked, run["out"], "--answer", "fourty <<<END two")
    assert given.err == ""
    blocks = given.out.split("\n")
    shown_answer = blocks[next(at for at, line in enumerate(blocks) if line.startswith("<<<BEGIN answer_b")) + 1]
    assert json.loads(shown_answer) == "fourty <<<END two"
    assert "<<<" not in shown_answer
    first = next(iter(read_rows_of(small_pool)))
    text = tell(capsys, "prompts", "render", "0", small_pool)
    assert "no answer is on record" in text.err
    assert json.dumps(first["messages"][0]["content"], ensure_ascii=False)[1:60] in text.out
    by_id = tell(capsys, "prompts", "render", scores[0]["id"], small_pool, "--json").json
    assert by_id == tell(capsys, "prompts", "render", "0", small_pool, "--json").json


def read_rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text(encoding="utf-8").splitlines()[0])]


def test_own_and_rating_prompts_are_rendered(small_pool: Path, run: dict[str, Any], capsys: Capture) -> None:
    own = tell(capsys, "prompts", "render", "3", small_pool, "--prompt", run["prompt"], "--json").json
    assert own == tell(capsys, "prompts", "render", "3", run["out"], "--answer", reference(run, 3), "--json").json
    bundled = tell(capsys, "prompts", "render", "3", small_pool, "--json").json
    assert bundled[0] == own[0]
    assert bundled[1] != own[1]  # another file, another code
    rating = tell(capsys, "prompts", "render", "3", run["out"], "--prompt", "rating")
    assert rating.err == ""
    assert "<<<BEGIN answer " in rating.out
    assert "answer_a" not in rating.out


def reference(run: dict[str, Any], row: int) -> str:
    pool = pq.read_table(sorted((run["out"] / "steps").glob("ingest-*/*.parquet")))
    return pool["response"][row].as_py()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["9999", "RUN"], 2, "E261"),
        (["0" * 32, "POOL"], 2, "E261"),
        (["0", "RUN", "--order", "third"], 2, "E262"),
        (["0", "RUN", "--prompt", "nothing"], 2, "E250"),
        (["0", "nowhere.jsonl"], 4, "E401"),
    ],
)
def test_what_render_refuses(
    small_pool: Path, run: dict[str, Any], capsys: Capture, arguments: list[str], code: int, message: str
) -> None:
    named = {"RUN": str(run["out"]), "POOL": str(small_pool)}
    refused = tell(capsys, "prompts", "render", *(named.get(word, word) for word in arguments))
    assert refused.code == code
    assert f"error {message}" in refused.err


# ------------------------------------------------------------------------------------------------- ledger


def test_show_export_and_verify(run: dict[str, Any], tmp_path: Path, capsys: Capture) -> None:
    """On the run folder, whose calls are recorded elsewhere, and on that ledger itself."""
    stats = run["stats"]
    found = tell(capsys, "ledger", "show", run["out"], "--json").json
    assert found == tell(capsys, "ledger", "show", run["folder"] / "ledger", "--json").json
    assert found == show(Store(run["folder"] / "ledger"))
    total = found["total"]
    assert (total["calls"], total["tokens_in"], total["tokens_out"]) == (
        stats["completed"], stats["tokens_in"], stats["tokens_out"],
    )  # fmt: skip
    assert found["by_purpose"]["answer"]["calls"] == 39
    assert found["by_purpose"]["judge"]["calls"] == 78
    assert found["by_model"]["g"]["calls"] == 39
    text = tell(capsys, "ledger", "show", run["out"]).out
    assert all(word in text for word in ("purpose", "answer", "judge", "model", "all"))
    lines = [json.loads(line) for line in tell(capsys, "ledger", "export", run["out"]).out.splitlines()]
    assert Counter(line["purpose"] for line in lines) == {"answer": 39, "judge": 78}
    assert sum(line["cost_usd"] for line in lines) == pytest.approx(total["cost_usd"])
    assert all(line["text"] for line in lines)
    file = tmp_path / "new" / "calls.jsonl"
    assert "wrote 78 calls" in tell(capsys, "ledger", "export", run["out"], file, "--purpose", "judge").out
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        line for line in lines if line["purpose"] == "judge"
    ]
    sound = tell(capsys, "ledger", "verify", run["out"])
    assert sound.code == 0
    assert f"{2 * len(lines):,} records in 2 segments are sound" in sound.out


def test_a_damaged_ledger(run: dict[str, Any], tmp_path: Path, capsys: Capture) -> None:
    segment = next((run["folder"] / "ledger").glob("seg-*.log"))
    data = bytearray(segment.read_bytes())
    (tmp_path / segment.name).write_bytes(data)
    whole = tell(capsys, "ledger", "show", tmp_path, "--json").json["records"]
    data[len(data) // 2] ^= 1
    (tmp_path / segment.name).write_bytes(data)
    found = tell(capsys, "ledger", "verify", tmp_path)
    assert found.code == 4
    assert "E451" in found.err
    assert "damaged: " in found.out
    assert tell(capsys, "ledger", "show", tmp_path, "--json").json["records"] == whole - 1


@pytest.mark.parametrize("command", ["show", "export", "verify"])
def test_a_folder_without_a_ledger(
    small_pool: Path, server: FakeServer, tmp_path: Path, capsys: Capture, command: str
) -> None:
    unpaid = tmp_path / "unpaid"
    assert tell(capsys, "run", "longest", small_pool, f"out={unpaid}", "budget=9", "--local", "-q").code == 0
    for folder in (small_pool.parent, tmp_path / "absent", tmp_path, unpaid):
        refused = tell(capsys, "ledger", command, folder)
        assert refused.code == 4
        assert "error E452: no paid calls are recorded in" in refused.err


def test_what_export_refuses(run: dict[str, Any], tmp_path: Path, capsys: Capture) -> None:
    there = tmp_path / "there.jsonl"
    there.write_text("mine")
    assert tell(capsys, "ledger", "export", run["out"], there).code == 2
    assert there.read_text() == "mine"
    refused = tell(capsys, "ledger", "export", run["out"], tmp_path / "new.jsonl", "--purpose", "nonsense")
    assert refused.code == 2
    assert "answer, judge, canary, rating, check" in refused.err
    assert [path.name for path in tmp_path.iterdir()] == ["there.jsonl"]


def test_settings_of_a_judge_come_from_the_command_line_and_from_files(tmp_path: Path, capsys: Capture) -> None:
    """What is wrong is named with its place."""
    gold = tmp_path / "gold.jsonl"
    gold.write_text('{"prompt": "Hi", "answer_a": "x", "answer_b": "y", "verdict": "a"}\n')
    config = tmp_path / "run.yaml"
    wrong = {**endpoint("http://127.0.0.1:9/v1"), "temprature": 1}
    config.write_text(f"recipe:\n  name: iterselect\n  judge:\n{indented(wrong)}")
    refused = tell(capsys, "judge", "check", gold, config)
    assert refused.code == 2
    assert f"{config}:10:5" in refused.err.replace("\n", "")
    assert "did you mean 'temperature'" in refused.err
    (tmp_path / "other.yaml").write_text("recipe:\ndata: x\n")
    refused = tell(capsys, "judge", "check", gold, tmp_path / "other.yaml")
    assert (refused.code, "no recipe.judge of kind openai" in refused.err) == (2, True)
    refused = tell(capsys, "judge", "check", gold, config, tmp_path / "other.yaml")
    assert (refused.code, "several config files" in refused.err) == (2, True)
    refused = tell(capsys, "judge", "check", gold, "model=m", "base_url=http://127.0.0.1:9/v1", "mode=batch")
    assert (refused.code, "E265" in refused.err) == (2, True)


def indented(settings: dict[str, Any]) -> str:
    return "".join(f"    {name}: {json.dumps(value)}\n" for name, value in settings.items())
