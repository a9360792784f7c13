"""Commands about a run: how far it is, why a row is in or out, its selector on new rows, its rows in other formats."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from engine.cli_judge import Debug, Json
from engine.errors import ConfigError


def explain(
    out: Annotated[str, typer.Argument(help="Finished run folder.")],
    row: Annotated[str, typer.Argument(help="Id of a row, the start of one, or file:line of the input.")],
    neighbours: Annotated[int, typer.Option(min=0, help="Show so many of the most similar hard rows.")] = 5,
    as_json: Json = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Says why a row was selected, left out or rejected: scores, cut, verdicts, the hard rows nearest to it."""
    from engine.explain import explain as explained

    found = explained(out, row, neighbours)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        from engine.explain_view import render

        Console().print(render(found))


def apply(
    run: Annotated[str, typer.Argument(help="Finished run of recipe iterselect.")],
    rest: Annotated[list[str] | None, typer.Argument(help="New data, out=, budget= and other key=value.")] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="Folder of the result; same as out=.")] = None,
    local: Annotated[bool, typer.Option("--local", help="Run in this process instead of on Ray.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over; the old folder is renamed.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
    update: Annotated[bool, typer.Option("--update", help="Judge some of the new rows first, and learn.")] = False,
    max_usd: Annotated[float | None, typer.Option(min=0, help="Most the update may spend on calls, in USD.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask about the likely cost.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Ask again for rows that failed.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, as `plan`, and stop.")] = False,
    as_json: Json = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Selects from new rows with the classifier and the hard set of a finished run: no judge, no calls.

    With --update more rounds of judging come first, among the new rows; the result can be applied and updated in turn.
    """
    from engine.cli import confirm_cost, make_runtime, mark_failed, show_plans
    from engine.console import print_summary
    from engine.session import run_session
    from engine.settings_apply import load_apply

    words = [*(rest or []), *([f"out={output}"] if output is not None else [])]
    if sum(word.startswith("out=") for word in words) != 1:
        raise ConfigError("where the result goes must be said once", fix="out=FOLDER or -o FOLDER", code="E280")
    words += [f"paid.max_usd={max_usd}"] if max_usd is not None else []
    config = load_apply(run, words, local, update)
    if dry_run:
        show_plans({None: config}, None, None, as_json)
        return
    if not yes:
        confirm_cost([config])
    if retry_failed:
        mark_failed(config, quiet, take_over=False)
    summary = run_session(config, fresh=fresh, quiet=quiet or as_json, make_runtime=make_runtime)
    if as_json:
        print(json.dumps(summary, indent=1))
    else:
        print_summary(summary, Console())  # pyright: ignore[reportArgumentType]


def status(
    out: Annotated[str, typer.Argument(help="Run folder.")], as_json: Json = False, debug: Debug = False
) -> None:
    """Says how far a run is."""
    from engine.console import print_status
    from engine.session import read_status

    found = read_status(out)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        print_status(found, Console())


def export(
    out: Annotated[str, typer.Argument(help="Finished run folder.")],
    to: Annotated[str, typer.Argument(help="New folder.")],
    format: Annotated[str, typer.Option(help="source, messages, alpaca, sharegpt or prompt-completion.")] = "source",
    container: Annotated[str, typer.Option(help="parquet, jsonl or jsonl.gz.")] = "parquet",
    baseline: Annotated[str, typer.Option(help="Instead: random_same_rows or random_same_chars.")] = "selected",
    debug: Debug = False,
) -> None:
    """Writes the selection of a finished run, or a random baseline of it, again in another format."""
    from engine.outputs import export_selection

    written = export_selection(out, to, format, container, baseline)
    print(f"wrote {written} rows to {to}")
