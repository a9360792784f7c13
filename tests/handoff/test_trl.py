"""TRL itself on the folder as it is: its config parser, its dataset checks, and SFTTrainer on a tiny random model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.baselines import SAME_CHARS
from tests.handoff.pools import CASES, chosen, make_run
from tests.token_models import make_tiny_llama

TEMPLATE = (
    "{% if tools %}[tools]{{ tools | tojson }}{% endif %}{% for m in messages %}[{{ m['role'] }}]"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
    "{% if m['tool_calls'] %}{{ m['tool_calls'] | tojson }}{% endif %}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ m['content'] }}{% endif %}\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of one layer whose chat template marks what the assistant says."""
    return make_tiny_llama(tmp_path_factory.mktemp("model") / "llama", ["a b c"], positions=2048, template=TEMPLATE)


def trainer_of(config: str, model: Path, output: Path) -> Any:
    """What `trl sft --config ...` builds (trl/scripts/sft.py), with the model filled in and two steps on a CPU."""
    from trl import SFTTrainer, get_dataset
    from trl.scripts.sft import make_parser

    given = {
        "model_name_or_path": model, "output_dir": output, "max_steps": 2, "gradient_accumulation_steps": 1,
        "use_cpu": True, "bf16": False, "dataloader_pin_memory": False, "gradient_checkpointing": False,
        "save_strategy": "no", "disable_tqdm": True,
    }  # fmt: skip
    words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    script, training, shape, data = make_parser().parse_args_and_config(args=["--config", config, *words])
    rows = get_dataset(data)[script.dataset_train_split]
    return SFTTrainer(model=shape.model_name_or_path, args=training, train_dataset=rows)


@pytest.mark.slow
@pytest.mark.parametrize("case", list(CASES))
def test_trl_trains_on_the_source(case: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row reaches the model as the source has it, byte for byte, with the loss on what the assistant says."""
    from transformers import AutoTokenizer

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    out = make_run(tmp_path, case)
    monkeypatch.chdir(out)
    trainer = trainer_of("handoff/trl_sft.yaml", model, tmp_path / "trained")
    tokenizer = AutoTokenizer.from_pretrained(model)
    expected = chosen(case, out / "ids.txt")
    assert len(trainer.train_dataset) == len(expected)
    for row, one in zip(trainer.train_dataset, expected, strict=True):
        seen, learned = (tokenizer.decode(ids) for ids in (row["input_ids"], [t for t in row["labels"] if t != -100]))
        if case.startswith("text pairs"):
            assert (seen, learned) == (f"{one.prompt}{one.response}</s>", f"{one.response}</s>")
            continue
        assert seen == tokenizer.apply_chat_template(one.messages, tools=one.tools, tokenize=False)
        spoken = [message for message in one.messages if message["role"] == "assistant"]
        spoken = spoken[-1:] if case == "prompt-completion" else spoken
        assert learned.count("</s>") == len(spoken) and all(message["content"] in learned for message in spoken)
    assert trainer.train().global_step == 2
    trainer.save_model()
    assert (tmp_path / "trained" / "model.safetensors").exists()


@pytest.mark.slow
def test_trl_trains_on_a_baseline(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = "plain messages"
    out = make_run(tmp_path, case)
    monkeypatch.chdir(out)
    trainer = trainer_of(f"handoff/{SAME_CHARS}/trl_sft.yaml", model, tmp_path / "trained")
    assert len(trainer.train_dataset) == len(chosen(case, out / "handoff" / SAME_CHARS / "ids.txt"))
    assert trainer.train().global_step == 2


@pytest.mark.slow
def test_trl_checks_the_rows(tmp_path: Path) -> None:
    """TRL's own test of what is a conversation, on the folder as `datasets` loads it."""
    import datasets
    from trl import is_conversational

    for case, expected in (("messages", True), ("prompt-completion", True), ("text pairs, as they came", False)):
        (tmp_path / case).mkdir()
        out = make_run(tmp_path / case, case)
        rows = list(datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / case / "cache")))
        assert [is_conversational(row) for row in rows] == [expected] * len(rows), rows[0]
