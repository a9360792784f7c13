"""What a user gets for bad input, through the real command line: rejected rows with their place, or a message.

A message says what, where, why and how to fix it, exits with its documented code, and shows a traceback only with
`--debug`. Whatever comes in, rows read = pool + rejected + duplicates.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from engine.cli import run_cli
from tests.conftest import ROOT, write_jsonl
from tests.runs import outputs, settings

LOCAL = ["--local", "--json"]


def chat(*messages: tuple[Any, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in messages]}


def good(number: int) -> dict[str, Any]:
    return chat(("user", f"question {number}"), ("assistant", f"answer {number}"))


def alpaca(number: int) -> dict[str, Any]:
    return {"instruction": f"alpaca {number}", "input": "in", "output": f"out {number}"}


def sharegpt(number: int) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": f"share {number}"}, {"from": "gpt", "value": f"gpt {number}"}]}


def command(*arguments: str, prefix: tuple[str, ...] = (), cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The real command in a process of its own."""
    line = [*prefix, sys.executable, "-m", "engine", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(line, env=environment, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def rejected(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]


def check_accounts(summary: dict[str, Any], out: Path) -> None:
    refused = sum(summary["rejected"].values())
    assert summary["rows_read"] == summary["pool"] + refused + summary["duplicates"]
    assert len(rejected(out)) == refused
    assert pq.read_table(out / "scores").num_rows == summary["pool"]
    assert pq.read_table(out / "data").num_rows == summary["selected"]


def select(capsys: pytest.CaptureFixture[str], out: Path, *arguments: str) -> dict[str, Any]:
    """A run of the recipe random that succeeds; its summary, checked against the files."""
    assert run_cli(["run", "random", *arguments, f"out={out}", *LOCAL]) == 0, capsys.readouterr().err
    summary = json.loads(capsys.readouterr().out)
    check_accounts(summary, out)
    return summary


# ------------------------------------------------------------------------------------------------- bad rows

BAD_LINES: list[tuple[bytes, str]] = [
    (b'{"messages": [', "bad_json"),
    (b'{"messages": NaN}', "bad_json"),
    (b"[1, 2]", "wrong_type"),
    (b'"text"', "wrong_type"),
    (b"null", "wrong_type"),
    (json.dumps({"messages": "hello"}).encode(), "wrong_type"),
    (json.dumps(chat(("user", 5), ("assistant", "x"))).encode(), "wrong_type"),
    (json.dumps(chat(("user", "q"), ("assistant", " \n"))).encode(), "empty_response"),
    (json.dumps(chat(("user", "q"), ("assistant", ""))).encode(), "empty_response"),
    (json.dumps(chat(("user", "\ud800"), ("assistant", "x"))).encode(), "lone_surrogate"),
    (json.dumps(chat(("user", "a\x00b"), ("assistant", "x"))).encode(), "nul_byte"),
    (b'{"messages": [{"role": "user", "content": "\x00"}]}', "nul_byte"),
    (b"\xff\xfe is not UTF-8", "bad_utf8"),
    (json.dumps(chat(("assistant", "a"), ("user", "q"))).encode(), "no_response"),
    (json.dumps(chat(("user", "q"), ("user", "q"), ("assistant", "a"))).encode(), "wrong_role_order"),
    (json.dumps(chat(("user", "q"), ("system", "s"), ("assistant", "a"))).encode(), "wrong_role_order"),
    (json.dumps({"messages": []}).encode(), "no_response"),
    (json.dumps(alpaca(1)).encode(), "missing_column"),
    (json.dumps(sharegpt(1)).encode(), "missing_column"),
    (b"[" * 5000 + b"]" * 5000, "too_deep"),
]


def write_bad_lines(path: Path, usable: list[bytes]) -> Path:
    """The bad lines first, then as many good ones as keep the format clear, a blank line and a duplicate."""
    lines = [*(line for line, _ in BAD_LINES), *usable, b"", usable[0]]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def test_bad_rows_are_named_by_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    usable = [json.dumps(good(number)).encode() for number in range(30)]
    pool, out = write_bad_lines(tmp_path / "pool.jsonl", usable), tmp_path / "out"
    summary = select(capsys, out, str(pool), "budget=10")
    found = [(row["file"], row["line"], row["reason"]) for row in rejected(out)]
    assert found == [(str(pool), line, reason) for line, (_, reason) in enumerate(BAD_LINES, 1)]
    assert all(row["detail"] and len(row["snippet"]) <= 200 for row in rejected(out))
    assert (summary["pool"], summary["duplicates"], summary["selected"]) == (30, 1, 10)


def test_the_method_runs_on_what_is_left(small_pool: Path, tmp_path: Path) -> None:
    usable = [line for line in small_pool.read_bytes().splitlines() if b"messages" in line]
    pool, out = write_bad_lines(tmp_path / "pool.jsonl", usable), tmp_path / "out"
    model = f"encoder.model={small_pool.parent / 'encoder'}"
    done = command("run", "iterselect", *settings(pool, out, model, "budget=20", "recipe.max_rounds=2"), *LOCAL)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    check_accounts(summary, out)
    assert summary["selected"] == 20 and sum(summary["rejected"].values()) >= len(BAD_LINES)


@pytest.mark.parametrize("rows", [2, 3, 7])
def test_pools_of_a_few_rows(small_pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: int) -> None:
    pool = write_jsonl(tmp_path / "pool.jsonl", [good(number) for number in range(rows)])
    model, out = f"encoder.model={small_pool.parent / 'encoder'}", tmp_path / "out"
    assert run_cli(["run", "iterselect", *settings(pool, out, model, "budget=0.5"), *LOCAL]) == 0
    summary = json.loads(capsys.readouterr().out)
    check_accounts(summary, out)
    assert summary["selected"] == round(rows / 2)


def test_a_row_of_50_mb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.dumps(good(number)).encode() for number in range(3)]
    for name, start, comma, end in (("lines.jsonl", b"", b"\n", b"\n"), ("list.json", b"[", b",\n", b"]")):
        with open(tmp_path / name, "wb") as file:
            file.write(start + rows[0] + comma + b'{"messages": [{"role": "user", "content": "')
            for _ in range(50):
                file.write(b"x" * 2**20)
            file.write(b'"}]}' + comma + comma.join(rows[1:]) + end)
        summary = select(capsys, tmp_path / f"out-{name}", str(tmp_path / name), "budget=2")
        assert summary["rejected"] == {"too_large": 1} and summary["pool"] == 3
        (row,) = rejected(tmp_path / f"out-{name}")
        assert row["line"] == 2 and "a row may have 10,485,760" in row["detail"] and len(row["snippet"]) <= 200


def test_an_archive_that_breaks_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = "".join(json.dumps(good(number)) + "\n" for number in range(3000)).encode()
    packed = gzip.compress(plain)
    (tmp_path / "pool.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    summary = select(capsys, tmp_path / "out", str(tmp_path / "pool.jsonl.gz"), "budget=5")
    assert 0 < summary["pool"] < 3000 and rejected(tmp_path / "out")[-1]["reason"] == "truncated_file"


def test_mixed_files_are_written_as_messages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(tmp_path / "a.jsonl", [alpaca(1), {"instruction": "no output"}])
    write_jsonl(tmp_path / "b.jsonl", [sharegpt(1), {"conversations": [{"from": "gpt", "value": "odd order"}]}])
    write_jsonl(tmp_path / "c.jsonl", [good(1), alpaca(2)])
    (tmp_path / "d.jsonl").write_bytes(b"")
    out = tmp_path / "out"
    summary = select(capsys, out, *(str(tmp_path / f"{name}.jsonl") for name in "abcd"), "budget=3")
    assert summary["rows_read"] == 6 and summary["pool"] == summary["selected"] == 3
    assert [(Path(row["file"]).name, row["line"]) for row in rejected(out)] == [
        ("a.jsonl", 2),
        ("b.jsonl", 2),
        ("c.jsonl", 2),
    ]
    assert pq.read_table(out / "data").to_pylist() == [
        chat(("user", "alpaca 1\nin"), ("assistant", "out 1")),
        chat(("user", "share 1"), ("assistant", "gpt 1")),
        good(1),
    ]


# ------------------------------------------------------------------------------------------------- bad files


def make_input(folder: Path, name: str) -> str:
    """Makes one of the inputs of the next test; returns what the user types."""
    path = folder / name
    if name.startswith("empty"):
        path.write_bytes(b"\n" if name.endswith("0.jsonl") else b"")
    elif name == "text.jsonl":
        write_jsonl(path, [{"text": "plain"}])
    elif name == "pairs.jsonl":
        write_jsonl(path, [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    elif name == "unusable.jsonl":
        write_jsonl(path, [chat(("user", "q")), chat(("user", "q"), ("assistant", ""))])
    elif name == "notes.txt":
        path.write_text("text")
    elif name == "folder":
        path.mkdir()
        (path / "notes.txt").write_text("text")
    elif name == "nottext":
        path.mkdir()
        Path(os.fsdecode(os.fsencode(path) + b"/\xff.jsonl")).write_bytes(b"{}\n")
    return str(path)


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("missing.jsonl", "E401", "check the spelling"),
        ("no-*.jsonl", "E40", "no-*.jsonl"),
        ("folder", "E403", "expected .json"),
        ("notes.txt", "E404", "rename or convert"),
        ("text.jsonl", "E405", "columns: text"),
        ("pairs.jsonl", "E405", "preference pairs"),
        ("empty.jsonl", "E406", "every file is empty"),
        ("empty0.jsonl", "E406", "every file is empty"),
        ("unusable.jsonl", "E407", "none of 2 rows"),
        ("nottext", "E408", "rename the file"),
    ],
)
def test_input_that_cannot_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, code: str, words: str
) -> None:
    line = ["run", "random", make_input(tmp_path, name), f"out={tmp_path / 'out'}", "--local"]
    assert run_cli(line) == 4
    printed, told = capsys.readouterr()
    assert printed == "" and f"error {code}" in told and words in told and "fix:" in told
    assert name in told and "Traceback" not in told
    assert run_cli([*line, "--debug"]) == 4
    assert "Traceback" in capsys.readouterr().err


def test_a_missing_file_leaves_no_run_folder(tmp_path: Path) -> None:
    assert run_cli(["run", "random", str(tmp_path / "missing.jsonl"), f"out={tmp_path / 'out'}", "--local"]) == 4
    assert not (tmp_path / "out").exists()


def test_a_failed_run_says_so_and_can_be_mended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool, out = tmp_path / "pool.jsonl", tmp_path / "out"
    pool.write_bytes(b"")
    assert run_cli(["run", "random", str(pool), f"out={out}", "--local"]) == 4
    status = json.loads((out / "status.json").read_text())
    assert status["state"] == "failed" and status["exit_code"] == 4 and "E406" in status["reason"]
    write_jsonl(pool, [good(1), good(2)])
    capsys.readouterr()
    assert select(capsys, out, str(pool), "budget=0.5")["selected"] == 1


def as_plain_user() -> tuple[str, ...]:
    """A prefix under which root may no longer read or write what the file's permissions forbid."""
    if os.geteuid() != 0:
        return ()
    if shutil.which("setpriv") is None:
        pytest.skip("root reads and writes everything")
    return ("setpriv", "--bounding-set=-dac_override,-dac_read_search")


def test_an_unreadable_file(tmp_path: Path) -> None:
    pool = write_jsonl(tmp_path / "pool.jsonl", [good(1)])
    pool.chmod(0)
    done = command("run", "random", str(pool), f"out={tmp_path / 'out'}", "--local", prefix=as_plain_user())
    assert done.returncode == 4 and "E402" in done.stderr and "permissions" in done.stderr
    assert "Traceback" not in done.stderr


# ------------------------------------------------------------------------------------------------- bad run folders


def test_a_read_only_run_folder(tmp_path: Path) -> None:
    pool = write_jsonl(tmp_path / "pool.jsonl", [good(1)])
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    for out in (locked, locked / "new"):
        done = command("run", "random", str(pool), f"out={out}", "--local", prefix=as_plain_user())
        assert done.returncode == 3 and "E310" in done.stderr and "choose another" in done.stderr
        assert "Traceback" not in done.stderr
    assert list(locked.iterdir()) == []


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("flags", [[], ["--fresh"]])
def test_somebody_elses_folder_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    """A project with a config.yaml and a data folder looks like a run, and is none."""
    project = tmp_path / "project"
    (project / "data").mkdir(parents=True)
    (project / "config.yaml").write_text("recipe: random\n")
    write_jsonl(project / "data" / "precious.jsonl", [good(1)])
    pool = write_jsonl(tmp_path / "pool.jsonl", [good(1)])
    before = tree(tmp_path)
    for out, code in (
        (project, "E240"),
        (project / "data", "E240"),
        (pool, "E240"),
        (project / "data" / "precious.jsonl", "E240"),
    ):
        assert run_cli(["run", "random", str(pool), f"out={out}", "--local", *flags]) == 2
        assert f"error {code}" in capsys.readouterr().err
    assert tree(tmp_path) == before


def test_a_run_folder_among_the_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(tmp_path / "pool.jsonl", [good(1), good(2)])
    assert run_cli(["run", "random", str(tmp_path), f"out={tmp_path / 'out'}", "--local"]) == 2
    assert "E242" in capsys.readouterr().err and not (tmp_path / "out").exists()
    select(capsys, tmp_path / "out", str(tmp_path / "pool.jsonl"), "budget=0.5")
    assert run_cli(["run", "random", str(tmp_path / "out" / "data"), f"out={tmp_path / 'out'}", "--local"]) == 2
    assert "E242" in capsys.readouterr().err


def test_the_first_moment_of_a_killed_run_is_no_obstacle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = write_jsonl(tmp_path / "pool.jsonl", [good(1), good(2)])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".status.json.0123456789ab.tmp").write_bytes(b"{")
    select(capsys, tmp_path / "out", str(pool), "budget=0.5")


@pytest.mark.parametrize("room_kib", [0, 24, 300])
def test_a_full_disk(small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], room_kib: int) -> None:
    """It stops with a message at any moment, and with space again the same command ends with the same bytes."""
    text = "".join(chr(33 + (7919 * i * i + i // 3) % 90) for i in range(3000))
    rows = [{**good(n), "note": "".join(text[(n * k) % 2999] for k in range(1, 1500))} for n in range(400)]
    pool, out = write_jsonl(tmp_path / "pool.jsonl", rows), small_disk / "run"
    line = [str(pool), "budget=200", "data.part_rows=40"]
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * (1024 - 4 - room_kib) * 1024)
    assert run_cli(["run", "random", *line, f"out={out}", "--local"]) == 3
    told = capsys.readouterr().err
    assert "error E310" in told and "No space left on device" in told and "free space" in told
    assert "Traceback" not in told
    if (out / "status.json").exists():
        status = json.loads((out / "status.json").read_text())
        assert status["state"] in ("running", "failed") and status["exit_code"] in (None, 3)
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    select(capsys, out, *line)
    select(capsys, tmp_path / "undisturbed", *line)
    assert outputs(out) == outputs(tmp_path / "undisturbed")


# ------------------------------------------------------------------------------------------------- bad commands


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "random", "POOL", "budget=0"], "budget: must be greater than 0"),
        (["run", "random", "POOL", "budget=-3"], "budget: must be greater than 0"),
        (["run", "random", "POOL", "budget=2.5"], "must be whole"),
        (["run", "random", "POOL", "budget=many"], "budget"),
        (["run", "random", "POOL", "budgt=3"], "did you mean 'budget'?"),
        (["run", "random"], "data"),
        (["run", "randm", "POOL"], "did you mean 'random'?"),
        (["run", "missing.yaml"], "missing.yaml"),
        (["run", "random", "POOL", "--locl"], "--local"),
        (["run"], "target"),
        (["rnu"], "Did you mean 'run'?"),
        (["init", "randm"], "did you mean 'random'?"),
        (["schema", "randm"], "did you mean 'random'?"),
        (["inspect", "POOL", "--column", "prompt"], "--column prompt=question"),
        (["inspect", "POOL", "--column", "propmt=question"], "unknown key 'propmt'"),
        (["inspect", "POOL", "--format", "alpca"], "unknown input format 'alpca'"),
    ],
)
def test_a_wrong_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    pool = write_jsonl(tmp_path / "pool.jsonl", [good(1), good(2)])
    line = [str(pool) if item == "POOL" else item for item in arguments]
    line += ["--local", f"out={tmp_path / 'out'}"] if "POOL" in arguments and line[0] == "run" else []
    assert run_cli(line) == 2
    printed, told = capsys.readouterr()
    assert printed == "" and words in told and "Traceback" not in told
    assert not (tmp_path / "out").exists()


def test_wrong_keys_in_a_file_are_all_named_with_their_place(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "pool.jsonl", [good(1)])
    text = "recipe: random\ndata: pool.jsonl\nencoder:\n  modle: x\nbudgget: 3\n"
    (tmp_path / "run.yaml").write_text(text)
    done = command("run", "run.yaml", "--local", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert "run.yaml:4:3: encoder.modle: unknown key; did you mean 'model'?" in done.stderr
    assert "run.yaml:5:1: budgget: unknown key; did you mean 'budget'?" in done.stderr
    assert "Traceback" in command("run", "run.yaml", "--local", "--debug", cwd=tmp_path).stderr


def test_a_budget_above_the_pool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = write_jsonl(tmp_path / "pool.jsonl", [good(1), good(2)])
    assert run_cli(["run", "random", str(pool), f"out={tmp_path / 'out'}", "budget=3", "--local"]) == 2
    told = capsys.readouterr().err
    assert "budget" in told and "2 rows" in told
