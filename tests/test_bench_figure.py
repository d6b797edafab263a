# SPDX-License-Identifier: Apache-2.0
"""Pictures of the bench: well-formed, with labelled axes, and every contender in them."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest

from bcq.bench import figure
from bcq.bench.result import BenchResult, Measurement
from bcq.bench.svg import Canvas
from bench_results import measured, ours, peer, result

SVG = "{http://www.w3.org/2000/svg}"


def picture(*tokens: int) -> tuple[BenchResult, ET.Element]:
    measurements: list[Measurement] = []
    for count in tokens:
        where: dict[str, Any] = {"tokens": count, "cold": count < 32}
        ggml: dict[str, Any] = {"family": "ggml", "arithmetic": "int8", "weight_bytes": 2300}
        measurements += [
            ours(10.0, 2, weight_bytes=1100, **where),
            ours(20.0, 3, weight_bytes=1700, **where),
            ours(9.0, 2, "int8", weight_bytes=1100, **where),
            peer("MatMulNBits 4-bit b=128", 25.0, 4, weight_bytes=2200, **where),
            measured("ggml Q4_0", 22.0, bits=4, **ggml, **where),
            peer("MatMul fp32", 90.0, 32, "float32", weight_bytes=16384, **where),
        ]
    made = result(*measurements)
    return made, ET.fromstring(figure.figure(made, (64, 64)))


def texts(root: ET.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def test_there_is_a_panel_for_each_m_and_a_roof() -> None:
    _, root = picture(1, 32)
    titles = [text for text in texts(root) if "threads" in text]
    assert titles == [
        "M = 1, 2 threads, weights from memory",
        "M = 32, 2 threads, weights in cache",
        "Weights read, M = 1, 2 threads",
    ]


def test_axes_have_units_and_the_legend_names_those_who_are_there() -> None:
    _, root = picture(1)
    shown = texts(root)
    assert {"microseconds", "GB/s", "bits per weight, scales included"} <= set(shown)
    assert {"BcqMatMul, near-exact", "BcqMatMul, int8", "MatMulNBits, int8", "ggml", "MatMul fp32"} <= set(
        shown
    )
    assert "OpenVINO" not in shown
    assert any("memory read, median 20.0, best 25.0 GB/s" in text for text in shown)


def test_everything_lies_inside_the_picture() -> None:
    _, root = picture(1, 4, 32, 256)
    width, height = float(root.get("width", "0")), float(root.get("height", "0"))
    for circle in root.iter(f"{SVG}circle"):
        assert 0 < float(circle.get("cx", "-1")) < width
        assert 0 < float(circle.get("cy", "-1")) < height


def test_fewer_bits_that_take_less_time_are_further_down_and_left() -> None:
    _, root = picture(32)
    # the legend comes first, then the near-exact points by bits
    (x2, y2), (x3, y3) = (
        (float(c.get("cx", "0")), float(c.get("cy", "0"))) for c in list(root.iter(f"{SVG}circle"))[1:3]
    )
    assert x2 < x3
    assert y2 > y3


def test_each_series_has_a_colour_and_shape_of_its_own() -> None:
    looks = [(series.colour, series.shape, series.hollow) for series in figure.SERIES]
    assert len(set(looks)) == len(looks)


def test_shapes_are_those_of_the_result() -> None:
    made, _ = picture(1)
    assert figure.shapes(made) == [(64, 64)]


def test_text_is_escaped_and_numbers_are_short() -> None:
    canvas = Canvas(10, 10, "a < b")
    canvas.text((1, 2), "x & y")
    canvas.line((0, 0), (1 / 3, 1))
    root = ET.fromstring(canvas.to_text())
    assert [element.text for element in root] == ["a < b", "x & y", None]
    assert root[2].get("x2") == "0.33"


@pytest.mark.parametrize("shape", ["circle", "square", "up", "down", "diamond", "cross"])
def test_every_marker_is_painted(shape: str) -> None:
    canvas = Canvas(10, 10, "markers")
    canvas.marker((5, 5), shape, "#000000", hollow=True)
    assert len(ET.fromstring(canvas.to_text())) >= 2
