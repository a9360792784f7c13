"""The command line, and the only place of the engine that may reach for `actors` (inside a function).

Commands parse, call one function of the engine and print. Results go to stdout, progress and errors to stderr.
Exit codes: 0 ok, 1 unexpected, 2 usage or config, 3 environment, 4 data, 5 budget or time reached, 6 too many failed
rows, 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from engine.cli_bench import bench
from engine.cli_judge import judge_app, ledger_app, prompts_app
from engine.cli_methods import compare, methods
from engine.cli_report import report
from engine.cli_runs import apply, explain, export, status
from engine.cli_submit import jobs_app, submit
from engine.console import print_error
from engine.errors import ConfigError, EnvironmentProblem, IterselectError
from engine.recipes import RECIPES, load_recipe

app = typer.Typer(
    name="iterselect",
    help="Selects the instruction-response examples worth fine-tuning on.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(judge_app, name="judge")
app.add_typer(prompts_app, name="prompts")
app.add_typer(ledger_app, name="ledger")
app.command()(methods)
app.command()(compare)
app.command()(explain)
app.command()(apply)
app.command()(status)
app.command()(export)
app.command()(submit)
app.add_typer(jobs_app, name="jobs")
app.command()(report)
app.command()(bench)

INTERRUPTED = 130

Local = Annotated[bool, typer.Option("--local", help="Run in this process instead of on Ray.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over: an existing run folder is renamed, never deleted.")]

TakeOver = Annotated[bool, typer.Option("--take-over", help="Do not wait for a run that may be dead.")]
Limit = Annotated[
    int | None, typer.Option("--limit", min=1, help="A pilot: select from so many rows, drawn at random by seed.")
]

EXAMPLE_SETTINGS = [
    "recipe.clusters=24", "recipe.diverse_fraction=0.6", "recipe.max_rounds=4", "recipe.inference_steps=4",
    "recipe.part_rows=64", "data.part_rows=256",
]  # fmt: skip


def run_cli(arguments: list[str]) -> int:
    """Runs one command line and returns its exit code."""
    console = Console(stderr=True)
    debug = "--debug" in arguments
    try:
        result = app(arguments, standalone_mode=False)
        code = result if isinstance(result, int) else 0  # typer returns 130 for an interrupted command
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:  # whatever it is, the user gets a message, and the traceback with --debug
        if isinstance(error, usage_errors()):
            error.show()  # pyright: ignore[reportAttributeAccessIssue]
            return 2
        from engine.session import as_problem

        problem = as_problem(error)
        print_error(problem, console, debug)
        return problem.exit_code if isinstance(problem, IterselectError) else 1
    if code == INTERRUPTED:
        console.print("interrupted; everything finished so far is saved, run the same command again to continue")
    return code


def usage_errors() -> tuple[type[BaseException], ...]:
    """What the parser raises on a wrong command line: the base class of typer's own errors."""
    return tuple(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")


@app.command()
def demo(
    out: Annotated[str, typer.Option(help="Run folder.")] = "demo-out",
    local: Local = False, as_json: Json = False, quiet: Quiet = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Selects from the example pool that comes with the package: offline, no GPU, under two minutes."""
    run("iterselect", [str(example_pool()), f"out={out}", *EXAMPLE_SETTINGS], local, False, as_json, quiet, debug)


def example_pool() -> Path:
    """The pool inside an installed package, or in the source tree."""
    packaged = Path(__file__).parent / "data" / "example_pool.jsonl"
    return packaged if packaged.exists() else Path(__file__).parents[1] / "examples" / "pool.jsonl"


@app.command()
def run(
    target: Annotated[str, typer.Argument(help=f"YAML file or recipe: {', '.join(RECIPES)}.")],
    rest: Annotated[list[str] | None, typer.Argument(help="Data paths and key.sub=value overrides.")] = None,
    local: Local = False, fresh: Fresh = False, as_json: Json = False, quiet: Quiet = False, debug: Debug = False,
    max_usd: Annotated[float | None, typer.Option(min=0, help="Most the run may spend on calls, in USD.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask about the likely cost.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Ask again for rows that failed.")] = False,
    methods: Annotated[str | None, typer.Option(help="Several on one pool: a,b,c, or all.")] = None,
    take_over: TakeOver = False,
    limit: Limit = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, as `plan`, and stop.")] = False,
) -> None:  # fmt: skip
    """Selects. The same command continues a run that was interrupted."""
    from engine.settings import load_config, load_methods

    several: dict[Any, Any] = {}
    words = [*(rest or []), *([f"data.limit={limit}"] if limit is not None else [])]
    if methods is not None:
        several = load_methods(target, words, [] if methods == "all" else methods.split(","))
    configs = several or {None: load_config(target, words)}
    for label, config in configs.items():
        if local:
            config = config.model_copy(update={"runtime": config.runtime.model_copy(update={"mode": "local"})})
        if max_usd is not None:
            config = config.model_copy(update={"paid": config.paid.model_copy(update={"max_usd": max_usd})})
        configs[label] = config
    if dry_run:
        show_plans(configs, None, None, as_json)
        return
    if not yes:
        confirm_cost(list(configs.values()))
    from engine.session import run_methods, run_session

    config = next(iter(configs.values()))
    if retry_failed:
        mark_failed(config, quiet, take_over)
    if several:
        done = run_methods(several, fresh=fresh, quiet=quiet or as_json, make_runtime=make_runtime, take_over=take_over)
        compare([config.out], f"{config.out}/compare", as_json)
        if not as_json:
            from engine.console import print_methods

            print_methods(config.out, list(several), done, Console())
        return
    summary = run_session(config, fresh=fresh, quiet=quiet or as_json, make_runtime=make_runtime, take_over=take_over)
    if as_json:
        print(json.dumps(summary, indent=1))
    else:
        from engine.console import print_summary

        print_summary(summary, Console())  # pyright: ignore[reportArgumentType]


def mark_failed(config: Any, quiet: bool, take_over: bool) -> None:
    """Marks the steps of a run whose failed rows are to be asked again."""
    from engine.paid.service import retry_failed
    from engine.session import check_out, hold
    from engine.store import Store

    check_out(Store(config.out))
    with hold(Store(config.out), config.runtime.lease_s, quiet, take_over) as lease:
        marked = retry_failed(lease.store)
    print(f"rows to retry in: {', '.join(marked) or 'none'}", file=sys.stderr)


def confirm_cost(configs: list[Any]) -> None:
    """Asks before a run whose calls are likely to cost more than paid.confirm_above_usd and that has no cap.

    Args:
        configs: of its methods; they have one cap.

    Raises:
        ConfigError: E263, there is nobody to ask.
    """
    from engine.paid.service import paid_backends

    paid = configs[0].paid
    calling = [config for config in configs if paid_backends(config)]
    if paid.max_usd is not None or not calling:
        return
    from engine.paid.plan import estimate

    costs = [estimate(config)["usd"] for config in calling]
    question = "What the calls of this run cost is not known (give price: {input: ..., output: ...})"
    if all(usd is not None for usd in costs):
        likely, high = (sum(usd[case] for usd in costs) for case in ("likely", "high"))
        if likely <= paid.confirm_above_usd:
            return
        question = f"The calls of this run are likely to cost ${likely:.2f} (at most ${high:.2f})"
    if not sys.stdin.isatty():
        raise ConfigError(
            question, fix="give --yes, or a cap: --max-usd; `iterselect plan` shows the figures", code="E263"
        )
    if not typer.confirm(f"{question}. Go on?"):
        raise ConfigError("not started", code="E264")


@app.command()
def plan(
    target: Annotated[str, typer.Argument(help="YAML file or recipe.")],
    rest: Annotated[list[str] | None, typer.Argument(help="Data paths and key.sub=value overrides.")] = None,
    nodes: Annotated[str | None, typer.Option(help="Nodes as COUNTxCPUS:GPUS:GB,...; default: this machine.")] = None,
    limit: Limit = None,
    like: Annotated[str | None, typer.Option(help="Finished run that seconds come from; default: out=.")] = None,
    as_json: Json = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Says what a run will do, take and cost, and where its models go, before anything is started."""
    from engine.settings import load_config

    words = [*(rest or []), *([f"data.limit={limit}"] if limit is not None else [])]
    show_plans({None: load_config(target, words)}, nodes, like, as_json)


def show_plans(configs: dict[Any, Any], nodes: str | None, like: str | None, as_json: bool) -> None:
    """Prints plans: of a run, under None, or of several methods by label, which are one JSON object together."""
    if not as_json:
        for config in configs.values():
            show_plan(config, nodes, like)
        return
    plans = {}
    for label, config in configs.items():
        found, steps, placed = plan_facts(config, nodes, like)
        plans[label] = {**found, "placement": [one.facts() for one in placed], "steps": steps}
    print(json.dumps(plans.get(None, plans), indent=1))


def plan_facts(config: Any, nodes: str | None, like: str | None) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """Paid calls ({} when there are none), steps, and placed phases of a run."""
    from engine.paid.plan import estimate
    from engine.paid.service import paid_backends
    from engine.plan_steps import plan_steps

    found = estimate(config) if paid_backends(config) else {}
    placed, shards = placement(config, nodes) if config.runtime.mode == "ray" else ([], config.runtime.shards or 1)
    return found, plan_steps(config, shards, like), placed


def show_plan(config: Any, nodes: str | None, like: str | None) -> None:
    """Prints the plan of a run: steps, seconds, memory, paid calls, placement."""
    from engine.plan_steps import describe as describe_steps

    found, steps, placed = plan_facts(config, nodes, like)
    console = Console()
    for text in describe_steps(steps):
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.print()
    if found:
        from engine.paid.plan_view import render

        console.print(render(found))
    else:
        print("no generator or judge of this config makes paid calls")
    if placed:
        from engine.placement import describe

        print("\n".join(["", f"where models go, on {nodes or 'this machine'}:", *describe(placed)]))


def placement(config: Any, nodes: str | None) -> tuple[Any, int]:
    """Every phase of a run on nodes that are only described, and how many members share the vectors.

    Raises:
        EnvironmentProblem: something does not fit.
    """
    from actors.cluster import ClusterResources, NodeResources
    from actors.cluster import plan as size
    from engine.plan_run import parse_nodes, place_run, this_machine

    cluster = parse_nodes(nodes) if nodes else [this_machine()]
    has = ClusterResources(tuple(NodeResources(n.cpus, n.gpus) for n in cluster), sum(n.memory_gb for n in cluster))
    sizes = size(has, config.runtime)
    return place_run(config, cluster, sizes.workers, sizes.pass_cpus), sizes.shards


@app.command()
def doctor(
    target: Annotated[str | None, typer.Argument(help="YAML file or recipe to check the machine for.")] = None,
    rest: Annotated[list[str] | None, typer.Argument(help="Data paths and key.sub=value overrides.")] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster to reach; default: the config's.")] = None,
    as_json: Json = False, debug: Debug = False,
) -> int:  # fmt: skip
    """Checks this machine: versions, memory, disk, Ray, models, endpoints. Exit code 3 when something fails."""
    from engine.doctor import check_machine, installed
    from engine.doctor_config import check_config
    from engine.settings import load_config

    config = load_config(target, rest or []) if target else None
    checks = check_machine(config)
    if installed("ray"):
        from actors.doctor import check_ray

        checks.append(check_ray(address or (config.runtime.address if config else None)))
    checks += check_config(config) if config else []
    failed = any(check.status == "fail" for check in checks)
    if as_json:
        print(json.dumps({"ok": not failed, "checks": [vars(check) for check in checks]}, indent=1))
    else:
        from engine.console import print_checks

        print_checks(checks, Console())
    return EnvironmentProblem.exit_code if failed else 0


def make_runtime(config: Any, observer: Any) -> Any:
    """The runtime a config asks for."""
    if config.runtime.mode == "local":
        from engine.local import LocalRuntime

        return LocalRuntime(observer, shards=config.runtime.shards or 1)
    from actors.cluster import check_same_code, connect, plan
    from actors.runtime import RayRuntime
    from engine.placement import Node, describe
    from engine.plan_run import place_run

    has = connect(config.runtime.address)
    sizes = plan(has, config.runtime)
    observer.note(sizes.describe(has))
    nodes = [Node(f"node {number}", node.cpus, int(node.gpus)) for number, node in enumerate(has.nodes, 1)]
    placed = place_run(config, nodes, sizes.workers, sizes.pass_cpus)
    for line in describe(placed) if len(placed) > 1 else []:
        observer.note(line)
    check_same_code()
    return RayRuntime(sizes, observer)


def make_job_server(address: str) -> Any:
    """The job server of a cluster, for the commands in engine/cli_submit.py."""
    from actors.jobs import JobServer

    return JobServer(address)


@app.command()
def inspect(
    data: Annotated[list[str], typer.Argument(help="Files, folders, globs or URIs.")],
    format: Annotated[str, typer.Option(help="auto, messages, sharegpt, alpaca or prompt-completion.")] = "auto",
    column: Annotated[list[str] | None, typer.Option(help="Column mapping such as prompt=question.")] = None,
    limit: Annotated[int | None, typer.Option(help="Read at most so many rows.")] = None,
    as_json: Json = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Says what is in a data set: format, counts, lengths, rejected rows."""
    from engine.data.ingest import IngestOptions
    from engine.data.inputs import resolve_inputs
    from engine.data.inspect import inspect_pool, render

    columns = dict(pair.split("=", 1) for pair in column or [] if "=" in pair)
    if len(columns) != len(column or []):
        raise ConfigError("a column mapping is written name=column", fix="for example --column prompt=question")
    options = IngestOptions(columns=columns, format="" if format == "auto" else format)
    found = inspect_pool(resolve_inputs(data), options, limit)
    if as_json:
        print(json.dumps(found.to_dict(), indent=1, ensure_ascii=False))
    else:
        Console().print(render(found))


@app.command()
def init(
    recipe: Annotated[str, typer.Argument(help="Recipe to write a config for.")] = "iterselect",
    data: Annotated[str, typer.Argument(help="Your data.")] = "pool.jsonl",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write; default: stdout.")] = None,
    debug: Debug = False,
) -> None:
    """Writes a commented config."""
    from engine.config_template import commented_yaml
    from engine.settings import run_config_model

    values = {"data": {"path": data}, "out": f"runs/{recipe}", "budget": 0.2, "recipe": load_recipe(recipe).example}
    text = commented_yaml(run_config_model(recipe), values)
    if output is None:
        print(text, end="")
        return
    if output.exists():
        raise ConfigError(f"{output} exists already", fix="choose another name or move it away")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    print(f"wrote {output}; next: iterselect run {output}")


@app.command()
def schema(recipe: Annotated[str, typer.Argument(help="Recipe.")] = "iterselect", debug: Debug = False) -> None:
    """Prints the JSON schema of the config, for editors."""
    from engine.config_template import json_schema
    from engine.settings import run_config_model

    print(json.dumps(json_schema(run_config_model(recipe)), indent=1))
