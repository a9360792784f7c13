"""A causal language model for scoring: its tokenizer, its layers, and the way from hidden states to log-probabilities.

Logits are made here and not by the model, so that they are float32 and never all in memory at once; at loading it is
checked that they are the model's own. It refuses to know texts, prompts and scores.

Shape letters: D width of the model, P scored positions, T positions of a chunk, V vocabulary.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

from engine.errors import ConfigError, EnvironmentProblem
from engine.models.encoder import Precision, checked_folder, resolve_model, resolve_precision

# Float32 logits of one chunk, in bytes; torch holds about three arrays of this size, per thread.
LOGIT_BYTES = {"cpu": 32 << 20, "cuda": 512 << 20}
_MOST_CHUNK_POSITIONS = {"cpu": 256, "cuda": 4096}


class CausalModel:
    """A causal language model on one device.

    Args:
        model: folder or Hugging Face id of a causal language model with safetensors weights; its code is never run.
        precision: of weights and layers; logits and everything after them are float32. "auto": see
            `engine.models.encoder.resolve_precision`.
        device: "cpu", "cuda", or "auto": cuda when there is one.
        weights: fingerprint that the model's files must have; "" accepts any.

    Attributes:
        tokenizer: of the model.
        body: input ids to last hidden states.
        head: last hidden states to logits.
        device: "cpu" or "cuda".

    Raises:
        EnvironmentProblem: E320, the model cannot be loaded; E321, it is not the one of `weights`.
        ConfigError: E233, not a causal model, or logits made in a way that is not known here.
    """

    def __init__(self, model: str, precision: Precision, device: str, weights: str = "") -> None:
        import torch

        folder = checked_folder(model, weights)
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.tokenizer, network = _load(model, folder, getattr(torch, resolve_precision(precision, self.device)))
        network.to(self.device)
        self.body, self.head = network.base_model, Head(network, self.device)
        self._positions = getattr(network.config.get_text_config(), "max_position_embeddings", None)
        _check_model(model, network, self.head)

    def window(self, max_tokens: int) -> int:
        """`max_tokens`, lowered to the positions the model has."""
        return min(max_tokens, self._positions or max_tokens)


def count_parameters(model: str) -> int:
    """Numbers in a model's weights, from the headers of its files.

    Raises:
        EnvironmentProblem: E320, the model is not here.
    """
    from safetensors import safe_open

    shapes = []
    for file in sorted(Path(resolve_model(model)).glob("*.safetensors")):
        with safe_open(file, "numpy") as tensors:
            shapes += [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
    return sum(math.prod(shape) for shape in shapes)


class Head:
    """From hidden states to token NLL, without ever holding the logits of more than one chunk.

    The weights are held in float32, since logits of eight bits would be wrong by hundredths of a nat.

    Args:
        network: causal language model of transformers.
        device: "cpu" or "cuda".
    """

    def __init__(self, network: Any, device: str) -> None:
        layer, config = network.get_output_embeddings(), network.config.get_text_config()
        self.weight_VD: Any = layer.weight.detach().float()
        self.bias_V: Any = None if getattr(layer, "bias", None) is None else layer.bias.detach().float()
        # Gemma caps its logits, Cohere multiplies and Granite divides them.
        self.cap = getattr(config, "final_logit_softcapping", None)
        self.scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        fitting = LOGIT_BYTES[device] // (4 * len(self.weight_VD))
        self.chunk = max(1, min(fitting, _MOST_CHUNK_POSITIONS[device]))

    def only(self, tokens: list[int]) -> Head:
        """The same head for some tokens of the vocabulary, in the order given."""
        part = copy.copy(self)
        part.weight_VD = self.weight_VD[tokens]
        part.bias_V = None if self.bias_V is None else self.bias_V[tokens]
        return part

    def logits(self, state_TD: Any) -> Any:
        """(T, V) float32 logits of (T, D) hidden states."""
        import torch

        logits_TV = torch.nn.functional.linear(state_TD.float(), self.weight_VD, self.bias_V)
        if self.scale != 1.0:
            logits_TV *= self.scale
        return self.cap * torch.tanh(logits_TV / self.cap) if self.cap else logits_TV

    def nll(self, state_PD: Any, targets_P: Any) -> Any:
        """(P,) float32 -log p(target | state), in chunks of one fixed shape, the last one filled up with zeros."""
        import torch

        missing = -len(state_PD) % self.chunk
        states = torch.nn.functional.pad(state_PD, (0, 0, 0, missing)).split(self.chunk)
        targets = torch.nn.functional.pad(targets_P, (0, missing)).split(self.chunk)
        found = []
        for state_TD, target_T in zip(states, targets, strict=True):
            logits_TV = self.logits(state_TD)
            found.append(logits_TV.logsumexp(1) - logits_TV.gather(1, target_T[:, None])[:, 0])
        return torch.cat(found)[: len(state_PD)]


def _load(model: str, folder: str, dtype: Any) -> tuple[Any, Any]:
    """Tokenizer and causal language model in evaluation mode."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        network: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise EnvironmentProblem(
            f"cannot load the language model {model!r}",
            where=folder,
            why=str(error).splitlines()[0],
            fix="it needs config.json, a tokenizer and safetensors weights of a causal model in transformers",
            code="E320",
        ) from error
    return tokenizer, network.eval()


def _check_model(model: str, network: Any, head: Head) -> None:
    """Compares our way to the logits with the model's own, and looks whether it reads ahead."""
    import torch

    ids_2L = torch.arange(16).reshape(2, 8).remainder(len(head.weight_VD)).to(network.device)
    ids_2L[1, :-1] = ids_2L[0, :-1]
    with torch.inference_mode():
        own_2LV = network(input_ids=ids_2L, use_cache=False).logits.float()
        ours_2LV = head.logits(network.base_model(input_ids=ids_2L, use_cache=False).last_hidden_state)
    largest = float(own_2LV.abs().max())
    why = ""
    if float((own_2LV[0, :-1] - own_2LV[1, :-1]).abs().max()) > 1e-3 * largest:
        why = "a later token changes what it predicts for earlier ones, so it is not a causal language model"
    elif float((own_2LV - ours_2LV).abs().max()) > 0.02 * largest:  # its own may be rounded to eight bits
        why = "its logits are not its output layer on its last hidden state"
    if why:
        raise ConfigError(
            f"token scores cannot be computed with {model!r}", why=why, fix="choose another model", code="E233"
        )
