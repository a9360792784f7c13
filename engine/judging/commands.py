"""What the command line shows of prompts: the list of them, and one in full.

It renders no request (engine/judging/prompts.py does) and prints nothing itself.
"""

from __future__ import annotations

import json

from rich import box
from rich.table import Table
from rich.text import Text

from engine.judging.prompts import FIELDS, list_prompts, load_prompt


def prompts_table() -> Table:
    """The bundled prompts, one line each."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, header_style="dim")
    for title in ("prompt", "kind", "parser", "sha", "source"):
        table.add_column(title, no_wrap=title != "source", overflow="fold")
    for prompt in list_prompts():
        name = Text(prompt.spec)
        table.add_row(name, prompt.kind, prompt.parser, prompt.sha[:8], Text(prompt.source))
    return table


def show_prompt(spec: str) -> str:
    """One prompt as it is sent, with `{{ field }}` where the data blocks come, and the schema of its reply.

    Raises:
        ConfigError: as `engine.judging.prompts.load_prompt`.
    """
    prompt = load_prompt(spec)
    facts = {
        "prompt": prompt.spec,
        "file": prompt.path,
        "sha256": prompt.sha,
        "kind": prompt.kind,
        "source": prompt.source,
        "criteria": ", ".join(prompt.criteria),
        "parser": prompt.parser,
        "labels": ", ".join(prompt.labels),
        "scale": "" if prompt.scale is None else "{:g} to {:g}".format(*prompt.scale),
        "rules": ", ".join(name for name, _ in prompt.rules),
        "fields": ", ".join(FIELDS[prompt.kind]),
        "schema": "" if prompt.schema is None else json.dumps(prompt.schema),
    }
    head = "\n".join(f"{name + ':':<10}{value}" for name, value in facts.items() if value)
    return f"{head}\n\n--- system ---\n{prompt.system}\n\n--- user (after a line with its code) ---\n{prompt.user}\n"
