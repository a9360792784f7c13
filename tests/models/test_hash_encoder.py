"""The cheap encoder: its definition spelt out slowly, the same bits however the work is cut, what it can tell apart."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.data.vectors import vectors_from_arrow
from engine.errors import ConfigError
from engine.models.encoder import encoder_settings, make_encoder
from engine.models.hash_encoder import LONGEST, NONZEROS, PAIR_WEIGHT, HashEncoder
from engine.plan_steps import plan_steps
from tests.runs import config_for, run_local

MASK, BASE, PAIR = 2**64 - 1, 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03
TOKEN = re.compile("[0-9a-z\u0080-\u07ff]+|[\u0800-\U0010ffff]")
LETTERS = st.text(st.sampled_from("ab1 ,éß\u0080中文。😀\n"), max_size=40)


def mixed(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def slowly(text: str, dim: int, max_tokens: int) -> np.ndarray:
    """The vector by its definition, in Python's whole numbers."""
    words = [token.encode() for token in TOKEN.findall(text)][:max_tokens]
    hashes = [mixed(sum(byte * pow(BASE, place, 2**64) for place, byte in enumerate(word)) & MASK) for word in words]
    weights = {found: min(len(word), LONGEST) for found, word in zip(hashes, words, strict=True)}
    for first, second in itertools.pairwise(hashes):
        weights[mixed((first * PAIR + second) & MASK)] = PAIR_WEIGHT
    sums = np.zeros(dim)
    for feature, weight in weights.items():
        for place in range(NONZEROS):
            drawn = mixed((feature + place * BASE) & MASK)
            sums[((drawn >> 32) * dim) >> 32] += weight if drawn & 1 else -weight
    if not sums.any():
        sums[0] = 1.0
    return (sums / np.sqrt(np.square(sums).sum())).astype(np.float16)


@settings(max_examples=200, deadline=None)
@given(st.lists(LETTERS, min_size=1, max_size=5), st.integers(1, 12))
def test_the_definition(texts: list[str], max_tokens: int) -> None:
    found = HashEncoder("hash:16", max_tokens).encode(texts)
    assert found.dtype == np.float16
    assert (found == np.stack([slowly(text, 16, max_tokens) for text in texts])).all()


def test_the_same_bits_alone_in_a_batch_and_across_tiles() -> None:
    texts = [f"row {number} of {'many ' * (number % 7)}texts" for number in range(2500)]
    encoder = HashEncoder("hash:64", prefix="query: ")
    whole = encoder.encode(texts)
    order = np.random.default_rng(0).permutation(len(texts))
    assert (encoder.encode([texts[row] for row in order]) == whole[order]).all()
    assert all((encoder.encode([texts[row]])[0] == whole[row]).all() for row in (0, 1023, 1024, 2499))
    np.testing.assert_allclose(np.linalg.norm(whole.astype(np.float32), axis=1), 1, atol=2e-3)
    assert encoder.encode([]).shape == (0, 64)


def test_tokens_of_one_byte_and_the_places_of_texts_are_not_confused() -> None:
    """Text 97 has a "t" and text 116 an "a": byte and place the other way round."""
    texts = [" ".join(map(chr, range(97, 123)))] * 200
    encoder = HashEncoder("hash:64")
    assert (encoder.encode(texts) == encoder.encode(texts[:1])).all()


def test_shared_wording_is_near_and_other_wording_is_not() -> None:
    english = ["Write a poem about the sea", "write a poem about the SEA.", "Write a poem about mountains"]
    texts = [*english, "今天天气很好", "今天天气不错", "How do I sort a list in Python?"]
    x = HashEncoder("hash:1024").encode(texts).astype(np.float32)
    similar = x @ x.T
    assert similar[0, 1] == pytest.approx(1, abs=2e-3)
    assert 0.4 < similar[0, 2] < 0.9 and similar[3, 4] > 0.4
    assert abs(similar[0, 5]) < 0.2 and abs(similar[0, 3]) < 0.2


def test_only_what_counts_is_pinned() -> None:
    pinned = encoder_settings({"model": "hash:32", "pooling": "cls", "precision": "auto", "device": "cpu"})
    assert pinned == encoder_settings({"model": "hash:32", "precision": "float32", "device": "cuda"})
    assert make_encoder(pinned).identity == pinned


@pytest.mark.parametrize("model", ["hash:x", "hash:15", "hash:4097", "hash:-64"])
def test_a_wrong_dimension_is_an_error_of_the_config(model: str, small_pool: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names no dimension"):
        config_for(small_pool, tmp_path / "out", f"encoder.model={model}")


def test_a_whole_run_needs_no_model(small_pool: Path, tmp_path: Path, recorder: Any) -> None:
    config = config_for(small_pool, tmp_path / "out", "encoder.model=hash:48", "encoder.max_tokens=16")
    memory = plan_steps(config, 1)["memory"]
    assert memory is not None and memory["dim"] == 48
    assert run_local(config, recorder, shards=2)["selected"] == 40
    (embed,) = (tmp_path / "out" / "steps").glob("embed-*")
    assert {vectors_from_arrow(pq.read_table(file)["vector"]).shape[1] for file in embed.glob("*.parquet")} == {48}


def test_iterselect_runs_on_it(small_pool: Path, tmp_path: Path) -> None:
    """As the command starts it, which looks for the files of every model first."""
    words = [str(small_pool), f"out={tmp_path / 'out'}", "budget=10", "encoder.model=hash:32", "runtime.mode=local"]
    command = [sys.executable, "-m", "engine", "run", "iterselect", *words, "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "out" / "ids.txt").read_text().split()) == 10
