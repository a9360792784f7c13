"""Generator and judge on vLLM's engine, in the worker itself: the stages behind `kind: vllm`.

A stage works on any number of parts at a time: all their rows are in the engine together, so the last long answers of
one part share it with the first of the next. A row that does not fit is turned away by its token count before the
engine sees it. How an engine is kept alive is in engine/models/vllm_engine.py, how a judge is asked in engine/judging.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
import uuid
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from engine.errors import ConfigError, EnvironmentProblem
from engine.judging.canaries import canaries_for
from engine.judging.pairwise import JUDGED_COLUMNS, Pairwise
from engine.judging.prompts import Prompt
from engine.models.generators import REFUSALS, chat_text
from engine.models.threads import LoopThread
from engine.models.vllm_installed import require_vllm
from engine.paid.replies import Reply, RowFailed
from engine.paid.stages import table_of
from engine.schema import ANSWER, ANSWER_COLUMNS, ERROR, ID, MESSAGES, TOOLS, id_words, seeded_hash
from engine.store import Store
from engine.work import count_tokens

VLLM_ANSWER_COLUMNS = [
    *ANSWER_COLUMNS,
    pa.field("finish", pa.string()),  # "stop" | "length" | ...: why the answer ended
    pa.field("tokens_in", pa.int64()),
    pa.field("tokens_out", pa.int64()),
]
TOP_LOGPROBS = 10  # as the paid judge asks for
LOG_FOLDER = "engines"
CPU_KV_CACHE_BYTES = 1 << 30  # the CPU build refuses to choose


@dataclass(frozen=True, kw_only=True)
class Serving:
    """What a member needs to serve a model.

    Attributes:
        name: of the stage.
        args: fields of vLLM's engine arguments, `model` among them.
        sampling: fields of vLLM's SamplingParams.
        template: keyword arguments of the chat template.
        hang_s, give_up_after_s: as engine.models.vllm_engine.Engine.
        seed: of the run; each row has its own, so that a sampled answer does not depend on what ran beside it.
        log: run folder, in which engines are counted.
    """

    name: str
    args: Mapping[str, Any]
    sampling: Mapping[str, Any]
    template: Mapping[str, Any] = field(default_factory=dict)
    hang_s: float
    give_up_after_s: float
    seed: int
    log: Store | None = None


class VllmStage:
    """What generator and judge share: an engine, rows in, rows out.

    Args:
        serving: the model and how it is served.
        logprobs: how many alternatives to each token are wanted.
        form: field of vLLM's StructuredOutputsParams that holds the reply to a form.

    Raises:
        EnvironmentProblem: E350 vLLM is not installed, E320 the tokenizer is not there, E351 the engine does not start.
        ConfigError: E236, vLLM does not take the settings.
    """

    columns_in: Sequence[str] = ()
    columns_out: Sequence[pa.Field] = ()

    def __init__(self, serving: Serving, logprobs: int | None = None, form: Mapping[str, Any] | None = None) -> None:
        require_vllm("kind vllm runs the model in the run's own workers", "kind openai or transformers")
        args = _with_defaults(serving.args)  # before vLLM is imported: it reads the environment then
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]
        from vllm.sampling_params import (  # pyright: ignore[reportMissingImports]
            RequestOutputKind,
            StructuredOutputsParams,
        )

        from engine.models.vllm_engine import Engine

        self.serving = serving
        self.tokenizer = load_tokenizer(args.get("tokenizer") or args["model"])
        try:
            self.params = SamplingParams(
                **serving.sampling,
                logprobs=logprobs,
                structured_outputs=StructuredOutputsParams(**form) if form else None,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
        except (TypeError, ValueError) as error:
            raise ConfigError("vLLM does not take these sampling settings", why=str(error), code="E236") from error
        self.thread = LoopThread()
        try:
            self.engine = self.thread.run(_made(Engine, args, serving.hang_s, serving.give_up_after_s, self._note))
            self.thread.run(self.engine.start())
        except BaseException:
            self.thread.close()
            raise
        self.rows = asyncio.Semaphore(self.engine.in_flight)

    def __call__(self, table: pa.Table) -> pa.Table:
        found = self.thread.run(self._part(self.work(table.to_pylist())))
        for column in ("tokens_in", "tokens_out"):
            count_tokens(pc.sum(found[column]).as_py() or 0)  # pyright: ignore[reportAttributeAccessIssue]
        return found

    async def _part(self, work: Sequence[Coroutine[Any, Any, dict[str, Any]]]) -> pa.Table:
        outcomes = await asyncio.gather(*map(self._in_turn, work), return_exceptions=True)
        return table_of(outcomes, self.columns_out)

    async def _in_turn(self, row: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
        """As many rows at a time as the engine has room for: preparing more would only keep it waiting."""
        async with self.rows:
            return await row

    def work(self, rows: Sequence[dict[str, Any]]) -> list[Coroutine[Any, Any, dict[str, Any]]]:
        """One coroutine per row."""
        raise NotImplementedError

    async def ask(self, key: str, tokens: Sequence[int]) -> tuple[Reply, Any]:
        """The engine's reply to a prompt, and what vLLM gave.

        Raises:
            RowFailed: it does not fit, or the engine refuses it or dies of it.
        """
        if not tokens:
            raise RowFailed("the prompt has no tokens")
        most = self.engine.max_model_len - self.params.max_tokens
        if len(tokens) > most:
            raise RowFailed(f"prompt of {len(tokens)} tokens is longer than the {most} that leave room for the answer")
        params = self.params
        if params.temperature > 0:
            params = params.clone()
            params.seed = int(seeded_hash(id_words([key]), self.serving.seed, "sampling")[0] >> 33)
        output = await self.engine.generate(key, tokens, params)
        found = output.outputs[0]
        finish = str(found.finish_reason)
        if finish in ("abort", "error"):
            raise RowFailed(f"{finish}: the engine gave up the row")
        return Reply(text=found.text, finish=finish, tokens_in=len(tokens), tokens_out=len(found.token_ids)), found

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids; the chat template has written the special ones already."""
        add = not self.tokenizer.chat_template
        return self.tokenizer(texts, add_special_tokens=add, verbose=False)["input_ids"] if texts else []

    def text(self, turns: list[dict[str, Any]], tools: Any) -> str:
        """The conversation as the model reads it, ready for its turn.

        Raises:
            RowFailed: there is nothing to answer, or it cannot be written.
        """
        try:
            text = chat_text(self.tokenizer, turns, tools, **self.serving.template)
            text.encode()
        except UnicodeEncodeError as error:
            raise RowFailed("broken Unicode: half of a surrogate pair in the prompt") from error
        except REFUSALS as error:
            raise RowFailed(f"the chat template refuses the row: {error}") from error
        return text

    def _note(self, event: str, facts: Mapping[str, Any]) -> None:
        """One small file per event: members write at the same time, and one that is killed has written before."""
        if self.serving.log is not None:
            about = {"event": event, "stage": self.serving.name, "host": socket.gethostname(), "pid": os.getpid()}
            line = json.dumps({**about, "at": round(time.time(), 3), **facts})
            name = f"{LOG_FOLDER}/{self.serving.name}-{event}-{uuid.uuid4().hex[:8]}.json"
            self.serving.log.write_bytes(name, line.encode())

    def close(self) -> None:
        self.thread.run(self.engine.close())
        self.thread.close()


class VllmGenerator(VllmStage):
    """Stage: the model's answer to each conversation.

    Args:
        system: system message for rows that have none.
    """

    columns_in = (ID, MESSAGES, TOOLS)
    columns_out = VLLM_ANSWER_COLUMNS

    def __init__(self, serving: Serving, system: str | None) -> None:
        self.system = system
        super().__init__(serving)

    def work(self, rows: Sequence[dict[str, Any]]) -> list[Coroutine[Any, Any, dict[str, Any]]]:
        texts = [self._text(row) for row in rows]  # here, in the part's own thread, beside the engine's
        fine = [text for text in texts if isinstance(text, str)]
        tokens = iter(self.encode(fine))
        prompts = [next(tokens) if isinstance(text, str) else text for text in texts]
        return [self._answer(row[ID], prompt) for row, prompt in zip(rows, prompts, strict=True)]

    def _text(self, row: Mapping[str, Any]) -> str | RowFailed:
        turns = json.loads(row[MESSAGES])[:-1]
        if not any(_says_something(turn) for turn in turns if turn["role"] != "system"):
            return RowFailed("the prompt is empty")
        if self.system is not None and turns[0]["role"] != "system":
            turns = [{"role": "system", "content": self.system}, *turns]
        try:
            return self.text(turns, json.loads(row[TOOLS]) if row[TOOLS] else None)
        except RowFailed as error:
            return error

    async def _answer(self, key: str, prompt: list[int] | RowFailed) -> dict[str, Any]:
        if isinstance(prompt, RowFailed):
            raise prompt
        reply, _ = await self.ask(key, prompt)
        found = {"finish": reply.finish, "tokens_in": reply.tokens_in, "tokens_out": reply.tokens_out}
        if not reply.text:
            return {ERROR: f"empty answer, finish reason {reply.finish}", **found}
        return {ANSWER: reply.text, **found}


class VllmJudge(VllmStage):
    """Stage: verdicts on the model's answers, in the form that the grammar allows.

    Args:
        prompt: of kind pairwise.
        structured: "auto", "json_schema", "choice" or "text".
        logprobs: whether token probabilities are wanted.
        orders, decisive, suspects: as engine.judging.pairwise.Pairwise.
        canaries: share of rows that bring a canary along.
        seed: of the draw of canaries.
    """

    columns_in = Pairwise.columns_in
    columns_out = JUDGED_COLUMNS

    def __init__(
        self, serving: Serving, *, prompt: Prompt, structured: str, logprobs: bool, orders: str, decisive: float,
        suspects: str, canaries: float, seed: int,
    ) -> None:  # fmt: skip
        self.pairwise = Pairwise(prompt, orders, decisive, suspects)
        self.canaries, self.seed = canaries, seed
        form: dict[str, Any] = {"json": prompt.schema} if structured != "text" and prompt.schema is not None else {}
        if structured == "choice":
            form = {"choice": list(prompt.labels)}
        super().__init__(serving, TOP_LOGPROBS if logprobs and prompt.parser != "score_pair" else None, form)

    def work(self, rows: Sequence[dict[str, Any]]) -> list[Coroutine[Any, Any, dict[str, Any]]]:
        canaries = canaries_for(id_words([row[ID] for row in rows]), self.canaries, self.seed) if rows else []
        return [self._judge(row, canary) for row, canary in zip(rows, canaries, strict=True)]

    async def _judge(self, row: Mapping[str, Any], canary: Any) -> dict[str, Any]:
        async def ask(messages: Sequence[Mapping[str, str]], purpose: str, about: str) -> Reply:
            tokens = await asyncio.to_thread(self._tokens, [dict(message) for message in messages])
            reply, found = await self.ask(row[ID], tokens)
            return Reply(**{**vars(reply), "tokens": chat_logprobs(found)})

        return await self.pairwise.judge(row, canary, ask)

    def _tokens(self, messages: list[dict[str, Any]]) -> list[int]:
        return self.encode([self.text(messages, None)])[0]


def chat_logprobs(output: Any) -> list[dict[str, Any]]:
    """vLLM's log-probabilities in the form of an OpenAI reply's `logprobs.content`, empty when there are none.

    vLLM takes them after the grammar has struck out what may not come next.
    """
    found = []
    places: list[Any] = output.logprobs or []
    for token, listed in zip(output.token_ids, places, strict=False):
        shown = {key: {"token": one.decoded_token or "", "logprob": one.logprob} for key, one in listed.items()}
        found.append({**shown[token], "top_logprobs": list(shown.values())})
    return found


def engine_facts(store: Store) -> dict[str, dict[str, int]]:
    """How often engines were started, died, and rows were blamed for it, by stage; empty without any."""
    counts: dict[str, Counter[str]] = {}
    for name in store.list(LOG_FOLDER) if store.exists(LOG_FOLDER) else ():
        stage, event = name.rsplit("-", 2)[:2]
        counts.setdefault(stage, Counter())[event] += 1
    return {stage: {e: found[e] for e in ("started", "died", "blamed")} for stage, found in sorted(counts.items())}


def load_tokenizer(model: str) -> Any:
    """The model's tokenizer.

    Raises:
        EnvironmentProblem: E320.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise EnvironmentProblem(
            f"cannot load the tokenizer of {model!r}",
            why=str(error).splitlines()[0],
            fix="give a local path, or a Hugging Face id while online",
            code="E320",
        ) from error


def _with_defaults(args: Mapping[str, Any]) -> dict[str, Any]:
    """The engine's arguments and environment, filled up where vLLM's own defaults do not suit a worker among others."""
    import torch

    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # this process has threads, which no fork survives
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    defaults: dict[str, Any] = {"use_tqdm_on_load": False}
    if torch.cuda.is_available():
        return {**defaults, **args}
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # other workers share the processors
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # no third process for each engine
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    defaults |= {"enforce_eager": True, "distributed_executor_backend": "uni"}
    if args.get("tensor_parallel_size", 1) * args.get("pipeline_parallel_size", 1) > 1:
        defaults["distributed_executor_backend"] = "mp"
    if "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
        defaults["kv_cache_memory_bytes"] = CPU_KV_CACHE_BYTES
    return {**defaults, **args}


def _says_something(turn: Mapping[str, Any]) -> bool:
    content = turn.get("content")
    return bool(content.strip() if isinstance(content, str) else content) or bool(turn.get("tool_calls"))


async def _made(factory: Any, *args: Any) -> Any:
    return factory(*args)  # on the loop that it will live on
