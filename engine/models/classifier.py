"""The paper's classifier: a BERT-class encoder with a two-class head, fine-tuned on the prompts judged so far.

Cross entropy weighted by class, AdamW with linear warm-up and decay, the best epoch by validation loss (Devlin et al.
2019, arXiv 1810.04805, appendix A.3, gives learning rate, epochs and batch size). On a CPU the same labels, seed and
number of threads give the same bytes. Scoring runs in batches of fixed shape, so a row's score does not depend on the
rows beside it. It knows nothing of judges, rounds or where parts are stored.

Legend: N rows, T training rows, V validation rows, B rows of a batch, L padded length.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from engine.algorithms.calibration import Calibration, calibrated_probability, validation_report
from engine.algorithms.split import class_weights, one_class, smoothed_prior_logit, validation_mask
from engine.errors import ConfigError, DataError, EnvironmentProblem, StepError
from engine.models.batching import Batch, fixed_batches, pad_batch
from engine.models.encoder import BATCH_TOKENS, Precision, resolve_model, resolve_precision
from engine.schema import PROBABILITY_COLUMNS, PROMPT, canonical_json, seeded_hash
from engine.work import count_tokens

CALIBRATION_FILE = "calibration.json"


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """How a classifier is fine-tuned.

    Attributes:
        model: Hugging Face path or id of an encoder, or "bundled:minilm"; a missing head is drawn from the seed.
        learning_rate: peak of the schedule. Small models learn better from 5e-5.
        epochs: most passes over the training rows.
        batch_size: rows per step.
        max_tokens: longer prompts are cut at the end.
        validation_fraction: share of the labels held out by id, in [0, 1).
        patience: epochs without a lower validation loss before training stops.
        warmup_fraction: share of the steps in which the learning rate rises.
        weight_decay: of AdamW, on matrices only.
        clip_norm: largest norm of the gradient.
        precision: "auto" (bfloat16 autocast where the processor has it), "float32" or "bfloat16".
    """

    model: str = "bundled:minilm"
    learning_rate: float = 2e-5
    epochs: int = 3
    batch_size: int = 32
    max_tokens: int = 256
    validation_fraction: float = 0.2
    patience: int = 1
    warmup_fraction: float = 0.1
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    precision: Precision = "auto"


def train_finetune(
    texts: Sequence[str],
    hard_N: np.ndarray,
    words_N: np.ndarray,
    settings: FinetuneSettings,
    seed: int,
    directory: Path,
    continue_from: Path | None = None,
    threads: int = 1,
) -> dict[str, Any]:
    """Fine-tunes, calibrates, measures, and saves everything `FinetuneStage` needs.

    Args:
        texts: N prompts.
        hard_N: (N,) bool, or float in [0, 1].
        words_N: (N,) uint64 from `engine.schema.id_words`, distinct.
        settings: see `FinetuneSettings`.
        seed: of the split (the same in every round), the head, the order of the rows and dropout.
        directory: created; gets the model (safetensors), the tokenizer and `calibration.json`.
        continue_from: directory of an earlier classifier to start from instead of the pretrained model.
        threads: CPU threads; part of what determines the bytes, and slow when there are fewer free processors.

    Returns:
        `num_train`, `hard_rate` (of all N labels, None for N = 0), `constant`, those of
        `engine.algorithms.calibration.validation_report`, and for a trained model `precision`, `best_epoch` (from 1),
        `train_loss` and `val_loss` per epoch (class-weighted, in nats; None without validation rows) and
        `train_texts_per_s`. With one class to train on nothing is trained: everyone gets the smoothed prior.

    Raises:
        ValueError: the lengths differ.
        EnvironmentProblem: E320, the model cannot be loaded.
        ConfigError: E231, its tokenizer cannot pad.
        StepError: E120, the loss became infinite.
    """
    if not len(texts) == len(hard_N) == len(words_N):
        raise ValueError(f"{len(texts)} texts, {len(hard_N)} labels and {len(words_N)} ids")
    order_N = np.argsort(words_N, kind="stable")
    ordered = [texts[int(i)] for i in order_N]
    hard_N, words_N = np.asarray(hard_N, np.float64)[order_N], words_N[order_N]
    held_N = validation_mask(words_N, seed, settings.validation_fraction)
    hard_T, hard_V = hard_N[~held_N], (hard_N[held_N] >= 0.5).astype(np.float64)  # soft ones are measured by class
    metrics = {"num_train": len(hard_T), "hard_rate": float(hard_N.mean()) if len(hard_N) else None}
    directory.mkdir(parents=True, exist_ok=True)

    if one_class(hard_T):
        logit = smoothed_prior_logit(hard_T)
        _, report = validation_report(np.full(len(hard_V), logit), hard_V, words_N[held_N], seed)
        _save_calibration(directory, Calibration(), "float32", constant_logit=logit)
        return {**metrics, "constant": True, **report}

    start = settings.model
    if continue_from is not None and _load_calibration(continue_from)["constant_logit"] is None:
        start = str(continue_from)
    with _seeded(seed, threads):
        scorer = Scorer(start, settings.max_tokens, settings.precision)
        tokens = scorer.tokenize(ordered)
        history = _fit(scorer, tokens, hard_N, words_N, held_N, settings, seed)
        logit_V = scorer.logits([tokens[i] for i in np.flatnonzero(held_N)])
    calibration, report = validation_report(logit_V, hard_V, words_N[held_N], seed)
    with _quiet():
        scorer.model.save_pretrained(directory)
        scorer.tokenizer.save_pretrained(directory)
    _save_calibration(directory, calibration, scorer.precision, constant_logit=None)
    return {**metrics, "constant": False, **report, "precision": scorer.precision, **history}


class Scorer:
    """A classifier and its tokenizer on the best device here: texts in, log odds of hard out.

    Args:
        model: Hugging Face path or id, or "bundled:minilm".
        max_tokens: longer texts are cut; lowered to what the model can take.
        precision: "auto", "float32" or "bfloat16"; the head is float32 in any case, since eight bits of logit would
            tie thousands of rows.

    Raises:
        EnvironmentProblem: E320, the model cannot be loaded.
        ConfigError: E231, the tokenizer has no padding token.
    """

    def __init__(self, model: str, max_tokens: int, precision: Precision) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        folder = resolve_model(model)
        try:
            with _quiet():
                self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, use_fast=True)
                self.model: Any = AutoModelForSequenceClassification.from_pretrained(
                    folder, num_labels=2, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
                )
        except (OSError, ValueError) as error:
            raise EnvironmentProblem(
                f"cannot load the classifier {model!r}",
                why=str(error).splitlines()[0],
                fix="give a local path, or a Hugging Face id while online",
                code="E320",
            ) from error
        if self.tokenizer.pad_token_id is None or not self.tokenizer.is_fast:
            raise ConfigError(
                f"the tokenizer of {model!r} has no padding token or no fast form",
                fix="choose an encoder such as BERT",
                code="E231",
            )
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.precision = resolve_precision(precision, self.device)
        positions = getattr(self.model.config, "max_position_embeddings", max_tokens)
        self.max_tokens = int(min(max_tokens, self.tokenizer.model_max_length, positions))
        self.tokenizer.backend_tokenizer.no_padding()
        self.tokenizer.backend_tokenizer.enable_truncation(self.max_tokens, direction=self.tokenizer.truncation_side)
        self.model.config.id2label, self.model.config.label2id = {0: "easy", 1: "hard"}, {"easy": 0, "hard": 1}
        self.model.to(self.device)
        _keep_head_float32(self.model)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids with the model's special tokens, cut to `max_tokens`."""
        return [encoding.ids for encoding in self.tokenizer.backend_tokenizer.encode_batch_fast(list(texts))]

    def forward(self, tokens: Sequence[Sequence[int]], batch: Batch) -> Any:
        """Log odds of hard, (B,) float32 tensor on the device, in whichever mode and gradient context is on."""
        import torch

        ids_BL, mask_BL = pad_batch(tokens, batch, self.tokenizer.pad_token_id)
        ids, mask = torch.from_numpy(ids_BL).to(self.device), torch.from_numpy(mask_BL).to(self.device)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bfloat16"):
            logits_B2 = self.model(input_ids=ids, attention_mask=mask).logits
        return logits_B2[:, 1].float() - logits_B2[:, 0].float()

    def logits(self, tokens: Sequence[Sequence[int]]) -> np.ndarray:
        """Log odds of hard, (N,) float32, each row in the one batch shape that its own length gives."""
        import torch

        self.model.eval()
        logit_N = np.empty(len(tokens), np.float32)
        lengths_N = np.array([len(ids) for ids in tokens], np.int64)
        count_tokens(lengths_N.sum())
        with torch.inference_mode():
            for batch in fixed_batches(lengths_N, self.max_tokens, BATCH_TOKENS[self.device]):
                logit_N[batch.rows] = self.forward(tokens, batch).cpu().numpy()[: len(batch.rows)]
        return logit_N


class FinetuneStage:
    """Scores the prompts of a part with a saved classifier.

    Args:
        directory: local path or fsspec URI that `train_finetune` wrote.
        max_tokens: as in training.
        column: text to score.

    Raises:
        DataError: E412, there is no classifier in the directory.
    """

    columns_in: ClassVar[tuple[str, ...]] = (PROMPT,)

    def __init__(self, directory: str, max_tokens: int, column: str = PROMPT) -> None:
        self.column = column
        with tempfile.TemporaryDirectory() as folder:
            local = fetch_directory(directory, Path(folder) / "classifier")
            saved = _load_calibration(local)
            self.calibration = Calibration(saved["temperature"], saved["bias"])
            self.constant_logit: float | None = saved["constant_logit"]
            if self.constant_logit is None:
                self.scorer = Scorer(str(local), max_tokens, saved["precision"])

    def __call__(self, table: pa.Table) -> pa.Table:
        texts = table[self.column].to_pylist()
        present_N = np.array([text is not None for text in texts], bool)
        probability_N = np.zeros(len(texts), np.float32)
        probability_N[present_N] = self._probability([text for text in texts if text is not None])
        errors = [None if present else "no prompt" for present in present_N]
        return pa.table(
            [pa.array(probability_N, mask=~present_N), pa.array(errors, pa.large_string())],
            schema=pa.schema(PROBABILITY_COLUMNS),
        )

    def _probability(self, texts: list[str]) -> np.ndarray:
        fixed = self.constant_logit
        logit_N = self.scorer.logits(self.scorer.tokenize(texts)) if fixed is None else np.full(len(texts), fixed)
        return calibrated_probability(logit_N, self.calibration.temperature, self.calibration.bias).astype(np.float32)


def fetch_directory(directory: str, into: Path) -> Path:
    """A local directory as it is; the files of an fsspec URI, which has no folders inside, copied to `into`."""
    if "://" not in directory:
        return Path(directory)
    from engine.remote import RemoteFiles

    files = RemoteFiles(directory)
    into.mkdir(parents=True, exist_ok=True)
    for name in files.list(directory):
        with files.open(f"{directory}/{name}") as source, open(into / name, "wb") as target:
            shutil.copyfileobj(source, target)
    return into


def _fit(
    scorer: Scorer,
    tokens: list[list[int]],
    hard_N: np.ndarray,
    words_N: np.ndarray,
    held_N: np.ndarray,
    settings: FinetuneSettings,
    seed: int,
) -> dict[str, Any]:
    """Trains in place and leaves the best epoch's weights in the model."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

    easy_weight, hard_weight = class_weights(hard_N[~held_N])
    weight_N = hard_N * hard_weight + (1 - hard_N) * easy_weight
    target_N = hard_N * hard_weight / weight_N  # a soft row's two weighted halves; 0 and 1 stay exactly 0 and 1
    rows_T, rows_V = np.flatnonzero(~held_N), np.flatnonzero(held_N)
    steps = -(-len(rows_T) // settings.batch_size) * settings.epochs
    optimizer, schedule = _optimizer(scorer.model, settings, steps)

    def step(rows_B: np.ndarray) -> float:
        longest = max(len(tokens[i]) for i in rows_B)
        batch = Batch(rows=rows_B, num_rows=len(rows_B), length=min(-(-longest // 8) * 8, scorer.max_tokens))
        target_B, weight_B = (torch.from_numpy(a[rows_B]).float().to(scorer.device) for a in (target_N, weight_N))
        loss = cross_entropy(scorer.forward(tokens, batch), target_B, weight_B)  # softmax of two: sigmoid of difference
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(scorer.model.parameters(), settings.clip_norm)
        optimizer.step()
        schedule.step()
        return loss.item() * len(rows_B)

    best_loss, best_epoch, best_state = np.inf, 0, {}
    train_losses: list[float] = []
    val_losses: list[float] = []
    seconds = 0.0
    for epoch in range(1, settings.epochs + 1):
        started = time.perf_counter()
        scorer.model.train()
        shuffled_T = rows_T[np.argsort(seeded_hash(words_N[rows_T], seed, f"epoch {epoch}"), kind="stable")]
        starts = range(0, len(rows_T), settings.batch_size)
        train_losses.append(sum(step(shuffled_T[i : i + settings.batch_size]) for i in starts) / len(rows_T))
        seconds += time.perf_counter() - started
        if len(rows_V):
            logit_V = torch.from_numpy(scorer.logits([tokens[i] for i in rows_V])).double()
            val_loss = cross_entropy(logit_V, torch.from_numpy(target_N[rows_V]), torch.from_numpy(weight_N[rows_V]))
            val_losses.append(val_loss.item())
        loss_now = val_losses[-1] if val_losses else -float(epoch)  # without validation rows the last epoch counts
        if not np.isfinite(train_losses[-1] + loss_now):
            raise StepError("fine-tuning diverged", where=f"epoch {epoch}", fix="lower learning_rate", code="E120")
        if loss_now < best_loss:
            best_loss, best_epoch = loss_now, epoch
            best_state = {name: value.detach().clone() for name, value in scorer.model.state_dict().items()}
        elif epoch - best_epoch >= settings.patience:
            break
    scorer.model.load_state_dict(best_state)
    return {
        "best_epoch": best_epoch,
        "train_loss": train_losses,
        "val_loss": val_losses or None,
        "train_texts_per_s": round(len(train_losses) * len(rows_T) / seconds, 1),
    }


def _optimizer(model: Any, settings: FinetuneSettings, steps: int) -> tuple[Any, Any]:
    """AdamW without decay on biases and norms; linear warm-up, then linear decay to zero."""
    import torch

    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate)
    warmup = max(1, round(settings.warmup_fraction * steps))
    return optimizer, torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
    )


def _keep_head_float32(model: Any) -> None:
    """Takes the layer that makes the two logits out of autocast."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module.out_features == 2:

            def exact(input: Any, inner: Any = module.forward) -> Any:
                with torch.autocast(input.device.type, enabled=False):
                    return inner(input.float())

            module.forward = exact


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars, and without the report that a new head is new."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)


@contextmanager
def _seeded(seed: int, threads: int) -> Iterator[None]:
    """Torch's global state (generator, threads) set for a block and given back as it was."""
    import torch

    before = torch.get_num_threads()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _save_calibration(directory: Path, fitted: Calibration, precision: str, constant_logit: float | None) -> None:
    saved = {**asdict(fitted), "precision": precision, "constant_logit": constant_logit}
    (directory / CALIBRATION_FILE).write_text(canonical_json(saved) + "\n", encoding="utf-8")


def _load_calibration(directory: Path) -> dict[str, Any]:
    try:
        return json.loads((directory / CALIBRATION_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        fix = "delete the step that should have written it and rerun"
        raise DataError("no classifier here", where=str(directory), why=str(error), fix=fix, code="E412") from error
