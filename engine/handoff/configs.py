"""The config files of the trainers, as text. They know paths and formats and read nothing.

All paths are relative to the run's folder, where the commands are started, so the folder can be moved or copied. The
three configs ask for the same training: all weights, the loss on the answers only, and the same schedule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from engine.data.formats import Format
from engine.handoff.trainers import AXOLOTL, LLAMAFACTORY, TRL

MODEL = "YOUR-MODEL"
EPOCHS, LEARNING_RATE, BATCH, ACCUMULATE, MAX_TOKENS, WARMUP = 3, 1e-5, 1, 16, 2048, 0.03
SCHEDULE = {  # in the words of transformers, which TRL and LLaMA-Factory pass on
    "num_train_epochs": EPOCHS,
    "per_device_train_batch_size": BATCH,
    "gradient_accumulation_steps": ACCUMULATE,
    "learning_rate": LEARNING_RATE,
    "lr_scheduler_type": "cosine",
    "warmup_steps": WARMUP,  # below 1 a share of all steps since transformers 5.0; warmup_ratio is gone from 5.2 on
}
COMMANDS = {
    TRL: "trl sft --config {config}",
    LLAMAFACTORY: "llamafactory-cli train {config}",
    AXOLOTL: "axolotl train {config}",
}


@dataclass(frozen=True)
class TrainingData:
    """What one config trains on.

    Attributes:
        folder: of the files, relative to the run's folder.
        fmt: of the rows in it.
        entry: key in dataset_info.json.
        output: folder for the trained model, relative to the run's folder.
        fingerprint: of the rows, 8 hex digits.
        seed: of the run.
        kind: how the trainer reads the rows, from `trainers.reading`.
    """

    folder: str
    fmt: Format
    entry: str
    output: str
    fingerprint: str
    seed: int
    kind: str


def config_text(trainer: str, data: TrainingData, path: str) -> str:
    """One config file.

    Args:
        trainer: TRL, LLAMAFACTORY or AXOLOTL.
        data: what to train on.
        path: of the config, relative to the run's folder; named in its first line.
    """
    values, notes = {TRL: _trl, LLAMAFACTORY: _llamafactory, AXOLOTL: _axolotl}[trainer](data)
    head = [
        "In the run's folder (paths are relative to it), with the model's name or path filled in:",
        f"  {COMMANDS[trainer].format(config=path)}",
        *notes,
    ]
    return "".join(f"# {line}\n" for line in head) + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _kept(data: TrainingData) -> dict[str, Any]:
    """Logs, checkpoints and seed, in the words of SCHEDULE."""
    return {
        "logging_steps": 10,
        "save_strategy": "epoch",
        "report_to": "none",
        "seed": data.seed,
        "output_dir": data.output,
    }


def _trl(data: TrainingData) -> tuple[dict[str, Any], list[str]]:
    values: dict[str, Any] = {
        "model_name_or_path": MODEL,
        "datasets": [{"path": "parquet", "data_files": f"{data.folder}/*.parquet", "split": "train"}],
    }
    if data.fmt.name == "prompt-completion":
        values["completion_only_loss"] = True
        notes = ["The loss is on the completion."]
        if data.kind == "text":
            notes.append("Prompt and completion are joined as plain text: TRL applies no chat template to them.")
    else:
        values["assistant_only_loss"] = True
        notes = [
            "assistant_only_loss needs a chat template that TRL knows (Llama 3, Qwen, Gemma ...) or that marks",
            "{% generation %}; with any other, set it to false: the loss is then on the prompts too.",
        ]
    values |= {
        "max_length": MAX_TOKENS,
        **SCHEDULE,
        **_kept(data),
    }
    return values, [*notes, "For LoRA add use_peft: true and raise learning_rate to 1.0e-4."]


def _llamafactory(data: TrainingData) -> tuple[dict[str, Any], list[str]]:
    values = {
        "model_name_or_path": MODEL,
        "template": None,
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "full",
        "dataset_dir": ".",
        "dataset": data.entry,
        "cutoff_len": MAX_TOKENS,
        **SCHEDULE,
        "bf16": True,
        **_kept(data),
    }
    notes = [
        "template: null takes the chat template from the tokenizer; where LLaMA-Factory has one for your model",
        "(qwen3, llama3, gemma ...) its name is safer. The columns are in dataset_info.json.",
    ]
    notes.append("warmup_steps below 1 is a share of all steps; before transformers 5 name it warmup_ratio.")
    return values, [*notes, "For LoRA set finetuning_type: lora and raise learning_rate to 1.0e-4."]


def _axolotl(data: TrainingData) -> tuple[dict[str, Any], list[str]]:
    source: dict[str, Any] = {"path": data.folder, "ds_type": "parquet", "split": "train"}
    if data.fmt.name == "alpaca":
        source["type"] = "alpaca"
    else:
        keys = ("from", "value") if data.fmt.name == "sharegpt" else ("role", "content")
        source |= {
            "type": "chat_template",
            "field_messages": data.fmt.columns["messages"],
            "message_property_mappings": dict(zip(("role", "content"), keys, strict=True)),
            "roles_to_train": ["assistant"],
            "train_on_eos": "turn",
        }
    values: dict[str, Any] = {"base_model": MODEL}
    if data.fmt.name != "alpaca":
        values["chat_template"] = "tokenizer_default"
    values |= {
        "datasets": [source],
        # Axolotl finds prepared rows again by its settings, not by the files
        "dataset_prepared_path": f"trained/axolotl-prepared-{data.fingerprint}",
        "val_set_size": 0.0,
        "train_on_inputs": False,
        "sequence_len": MAX_TOKENS,
        "num_epochs": EPOCHS,
        "micro_batch_size": BATCH,
        "gradient_accumulation_steps": ACCUMULATE,
        "learning_rate": LEARNING_RATE,
        "optimizer": "adamw_torch",
        "lr_scheduler": "cosine",
        "warmup_ratio": WARMUP,
        "bf16": "auto",
        "logging_steps": 10,
        "saves_per_epoch": 1,
        "seed": data.seed,
        "output_dir": data.output,
    }
    notes = ["For LoRA add adapter: lora, lora_r: 16, lora_alpha: 32, lora_target_linear: true."]
    if data.fmt.name == "alpaca":
        notes.insert(0, "type: alpaca wraps the rows in the Alpaca prompt, not in the model's chat template.")
    return values, notes
