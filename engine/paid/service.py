"""What a run's paid calls share: its name in the ledger, one limiter, the live figures, and the backends themselves.

Nothing is started until a step has calls to make. It knows nothing of what is asked.
"""

from __future__ import annotations

import hashlib
import json
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

from engine.artifacts import Source, Step, StepRecord
from engine.config import PaidConfig, RunConfig
from engine.config_base import Strict, models_in
from engine.config_endpoint import (
    EXECUTION,
    EndpointConfig,
    OpenAIGeneratorConfig,
    OpenAIJudgeConfig,
)
from engine.errors import BudgetReached, ConfigError
from engine.judging.prompts import DATA_RULES, Prompt, load_prompt
from engine.paid.batch_files import Missing, waiting_for_batch, write_batch
from engine.paid.endpoint import Endpoint, api_key
from engine.paid.ledger import LedgerIndex
from engine.paid.limits import Limiter, Limits
from engine.paid.prices import price_of, usd_of
from engine.paid.stages import (
    Calls,
    OpenAIGenerator,
    OpenAIJudge,
    PaidWorker,
    generator_asks,
    judge_asks,
    judge_settings,
    round_of,
)
from engine.runtime import Group, Resources, Runtime, StageSpec, map_on_group, pending_parts, run_pass
from engine.store import Store

RUN_ID_FILE, RETRIES_FILE = "run_id", "retries.json"
LIVE_INTERVAL_S = 1.0
JUDGING_VERSION = 1  # raised by hand when parsing, escaping or the rule of the two orders changes
JUDGING_DATA = ("canaries.jsonl", "prompt_files/suspect_phrases.txt")


class PaidRun:
    """The paid side of one run.

    Args:
        store: the run folder.
        runtime: hosts the limiter and the members.
        config: `paid` of the run's config.
    """

    def __init__(self, store: Store, runtime: Runtime, config: PaidConfig) -> None:
        self.store, self.runtime, self.config = store, runtime, config
        self.ledger = ledger_store(store, config.ledger)
        self._limiter: Group | None = None
        self._run = ""

    @property
    def run(self) -> str:
        """16 hex digits, made once per run folder."""
        if not self._run:
            self.store.create(RUN_ID_FILE, uuid.uuid4().hex[:16].encode())
            self._run = self.store.read_bytes(RUN_ID_FILE).decode()
        return self._run

    @property
    def limiter(self) -> Group:
        if self._limiter is None:
            limits = {"max_usd": self.config.max_usd, "max_usd_per_round": self.config.max_usd_per_round}
            member = {"ledger": self.ledger, "run": self.run, **limits}
            self._limiter = self.runtime.group(Limiter, [member], Resources(resident=True, apart=True))
        return self._limiter

    def retries(self, name: str) -> int:
        """How often the failed rows of a step were asked to be retried."""
        return read_retries(self.store).get(name, 0)

    @contextmanager
    def watched(self, step: str) -> Iterator[None]:
        """Tells the observer about calls and money, once a second and at the end."""
        limiter, stop = self.limiter, threading.Event()

        def tell() -> None:
            facts = limiter.call("totals")[0]
            self.runtime.observer.spent(step, {**facts, "max_usd": self.config.max_usd})

        def watch() -> None:
            while not stop.wait(LIVE_INTERVAL_S):
                tell()

        tell()  # what earlier sessions spent, so that what this one spends can be told from it
        thread = threading.Thread(target=watch, name="spending", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        tell()

    def facts(self) -> dict[str, Any]:
        """Calls, tokens and USD of the whole run, from the ledger; empty when it never called."""
        if not self.store.exists(RUN_ID_FILE):
            return {}
        index = LedgerIndex(self.ledger)
        index.refresh()
        totals = index.totals(self.run)
        names = ("calls", "spoiled", "in_doubt", "repeated", "tokens_in", "tokens_out")
        return {**{name: getattr(totals, name) for name in names}, "usd": round(totals.cost_usd, 6)}

    def close(self) -> None:
        if self._limiter is not None:
            self._limiter.close()
            self._limiter = None


def paid_backends(config: RunConfig) -> list[EndpointConfig]:
    """The backends of a config that call an endpoint, wherever in the recipe's settings they stand."""
    return [model for model in models_in(config.recipe) if isinstance(model, EndpointConfig)]


def ledger_store(store: Store, where: str | None) -> Store:
    """The run's own ledger folder, or one shared between runs."""
    return store.sub("ledger") if where is None else Store(where, store.fence)


def read_retries(store: Store) -> dict[str, int]:
    """Step name -> how often its failed rows were asked to be retried."""
    return json.loads(store.read_bytes(RETRIES_FILE)) if store.exists(RETRIES_FILE) else {}


def retry_failed(store: Store) -> list[str]:
    """Marks every complete step of paid calls that has error rows, so that the next run makes it again.

    Such a step names an endpoint among its settings. Rows that were answered come out of the ledger; only the failed
    ones are asked.

    Returns:
        Names of the steps.
    """
    retries, marked = read_retries(store), list[str]()
    for parent in ("steps", *(f"rounds/{number}" for number in store.list("rounds"))):
        for folder in store.list(parent):
            if store.exists(f"{parent}/{folder}/step.json"):
                record = StepRecord.from_json(store.read_bytes(f"{parent}/{folder}/step.json"))
                paid = record.failed and "base_url" in record.settings
                if paid and record.settings.get("retry", 0) == retries.get(record.name, 0):
                    marked.append(record.name)
    marked = sorted(set(marked))  # steps of other settings in the same folder have the same names
    if marked:
        store.write_bytes(RETRIES_FILE, json.dumps({**retries, **{n: retries.get(n, 0) + 1 for n in marked}}).encode())
    return marked


def check_money(caps: Sequence[float | None], config: EndpointConfig) -> None:
    """A cap that cannot be kept is refused.

    Raises:
        ConfigError: E260, there is a cap and nobody knows the price.
    """
    if any(cap is not None for cap in caps) and price_of(config) is None:
        raise ConfigError(
            f"max_usd is set, but the price of {config.model!r} at {config.base_url} is not known",
            fix="give price: {input: ..., output: ...} in USD per million tokens (0 for a server of your own)",
            code="E260",
        )


def check_backends(config: RunConfig, with_key: bool) -> None:
    """Looks at the price and, if asked to, the key of everything in a config that makes paid calls.

    Raises:
        ConfigError: E260.
        EnvironmentProblem: E362.
    """
    for backend in paid_backends(config):
        check_money(config.paid.caps, backend)
        if with_key and backend.mode == "online":
            api_key(endpoint_of(backend))


def endpoint_of(config: EndpointConfig) -> Endpoint:
    """Where and how the calls of a backend are made."""
    limits = Limits(
        concurrency=config.concurrency,
        requests_per_minute=config.requests_per_minute,
        tokens_per_minute=config.tokens_per_minute,
    )
    return Endpoint(
        base_url=config.base_url,
        api_key_env=config.api_key_env,
        price=price_of(config),
        limits=limits,
        call_timeout_s=config.call_timeout_s,
        max_attempts=config.max_attempts,
        give_up_after_s=config.give_up_after_s,
    )


def identity_of(config: Strict) -> dict[str, Any]:
    """What determines the replies: every setting but those of how calls are made."""
    return {name: value for name, value in config.model_dump().items() if name not in EXECUTION}


def judging_identity(prompt: Prompt) -> dict[str, Any]:
    """What determines verdicts beside the settings: the prompt, and the data that a release may change."""
    data = [files("engine.judging").joinpath(name).read_bytes() for name in JUDGING_DATA]
    rules = hashlib.sha256(b"\0".join([*data, DATA_RULES.encode()])).hexdigest()
    return {"prompt": prompt.spec, "prompt_sha": prompt.sha, "rules_sha": rules, "version": JUDGING_VERSION}


class PaidBackend:
    """A generator or judge behind an endpoint: one group of processes that stays up over the rounds.

    Args:
        paid: the run's shared part.
        name: "answer" or "judge".
        factory: the stage's class.
        config: of the backend.
        asks: request fields common to all its calls.
        settings: further arguments of the stage.
        identity: what determines its bytes.

    Raises:
        ConfigError: E260, as `check_money`.
    """

    def __init__(
        self,
        paid: PaidRun,
        name: str,
        factory: Any,
        config: EndpointConfig,
        asks: Mapping[str, Any],
        settings: Mapping[str, Any],
        identity: Mapping[str, Any],
    ) -> None:
        check_money(paid.config.caps, config)
        self.paid, self.name, self.factory, self.config = paid, name, factory, config
        self.asks, self.settings, self.identity = asks, settings, identity
        self.group: Group | None = None
        self.retry = -1

    def run(self, source: Source, target: Step) -> StepRecord:
        observer = self.paid.runtime.observer
        if target.record() is not None:
            return run_pass(observer, source, target, lambda todo: iter(()))
        retry = int(target.settings.get("retry", 0))
        if self.config.mode == "batch":
            self._require_answers(source, target, retry)
        group = self._group(retry)
        with self.paid.watched(target.name):
            return map_on_group(observer, group, source, target)

    def _group(self, retry: int) -> Group:
        if self.group is not None and retry != self.retry:
            self.close()
        if self.group is None:
            stage = self._stage(retry)
            shards = [{"stage": stage, "number": number} for number in range(self.config.processes)]
            resources = Resources(resident=True, apart=True, concurrency=self.config.parts)
            self.group, self.retry = self.paid.runtime.group(PaidWorker, shards, resources), retry
        return self.group

    def _require_answers(self, source: Source, target: Step, retry: int) -> None:
        """Stops the run, with request files written, while calls of the step are not in the ledger."""
        stage = self.factory(self._calls(None), "batch", retry, **self.settings)
        try:
            parts = [source.read(index) for index in pending_parts(source, target)]
            found = [call for table in parts for call in stage.missing(table, round_of(target))]
        finally:
            stage.close()
        missing = list({call.key: call for call in found}.values())  # two rows may ask the same
        if missing:
            price, discount = price_of(self.config), self.config.batch_discount
            self._check_caps(missing, round_of(target))
            written = write_batch(self.paid.store, target.name, missing, price, discount, self.paid.run)
            raise waiting_for_batch(self.paid.store, written, len(missing))

    def _check_caps(self, missing: Sequence[Missing], round_number: int) -> None:
        """A batch is written only if it cannot cost more than what the caps leave.

        Raises:
            BudgetReached: E510 of the run, E511 of the round.
        """
        price, discount = price_of(self.config), self.config.batch_discount
        asked = [call.request for call in missing]
        most = (1 - discount) * sum(usd_of(price, one.most_tokens_in(), one.max_tokens) for one in asked)
        index = LedgerIndex(self.paid.ledger)
        index.refresh()
        caps = self.paid.config.caps
        for cap, number, code in ((caps[0], None, "E510"), (caps[1], round_number, "E511")):
            spent = index.totals(self.paid.run, round=number).cost_usd
            if cap is not None and spent + most > cap:
                raise BudgetReached(
                    f"the batch may cost up to ${most:.4f}; ${spent:.4f} of ${cap:.4f} are spent",
                    fix="raise the cap, or lower recipe.batch_size, and run the same command again",
                    code=code,
                )

    def _calls(self, limiter: Group | None) -> Calls:
        endpoint, run = endpoint_of(self.config), self.paid.run
        return Calls(endpoint=endpoint, ledger=self.paid.ledger, run=run, limiter=limiter, asks=self.asks)

    def _stage(self, retry: int) -> StageSpec:
        # In batch mode everything is in the ledger by now, and nothing may be sent.
        limiter = None if self.config.mode == "batch" else self.paid.limiter
        return StageSpec.of(self.name, self.factory, calls=self._calls(limiter), retry=retry, **self.settings)

    def close(self) -> None:
        if self.group is not None:
            self.group.close()
            self.group = None


def paid_generator(paid: PaidRun, config: OpenAIGeneratorConfig) -> PaidBackend:
    """A generator behind an OpenAI-compatible endpoint."""
    settings = {"system": config.system}
    return PaidBackend(paid, "answer", OpenAIGenerator, config, generator_asks(config), settings, identity_of(config))


def paid_judge(paid: PaidRun, config: OpenAIJudgeConfig, seed: int) -> PaidBackend:
    """A judge behind an OpenAI-compatible endpoint. `seed` draws its canaries."""
    prompt = load_prompt(config.prompt, "pairwise")
    identity = {**identity_of(config), **judging_identity(prompt)}
    asks, settings = judge_asks(config, prompt), judge_settings(config, prompt, seed)
    return PaidBackend(paid, "judge", OpenAIJudge, config, asks, settings, identity)
