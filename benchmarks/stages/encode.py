"""Texts to vectors: the neural encoder beside sentence-transformers, the hashed one beside scikit-learn's hashing."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

from benchmarks import encode
from benchmarks.figures import Figure, Measured, Scope, against_peer
from benchmarks.record import paired


def measure(scope: Scope) -> Measured:
    """Peers that are not installed are left out."""
    from engine.models.hash_encoder import HashEncoder

    texts = encode.read_texts(encode.EXAMPLE, min(scope.rows or 2048, 4096))
    hashed, many = HashEncoder(f"hash:{scope.dim}"), (texts * 8)[:16_384]
    figures, facts = [], {}
    if importlib.util.find_spec("sentence_transformers"):
        facts = encode.measure(texts, scope.rounds, None)
        for name, rival in facts["rivals"].items():
            figures += [
                *against_peer(name, rival, encode.TARGETS[name]),
                Figure(f"texts/s beside {name}", round(rival["ours_texts_per_s"]), "texts/s", "higher"),
                Figure(f"smallest cosine to {name}", round(rival["min_cosine"], 5), "", "higher"),
            ]
    if importlib.util.find_spec("sklearn"):
        pair = paired(lambda: hashed.encode(many), lambda: by_sklearn(many, scope.dim), scope.rounds)
        figures += [
            *against_peer("scikit-learn's HashingVectorizer", pair),
            Figure("hashed texts/s", round(len(many) / pair["first_s"]["median"]), "texts/s", "higher"),
        ]
        facts = {**facts, "hashed": pair}
    return Measured(figures, facts)


def by_sklearn(texts: list[str], dim: int) -> np.ndarray:
    """Words and pairs of words hashed to one column each, dense float16 as ours; ours has eight for each."""
    from sklearn.feature_extraction.text import HashingVectorizer

    vectorizer = HashingVectorizer(n_features=dim, ngram_range=(1, 2), alternate_sign=True, binary=True)
    sparse: Any = vectorizer.transform(texts)
    return sparse.toarray().astype(np.float16)
