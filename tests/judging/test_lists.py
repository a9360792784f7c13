"""Lists and trees in replies: the forms that count, and that a part of a reply never passes for the whole."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.judging.lists import parse_choice, parse_example, parse_tags, tree_nodes

TREE = {"label": "write", "children": [{"label": "poem", "children": [{"label": "short"}]}, {"label": "sea"}]}


@pytest.mark.parametrize(
    "text",
    [
        '{"tags": ["math", "word problem"]}',
        '```json\n{"tags": ["math", "word problem"]}\n```',
        'Here they are: ["math", "word problem"]. Done.',
        '[{"tag": "math", "explanation": "sums"}, {"tag": " word problem ", "explanation": ""}]',
        '<think>{"tags": ["x"]}</think>{"tags": ["math", "word problem", "math"]}',
        '{"tags": ["math", "word problem"]} {"tags": ["math", "word problem"]}',
    ],
)
def test_tags_are_read(text: str) -> None:
    assert parse_tags(text) == ["math", "word problem"]


@pytest.mark.parametrize(
    "text",
    [
        "", "math, word problem", "null", '{"tags": []}', "[]", '{"tags": "math"}', '{"tags": ["math", 3]}',
        '{"tags": ["math", ""]}', '{"tags": ["math", null]}', '{"tags": ["two\\nlines"]}', '{"tags": ["\\ud800"]}',
        json.dumps({"tags": ["x" * 101]}), '{"tags": ["a"]} {"tags": ["b"]}', '{"tags": ["a"], "tags": ["b"]}',
        '{"tags": ["math", "word pro', '{"tags": [["math"], ["word', '{"topics": ["math"]}', "[[" * 5000,
        '<think>{"tags": ["math"]}', '[{"explanation": "sums"}]',
    ],
)  # fmt: skip
def test_what_is_not_wholly_a_list_of_tags_is_none(text: str) -> None:
    assert parse_tags(text) is None


@pytest.mark.parametrize("text", ['{"ids": [3, 1]}', "[3, 1]", 'I take these:\n```\n{"ids": [3, 1]}\n```'])
def test_a_choice_is_counted_from_one(text: str) -> None:
    assert parse_choice(text, 3, 2) == [3, 1]
    assert parse_choice(text, 2, 2) is None  # 3 is out of range
    assert parse_choice(text, 9, 1) is None and parse_choice(text, 9, 3) is None


@pytest.mark.parametrize("ids", [[0, 1], [1, 1], [1], [1, 2, 3], [1, 2.0], [1, True], ["1", "2"], [1, -2], None])
def test_a_wrong_choice_is_none(ids: object) -> None:
    assert parse_choice(json.dumps({"ids": ids}), 5, 2) is None


@given(st.recursive(st.just([]), lambda nodes: st.lists(nodes, max_size=4), max_leaves=20))
def test_nodes_are_counted(shape: list) -> None:
    def node(children: list) -> dict:
        return {"label": "x", "children": [node(child) for child in children]}

    def size(children: list) -> int:
        return 1 + sum(map(size, children))

    text = json.dumps(node(shape))
    assert tree_nodes(text) == tree_nodes(f'Sure: {{"tree": {text}}}') == size(shape)
    for cut in range(1, len(text), 7):
        assert tree_nodes(text[:-cut]) is None  # a part of a tree is no tree


@pytest.mark.parametrize(
    "tree",
    [[], "write", None, 3, {}, {"label": ""}, {"label": 2}, {"label": "x", "children": None},
     {"label": "x", "children": ["y"]}, {"label": "x", "children": [{"children": []}]}],
)  # fmt: skip
def test_what_is_no_tree_is_none(tree: object) -> None:
    assert tree_nodes(json.dumps(tree)) is None
    assert tree_nodes(f"{json.dumps(TREE)} {json.dumps({'label': 'x'})}") is None
    assert tree_nodes(json.dumps(TREE)) == 4


EXAMPLE = '{"instruction": "Name two rivers.", "response": " Elbe, Oder "}'


@pytest.mark.parametrize("text", [EXAMPLE, f"Here it is:\n```json\n{EXAMPLE}\n```", f"<think>{{}}</think>{EXAMPLE}"])
def test_an_example_is_read(text: str) -> None:
    assert parse_example(text) == ("Name two rivers.", "Elbe, Oder")


@pytest.mark.parametrize(
    "text",
    [
        "Name two rivers.",
        '{"instruction": "Name two rivers."}',
        '{"instruction": "Name two rivers.", "response": ""}',
        '{"instruction": "Name two rivers.", "response": 3}',
        '{"instruction": "a", "response": "b", "note": "c"}',
        '{"instruction": "a", "response": "\\ud800"}',
        '{"instruction": "a", "response": "b',
        f'{EXAMPLE} or {{"instruction": "a", "response": "b"}}',
    ],
)
def test_what_is_no_example_is_none(text: str) -> None:
    assert parse_example(text) is None
