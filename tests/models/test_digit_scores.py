"""Equal to a plain computation text by text, the same bits in any company, and never a number for a row that does not
fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from engine.errors import ConfigError
from engine.models.digit_prompts import load_digit_prompt
from engine.models.digit_scores import DigitScores
from tests.models.test_token_scores import mixed_rows, pool_table
from tests.token_models import make_tiny_llama

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PROMPT = {
    "name": "test", "version": 1, "source": "here", "scale": 5,
    "text": "Rate from 1 to 5.\nQ: {prompt}\nA: {response}\n", "opening": "Rating:",
}  # fmt: skip
WORDS = "write a poem about the sea sort list why is water wet 1 2 3 4 5 6 7 8 9 Rating:"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return str(make_tiny_llama(tmp_path_factory.mktemp("tiny"), [WORDS] * 3))


def stage(model: str, **changes: Any) -> DigitScores:
    settings = {"prompt": PROMPT, "precision": "float32", "device": "cpu", **changes}
    return DigitScores(model, **settings)


def naive(folder: str, text: str, digits: list[list[int]]) -> np.ndarray:
    """(K,) float64, one text, no padding, from the model's own logits over the whole vocabulary."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        p_V = model(ids).logits[0, -1].softmax(0).numpy()
    p_K = np.array([p_V[forms].sum() for forms in digits])
    return p_K / p_K.sum()


def asked(prompt: str, response: str) -> str:
    return f"<s>Rate from 1 to 5.\nQ: {prompt}\nA: {response}\n\nRating:"


def scored(stage: DigitScores, rows: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
    return stage(pool_table(rows).select(stage.columns_in)).to_pylist()


def test_equals_a_naive_computation(tiny: str) -> None:
    rows = [*mixed_rows(8), ("{response}", "{prompt} \\1"), ("\u6d77", "\U0001f30a")]
    one = stage(tiny)
    for (prompt, response), row in zip(rows, scored(one, rows), strict=True):
        assert row["error"] is None
        np.testing.assert_allclose(row["p"], [naive(tiny, asked(prompt, response), one.tokens_KF)], atol=1e-5)
        assert sum(row["p"][0]) == pytest.approx(1.0)


def test_in_the_chat_template_the_opening_begins_the_answer(tiny: str) -> None:
    one = stage(tiny, template="chat")
    text = asked("why ?", "wet").removeprefix("<s>").removesuffix("\nRating:")
    text = f"<s>[user]\n{text}</s>\n[assistant]\nRating:"
    (row,) = scored(one, [("why ?", "wet")])
    np.testing.assert_allclose(row["p"], [naive(tiny, text, one.tokens_KF)], atol=1e-5)


def test_several_turns(tiny: str) -> None:
    turns = ("why is water wet ?", "is it ?", "sort the list", "the sea")
    last, each = stage(tiny), stage(tiny, turns="each")
    (row,) = scored(last, [turns])
    whole = "user: why is water wet ?\nassistant: is it ?\nuser: sort the list"
    np.testing.assert_allclose(row["p"], [naive(tiny, asked(whole, turns[-1]), last.tokens_KF)], atol=1e-5)
    (row,) = scored(each, [turns])
    expected = [naive(tiny, asked(*turns[k : k + 2]), last.tokens_KF) for k in (0, 2)]
    np.testing.assert_allclose(row["p"], expected, atol=1e-5)
    assert scored(each, [turns[:2]]) == scored(last, [turns[:2]])


def test_a_text_that_does_not_fit_is_an_error_row_and_no_number(tiny: str) -> None:
    one = stage(tiny, max_tokens=60, turns="each")
    good, long, part = scored(one, [("why ?", "wet"), ("why ?", "wet " * 60), ("why ?", "wet", "x " * 60, "y")])
    assert good["error"] is None and len(good["p"]) == 1
    assert long["p"] is None and long["error"].startswith("the rating prompt has ") and "than 60" in long["error"]
    assert part["p"] is None and part["error"].startswith("turn 2 of 2: the rating prompt has ")
    assert stage(tiny, max_tokens=10**6).max_tokens == 512
    empty = one(pool_table([]).select(one.columns_in))
    assert empty.num_rows == 0 and empty.schema.names == ["p", "error"]
    only_bad = one(pool_table([("why ?", "wet " * 60)]).select(one.columns_in))
    assert only_bad["p"].null_count == 1


def test_numbers_that_are_not_finite_are_an_error_row(tiny: str) -> None:
    one = stage(tiny)
    with torch.no_grad():
        one.causal.body.embed_tokens.weight[one.contexts.encode("?")] = float("nan")
    bad, good = scored(one, [("why ?", "wet"), ("why", "wet")])
    assert bad == {"p": None, "error": "the model's logits are not finite numbers"}
    assert good["error"] is None


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_bits_do_not_depend_on_neighbours_order_or_split(tiny: str, precision: str) -> None:
    rows = [*mixed_rows(60), ("sea", "x " * 300), ("a", "b", "c", "d")]
    one = stage(tiny, precision=precision, turns="each", max_tokens=250)
    table = pool_table(rows).select(one.columns_in)
    expected = one(table).to_pylist()
    assert any(row["error"] for row in expected)
    order = np.random.default_rng(1).permutation(len(rows))
    assert one(table.take(pa.array(order))).to_pylist() == [expected[k] for k in order]
    split = pa.concat_tables([one(table.slice(start, 13)) for start in range(0, len(rows), 13)])
    assert split.to_pylist() == expected
    assert pa.concat_tables([one(table.slice(k, 1)) for k in range(15)]).to_pylist() == expected[:15]


def save_tokenizer(folder: Path, tiny: str, raw: Any) -> str:
    """The tiny model with another tokenizer."""
    transformers.AutoModelForCausalLM.from_pretrained(tiny).save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>").save_pretrained(folder)
    return str(folder)


def trained(merges: list[str], pre: Any, alphabet: str) -> Any:
    """A BPE tokenizer that knows an alphabet and the given merges ("a b" joins a and b)."""
    from tokenizers import Tokenizer, models

    pairs = [tuple(merge.split()) for merge in merges]
    vocabulary = dict.fromkeys(["<s>", "<unk>", *alphabet, *("".join(pair) for pair in pairs)])
    raw = Tokenizer(
        models.BPE(vocab={token: k for k, token in enumerate(vocabulary)}, merges=pairs, unk_token="<unk>")  # pyright: ignore
    )
    raw.pre_tokenizer = pre
    return raw


ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.:"


def test_digits_with_and_without_a_space_are_added_up(tiny: str, tmp_path: Path) -> None:
    """As GPT-2, which has a token for "1" and one for " 1"."""
    from tokenizers import pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw = trained([f"\u0120 {k}" for k in range(1, 6)], byte_level, ALPHABET + "\u0120\u010a")
    one = stage(save_tokenizer(tmp_path, tiny, raw))
    assert one.tokens_KF == [[raw.token_to_id(str(k)), raw.token_to_id(f"\u0120{k}")] for k in range(1, 6)]
    (row,) = scored(one, [("why", "wet")])
    text = asked("why", "wet").removeprefix("<s>")
    np.testing.assert_allclose(row["p"], [naive(str(tmp_path), f"<s>{text}", one.tokens_KF)], atol=1e-5)


def test_sentencepiece_writes_a_space_and_a_digit(tiny: str, tmp_path: Path) -> None:
    """As Llama and Mistral: the space is a token of its own, so only the bare digit counts."""
    from tokenizers import pre_tokenizers

    raw = trained([], pre_tokenizers.Metaspace(), ALPHABET + "\u2581\n")
    one = stage(save_tokenizer(tmp_path, tiny, raw))
    assert one.tokens_KF == [[raw.token_to_id(str(k))] for k in range(1, 6)]
    trailing = PROMPT | {"text": "{prompt} {response} Rating: ", "opening": ""}
    assert stage(str(tmp_path), prompt=trailing).tokens_KF == one.tokens_KF


def test_digits_of_several_tokens_are_refused(tiny: str, tmp_path: Path) -> None:
    from tokenizers import pre_tokenizers

    raw = trained([": 1"], pre_tokenizers.Metaspace(), ALPHABET + "\u2581\n")
    with pytest.raises(ConfigError, match="does not write the ratings 1 to 5 as one token each") as caught:
        stage(save_tokenizer(tmp_path, tiny, raw))
    assert caught.value.code == "E234" and caught.value.where == "prompt test/v1"


def test_prompt_files(tmp_path: Path) -> None:
    folder = Path("engine/models/prompt_files").resolve()
    for path in folder.glob("*/v*.yaml"):
        prompt = load_digit_prompt(f"{path.parent.name}/{path.stem}")
        assert (prompt.name, f"v{prompt.version}") == (path.parent.name, path.stem)
    complexity, quality = (load_digit_prompt(f"deita-{name}") for name in ("complexity", "quality"))
    assert complexity.render("ab", "cd").endswith("user query. \n##Query: ab  \n##Complexity: ")
    assert quality.render("ab", "cd").endswith(" \n #Question#:\nab\n#Response#:\ncd \n##Quality: ")
    with pytest.raises(ConfigError, match="did you mean 'quality/v1'"):
        load_digit_prompt("qualty")
    for key, value, expected in (
        ("text", "no field", "`text` needs {prompt} or {response} or both"),
        ("text", "{prompt} {prompt}:", "each once"),
        ("scale", 10, "scale: must be at most 9"),
    ):
        (tmp_path / "p.yaml").write_text(json.dumps({**PROMPT, key: value}))
        with pytest.raises(ConfigError, match=expected):
            load_digit_prompt(str(tmp_path / "p.yaml"))
    (tmp_path / "p.yaml").write_text(json.dumps({**PROMPT, "text": "{prompt}: {response}", "opening": ""}))
    with pytest.raises(ConfigError, match="must end with words of its own"):
        load_digit_prompt(str(tmp_path / "p.yaml"))
