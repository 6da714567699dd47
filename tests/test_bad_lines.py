"""One bad line of a file is one bad line: it is reported, the others are read, and the output can be written."""

from __future__ import annotations

import datetime
import decimal
import json
from pathlib import Path
from typing import Any

import pytest

from esdllm.errors import InputError
from esdllm.use.batching.rows import read_lines, write_rows

GOOD = b'{"prompt": "good", "id": 1}'
LINES: list[tuple[bytes, str]] = [
    (b"[" * 100_000, "it is not JSON: its brackets are nested too deeply"),
    (b'{"prompt": "x", "id": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "it is not JSON: its brackets are nested"),
    (b'{"prompt": "x", "id": ' + b"9" * 5000 + b"}", "it is not JSON: it has a number of more than 4300 digits"),
    (b'{"prompt": "x", "id": 1e400}', "its id cannot be written as JSON: inf"),
    (b'{"prompt": "x", "id": NaN}', "its id cannot be written as JSON: nan"),
    (b'{"prompt": "x", "id": {"a": [-Infinity]}}', "its id cannot be written as JSON: {'a': [-inf]}"),
    (b'{"prompt": "\xff"}', "it is not valid UTF-8 at byte 12"),
    (b'{"prompt": 3}', "its prompt is a int, not a text: 3"),
    (b'{"prompt": ["a"]}', "its prompt is a list, not a text: ['a']"),
    (b'{"prompt": null}', "it holds no prompt"),
    (b'"text"', "it is no object"),
    (b"\x00\x01", "it is not JSON"),
    (b'{"prompt": "x"', "it is not JSON"),
]


@pytest.mark.parametrize(("line", "reason"), LINES, ids=[repr(line)[:30] for line, _ in LINES])
def test_a_bad_line_of_json_lines_is_one_bad_line(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\n".join([GOOD, line, GOOD]))
    good, bad = read_lines(path)
    assert [one.number for one in good] == [1, 3]
    ((number, told),) = [(one.number, one.reason) for one in bad]
    assert number == 2
    assert told.startswith(reason)
    assert len(told) < 200


def test_what_an_id_may_be_is_written_to_every_kind_of_file(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    ids: list[Any] = [2**64, -(2**80), "a", "\ud800", 1.5, True, None, {"a": [1]}, [None], 10**400]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"prompt": "p\udc80", "id": one}) + "\n" for one in ids), encoding="utf-8")
    good, bad = read_lines(path)
    assert (bad, [one.id for one in good]) == ([], ids)
    for taken in (good, good[:2], good[2:4]):
        rows = [{"line": one.number, "id": one.id, "prompt": one.prompt, "text": "t"} for one in taken]
        for name in ("a.jsonl", "a.csv", "a.parquet"):
            write_rows(tmp_path / name, rows)
        held = [json.loads(line)["id"] for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]
        assert held == [one.id for one in taken]


def test_a_bad_row_of_a_csv_file_is_one_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_bytes(
        b"id,prompt\r\n1,good\r\n2,\xff\xfe\r\n3,too,many\r\n4," + b"long " * 40_000 + b"\r\n\xff,x\r\n6\r\n7,good\r\n"
    )
    good, bad = read_lines(path)
    assert [(one.number, one.id) for one in good] == [(2, "1"), (5, "4"), (8, "7")]
    assert [(one.number, one.reason.split(";")[0]) for one in bad] == [
        (3, "it is not valid UTF-8"),
        (4, "it has more fields than the head"),
        (6, "it is not valid UTF-8"),
        (7, 'it holds no prompt: write {"prompt": "Who are you?"}, or messages that are a list of role and content'),
    ]


def parquet(path: Path, **columns: Any) -> Path:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table(columns), path)
    return path


def test_cells_of_odd_types_are_read_or_are_one_bad_row(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    spoiled = arrow.Array.from_buffers(
        arrow.string(), 3, [None, arrow.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), arrow.py_buffer(b"a\xffc")]
    )
    good, bad = read_lines(parquet(tmp_path / "a.parquet", prompt=spoiled))
    assert [one.number for one in good] == [1, 3]
    assert [(one.number, one.reason[:44]) for one in bad] == [(2, "a cell of it cannot be read: UnicodeDecodeEr")]
    moment = datetime.datetime(2026, 1, 2, 3, 4, 5)
    odd = {
        "times": (arrow.array([moment, None]), ["2026-01-02 03:04:05.000000", None]),
        "nanoseconds": (arrow.array([1, None], arrow.timestamp("ns")), ["1970-01-01 00:00:00.000000001", None]),
        "far": (arrow.array([2**50, None], arrow.timestamp("s")), None),
        "decimals": (arrow.array([decimal.Decimal("1.50"), None]), ["1.50", None]),
        "wide": (arrow.array([2**64 - 1, None], arrow.uint64()), [2**64 - 1, None]),
        "words": (arrow.array(["a", None]).dictionary_encode(), ["a", None]),
        "tables": (arrow.array([{"a": 1}, None]), [{"a": 1}, None]),
    }
    for name, (ids, expected) in odd.items():
        good, bad = read_lines(parquet(tmp_path / f"{name}.parquet", prompt=["x", "y"], id=ids))
        assert len(good) + len(bad) == 2
        if expected is not None:
            assert [one.id for one in good] == expected
        write_rows(tmp_path / "out.parquet", [{"id": one.id} for one in good])
    good, bad = read_lines(parquet(tmp_path / "bytes.parquet", prompt=["x", "y"], id=arrow.array([b"\xff", None])))
    assert [one.number for one in good] == [2]
    assert [one.reason for one in bad] == ["its id cannot be written as JSON: b'\\xff'; give a text or a number"]
    good, bad = read_lines(parquet(tmp_path / "numbers.parquet", prompt=[1.5, None]))
    assert [one.reason[:30] for one in bad] == ["its prompt is a float, not a t", 'it holds no prompt: write {"pr']
    assert not good


def test_a_column_that_is_there_twice_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("prompt,prompt\na,b\n", encoding="utf-8")
    with pytest.raises(InputError, match="has more than one column 'prompt'; rename all but one"):
        read_lines(path)


def test_a_damaged_parquet_file_is_said_in_a_short_line(tmp_path: Path) -> None:
    path = parquet(tmp_path / "p.parquet", prompt=["word " * 50] * 500)
    whole = path.read_bytes()
    for content in (
        b"",
        b"PAR1",
        whole[:-9],
        whole[:4] + b"\xff" * 200 + whole[204:],
        whole[:-40] + b"\xff" * 30 + whole[-10:],
    ):
        path.write_bytes(content)
        with pytest.raises(InputError) as refused:
            read_lines(path)
        assert len(str(refused.value)) < 400
