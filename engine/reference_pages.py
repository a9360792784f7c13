"""The pages of docs/reference, made from the sources: the command line, the config, and every error code.

`python -m engine.reference_pages docs` writes them, and docs/llms.txt, the index of all pages for a language model
(https://llmstxt.org); a test compares them with what this file makes.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engine import errors
from engine.config_loader import model_keys
from engine.config_template import commented_yaml
from engine.errors import IterselectError
from engine.settings import run_config_model

ENGINE = Path(__file__).parent
SOURCES = (ENGINE, ENGINE.parent / "actors")
RAISED = {name: cls for name, cls in vars(errors).items() if isinstance(cls, type) and issubclass(cls, IterselectError)}


@dataclass(frozen=True, order=True)
class Raised:
    """One place that raises an error on purpose; texts with `...` where a value goes."""

    code: str
    kind: str
    what: str
    why: str
    fix: str


def template(node: ast.expr | None) -> str:
    """The text of an expression, as far as it is written there."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values)  # pyright: ignore
    if isinstance(node, ast.BinOp):
        return template(node.left) + template(node.right)
    return "..." if node is not None else ""


def raised() -> list[Raised]:
    """Every error that the sources raise with its texts in place, sorted by code."""
    found = set()
    for path in sorted(path for folder in SOURCES for path in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in RAISED):
                continue
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            code = template(given.get("code")) or RAISED[node.func.id].code
            what, why, fix = (
                template(part) for part in (next(iter(node.args), None), given.get("why"), given.get("fix"))
            )
            if what.strip(". ") and code != "...":
                found.add(Raised(code, node.func.id, what, why, fix))
    return sorted(found)


def errors_page() -> str:
    lines = [
        "# Errors",
        "",
        "Every error says what is wrong, where, why, and how to mend it. `...` stands for a value.",
        "",
    ]
    lines += ["| exit code | error | when |", "|---|---|---|"]
    for cls in sorted(RAISED.values(), key=lambda cls: (cls.exit_code, cls.__name__)):
        lines.append(f"| {cls.exit_code} | `{cls.__name__}` | {(cls.__doc__ or '').splitlines()[0]} |")
    lines += ["| 130 | | Interrupted; the same command continues. |"]
    by_code: dict[str, list[Raised]] = defaultdict(list)
    for error in raised():
        by_code[error.code].append(error)
    for code, places in by_code.items():
        lines += ["", f"## {code}", "", f"`{places[0].kind}`", ""]
        for error in places:
            lines.append(f"- {in_markdown(error.what)}")
            lines += [
                f"  - {label}: {in_markdown(text)}" for label, text in (("why", error.why), ("fix", error.fix)) if text
            ]
    return "\n".join(lines) + "\n"


def in_markdown(text: str) -> str:
    """On one line, with nothing that Markdown would take for its own."""
    return " ".join(text.replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_").split())


def config_page() -> str:
    model = run_config_model("iterselect")
    lines = [
        "# Config",
        "",
        "What a config may say, with the defaults. `iterselect init RECIPE` writes it for another recipe,",
    ]
    lines += [
        "`iterselect schema RECIPE` prints the JSON schema for an editor, and any key can be overridden on the command"
    ]
    lines += ["line as `key=value` (`recipe.alpha=0.5`).", ""]
    lines += ["| section | |", "|---|---|"]
    lines += [f"| `{key}` | {info.description or ''} |" for key, info in model_keys(model).items()]
    text = commented_yaml(model, {"data": {"path": "pool.jsonl"}, "recipe": {"name": "iterselect"}})
    return "\n".join([*lines, "", "```yaml", text.rstrip(), "```"]) + "\n"


def commands_page() -> str:
    made = [sys.executable, "-m", "typer", "engine.cli", "utils", "docs", "--name", "iterselect"]
    return subprocess.run(made, capture_output=True, text=True, check=True).stdout


def index(folder: Path) -> str:
    """The pages under `folder` with their titles, in the form of llms.txt."""
    lines = [
        "# iterselect",
        "",
        "> Selects, out of thousands to millions of instruction-response examples, the few worth",
    ]
    lines += ["> fine-tuning an LLM on. Runs on Ray or in one process.", "", "## Docs", ""]
    pages = sorted(path for path in folder.rglob("*.md") if path.parent.name != "methods")
    for path in [*pages, folder / "methods" / "README.md"]:
        title = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ").strip("`")
        lines.append(f"- [{title}]({path.relative_to(folder).as_posix()})")
    return "\n".join(lines) + "\n"


def pages() -> Iterator[tuple[str, str]]:
    """File names under docs/reference, and their texts."""
    yield "commands.md", commands_page()
    yield "config.md", config_page()
    yield "errors.md", errors_page()


if __name__ == "__main__":
    docs = Path(sys.argv[1])
    (docs / "reference").mkdir(parents=True, exist_ok=True)
    for name, text in pages():
        (docs / "reference" / name).write_text(text, encoding="utf-8")
    (docs / "llms.txt").write_text(index(docs), encoding="utf-8")
