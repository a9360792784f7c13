"""Commands about judging and money: `judge check`, `prompts`, `ledger`. Each calls the engine and prints."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from engine.errors import ConfigError

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Folder = Annotated[str, typer.Argument(help="Run folder, or the folder or URI of a ledger.")]
Ledger = Annotated[
    str, typer.Option("--ledger", help="Folder or URI of paid calls, or a run folder; calls made before are free.")
]

judge_app = typer.Typer(no_args_is_help=True, help="How far a judge can be trusted.")
prompts_app = typer.Typer(no_args_is_help=True, help="The prompts of judges and raters.")
ledger_app = typer.Typer(no_args_is_help=True, help="The record of paid calls.")


@judge_app.command("check")
def judge_check(
    gold: Annotated[str, typer.Argument(help="JSONL or Parquet file of pairs with known verdicts.")],
    settings: Annotated[
        list[str], typer.Argument(help="The judge: a config file, settings such as model=... base_url=..., or both.")
    ],
    ledger: Ledger = "judge-check-ledger",
    repeats: Annotated[int, typer.Option(min=1, help="Ask the first 100 pairs so often, for consistency.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Use at most so many pairs.")] = None,
    max_usd: Annotated[float | None, typer.Option(min=0, help="Most that checks on this ledger may spend.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask about the likely cost.")] = False,
    as_json: Json = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Measures a judge on pairs with known verdicts, beside the baselines longest and random."""
    from engine.errors import TooManyFailures
    from engine.judging.check import render
    from engine.judging.gold import read_gold
    from engine.paid.judge_check import check_judge, plan_check
    from engine.settings import load_judge
    from engine.store import Store

    judge, pairs = load_judge(settings), read_gold(gold)[:limit]
    store = ledger_in(Store(ledger))
    if not yes and max_usd is None:
        confirm(plan_check(pairs, judge, store, repeats))
    verdicts = 2 * len(pairs) + (repeats - 1) * min(100, len(pairs))
    console = Console(stderr=True)
    columns = "{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=as_json or not console.is_terminal) as progress:
        task = progress.add_task("verdicts", total=verdicts)
        report = check_judge(pairs, judge, store, repeats, max_usd, lambda: progress.advance(task))
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        Console().print(render(report))
        now = report["now"]
        usd = "" if now["usd"] is None else f", ${now['usd']:,.4f}"
        print(f"paid now: {now['calls']:,} calls{usd}; recorded in {store.root}")
    if not report["judged"]:
        raise TooManyFailures(f"none of the {len(pairs):,} pairs got a verdict", why=report["failure"] or "")


def confirm(plan: dict[str, Any]) -> None:
    """Asks before a check that is likely to cost more than a run may without asking.

    Raises:
        ConfigError: E263, there is nobody to ask; E264, the answer was no.
    """
    from engine.config import PaidConfig

    usd = plan["usd"]
    if not plan["calls"] or (usd is not None and usd["likely"] <= PaidConfig().confirm_above_usd):
        return
    question = (
        f"What the {plan['calls']:,} calls of this check cost is not known (give price={{input: ..., output: ...}})"
    )
    if usd is not None:
        question = f"The {plan['calls']:,} calls of this check are likely to cost ${usd['likely']:,.2f}"
        question += f" (at most ${usd['high']:,.2f})"
    if not sys.stdin.isatty():
        raise ConfigError(question, fix="give --yes, or a cap: --max-usd; --limit asks about fewer pairs", code="E263")
    if not typer.confirm(f"{question}. Go on?"):
        raise ConfigError("not started", code="E264")


@prompts_app.command("ls")
def prompts_ls(debug: Debug = False) -> None:
    """Lists the prompts that come with the package."""
    from engine.judging.commands import prompts_table

    Console().print(prompts_table())


@prompts_app.command("show")
def prompts_show(
    prompt: Annotated[str, typer.Argument(help="Name, name/version or path.")],
    raw: Annotated[bool, typer.Option("--raw", help="The file itself, as the start of your own.")] = False,
    debug: Debug = False,
) -> None:
    """Prints a prompt as it is sent, or its file."""
    from engine.judging.commands import show_prompt
    from engine.judging.prompts import load_prompt

    # Not a byte more with --raw: the hash of the file is part of every paid call.
    print(Path(load_prompt(prompt).path).read_bytes().decode() if raw else show_prompt(prompt), end="")


@prompts_app.command("render")
def prompts_render(
    row: Annotated[str, typer.Argument(help="Row number or id.")],
    source: Annotated[str, typer.Argument(help="Run folder, or data file.")],
    prompt: Annotated[
        str | None, typer.Option(help="Name, name/version or path; default: the one of the run's judge, else pairwise.")
    ] = None,
    answer: Annotated[str | None, typer.Option(help="The model's answer; default: the one judged in the run.")] = None,
    order: Annotated[str, typer.Option(help="first: the reference is A; second: the answer is A.")] = "first",
    as_json: Json = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Prints what a judge is asked about one row."""
    from engine.paid.preview import render_row

    shown = render_row(row, source, prompt, answer, order)
    if shown.stands_in:
        print("no answer is on record: the row's own response stands in for it; --answer gives one", file=sys.stderr)
    if as_json:
        print(json.dumps(shown.messages, indent=1, ensure_ascii=False))
    else:
        for message in shown.messages:
            print(f"--- {message['role']} ---\n{message['content']}\n")


@ledger_app.command("show")
def ledger_show(folder: Folder, as_json: Json = False, debug: Debug = False) -> None:
    """Says what was paid for: calls, tokens, USD, by purpose, model and run."""
    from engine.paid.ledger_tools import render_show, show

    found = show(ledger_of(folder))
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        Console().print(render_show(found))


@ledger_app.command("export")
def ledger_export(
    folder: Folder,
    to: Annotated[Path | None, typer.Argument(help="New JSONL file; default: stdout.")] = None,
    purpose: Annotated[str | None, typer.Option(help="answer, judge, canary, rating or check.")] = None,
    debug: Debug = False,
) -> None:
    """Writes every answered call as a line of JSON."""
    from engine.paid.ledger_tools import export

    ledger = ledger_of(folder)
    if to is None:
        export(ledger, sys.stdout, purpose)
        return
    if to.exists():
        raise ConfigError(f"{to} exists already", fix="choose another name or move it away")
    to.parent.mkdir(parents=True, exist_ok=True)
    part = to.with_name(f"{to.name}.part")
    try:
        with part.open("w", encoding="utf-8") as stream:
            count = export(ledger, stream, purpose)
        part.rename(to)
    finally:
        part.unlink(missing_ok=True)
    print(f"wrote {count:,} calls to {to}")


@ledger_app.command("verify")
def ledger_verify(folder: Folder, debug: Debug = False) -> None:
    """Reads every byte of a ledger and says what is damaged, torn, repeated or in doubt."""
    from engine.errors import DataError
    from engine.paid.ledger_tools import render_verify, verify

    found = verify(ledger_of(folder))
    Console().print(render_verify(found))
    if found.problems:
        raise DataError(
            "the ledger is damaged", where=folder, fix="undamaged records stay in use; the others are paid again",
            code="E451",
        )  # fmt: skip


@ledger_app.command("import")
def ledger_import(
    out: Annotated[str, typer.Argument(help="Run folder that waits for a batch.")],
    answers: Annotated[list[str], typer.Argument(help="Output files of the batch.")],
    as_json: Json = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Takes the answers of a provider's batch back."""
    from engine.paid.batch_files import import_answers
    from engine.store import Store

    counts = import_answers(Store(out), ledger_in(Store(out)), answers)
    if as_json:
        print(json.dumps(counts, indent=1))
        return
    told = {
        "booked": "answers are booked",
        "refused": "requests were refused and become error rows",
        "already": "answers were there already",
        "again": "calls are to be asked again",
        "foreign": "answers belong to other runs and are left out",
    }
    for name, text in told.items():
        if counts[name] or name == "booked":
            print(f"{counts[name]:,} {text}")
    for reason, count in counts["reasons"].items():
        print(f"  {count:,} x {reason}")
    print("run the same command as before to continue")


def ledger_of(folder: str) -> Any:
    """The ledger of a run folder, or the ledger that was named itself.

    Raises:
        DataError: E452, nothing was recorded there.
    """
    from engine.errors import DataError
    from engine.paid.ledger_frames import list_segments
    from engine.store import Store

    found = ledger_in(Store(folder))
    if not list_segments(found):
        fix = "give the folder of a run that made paid calls, or the folder of a ledger"
        raise DataError(f"no paid calls are recorded in {found.root}", fix=fix, code="E452")
    return found


def ledger_in(store: Any) -> Any:
    """Where a run folder's calls are recorded; any other folder is a ledger itself."""
    from engine.paid.service import ledger_store
    from engine.yaml_document import parse_yaml

    if not store.exists("config.yaml"):
        return store
    paid = parse_yaml(store.read_bytes("config.yaml").decode(), store.path("config.yaml")).value.get("paid")
    return ledger_store(store, paid.get("ledger") if isinstance(paid, dict) else None)
