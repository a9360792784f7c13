"""Generators, judges and classifiers by name: each real, in a whole run; recorded ones replay a run exactly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from engine.artifacts import Step, write_table
from engine.backends import Neighbor, Resident, pinned
from engine.config import PaidConfig
from engine.data.inputs import resolve_inputs
from engine.errors import DataError
from engine.local import LocalRuntime
from engine.models.generators import TransformersGenerator
from engine.models.recorded import RecordedAnswers
from engine.paid.service import PaidRun
from engine.pool import ingest
from engine.recipes.base import Context
from engine.runtime import Resources, StageSpec
from engine.schema import ANSWER_COLUMNS
from engine.store import Store
from engine.trainer import Trainer, classifier_settings
from tests.runs import config_for, outputs, run_local


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory, small_pool: Path) -> Path:
    """A Llama of random weights with a word tokenizer and a chat template."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("llama")
    words = sorted(set(small_pool.read_text(encoding="utf-8").split()))[:500]
    vocabulary = {word: number for number, word in enumerate(["<unk>", "<s>", "</s>", "<pad>", *words])}
    raw = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {% endfor %}assistant :"
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_greedy_answers_equal_a_direct_call_and_long_prompts_become_error_rows(tiny_llama: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    stage = TransformersGenerator(str(tiny_llama), 8, 40, "float32", 2)
    texts = ["What is a river ?", "Explain the word", "one " * 100, "List three"]
    messages = [[{"role": "user", "content": text}, {"role": "assistant", "content": "x"}] for text in texts]
    table = pa.table({"messages": [json.dumps(m) for m in messages], "tools": [""] * len(texts)})
    found = stage(table).to_pylist()
    assert found[2]["answer"] is None and "longer than 40" in found[2]["error"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_llama), AutoTokenizer.from_pretrained(tiny_llama)
    for row in (0, 1, 3):
        inputs = tokenizer(f"user : {texts[row]} assistant :", return_tensors="pt", add_special_tokens=False)
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=8, do_sample=False, pad_token_id=3)
        text = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert found[row] == {"answer": text, "error": None}


@pytest.mark.parametrize("template", ["{{ raise_exception('no system') }}", "{{ 'a' + messages[0]['n'] }}", "{% if %}"])
def test_a_row_that_the_chat_template_refuses_is_an_error_row(tiny_llama: Path, template: str) -> None:
    stage = TransformersGenerator(str(tiny_llama), 8, 40, "float32", 2)
    stage.tokenizer.chat_template = f"{{% if messages | length > 1 %}}{template}{{% endif %}}assistant :"
    turns = [{"role": "user", "content": "x", "n": 1}] * 2
    table = pa.table({"messages": [json.dumps(turns), json.dumps([*turns, *turns])], "tools": ["", ""]})
    found = stage(table).to_pylist()
    if template != "{% if %}":  # which refuses every row
        assert found[0]["error"] is None
    assert found[1]["answer"] is None and found[1]["error"].startswith("the chat template refuses the row: ")
    assert stage(table.slice(0, 0)).num_rows == 0


def test_transformers_generator_and_finetuned_classifier(
    small_pool: Path, tiny_llama: Path, tmp_path: Path, recorder: Any
) -> None:
    pool = with_verdicts(small_pool, tmp_path / "pool.jsonl")
    choices = [
        f"encoder.model={small_pool.parent / 'encoder'}",
        "recipe.judge.kind=recorded",
        "recipe.judge.column=verdict",
        "recipe.generator.kind=transformers",
        f"recipe.generator.model={tiny_llama}",
        "recipe.generator.max_new_tokens=8",
        "recipe.generator.max_prompt_tokens=400",
        "recipe.classifier.kind=finetune",
        f"recipe.classifier.model={small_pool.parent / 'encoder'}",
        "recipe.classifier.max_tokens=64",
        "recipe.classifier.epochs=1",
        "recipe.max_rounds=2",
    ]
    summary = run_local(config_for(pool, tmp_path / "a", *choices), recorder)
    assert summary["selected"] == 40
    assert [entry["failed"] for entry in summary["rounds"]] == [0, 0]
    assert list((tmp_path / "a").glob("rounds/001/classifier-*/model.safetensors"))
    run_local(config_for(pool, tmp_path / "b", *choices), recorder, shards=3)
    assert outputs(tmp_path / "a") == outputs(tmp_path / "b")


def with_verdicts(pool: Path, path: Path) -> Path:
    """The pool with a recorded verdict in every row that parses: long questions are hard."""
    lines = []
    for line in pool.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
            lines.append(json.dumps({**row, "verdict": len(row["messages"][0]["content"]) > 60}))
        except (ValueError, TypeError):
            lines.append(line)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_recorded_answers_and_verdicts_replay_a_run(small_pool: Path, tmp_path: Path, recorder: Any) -> None:
    first = tmp_path / "first"
    run_local(config_for(small_pool, first), recorder)
    answers, verdicts = tmp_path / "answers.jsonl", tmp_path / "verdicts.jsonl"
    for name, path in (("answers", answers), ("verdicts", verdicts)):
        path.write_text("".join(json.dumps(row) + "\n" for row in recorded(first, name)))
    replayed = config_for(
        small_pool,
        tmp_path / "again",
        "recipe.generator.kind=recorded",
        f"recipe.generator.file={answers}",
        "recipe.judge.kind=recorded",
        f"recipe.judge.file={verdicts}",
    )
    run_local(replayed, recorder)
    assert outputs(tmp_path / "again") == outputs(first)


def recorded(out: Path, name: str) -> list[dict[str, Any]]:
    """What a run's rounds produced, keyed by public id."""
    store = Store(out)
    ids = {row["row"]: row["id"] for row in whole(store, "steps", "ingest")}
    rounds = [f"rounds/{number}" for number in store.list("rounds")]
    return [{**row, "id": ids[row["row"]]} for folder in rounds for row in whole(store, folder, name)]


def whole(store: Store, folder: str, name: str) -> list[dict[str, Any]]:
    (found,) = [entry for entry in store.list(folder) if entry.startswith(f"{name}-")]
    return Step.at(store, f"{folder}/{found}").read_all().to_pylist()


def test_a_recorded_file_is_known_by_its_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    settings, first = pinned("recorded", {"column": None, "file": "answers.jsonl"})
    assert settings == {"column": None, "file": str(path)}
    assert pinned("recorded", {"column": None, "file": str(path)})[1] == first
    path.write_text("{} \n")
    assert pinned("recorded", settings)[1] != first
    assert pinned("recorded", {"column": "x", "file": None})[1] == {"kind": "recorded", "column": "x", "file": None}
    with pytest.raises(DataError, match="cannot read"):
        pinned("recorded", {"column": None, "file": "none.jsonl"})


def test_a_local_model_is_known_by_its_contents(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_llama, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    settings, first = pinned("transformers", {"model": "model", "batch_rows": 2})
    assert settings == {"model": str(tmp_path / "model"), "batch_rows": 2}
    finetune = classifier_settings({"kind": "finetune", "model": "model", "precision": "auto", "epochs": 1})
    assert finetune["model"] == settings["model"] and finetune["weights"] == first["model"]
    assert finetune["precision"] in ("float32", "bfloat16")
    assert "weights" not in Trainer(finetune, 0, 0.2).settings
    (tmp_path / "model" / "config.json").write_text("{}")
    assert pinned("transformers", settings)[1] != first
    assert classifier_settings({"kind": "finetune", "model": "model"})["weights"] != finetune["weights"]
    assert classifier_settings({"kind": "probe", "l2": 1.0}) == {"kind": "probe", "l2": 1.0}


def step_of(store: Store, name: str, columns: dict[str, list[Any]]) -> Step:
    step = Step(store, name, {}, [])
    write_table(step, pa.table(columns), 10)
    return step


@pytest.mark.parametrize("gpus", [0.0, 1.0])
def test_a_backend_stays_loaded_until_another_wants_its_gpus(
    small_pool: Path, tmp_path: Path, recorder: Any, gpus: float
) -> None:
    store, runtime = Store(tmp_path / "run"), LocalRuntime(recorder)
    source = step_of(store, "source", {"row": [0, 1], "id": ["a", "b"], "record": ['{"x": "one"}', "{}"]})
    config = config_for(small_pool, tmp_path / "run")
    context = Context(config, store, source, runtime, 1, PaidRun(store, runtime, PaidConfig()), store)
    columns = {"columns_in": RecordedAnswers.columns_in, "columns_out": ANSWER_COLUMNS}
    resources = Resources(gpus=gpus, resident=True)
    stage = StageSpec(name="answer", factory=RecordedAnswers, kwargs={"column": "x"}, resources=resources, **columns)
    backend, other = Resident(context, stage, {}), Resident(context, stage, {})
    groups = []
    for number in range(2):
        target = Step(store, f"answers{number}", {}, [])
        backend.run(source, target)
        assert target.read_all().column("answer").to_pylist() == ["one", None]
        groups.append(backend.group)
    assert groups[0] is groups[1] and groups[0] is not None and groups[0].is_open
    other.run(source, Step(store, "others", {}, []))
    assert groups[0].is_open == (gpus == 0)
    backend.run(source, Step(store, "again", {}, []))
    assert (backend.group is groups[0]) == (gpus == 0)
    assert other.group is not None and other.group.is_open == (gpus == 0)
    backend.close()
    backend.close()


def test_a_row_without_neighbours_has_no_answer(small_pool: Path, tmp_path: Path, recorder: Any) -> None:
    pool = tmp_path / "pool.jsonl"
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    pool.write_text(json.dumps({"messages": turns}) + "\n")
    config = config_for(pool, tmp_path / "run", f"encoder.model={small_pool.parent / 'encoder'}", "budget=1")
    store, runtime = Store(config.out), LocalRuntime(recorder)
    frozen = ingest(config, store, runtime, resolve_inputs(config.data.path))
    context = Context(config, store, frozen, runtime, 1, PaidRun(store, runtime, PaidConfig()), store)
    target = Step(store, "answers", {}, [])
    record = Neighbor(context, context.index(context.vectors())).run(frozen, target)
    assert target.read_all().to_pylist() == [{"row": 0, "answer": None, "error": "no other row in the pool"}]
    assert record.failed == 1
