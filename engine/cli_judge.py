"""Commands about judging and money: `plan`, `judge check`, `prompts`, `ledger`. Each calls the engine and prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from engine.errors import ConfigError

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Folder = Annotated[str, typer.Argument(help="Run folder, or the folder or URI of a ledger.")]
Ledger = Annotated[str, typer.Option("--ledger", help="Folder or URI of paid calls; calls made before are free.")]

judge_app = typer.Typer(no_args_is_help=True, help="How far a judge can be trusted.")
prompts_app = typer.Typer(no_args_is_help=True, help="The prompts of judges and raters.")
ledger_app = typer.Typer(no_args_is_help=True, help="The record of paid calls.")


@judge_app.command("check")
def judge_check(
    gold: Annotated[str, typer.Argument(help="JSONL or Parquet file of pairs with known verdicts.")],
    settings: Annotated[list[str], typer.Argument(help="Settings of the judge: model=..., base_url=..., prompt=...")],
    ledger: Ledger = "judge-check-ledger",
    repeats: Annotated[int, typer.Option(min=1, help="Ask the first 100 pairs so often, for consistency.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Use at most so many pairs.")] = None,
    max_usd: Annotated[float | None, typer.Option(min=0, help="Most that checks on this ledger may spend.")] = None,
    as_json: Json = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Measures a judge on pairs with known verdicts, beside the baselines longest and random."""
    from engine.judging.check import render
    from engine.judging.gold import read_gold
    from engine.paid.judge_check import check_judge
    from engine.settings import load_judge
    from engine.store import Store

    pairs = read_gold(gold)[:limit]
    report = check_judge(pairs, load_judge(settings), Store(ledger), repeats, max_usd)
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        Console().print(render(report))
        Console().print(
            f"paid now: {report['now']['calls']:,} calls, ${report['now']['usd']:.4f}; recorded in {ledger}"
        )


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

    print(Path(load_prompt(prompt).path).read_text(encoding="utf-8") if raw else show_prompt(prompt))


@prompts_app.command("render")
def prompts_render(
    row: Annotated[str, typer.Argument(help="Row number or id.")],
    source: Annotated[str, typer.Argument(help="Run folder, or data file.")],
    prompt: Annotated[str, typer.Option(help="Name, name/version or path.")] = "pairwise",
    answer: Annotated[str | None, typer.Option(help="The model's answer; default: the one judged in the run.")] = None,
    order: Annotated[str, typer.Option(help="first: the reference is A; second: the answer is A.")] = "first",
    as_json: Json = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Prints what a judge is asked about one row."""
    from engine.paid.preview import render_row

    messages = render_row(row, source, prompt, answer, order)
    if as_json:
        print(json.dumps(messages, indent=1, ensure_ascii=False))
    else:
        for message in messages:
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
    import sys

    from engine.paid.ledger_tools import export

    if to is None:
        export(ledger_of(folder), sys.stdout, purpose)
        return
    if to.exists():
        raise ConfigError(f"{to} exists already", fix="choose another name or move it away")
    with to.open("w", encoding="utf-8") as stream:
        count = export(ledger_of(folder), stream, purpose)
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

    counts = import_answers(Store(out), ledger_of(out), answers)
    if as_json:
        print(json.dumps(counts, indent=1))
        return
    print(", ".join(f"{counts[name]:,} {name}" for name in ("booked", "refused", "already", "again", "foreign")))
    for reason, count in counts["reasons"].items():
        print(f"  {count:,} x {reason}")
    print("run the same command as before to continue")


def ledger_of(folder: str) -> Any:
    """The ledger of a run folder, or the ledger that was named itself."""
    from engine.paid.service import ledger_store
    from engine.store import Store
    from engine.yaml_document import load_yaml

    store = Store(folder)
    if not store.exists("config.yaml"):
        if not store.list():
            raise ConfigError(f"no ledger in {folder}", fix="give a run folder, or the folder of a ledger")
        return store
    paid = load_yaml(store.path("config.yaml")).value.get("paid") if store.is_local else None
    return ledger_store(store, paid.get("ledger") if isinstance(paid, dict) else None)
