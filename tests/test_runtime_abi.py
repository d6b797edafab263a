# SPDX-License-Identifier: Apache-2.0
"""Our declaration of ONNX Runtime's ABI equals the real header: slots, members, constants, signatures."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from bcq import contract

RUNTIME = Path(__file__).resolve().parents[1] / "runtime"
INSTALLED = (
    Path("/usr/include/onnxruntime/onnxruntime_c_api.h"),
    Path("/usr/local/include/onnxruntime/onnxruntime_c_api.h"),
    Path("/usr/include/onnxruntime/core/session/onnxruntime_c_api.h"),
)

SLOTS = r"""
#include HEADER
#include <cstddef>
#include <type_traits>
static_assert(ORT_API_VERSION >= API, "the header is older than the API that the library asks for");
#define BCQ_ORT_SLOT(position, Result, name, arguments)                                       \
  static_assert(offsetof(OrtApi, name) == (position) * sizeof(void*), #name " is elsewhere"); \
  static_assert(std::is_same_v<decltype(OrtApi::name), Result(*) arguments noexcept> ||       \
                std::is_same_v<decltype(OrtApi::name), Result(*) arguments>, #name " differs");
#include "ort/slots.inc"
"""

MEMBERS = r"""
#include HEADER
#include <cstddef>
#include "ort/ort_abi.h"
#define SAME_MEMBER(type, name) \
  static_assert(offsetof(::type, name) == offsetof(bcq::ort::type, name), #type "::" #name " is elsewhere");
#define SAME_CONSTANT(name) static_assert(int(::name) == int(bcq::ort::name), #name " differs");
"""


def real_header() -> Path | None:
    named = os.environ.get("BCQ_ORT_HEADER")
    if named:
        return Path(named)
    return next((path for path in INSTALLED if path.is_file()), None)


HEADER = real_header()
needs_header = pytest.mark.skipif(
    HEADER is None, reason="no onnxruntime_c_api.h: install libonnxruntime-dev or set BCQ_ORT_HEADER"
)


def compile_only(source: str, folder: Path) -> str:
    """The compiler's complaints about a C++ text, or nothing."""
    file = folder / "check.cc"
    file.write_text(source, encoding="utf-8")
    command = [os.environ.get("CXX", "c++"), "-std=c++17", "-fsyntax-only", f"-I{RUNTIME}"]
    definitions = [f'-DHEADER="{HEADER}"', f"-DAPI={contract.ORT_API_VERSION}"]
    done = subprocess.run([*command, *definitions, str(file)], capture_output=True, text=True, check=False)
    return done.stderr if done.returncode else ""


def custom_op_members() -> list[str]:
    text = (RUNTIME / "ort" / "ort_abi.h").read_text(encoding="utf-8")
    body = text.split("struct OrtCustomOp {")[1].split("};")[0]
    return ["version", *re.findall(r"\(\*(\w+)\)", body)]


def constants() -> list[str]:
    text = (RUNTIME / "ort" / "ort_abi.h").read_text(encoding="utf-8")
    return re.findall(r"(\w+) = \d+", text)


@needs_header
def test_every_slot_has_the_position_and_signature_of_the_real_header(tmp_path: Path) -> None:
    assert compile_only(SLOTS, tmp_path) == ""


@needs_header
def test_every_member_and_constant_equals_the_real_header(tmp_path: Path) -> None:
    members = "".join(f"SAME_MEMBER(OrtCustomOp, {name})\n" for name in custom_op_members())
    members += "".join(f"SAME_MEMBER(OrtAllocator, {name})\n" for name in ("version", "Alloc", "Free"))
    members += "".join(f"SAME_MEMBER(OrtApiBase, {name})\n" for name in ("GetApi", "GetVersionString"))
    values = "".join(f"SAME_CONSTANT({name})\n" for name in constants())
    assert len(custom_op_members()) == 26
    assert len(constants()) >= 10
    assert compile_only(MEMBERS + members + values, tmp_path) == ""


@needs_header
def test_a_slot_that_is_off_by_one_is_caught(tmp_path: Path) -> None:
    planted = SLOTS.replace("== (position)", "== (position + 1)")
    assert "is elsewhere" in compile_only(planted, tmp_path)


def test_slots_stand_in_order_and_within_the_api_version() -> None:
    text = (RUNTIME / "ort" / "slots.inc").read_text(encoding="utf-8")
    positions = [int(number) for number in re.findall(r"^BCQ_ORT_SLOT\((\d+),", text, re.MULTILINE)]
    assert positions == sorted(set(positions))
    assert positions[-1] <= 284  # the last function of API 21
