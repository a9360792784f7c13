"""Commands about runs on a cluster that is elsewhere: submit one as a Ray job, look at it, end it."""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from engine.cli_judge import Debug, Json
from engine.errors import ConfigError

jobs_app = typer.Typer(help="Runs that were submitted to a cluster.", no_args_is_help=True)

Address = Annotated[
    str | None, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="The cluster's dashboard, e.g. http://head:8265.")
]
Which = Annotated[str, typer.Argument(help="Submission id, or run folder.")]


def submit(
    target: Annotated[str, typer.Argument(help="YAML file or recipe, as for `run`.")],
    rest: Annotated[list[str] | None, typer.Argument(help="Data paths and key.sub=value overrides.")] = None,
    address: Address = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the job and return its exit code.")] = True,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over; an old run folder is renamed.")] = False,
    max_usd: Annotated[float | None, typer.Option(min=0, help="Most the run may spend on calls, in USD.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask about the likely cost.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Ask again for rows that failed.")] = False,
    methods: Annotated[str | None, typer.Option(help="Several on one pool: a,b,c, or all.")] = None,
    as_json: Json = False, debug: Debug = False,
) -> int:  # fmt: skip
    """Runs on a cluster, as a Ray job. Submitted again after a failure it continues."""
    from engine.job import git_commit
    from engine.session import resume_command
    from engine.settings import load_config, load_methods
    from engine.submission import digest, entrypoint, job_settings, next_id, ship

    configs: dict[Any, Any] = {}
    if methods is not None:
        configs = load_methods(target, rest or [], [] if methods == "all" else methods.split(","))
    configs = configs or {None: load_config(target, rest or [])}
    server = job_server(address)
    shared = server.hosts() == {socket.gethostname()}
    settings = job_settings(configs, shared)
    if max_usd is not None:
        settings["paid"]["max_usd"] = max_usd
    if shared:
        check_here(settings, next(iter(configs.values())))
    submission = next_id(settings, server.known(), fresh)
    if not yes and settings["paid"]["max_usd"] is None:
        ask_first(list(configs.values()), shared)
    flags = {"--fresh": fresh, "--yes": True, "--retry-failed": retry_failed}  # nobody can be asked in a job
    options = [flag for flag, given in flags.items() if given] + (["--methods", "all"] if methods is not None else [])
    metadata = {"iterselect_out": settings["out"], "iterselect_config": digest(settings)}
    with tempfile.TemporaryDirectory() as folder:
        ship(Path(folder), settings, git_commit())
        server.submit(submission, entrypoint(submission, options, resume_command()), Path(folder), metadata)
    print(f"submitted {submission}, run folder {settings['out']}", file=sys.stderr)
    if wait:
        return follow(server, submission, as_json)
    if as_json:
        print(json.dumps({"submission": submission, "out": settings["out"]}))
    else:
        print(f"iterselect jobs logs -f {submission} --address {server.address}")
    return 0


def job_server(address: str | None) -> Any:
    """The job server of a cluster.

    Raises:
        ConfigError: E275, no address.
        EnvironmentProblem: it does not answer, or refuses the token.
    """
    if not address:
        raise ConfigError(
            "to which cluster? There is no --address",
            fix="give --address http://HEAD:8265, or set RAY_API_SERVER_ADDRESS; docs/cluster.md starts a cluster",
            code="E275",
        )
    from engine.cli import make_job_server

    return make_job_server(address)


def check_here(settings: dict[str, Any], config: Any) -> None:
    """Looks at input and run folder before a job is started, where both are on this machine."""
    from engine.session import check_inputs, check_out
    from engine.store import Store

    data = config.data.model_copy(update={"path": settings["data"]["path"]})
    store = Store(settings["out"])
    check_out(store)
    check_inputs(store, config.model_copy(update={"data": data}))


def ask_first(configs: list[Any], shared: bool) -> None:
    """Asks here what a run would ask before it spends.

    Raises:
        ConfigError: E263, nobody can be asked, or what it costs cannot be known here.
    """
    from engine.cli import confirm_cost
    from engine.paid.service import paid_backends

    if shared:
        confirm_cost(configs)
    elif any(paid_backends(config) for config in configs):
        raise ConfigError(
            "what the calls of this run cost is not known here",
            why="the input may not be visible from this machine",
            fix="give a cap: --max-usd, or --yes",
            code="E263",
        )


def follow(server: Any, submission: str, as_json: bool) -> int:
    """Shows what a job prints until it ends; its exit code. To stop watching does not stop the job."""
    from engine.screen import clean
    from engine.submission import outcome

    stream = sys.stderr if as_json else sys.stdout

    def write(text: str) -> None:
        stream.write(clean(text))
        stream.flush()

    try:
        server.follow(submission, write)
    except KeyboardInterrupt:
        print(f"\nthe job goes on; `iterselect jobs stop {submission}` ends it", file=sys.stderr)
        raise
    job = server.find(submission)
    code, reason = outcome(job)
    if as_json:
        facts = {"submission": submission, "out": job.out, "status": job.status, "exit_code": code, "reason": reason}
        print(json.dumps(facts))
    else:
        print(f"{submission}: {job.status.lower()}{f', {clean(reason)}' if reason else ''}", file=sys.stderr)
    if code and not as_json:
        print("everything finished so far is saved; submitting it again continues", file=sys.stderr)
    return code


@jobs_app.command("list")
def list_jobs(address: Address = None, as_json: Json = False, debug: Debug = False) -> None:
    """Lists the runs that the cluster knows, oldest first."""
    jobs = [job for job in job_server(address).known() if job.out]
    if as_json:
        print(json.dumps([vars(job) for job in jobs], indent=1))
        return
    for job in jobs:
        print(f"{job.id}  {job.status.lower():<9}  {job.out}")


@jobs_app.command()
def status(which: Which, address: Address = None, as_json: Json = False, debug: Debug = False) -> None:
    """Says what the cluster and, where this machine sees it, the run folder know of a run."""
    from engine.console import print_status
    from engine.session import read_status

    job = job_server(address).find(which)
    seen = os.path.exists(f"{job.out}/status.json")
    found = read_status(job.out) if seen else None
    if as_json:
        print(json.dumps({"job": vars(job), "run": found}, indent=1))
        return
    print(f"{job.id}  {job.status.lower()}  {job.out}")
    if found is not None:
        print_status(found, Console())


@jobs_app.command()
def logs(
    which: Which,
    address: Address = None,
    follow_it: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    debug: Debug = False,
) -> int:
    """Prints what a job has printed."""
    from engine.screen import clean

    server = job_server(address)
    job = server.find(which)
    if follow_it:
        return follow(server, job.id, False)
    print(clean(server.logs(job.id)), end="")
    return 0


@jobs_app.command()
def stop(which: Which, address: Address = None, debug: Debug = False) -> None:
    """Ends a job; what it has finished is saved, and submitting it again continues."""
    server = job_server(address)
    job = server.find(which)
    print(f"{job.id}: {'is being stopped' if server.stop(job.id) else f'had ended ({job.status.lower()})'}")
