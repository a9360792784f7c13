"""A causal language model for scoring: its tokenizer, its layers, and the way from hidden states to log-probabilities.

Logits are made by engine/models/lm_head.py and not by the model, so that they are never all in memory at once; at
loading it is checked that they are the model's own. It refuses to know texts, prompts and scores.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from engine.errors import ConfigError, EnvironmentProblem
from engine.models.encoder import Precision, checked_folder, resolve_model, resolve_precision
from engine.models.lm_head import Head


class CausalModel:
    """A causal language model on one device.

    Args:
        model: folder or Hugging Face id of a causal language model with safetensors weights; its code is never run.
        precision: of weights and layers; for logits see engine/models/lm_head.py. "auto": see
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
        _put_faster_layers(network)
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


def _put_faster_layers(network: Any) -> None:
    """GPT-2 keeps its weights the wrong way round for the kernels and spells out its activation in eight operations.
    The same formulas in the form of other models take a sixth less time; they round differently, in the last bits."""
    import torch
    from transformers.activations import NewGELUActivation
    from transformers.pytorch_utils import Conv1D

    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, torch.nn.GELU(approximate="tanh"))
            elif isinstance(child, Conv1D):
                linear = torch.nn.Linear(child.nx, child.nf, device="meta")
                linear.weight = torch.nn.Parameter(child.weight.detach().t().contiguous(), requires_grad=False)
                linear.bias = child.bias
                setattr(module, name, linear)


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
