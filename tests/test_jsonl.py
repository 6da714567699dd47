"""The laws of JSON lines: what was written is read back whatever it holds, and a wrong line is named by its number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from esdllm.cli.prompts import read_prompts
from esdllm.errors import InputError
from esdllm.measure.evaluation.suites import read_problems
from esdllm.use.batching.rows import read_lines
from esdllm.use.jsonl import json_lines, sound_json_lines

SEPARATORS = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\r\nh"


@pytest.mark.parametrize("plain", [True, False])
def test_every_reader_of_prompts_keeps_line_separators_within_a_text(tmp_path: Path, plain: bool) -> None:
    path, texts = tmp_path / "prompts.jsonl", [SEPARATORS, "Who are you?"]
    lines = [json.dumps({"prompt": text, "answer": "a"}, ensure_ascii=plain) for text in texts]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n\n".join(lines).encode())
    assert read_prompts([], path) == texts
    assert [(line.number, line.prompt) for line in read_lines(path)[0]] == list(zip((1, 3), texts, strict=True))
    assert [problem.prompt for problem in read_problems(path)] == texts


def test_a_line_of_plain_text_ends_with_a_newline_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a\u2028b\x0cc\n\nd\r\n", encoding="utf-8", newline="")
    assert read_prompts([], path) == ["a\u2028b\x0cc", "d"]


def test_a_wrong_line_is_told_with_its_number_and_the_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"a": 1}\n\n{\n[1]\n"\xff"\n' + b"[" * 100_000 + b'\n{"a": 2}')
    found = list(json_lines(path, '{"a": 0}'))
    assert [number for number, _ in found] == [1, 3, 4, 5, 6, 7]
    assert (found[0][1], found[5][1]) == ({"a": 1}, {"a": 2})
    for (_, told), said in zip(
        found[1:5],
        ("it is not JSON: ", 'it is no object; write {"a": 0}', "it is not valid UTF-8 at byte 1", "it is not JSON: "),
        strict=True,
    ):
        assert str(told).startswith(said)
    with pytest.raises(InputError, match=r"p\.jsonl, line 3: it is not JSON: "):
        list(sound_json_lines(path, "things", "{}"))
    with pytest.raises(InputError, match=r"cannot read the things .*none\.jsonl: No such file"):
        list(sound_json_lines(tmp_path / "none.jsonl", "things", "{}"))
