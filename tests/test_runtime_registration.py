# SPDX-License-Identifier: Apache-2.0
"""RegisterCustomOps faces runtimes that are too old, absent or used by many threads at once."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from bcq import contract
from bcq.kernels.core import Core
from bcq.packing import pack
from nodes import activations, one_node, open_session, random_weight

GetApi = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_uint32)  # addresses; callbacks cannot return pointers
GetVersion = ctypes.CFUNCTYPE(ctypes.c_size_t)
CreateStatus = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_int, ctypes.c_char_p)


class ApiBase(ctypes.Structure):
    """``OrtApiBase``: two functions."""

    _fields_ = (("GetApi", GetApi), ("GetVersionString", GetVersion))


def register(base: Any) -> Any:
    function = Core.load().library.RegisterCustomOps
    function.restype = ctypes.c_void_p
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    return function(None, base)


def test_an_old_onnxruntime_gets_a_status_that_names_both_versions() -> None:
    messages: list[tuple[int, bytes]] = []

    def create_status(code: int, message: bytes) -> int:
        messages.append((code, message))
        return 1234

    create = CreateStatus(create_status)
    oldest = (ctypes.c_void_p * 1)(ctypes.cast(create, ctypes.c_void_p))
    asked: list[int] = []

    def get_api(version: int) -> int:
        asked.append(version)
        return ctypes.addressof(oldest) if version == 1 else 0

    version_text = ctypes.create_string_buffer(b"1.20.1")
    base = ApiBase(GetApi(get_api), GetVersion(lambda: ctypes.addressof(version_text)))
    assert register(ctypes.byref(base)) == 1234
    assert asked == [contract.ORT_API_VERSION, 1]
    (_, message) = messages[0]
    assert b"got ONNX Runtime 1.20.1, expected release 1.21 or newer" in message


def test_a_runtime_with_no_api_at_all_gets_the_reason_printed() -> None:
    program = (
        "import ctypes, sys\n"
        "register = ctypes.CDLL(sys.argv[1]).RegisterCustomOps\n"
        "register.restype = ctypes.c_void_p\n"
        "assert register(None, None) is None"
    )
    path = str(Core.load().path)
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert done.stderr.startswith("bcq: got ONNX Runtime none, expected release 1.21 or newer")


def test_many_threads_share_one_session() -> None:
    weight = random_weight(300, 256, 3, 64, offset=True)
    session = open_session(one_node(contract.MATMUL, weight, dims=("m",)), threads=2)
    inputs = [activations(1 + i % 5, 256, seed=i) for i in range(16)]
    expected = [Core.load().matmul(a, pack(weight)).tobytes() for a in inputs]

    def run(i: int) -> bool:
        which = i % len(inputs)
        return np.asarray(session.run(None, {"A": inputs[which]})[0]).tobytes() == expected[which]

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(run, range(2000)))
