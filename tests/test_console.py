"""The terminal: one table or plain lines, hostile text made harmless, a summary that fits, plain errors."""

from __future__ import annotations

import io
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from engine.console import Summary, print_error, print_status, print_summary
from engine.errors import ConfigError, DataError
from engine.live_table import LiveTable
from engine.screen import FEW_ROWS, clean, duration, round_cells, rounds_table

ROOT = Path(__file__).parents[1]
HOSTILE = "\x1b]0;title\x07\x1b[31m[bold red]x[/] :smile: \u202eabc\u2028\ud800[/nope]\rEND"


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def plain_console(width: int = 80) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=False)


def output(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def plain_lines(console: Console) -> list[str]:
    return [line.split(" ", 1)[1] for line in output(console).splitlines()]


def sample() -> Summary:
    steps: list[Any] = [
        {"name": name, "rows": rows, "seconds": seconds, "failed": failed, "reused": reused}
        for name, rows, seconds, failed, reused in [
            ("start", 0, 3.2, 0, False),
            ("ingest", 51868, 4.1, 0, False),
            ("embed", 51868, 0.0, 0, True),
            ("rounds/000/answers", 1000, 60.0, 3, False),
            ("rounds/001/answers", 1000, 40.0, 1, False),
            ("rounds/002/answers", 1000, 0.0, 0, True),
            ("scores", 51868, 2.0, 0, False),
        ]
    ]
    rounds = [
        {"round": n, "judged": 1000, "hard_rate": 0.3, "val_accuracy": None, "val_auc": 0.71, "seconds": 81.0}
        for n in (1, 2, 3)
    ]
    baselines = [
        {"name": "iterselect", "rows": 5187, "overlap": 1.0, "prompt_chars": 132.4, "sources": 3, "clusters": 228},
        {"name": "(pool)", "rows": 51868, "overlap": None, "prompt_chars": 102.4, "sources": 3, "clusters": None},
    ]
    return Summary(
        recipe="iterselect", out="runs/a", rows_read=52002, rejected={"no_response": 12, "role_order": 2},
        duplicates=120, pool=51868, selected=5187, seconds=1893.2, steps=steps, clusters=228, rounds=rounds,
        baselines=baselines, next_commands=[("iterselect status runs/a", "shows this again")],
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------- plain lines


def test_plain_lines_one_per_step_and_one_in_thirty_seconds() -> None:
    console, clock = plain_console(), Clock()
    with LiveTable(console, clock=clock) as view:
        view.step_started("embed", 1000)
        for _ in range(90):
            clock.now_s += 1
            view.advance("embed", 10)
        view.step_done("embed", 1000, 90.0, 2, reused=False)
        view.step_done("score", 1000, 0.0, 0, reused=True)
        view.round_done(
            {"round": 1, "judged": 50, "hard_rate": 0.5, "val_accuracy": 0.75, "val_auc": None, "seconds": 3}
        )
        view.note("two\nlines")
    assert plain_lines(console) == [
        "embed: started, 1,000 rows",
        "embed: 300/1,000 rows (30%), 10 rows/s, ETA 1:10 min",
        "embed: 600/1,000 rows (60%), 10 rows/s, ETA 40 s",
        "embed: 900/1,000 rows (90%), 10 rows/s, ETA 10 s",
        "embed: done, 1,000 rows, 1:30 min, 11 rows/s, 2 failed",
        "score: done, 1,000 rows, reused",
        "round 1, judged 50, hard 50.0%, val rows -, val accuracy 75.0%, val AUC -, time 3.0 s",
        "two lines",
    ]


def test_rows_of_an_earlier_run_do_not_count_as_speed() -> None:
    console, clock = plain_console(), Clock()
    view = LiveTable(console, clock=clock)
    view.step_started("embed", 10_000)
    view.advance("embed", 9000)
    clock.now_s += 50
    view.advance("embed", 500)
    assert plain_lines(console)[-1] == "embed: 9,500/10,000 rows (95%), 10 rows/s, ETA 50 s"


def test_unknown_total_and_a_step_that_was_not_announced() -> None:
    console, clock = plain_console(), Clock()
    view = LiveTable(console, clock=clock)
    view.step_started("ingest", None)
    clock.now_s += 40
    view.advance("ingest", 80)
    view.advance("surprise", 5)
    assert plain_lines(console) == ["ingest: started", "ingest: 80 rows, 2.0 rows/s, ETA -"]


def test_quiet_says_nothing() -> None:
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal)
        with LiveTable(console, quiet=True) as view:
            view.step_started("embed", 10)
            view.step_done("embed", 10, 1.0, 0, reused=False)
            view.note("x")
        assert output(console) == ""


@pytest.mark.parametrize("variable", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_color_and_dumb_terminals_get_plain_lines(variable: dict[str, str]) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, _environ=variable)
    with LiveTable(console) as view:
        view.step_started("embed", 10)
    assert plain_lines(console) == ["embed: started, 10 rows"]


# ---------------------------------------------------------------------------------------------------- live table


def test_live_table_shows_steps_and_rounds() -> None:
    console, clock = Console(file=io.StringIO(), width=100, height=24, force_terminal=True, _environ={}), Clock()
    with LiveTable(console, clock=clock) as view:
        for number in range(30):
            view.step_started(f"rounds/{number:03d}/x", 100)
            view.step_done(f"rounds/{number:03d}/x", 100, 2.0, number % 2, reused=False)
        for number in range(12):
            view.round_done({"round": number, "judged": 10, "hard_rate": 0.25, "val_auc": 0.5})
        view.note("a note")
        view.step_started("embed", 1000)
        clock.now_s += 10
        view.advance("embed", 500)
        frame = plain_console(100)
        frame.print(view._render())
    text = output(frame)
    assert "500 / 1,000" in text
    assert "10 s left" in text
    assert "50% running" in text
    assert "earlier steps" in text
    assert "25.0%" in text
    assert "\n11 " in text
    assert len(text.splitlines()) < 24
    assert "a note" in output(console)
    assert "stopped" in output(console).rsplit("embed", 1)[1]


def test_stdout_stays_clean_when_it_is_piped() -> None:
    script = textwrap.dedent(
        """
        import sys
        from rich.console import Console
        from engine.live_table import LiveTable
        with LiveTable(Console(stderr=True, force_terminal=True)) as view:
            view.step_started("embed", 10)
            print("result")
            view.note("a note")
            view.step_done("embed", 10, 1.0, 0, False)
        """
    )
    env = {"PYTHONPATH": str(ROOT), "TERM": "xterm"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, cwd=ROOT, check=True)
    assert done.stdout == "result\n"
    assert "embed" in done.stderr
    assert "a note" in done.stderr


# ---------------------------------------------------------------------------------------------------- hostile text


def test_clean_keeps_text_and_drops_control() -> None:
    assert clean("a\tb\nc") == "a\tb\nc"
    assert clean("\x1b[31mred\x07\x9b\x7f") == "[31mred"
    assert clean("日本語 👩\u200d💻 é") == "日本語 👩\u200d💻 é"
    assert clean("a\u202eb\ud800c") == "abc"


def test_hostile_text_reaches_no_terminal_function() -> None:
    summary = sample()
    summary["out"] = summary["recipe"] = HOSTILE
    summary["rejected"] = {HOSTILE: 1}
    summary["steps"] = [{**summary["steps"][0], "name": HOSTILE}]
    summary["baselines"] = [{"name": HOSTILE, "rows": 1, HOSTILE: 0.5}]
    summary["next_commands"] = [(HOSTILE, HOSTILE)]
    console = plain_console(200)
    print_summary(summary, console)
    print_error(ConfigError(HOSTILE, where=HOSTILE, why=HOSTILE, fix=HOSTILE), console, debug=False)
    print_error(KeyError(HOSTILE), console, debug=True)
    print_status({"state": "failed", "reason": HOSTILE, "step": HOSTILE, "resume_command": HOSTILE}, console)
    view = LiveTable(console)
    view.step_started(HOSTILE, 1)
    view.note(HOSTILE)
    console.print(view._render())
    text = output(console)
    assert not set(text) & set("\x1b\x07\r\u202e\u2028\ud800")
    assert text.count("[bold red]x[/] :smile:") >= 12
    text.encode()


# ---------------------------------------------------------------------------------------------------- the end


@pytest.mark.parametrize("width", [80, 120])
def test_summary_fits_and_has_everything(width: int) -> None:
    console = plain_console(width)
    print_summary(sample(), console)
    text = output(console)
    assert max(len(line) for line in text.splitlines()) <= width
    words = " ".join(text.split())
    for expected in (
        "iterselect: done in 31:33 min", "read 52,002 rows", "rejected 14 12 no_response, 2 role_order",
        "duplicates 120", "pool 51,868 in 228 clusters", "selected 5,187 10.0% of the pool",
        "1 1,000 30.0% - - 0.710 1:21 min",
        "rounds/*/answers 3,000 1:40 min 20 4", "embed 51,868 reused - 0", "ingest 51,868 4.1 s 12,651 0",
        "iterselect 5,187 100.0% 132.4 3 228", "(pool) 51,868 - 102.4 3 -", "output runs/a",
        "next iterselect status runs/a shows this again",
    ):  # fmt: skip
        assert expected in words, expected


def test_summary_of_a_plain_recipe() -> None:
    summary = sample()
    summary.pop("baselines")
    summary.pop("next_commands")
    summary |= {"rounds": [], "clusters": None, "rejected": {}, "pool": 0, "selected": 0}
    console = plain_console()
    print_summary(summary, console)
    text = output(console)
    assert "rounds\n" not in text
    assert "baselines" not in text
    assert "clusters" not in text


def test_status_of_an_interrupted_and_of_a_finished_run() -> None:
    console = plain_console()
    found = {
        "state": "interrupted", "step": "embed", "rows_done": 10, "rows_total": 40, "reason": None, "pid": 3,
        "resume_command": "iterselect run c.yaml",
    }  # fmt: skip
    print_status(found, console)
    assert output(console).splitlines() == [
        "state     interrupted",
        "step      embed, 10 of 40 rows (25%)",
        "continue  iterselect run c.yaml",
    ]
    console = plain_console()
    print_status({"state": "done", "summary": sample()}, console)
    assert "selected" in output(console)


def test_errors_say_what_where_why_and_fix() -> None:
    console = plain_console(60)
    error = DataError(
        "no usable rows", where="/data/" + "x" * 80 + ".jsonl:3", why="a\nb", fix="map the columns", code="E420"
    )
    print_error(error, console, debug=False)
    assert output(console).splitlines() == [
        "error E420: no usable rows",
        "  where: " + error.where,
        "  why:   a",
        "         b",
        "  fix:   map the columns",
    ]


def test_unexpected_errors_are_one_line_unless_debug() -> None:
    console = plain_console(40)
    print_error(ValueError("bad\nthing " + "y" * 2000 + " the cause"), console, debug=False)
    (line,) = output(console).splitlines()
    assert line.startswith("unexpected error: ValueError: bad thing yyy")
    assert line.endswith("the cause [E100]; run again with --debug for the traceback")
    assert len(line) < 600
    console = plain_console()
    try:
        raise KeyError
    except KeyError as error:
        print_error(error, console, debug=True)
    text = output(console)
    assert text.startswith("unexpected error: KeyError [E100]\nTraceback")
    assert "test_unexpected_errors_are_one_line_unless_debug" in text


def test_durations() -> None:
    assert [duration(s) for s in (0, 9.94, 9.96, 59, 60, 3599, 3600, 90061)] == [
        "0.0 s", "9.9 s", "10 s", "59 s", "1:00 min", "59:59 min", "1:00:00 h", "25:01:01 h",
    ]  # fmt: skip


def test_figures_of_a_few_held_out_rows_are_marked() -> None:
    entry = {"round": 1, "judged": 10, "hard_rate": 0.5, "val_accuracy": 1.0, "val_auc": 1.0, "seconds": 1.0}
    assert round_cells({**entry, "num_val": 2})[3:6] == ["2", "100.0%?", "1.000?"]
    assert round_cells({**entry, "num_val": FEW_ROWS})[3:6] == ["20", "100.0%", "1.000"]
    assert rounds_table([{**entry, "num_val": 2}]).caption and not rounds_table([{**entry, "num_val": 20}]).caption
