"""Tiny reward models with random weights: real in every part, and fast."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tests.token_models import CHAT_TEMPLATE, make_tiny_llama


def make_pair_model(folder: Path, texts: list[str], kind: str = "bert", **changes: Any) -> Path:
    """A BERT or DeBERTa classifier of one output over the words of the texts."""
    import torch
    import transformers

    folder.mkdir(parents=True)
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=512).save_pretrained(folder)
    shape = {
        "vocab_size": len(vocabulary), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 512, "num_labels": 1, "initializer_range": 0.5,
    }  # fmt: skip
    torch.manual_seed(0)
    if kind == "bert":
        network = transformers.BertForSequenceClassification(transformers.BertConfig(**{**shape, **changes}))
    else:
        relative = {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"]}
        relative |= {"type_vocab_size": 0, "share_att_key": True, "norm_rel_ebd": "layer_norm", "position_buckets": 32}
        config = transformers.DebertaV2Config(**{**shape, **relative, **changes})
        network = transformers.DebertaV2ForSequenceClassification(config)
    network.save_pretrained(folder)
    return folder


def make_chat_model(folder: Path, texts: list[str]) -> Path:
    """A Llama classifier of one output, with a chat template and a padding token of its own."""
    import torch
    from transformers import AutoConfig, AutoTokenizer, LlamaForSequenceClassification

    make_tiny_llama(folder, texts, template=CHAT_TEMPLATE)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(folder)
    config = AutoConfig.from_pretrained(folder)
    config.num_labels, config.vocab_size = 1, len(tokenizer)
    config.pad_token_id, config.initializer_range = tokenizer.pad_token_id, 0.5
    torch.manual_seed(1)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    return folder
