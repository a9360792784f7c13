"""From the hidden states of a causal language model to the NLL of given tokens, without ever holding all logits.

    -log p(y | state) = log sum_v exp(l_v - l_y),    l_v = scale * (state . w_v + b_v)

Positions are computed in chunks and the vocabulary in tiles, both of fixed shapes, so a position's value has the same
bits beside any others, and memory does not grow with text or vocabulary.

With bfloat16 weights, l_y is computed in float32 first and subtracted *inside* the matrix product: three more columns
hold it exactly (8 bits each), and products are summed in float32. Rounding the result to bfloat16 then costs a
relative 2^-8 of each difference to the target at most, and nothing where a token is likely; rounded logits themselves
would be wrong by hundredths of a nat. It is ours, and several times faster than logits in float32. Models that bend
their logits (Gemma 2) take the float32 way.

It refuses to know texts and scores.

Shape letters: P scored positions, T positions of a chunk, D width of the model, K the same with extra columns, V
vocabulary, W tokens of a tile.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any

CHUNK_POSITIONS = {"cpu": 128, "cuda": 4096}
TILE_TOKENS = {"cpu": 4096, "cuda": 32768}
_ALIGNMENT = 32  # matrix kernels are slow at odd widths


class Head:
    """The output layer of a network.

    Args:
        network: causal language model of transformers.
        device: "cpu" or "cuda".

    Attributes:
        dim: D.
    """

    def __init__(self, network: Any, device: str) -> None:
        import torch

        layer, config = network.get_output_embeddings(), network.config.get_text_config()
        self.weight_VD: Any = layer.weight.detach()
        self.bias_V: Any = None if getattr(layer, "bias", None) is None else layer.bias.detach().float()
        self.dim = int(self.weight_VD.shape[1])
        # Gemma caps its logits, Cohere multiplies and Granite divides them.
        self.cap = getattr(config, "final_logit_softcapping", None)
        self.scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        self.chunk, self.tile = CHUNK_POSITIONS[device], TILE_TOKENS[device]
        self.halved = self.weight_VD.dtype == torch.bfloat16 and not self.cap
        if self.halved:
            ones_V3 = self.weight_VD.new_ones(len(self.weight_VD), 3)
            extra = [ones_V3] if self.bias_V is None else [ones_V3, _in_eighths(self.bias_V)]
            self.wide_VK: Any = _aligned(torch.cat([self.weight_VD, *extra], 1))
        else:
            self.weight_VD = self.weight_VD.float()

    def only(self, tokens: list[int]) -> Head:
        """The logits of some tokens of the vocabulary, in the order given; it has no `nll`."""
        part = copy.copy(self)
        part.weight_VD = self.weight_VD[tokens].float()
        part.bias_V = None if self.bias_V is None else self.bias_V[tokens]
        part.wide_VK = None
        return part

    def logits(self, state_TD: Any) -> Any:
        """(T, V) float32 logits of (T, D) hidden states."""
        return self._logits(state_TD, self.weight_VD.float(), self.bias_V)

    def nll(self, state_PD: Any, targets_P: Any) -> Any:
        """(P,) float32 -log p(target | state), in chunks of one fixed shape, the last one filled up with zeros."""
        import torch

        missing = -len(state_PD) % self.chunk
        states = torch.nn.functional.pad(state_PD, (0, 0, 0, missing)).split(self.chunk)
        targets = torch.nn.functional.pad(targets_P, (0, missing)).split(self.chunk)
        return torch.cat([self._chunk_nll(s, t) for s, t in zip(states, targets, strict=True)])[: len(state_PD)]

    def _chunk_nll(self, state_TD: Any, target_T: Any) -> Any:
        import torch

        chosen_TD = self.weight_VD[target_T].float()
        own_T = (state_TD.float() * chosen_TD).sum(1)
        if self.bias_V is not None:
            own_T = own_T + self.bias_V[target_T]
        if self.halved:
            ones = [] if self.bias_V is None else [state_TD.new_ones(len(state_TD), 3)]
            wide_TK = _aligned(torch.cat([state_TD, _in_eighths(-own_T), *ones], 1))
            tiles = (self.scale * (wide_TK @ tile_WK.T).float() for tile_WK in self.wide_VK.split(self.tile))
            return torch.stack([_log_sum_exp(tile_TW) for tile_TW in tiles]).logsumexp(0)
        biases = itertools.repeat(None) if self.bias_V is None else self.bias_V.split(self.tile)
        tiles = (
            self._logits(state_TD, tile_WD, bias_W)
            for tile_WD, bias_W in zip(self.weight_VD.split(self.tile), biases, strict=False)
        )
        return torch.stack([_log_sum_exp(tile_TW) for tile_TW in tiles]).logsumexp(0) - self._bent(own_T)

    def _logits(self, state_TD: Any, weight_WD: Any, bias_W: Any) -> Any:
        import torch

        return self._bent(torch.nn.functional.linear(state_TD.float(), weight_WD, bias_W))

    def _bent(self, product: Any) -> Any:
        import torch

        logits = product * self.scale if self.scale != 1.0 else product
        return self.cap * torch.tanh(logits / self.cap) if self.cap else logits


def _log_sum_exp(x_TW: Any) -> Any:
    """(T,) of (T, W). torch has log_softmax in one pass, its logsumexp takes several and several times as long."""
    return x_TW[:, 0] - x_TW.log_softmax(1)[:, 0]


def _in_eighths(x_T: Any) -> Any:
    """(T, 3) bfloat16 columns whose sum is the float32 vector (T,), to its last bit."""
    import torch

    parts = []
    for _ in range(3):
        parts.append(x_T.bfloat16())
        x_T = x_T - parts[-1].float()
    return torch.stack(parts, 1)


def _aligned(x_TK: Any) -> Any:
    """With columns of zeros added up to a width the kernels like."""
    import torch

    return torch.nn.functional.pad(x_TK, (0, -x_TK.shape[1] % _ALIGNMENT))
