"""The README of handoff/: the command of each trainer, and what the baselines are."""

from __future__ import annotations

from collections.abc import Mapping

from engine.baselines import SAME_CHARS, SAME_ROWS, SELECTED, TrainingSet
from engine.handoff.configs import COMMANDS, MODEL

_TITLES = {"trl": "TRL", "llamafactory": "LLaMA-Factory", "axolotl": "Axolotl"}
_ABOUT = {
    SELECTED: "the selection",
    SAME_ROWS: "random rows, as many as selected",
    SAME_CHARS: "random rows, until they have as many characters as the selection",
}


def readme(sets: Mapping[str, TrainingSet], folders: Mapping[str, str]) -> str:
    """Markdown.

    Args:
        sets: the selection and its baselines.
        folders: trainer -> folder of the selection's rows that it is given.
    """
    commands = [
        f"| {_TITLES[trainer]} | `{COMMANDS[trainer].format(config=f'handoff/{trainer}_sft.yaml')}` | `{folder}/` |"
        for trainer, folder in folders.items()
    ]
    rows = [
        f"| `{name}` | {_ABOUT[name]} | {one.rows:,} | {one.characters:,} | {one.overlap:.1%} |"
        for name, one in sets.items()
    ]
    return f"""# Train on this selection

Write the model's name or path in place of `{MODEL}` in a config, then start its command in the run's folder, the one
above this. Every path in the configs is relative to it, so the folder can be moved or copied; from an object store,
copy it to a disk first.

| Trainer | Command | Reads |
| --- | --- | --- |
{chr(10).join(commands)}

`data/` is given to a trainer only if it reads every row of it and of the baselines as it is. Else the configs point at
a copy of the same rows in a format that it does read.

## Against random rows

A selection is worth its price only if it beats random rows under the same training. Two such sets lie here, each with
the same three configs, so that nothing but the rows differs:

| Set | Rows | Number | Characters | Shared with the selection |
| --- | --- | ---: | ---: | ---: |
{chr(10).join(rows)}

    {COMMANDS["trl"].format(config=f"handoff/{SAME_ROWS}/trl_sft.yaml")}
    {COMMANDS["trl"].format(config=f"handoff/{SAME_CHARS}/trl_sft.yaml")}

Characters of system prompt, prompt, response and tools stand in for tokens, which depend on the model that is trained.
Both sets are drawn in one order, by hash of seed and row id: the same seed draws the same rows. Their ids are in
`ids.txt`. In another format: `iterselect export RUN NEW_FOLDER --baseline {SAME_ROWS} --format messages`.
"""
