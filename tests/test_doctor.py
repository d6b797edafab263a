# SPDX-License-Identifier: Apache-2.0
"""The doctor tells versions, library, CPU and chosen kernels, and never fails itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bcq import doctor
from bcq.core import Core


def test_the_facts_name_the_library_the_cpu_and_a_kernel_for_each_number_of_bits() -> None:
    facts = doctor.facts()
    assert Path(facts["library"]["path"]).is_file()
    assert facts["library"]["error"] is None
    assert facts["cpu"]["used"] == Core.load().isa_name(Core.load().flags())
    built = facts["kernels"]["built"]
    assert set(facts["kernels"]["chosen"].values()) <= {*built["BcqMatMul"], *built["BcqGather"]}
    assert len(facts["kernels"]["chosen"]) == 9
    assert facts["memory"]["total_mb"] is None or facts["memory"]["total_mb"] > 0
    assert facts["versions"]["onnxruntime"]


def test_the_facts_are_plain_json() -> None:
    facts = doctor.facts()
    assert json.loads(json.dumps(facts)) == facts


def test_a_missing_library_is_a_fact(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BCQ_LIBRARY", str(tmp_path / "none.so"))
    facts = doctor.facts()
    assert facts["library"]["path"] is None
    assert "E603" in facts["library"]["error"]
    assert facts["kernels"] == {}


def test_a_wrong_bcq_isa_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BCQ_ISA", "avx9000")
    assert "unknown name" in doctor.facts()["cpu"]["error"]
