# SPDX-License-Identifier: Apache-2.0
"""The page of ``bcq report``: one file, whole HTML, every matrix, the comparison, the time of a token."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from bcq import report
from bcq.cli import main
from bcq.commands.report import unlike_names
from bcq.errors import InputError
from bcq.report_page import Contents, charts, read_contents, to_html, write_page
from bcq.report_page.style import SERIES

VOID = {"meta", "rect", "line", "polyline", "circle", "br"}


class Structure(HTMLParser):
    """Checks that tags close in order, and gathers them."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


def parsed(page: str) -> Structure:
    structure = Structure()
    structure.feed(page)
    assert structure.open == []
    return structure


def row(name: str, error: float | None = 0.04, **changes: Any) -> dict[str, Any]:
    fields = {
        "name": name, "kind": "linear", "rows": 16, "inputs": 64, "bits": 3, "group_size": 64,
        "dense_bytes": 4096, "packed_bytes": 480, "reason": "", "requested": False, "relative_error": error,
    }  # fmt: skip
    return {**fields, **changes}


def export(folder: Path, *rows: dict[str, Any]) -> Path:
    """A folder with a report and model files of 2,000 bytes."""
    folder.mkdir()
    text = json.dumps({"options": {"bits": 3, "overrides": []}, "matrices": list(rows)})
    (folder / report.REPORT_FILE).write_text(text)
    (folder / "model.onnx").write_bytes(bytes(500))
    (folder / "model.onnx.data").write_bytes(bytes(1500))
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    dense = row(
        "h.1.bias<matrix>", None, bits=None, group_size=0, packed_bytes=0, reason="3 < 16 rows & kept"
    )
    return export(tmp_path / "out", row("h.0.a"), row("h.1.b", 0.09), dense)


def test_the_page_has_every_matrix_its_error_and_why_one_is_dense(out: Path) -> None:
    structure = parsed(to_html([read_contents(out)]))
    assert {"h.0.a", "20.0%", "h.1.b", "30.0%", "h.1.bias<matrix>"} <= set(structure.words)
    assert any("3 < 16 rows & kept" in word for word in structure.words)


def test_the_page_needs_nothing_else(out: Path) -> None:
    page = to_html([read_contents(out)])
    structure = parsed(page)
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in structure.tags}
    addresses = set(re.findall(r"https?://[^\"'\s]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg"}  # a name, nothing is fetched
    assert "prefers-color-scheme: dark" in page


def test_tables_say_what_their_headers_belong_to(out: Path) -> None:
    structure = parsed(to_html([read_contents(out)]))
    names = [tag for tag, _ in structure.tags]
    assert names.count("caption") == names.count("table") > 0
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in structure.tags if tag == "th")
    pictures = [attributes for tag, attributes in structure.tags if tag == "svg"]
    assert pictures
    assert all(attributes.get("role") == "img" for attributes in pictures)


def test_the_error_of_an_export_weighs_matrices_by_their_weights(out: Path) -> None:
    assert read_contents(out).error == pytest.approx(((0.04 + 0.09) / 2) ** 0.5)
    assert Contents("x", [], {}, 0).error is None


def test_several_exports_are_compared_with_what_was_measured(out: Path) -> None:
    first = read_contents(out)
    measured: dict[str, Any] = {
        "operators": {"BcqMatMul": 900.0, "Add": 100.0},
        "times": {"h.0.a": 450.0},
        "threads": 2,
    }
    second = replace(first, name="second", perplexity=12.5, **measured)
    words = set(parsed(to_html([first, second])).words)
    assert {"Comparison", "Where the time of a token goes", "90.0% (900 us)", "12.50", "1.00", "450"} <= words


def test_an_export_without_errors_or_matrices_still_has_a_page(tmp_path: Path) -> None:
    bare = export(tmp_path / "bare")
    parsed(to_html([read_contents(bare)]))
    unknown = export(tmp_path / "unknown", row("a", None))
    parsed(to_html([read_contents(unknown), read_contents(bare)]))


def test_operators_beyond_the_colours_are_added_up() -> None:
    operators = {f"op{i}": float(i) for i in range(20)}
    assert charts.split(operators, ["op19", "op18"]) == [19.0, 18.0, sum(range(18))]
    many = Contents("x", [], {}, 1, operators=operators)
    types = list(operators)[: len(SERIES) - 1]
    assert charts.time_bars([many], types).count("<rect") == len(SERIES)


def test_equal_files_make_equal_pages_whatever_the_folder_is_called(tmp_path: Path, out: Path) -> None:
    moved = export(tmp_path / "other", *json.loads((out / report.REPORT_FILE).read_text())["matrices"])
    for folder in (out, moved):
        write_page([folder], folder / "report.html", names=["This export"])
    assert (out / "report.html").read_bytes() == (moved / "report.html").read_bytes()


def test_a_folder_without_a_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="E101"):
        read_contents(tmp_path / "nowhere")
    with pytest.raises(InputError, match="E102"):
        read_contents(tmp_path)


def test_names_are_the_shortest_that_differ(tmp_path: Path) -> None:
    assert unlike_names([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert unlike_names([tmp_path / "x" / "out", tmp_path / "y" / "out"]) == ["x/out", "y/out"]


def test_the_command_writes_the_page_and_tells_the_same_as_json(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert main(["report", str(out), "-o", str(page), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["exports"][0]
    assert told["matrices"][1]["name"] == "h.1.b"
    assert told["bytes_after"] == 2000
    parsed(page.read_text(encoding="utf-8"))


def test_time_of_something_that_generates_nothing_is_refused(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(out), "-o", str(tmp_path / "page.html"), "--time"]) == 4
    assert "holds no decoder" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()
