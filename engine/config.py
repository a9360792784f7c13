"""What can be configured: frozen pydantic models, every unknown key an error, every default vetted.

A run is described by `RunConfig`: data, recipe, encoder and output settings determine the bytes and are hashed into
the steps that use them; `runtime` says how it is executed and must not change the result. The models know nothing of
YAML (engine/yaml_document.py) and import no heavy library. Recipes add their own model, registered in engine/recipes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from engine.config_base import Fraction, PathOrName, Strict
from engine.config_endpoint import OpenAIGeneratorConfig, OpenAIJudgeConfig
from engine.config_vllm import VllmGeneratorConfig, VllmJudgeConfig
from engine.errors import ConfigError


class DataConfig(Strict):
    path: PathOrName | list[PathOrName] = Field(description="File, folder, glob or URI, or a list of them")
    format: Literal["auto", "messages", "sharegpt", "alpaca", "prompt-completion"] = Field(
        default="auto", description="Input format; auto detects it from the first rows and prints what it found"
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="Column names by role, as LLaMA-Factory: prompt, query, response, history, messages, system, tools",
    )
    source_column: str | None = Field(
        default=None,
        description="Column that names a row's origin; default: `source` if there is one, else the file's name",
    )
    max_row_bytes: int = Field(default=10 << 20, gt=0, description="A longer row is rejected, in bytes")
    part_rows: int = Field(default=4096, ge=1, le=8192, description="Rows per part of the frozen pool")
    limit: int | None = Field(
        default=None, ge=1, description="A pilot: select from so many rows, drawn at random by seed; same as --limit"
    )


class EncoderConfig(Strict):
    model: PathOrName = Field(
        default="bundled:minilm",
        description="Hugging Face path or id, bundled:minilm (works offline), or hash:D (hashed words in D dimensions)",
    )
    pooling: Literal["mean", "cls", "last"] = Field(
        default="mean", description="How token states become one vector; last: the last token, of a language model"
    )
    max_tokens: int = Field(default=256, ge=8, description="Longer texts are cut")
    prefix: str = Field(default="", description="Put before every text, for models trained with one, e.g. 'query: '")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="auto: bfloat16 where the processor has it, which is 2 to 3 times faster"
    )

    @field_validator("model")
    @classmethod
    def _dimension(cls, value: str) -> str:
        """What is wrong with the D of hash:D is said before anything is read."""
        if value.startswith("hash:"):
            from engine.models.hash_encoder import hash_dim

            hash_dim(value)
        return value


class KMeansConfig(Strict):
    method: Literal["auto", "sample", "lloyd", "two_level"] = Field(
        default="auto",
        description="lloyd: every iteration over all rows; sample: over 256 rows per cluster, then one pass over all; "
        "two_level: clusters of clusters; auto: two_level from 20,000 clusters, sample below",
    )


class OutputConfig(Strict):
    format: Literal["source", "messages", "alpaca", "sharegpt", "prompt-completion"] = Field(
        default="source", description="Format of data/; source keeps the training columns of the input untouched"
    )
    shard_rows: int = Field(default=100_000, ge=1, description="Rows per file in data/")
    name: str = Field(default="iterselect", description="Name of the data set in dataset_info.json and the card")
    language: list[str] = Field(
        default_factory=list, description="Languages of the rows for the card, as BCP-47 codes such as en, zh-Hant"
    )
    license: str | None = Field(default=None, description="Licence for the card, as the Hub names it, e.g. cc-by-4.0")
    handoff: bool = Field(
        default=True, description="Write handoff/, trainer configs and two random baselines, and dataset_info.json"
    )
    report: bool = Field(default=True, description="Write report/index.html, a page about the run, at its end")


class RuntimeConfig(Strict):
    """How a run is executed. None of it changes the result."""

    mode: Literal["ray", "local"] = Field(
        default="ray", description="ray: on a cluster (started here if none); local: in process"
    )
    address: str | None = Field(
        default=None, description="Ray address; default: RAY_ADDRESS, else a cluster on this machine"
    )
    workers: int | None = Field(
        default=None, ge=1, description="Workers of a pass over the pool; default: from the cluster"
    )
    shards: int | None = Field(
        default=None, ge=1, description="Members that share the pool's vectors; default: as workers"
    )
    threads: int = Field(default=1, ge=1, description="CPU threads of each worker")
    gpus: float = Field(default=0.0, ge=0.0, description="GPUs of each worker, or a share of one")
    lease_s: float = Field(
        default=60.0, ge=1.0, description="A run without a sign of life for so long may be replaced by another one"
    )


class RecorderConfig(Strict):
    kind: Literal["recorded"] = "recorded"
    column: str | None = Field(default=None, description="Column of the source rows that holds it")
    file: PathOrName | None = Field(
        default=None, description="JSONL or Parquet file with a column `id` and the recorded values"
    )

    @model_validator(mode="after")
    def _from_somewhere(self) -> RecorderConfig:
        if self.column is None and self.file is None:
            raise ValueError("kind recorded needs `column` (of the source rows) or `file`")
        return self


class NeighborConfig(Strict):
    kind: Literal["neighbor"] = "neighbor"


class NoGeneratorConfig(Strict):
    kind: Literal["none"] = "none"


class TransformersConfig(Strict):
    kind: Literal["transformers"] = "transformers"
    model: PathOrName = Field(description="Causal language model: path or id")
    max_new_tokens: int = Field(default=256, ge=1, description="Longest answer, in tokens")
    max_prompt_tokens: int = Field(default=1024, ge=8, description="Rows with a longer prompt become error rows")
    precision: Literal["float32", "bfloat16"] = Field(default="float32", description="Weights and activations")
    batch_rows: int = Field(default=8, ge=1, description="Rows answered together")


class EmbeddingJudgeConfig(Strict):
    kind: Literal["embedding"] = "embedding"
    same_similarity: Fraction = Field(
        default=0.8, description="Answers at least this similar to the reference are a tie"
    )
    margin: float = Field(default=0.05, ge=0.0, description="Smaller differences in relevance to the prompt are a tie")


GeneratorConfig = Annotated[
    NeighborConfig
    | TransformersConfig
    | VllmGeneratorConfig
    | RecorderConfig
    | NoGeneratorConfig
    | OpenAIGeneratorConfig,
    Field(discriminator="kind"),
]
JudgeConfig = Annotated[
    EmbeddingJudgeConfig | VllmJudgeConfig | RecorderConfig | OpenAIJudgeConfig, Field(discriminator="kind")
]


def check_backends(generator: Strict, judge: Strict) -> None:
    """For the validator of a recipe that has both.

    Raises:
        ValueError: there is nothing for the judge to compare.
    """
    if isinstance(generator, NoGeneratorConfig) and not isinstance(judge, RecorderConfig):
        raise ValueError("generator kind none gives the judge no answers; it needs judge kind recorded")


class ProbeConfig(Strict):
    kind: Literal["probe"] = "probe"
    l2: float = Field(default=1.0, ge=0.0, description="Strength of the L2 penalty on the weights")


class FinetuneConfig(Strict):
    kind: Literal["finetune"] = "finetune"
    model: PathOrName = Field(
        default="bundled:minilm", description="Encoder to fine-tune (the paper: google-bert/bert-base-uncased)"
    )
    learning_rate: float = Field(default=2e-5, gt=0.0, description="Peak of the learning rate")
    epochs: int = Field(default=3, ge=1, description="Most passes over the labelled rows per round")
    batch_size: int = Field(default=32, ge=1, description="Rows per optimizer step")
    max_tokens: int = Field(default=256, ge=8, description="Longer texts are cut")
    patience: int = Field(default=1, ge=1, description="Epochs without a lower validation loss before training stops")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="auto: bfloat16 where the CPU or GPU has it"
    )
    retrain: Literal["fresh", "continue"] = Field(
        default="fresh", description="Start each round from the pretrained weights or go on"
    )
    threads: int = Field(
        default=2, ge=1, description="CPU threads of the trainer; training rounds differently with another number"
    )


ClassifierConfig = Annotated[ProbeConfig | FinetuneConfig, Field(discriminator="kind")]


class PaidConfig(Strict):
    """Money. None of it changes the result; the ledger only saves calls."""

    max_usd: float | None = Field(
        default=None, ge=0.0, description="Most the run may spend on calls, in USD; it stops there, resumable"
    )
    max_usd_per_round: float | None = Field(default=None, ge=0.0, description="Most one round may spend, in USD")
    ledger: PathOrName | None = Field(
        default=None, description="Folder or URI of paid calls, shareable between runs; default: <out>/ledger"
    )
    confirm_above_usd: float = Field(
        default=1.0, ge=0.0, description="Ask before a run whose likely cost is higher and that has no max_usd"
    )

    @property
    def caps(self) -> tuple[float | None, float | None]:
        """USD of the run and of one round."""
        return self.max_usd, self.max_usd_per_round


class TrackingConfig(Strict):
    """An experiment tracker that is told of the run; never changes the result.

    Where it is and who may write there, the tracker's own environment variables say.
    """

    name: Literal["trackio", "wandb", "mlflow"] | None = Field(
        default=None, description="Tracker that is told of rounds, steps and the selection; needs its package"
    )
    project: str = Field(
        default="iterselect", min_length=1, description="Project there, or experiment, as the tracker calls it"
    )
    run: str | None = Field(default=None, description="Name of the run there; default: the name of the run folder")


class RecipeConfig(Strict):
    """Base of every recipe's settings."""

    name: Any  # each recipe narrows it to a Literal of its own name


class RunConfig(Strict):
    data: DataConfig = Field(description="What to select from")
    out: str = Field(default="runs/iterselect", description="Run folder: local path or URI")
    budget: float = Field(
        default=0.2, gt=0.0, description="Share of the pool to select (up to 1), or a number of rows (above 1)"
    )
    seed: int = Field(default=0, ge=0, description="Seed of every random draw")
    max_failed: Fraction = Field(
        default=0.05, description="Largest share of rows that may fail in a step before the run stops"
    )
    recipe: SerializeAsAny[RecipeConfig] = Field(description="The selection method and its settings")
    encoder: EncoderConfig = Field(default_factory=EncoderConfig, description="Turns prompts into vectors")
    kmeans: KMeansConfig = Field(default_factory=KMeansConfig, description="How vectors are clustered")
    output: OutputConfig = Field(default_factory=OutputConfig, description="What is written")
    paid: PaidConfig = Field(default_factory=PaidConfig, description="Money for calls, and where they are recorded")
    tracking: TrackingConfig = Field(
        default_factory=TrackingConfig, description="An experiment tracker, told of the run"
    )
    runtime: RuntimeConfig = Field(
        default_factory=RuntimeConfig, description="How it is executed; never changes the result"
    )

    @field_validator("data", mode="before")
    @classmethod
    def _data_from_path(cls, value: Any) -> Any:
        """`data: pool.jsonl` is short for `data: {path: pool.jsonl}`."""
        return {"path": value} if isinstance(value, (str, list)) else value

    @field_validator("budget")
    @classmethod
    def _whole_rows(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError(f"a budget above 1 is a number of rows and must be whole, got {value}")
        return value


def budget_rows(budget: float, pool_rows: int) -> int:
    """Rows to select, at least one.

    Raises:
        ConfigError: E221, more rows are wanted than the pool has.
    """
    wanted = max(1, round(budget * pool_rows)) if budget <= 1 else int(budget)
    if wanted > pool_rows:
        raise ConfigError(
            f"budget {wanted:,} is more than the pool of {pool_rows:,} rows",
            fix="lower budget, or give a share",
            code="E221",
        )
    return wanted
