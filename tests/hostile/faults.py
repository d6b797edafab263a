# SPDX-License-Identifier: Apache-2.0
"""Faults of the library, of its environment and of the programs around it, each in a process of its own."""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from bcq import runtime
from bcq.kernels.core import Core
from hostile.case import Case, judge_output
from hostile.runner import isolated
from hostile.subjects import gather, matmul

Provoke = Callable[[Path], str]
GetApi = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_uint32)  # addresses; callbacks cannot return pointers
GetVersion = ctypes.CFUNCTYPE(ctypes.c_size_t)
CreateStatus = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_int, ctypes.c_char_p)


class ApiBase(ctypes.Structure):
    """``OrtApiBase``: two functions."""

    _fields_ = (("GetApi", GetApi), ("GetVersionString", GetVersion))


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        name: what is wrong.
        provoke: brings it about in an empty folder; returns or raises the message that a user sees, or
            returns ``right`` when everything works as if nothing were wrong.
        words: all of them stand in a clear message; none: the fault must not be noticed at all.
    """

    name: str
    provoke: Provoke
    words: tuple[str, ...] = ()


def judge(fault: Fault, folder: Path) -> tuple[str, str]:
    """``clear``, ``opaque``, ``accepted`` or, for a fault that must go unnoticed, ``legal``."""
    try:
        told = fault.provoke(folder)
    except Exception as error:  # what a program would see
        told = str(error)
    if told == "right" or not fault.words:
        return ("legal" if told == "right" and not fault.words else "accepted"), told
    return ("clear" if all(word in told for word in fault.words) else "opaque"), told


def needs_limits(fault: Fault) -> bool:
    """Whether a fault limits the address space, of which sanitizers reserve terabytes."""
    return fault.provoke is _no_memory


def run(fault: Fault) -> tuple[str, str]:
    """The outcome of one fault in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="bcq fault é ") as folder:
        return isolated(lambda: judge(fault, Path(folder)))


def _works(options: ort.SessionOptions | None = None) -> str:
    """``right`` when both operators compute what the oracle computes."""
    for made in (matmul, gather):
        case = Case(made(), "fault", "healthy", legal=True)
        with tempfile.TemporaryDirectory() as folder:
            session = runtime.session(case.write(Path(folder)), options)
        output = np.asarray(session.run(None, case.feeds())[0])
        if judge_output(case, output) != "legal":
            return f"{case.key}: a wrong result"
    return "right"


def _fresh(**entries: str) -> ort.SessionOptions:
    options = runtime.default_options()
    options.intra_op_num_threads = 1
    for key, value in entries.items():
        options.add_session_config_entry(f"bcq.{key}", value)
    return options


# --- the file of the library


def _library(change: Callable[[bytes], bytes], name: str = "libbcq_ops.so") -> Provoke:
    def provoke(folder: Path) -> str:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(change(runtime.library_path().read_bytes()))
        os.environ["BCQ_LIBRARY"] = str(path)
        return _works()

    return provoke


def _patched(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


def _other_contract(data: bytes) -> bytes:
    assert b"tile16\0" in data
    return data.replace(b"tile16\0", b"tile61\0")


def _without_symbol(symbol: bytes) -> Callable[[bytes], bytes]:
    """The dynamic symbol table calls it something else, so that the loader does not find it."""

    def change(data: bytes) -> bytes:
        assert b"\0" + symbol + b"\0" in data
        return data.replace(b"\0" + symbol + b"\0", b"\0" + b"x" * len(symbol) + b"\0")

    return change


def _missing_dependency(data: bytes) -> bytes:
    return data.replace(b"\0libstdc++.so.6\0", b"\0libstdc++.so.9\0")


def _named(path: str) -> Provoke:
    def provoke(folder: Path) -> str:
        os.environ["BCQ_LIBRARY"] = path.format(folder=folder)
        return _works()

    return provoke


def _linked(folder: Path) -> str:
    (folder / "link.so").symlink_to(runtime.library_path())
    os.environ["BCQ_LIBRARY"] = str(folder / "link.so")
    return _works()


def _another_library(folder: Path) -> str:
    with Path("/proc/self/maps").open(encoding="utf-8") as maps:
        libm = next(line.split()[-1] for line in maps if "libm.so" in line or "libm-" in line)
    os.environ["BCQ_LIBRARY"] = libm
    return _works()


def _core_of_a_text_file(folder: Path) -> str:
    (folder / "x.so").write_text("no library", encoding="utf-8")
    os.environ["BCQ_LIBRARY"] = str(folder / "x.so")
    return Core.load().contract()


FILES = [
    Fault("library missing", _named("{folder}/none.so"), ("none.so", "not there", "BCQ_LIBRARY")),
    Fault("library a folder", _named("{folder}"), ("not there", "BCQ_LIBRARY")),
    Fault("library a device", _named("/dev/null"), ("not there", "BCQ_LIBRARY")),
    Fault("library empty", _library(lambda data: b""), ("got 0 bytes", "expected a shared library")),
    Fault("library a text", _library(lambda data: b"hello " * 99), ("expected a shared library",)),
    Fault(
        "library of 32 bits",
        _library(lambda data: _patched(data, 4, b"\x01")),
        ("expected a shared library",),
    ),
    Fault("library cut in its header", _library(lambda data: data[:40]), ("got 40 bytes", "expected")),
    Fault("library cut to a quarter", _library(lambda data: data[: len(data) // 4]), ("it is cut short",)),
    Fault("library cut to a half", _library(lambda data: data[: len(data) // 2]), ("it is cut short",)),
    Fault("library without its last byte", _library(lambda data: data[:-1]), ("it is cut short",)),
    Fault(
        "library of another processor",
        _library(lambda data: _patched(data, 18, struct.pack("<H", 40))),  # EM_ARM
        ("libbcq_ops.so", "cannot use this library"),
    ),
    Fault(
        "library without RegisterCustomOps",
        _library(_without_symbol(b"RegisterCustomOps")),
        ("RegisterCustomOps",),
    ),
    Fault(
        "library without bcq_contract",
        _library(_without_symbol(b"bcq_contract")),
        ("bcq_contract", "expected"),
    ),
    Fault("library of another project", _another_library, ("RegisterCustomOps",)),
    Fault("library of another contract", _library(_other_contract), ("tile61", "expected", "tile16")),
    Fault("library with a missing dependency", _library(_missing_dependency), ("libstdc++.so.9",)),
    Fault("library in a path with spaces and accents", _library(lambda data: data, "a b/ü 中.so")),
    Fault("library by a link", _linked),
    Fault("C ABI of a text file", _core_of_a_text_file, ("x.so", "cannot be loaded")),
]


# --- the environment


def _environment(name: str, value: str) -> Provoke:
    def provoke(folder: Path) -> str:
        os.environ[name] = value.format(folder=folder)
        return _works()

    return provoke


def _entry(**entries: str) -> Provoke:
    return lambda folder: _works(_fresh(**entries))


def _foreign_isa() -> str:
    return "neon" if Core.load().isa_name(Core.load().detected_flags()) not in ("neon", "dotprod") else "avx2"


ENVIRONMENT = [
    Fault("BCQ_ISA unknown", _environment("BCQ_ISA", "avx9000"), ("BCQ_ISA: got 'avx9000'", "expected")),
    Fault("BCQ_ISA of 10,000 letters", _environment("BCQ_ISA", "x" * 10_000), ("got 'xxx", "expected")),
    Fault(
        "BCQ_ISA above this CPU",
        lambda folder: _environment("BCQ_ISA", _foreign_isa())(folder),
        ("BCQ_ISA: got", "expected", "or lower"),
    ),
    Fault("BCQ_ISA empty", _environment("BCQ_ISA", "")),
    Fault("BCQ_ISA scalar", _environment("BCQ_ISA", "scalar")),
    Fault("BCQ_WEIGHTS unknown", _environment("BCQ_WEIGHTS", "hot"), ("BCQ_WEIGHTS: got 'hot'", "expected")),
    Fault("BCQ_WEIGHTS resident", _environment("BCQ_WEIGHTS", "resident")),
    Fault(
        "BCQ_PROFILE elsewhere",
        _environment("BCQ_PROFILE", "{folder}/no/x.jsonl"),
        ("BCQ_PROFILE", "expected"),
    ),
    Fault("BCQ_PROFILE a device", _environment("BCQ_PROFILE", "/dev/full"), ("BCQ_PROFILE", "expected")),
    Fault("bcq.weights unknown", _entry(weights="hot"), ("bcq.weights: got 'hot'", "expected")),
    Fault("bcq.profile no .jsonl", _entry(profile="/etc/passwd"), ("bcq.profile", "expected")),
]


# --- ONNX Runtime and the programs around it


def _stderr_of(work: Callable[[], Any]) -> str:
    """What a call writes to file descriptor 2."""
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        work()
        file.seek(0)
        return file.read().decode()


def _register(options: int | None, base: Any) -> Any:
    function = Core.load().library.RegisterCustomOps
    function.restype = ctypes.c_void_p
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    return function(options, base)


def _no_base(folder: Path) -> str:
    return _stderr_of(lambda: _register(None, None))


def _no_api(folder: Path) -> str:
    base = ApiBase(GetApi(lambda version: 0), GetVersion(lambda: 0))
    return _stderr_of(lambda: _register(None, ctypes.byref(base)))


def _old_api(version: bytes | None) -> Provoke:
    def provoke(folder: Path) -> str:
        told: list[str] = []

        def create_status(code: int, message: bytes) -> int:
            told.append(message.decode())
            return 1234

        create = CreateStatus(create_status)
        oldest = (ctypes.c_void_p * 1)(ctypes.cast(create, ctypes.c_void_p))
        text = ctypes.create_string_buffer(version or b"")
        base = ApiBase(
            GetApi(lambda asked: ctypes.addressof(oldest) if asked == 1 else 0),
            GetVersion(lambda: ctypes.addressof(text) if version is not None else 0),
        )
        assert _register(None, ctypes.byref(base)) == 1234
        return told[0]

    return provoke


def _real_base() -> int:
    path = next(Path(ort.__file__).parent.glob("capi/libonnxruntime.so*"))
    function = ctypes.CDLL(str(path)).OrtGetApiBase
    function.restype = ctypes.c_size_t
    return int(function())


def _no_options(folder: Path) -> str:
    status = _register(None, _real_base())
    slots = ctypes.cast(ApiBase.from_address(_real_base()).GetApi(21), ctypes.POINTER(ctypes.c_void_p))
    message = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p)(slots[2] or 0)(status)
    return "right" if status is None else message.decode()


def _old_release(folder: Path) -> str:
    ort.__version__ = "1.17.3"
    return _works()


def _registered_twice(folder: Path) -> str:
    options = _fresh()
    for _ in range(3):
        runtime.register_library(options)
    return _works(options)


def _two_copies(folder: Path) -> str:
    options = _fresh()
    copy = shutil.copy(runtime.library_path(), folder / "copy.so")
    options.register_custom_ops_library(str(copy))
    runtime.register_library(options)
    return _works(options)


def _other_settings_later(folder: Path) -> str:
    options = _fresh()
    runtime.register_library(options)
    options.add_session_config_entry("bcq.weights", "resident")
    return _works(options)


def _two_options(folder: Path) -> str:
    both = [_fresh(), _fresh()]
    return "right" if [_works(options) for options in both] == ["right", "right"] else "a wrong result"


def _many_threads(folder: Path) -> str:
    told: list[str] = []
    threads = [threading.Thread(target=lambda: told.append(_works(_fresh()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return "right" if told == ["right"] * 8 else str(told)


def _closed_and_opened(folder: Path) -> str:
    import _ctypes

    for _ in range(20):
        handle = ctypes.CDLL(str(runtime.library_path()))
        handle.bcq_cpu_flags()
        _ctypes.dlclose(handle._handle)
    return _works()


def _never_registered(folder: Path) -> str:
    case = Case(matmul(), "fault", "plain")
    ort.InferenceSession(str(case.write(folder)), _fresh(), providers=["CPUExecutionProvider"])
    return "right"


def _options_die_first(folder: Path) -> str:
    options = _fresh()
    case = Case(matmul(), "fault", "plain", legal=True)
    session = runtime.session(case.write(folder), options)
    del options
    shutil.rmtree(folder)
    folder.mkdir()
    output = np.asarray(session.run(None, case.feeds())[0])
    return "right" if judge_output(case, output) == "legal" else "a wrong result"


def _forked(folder: Path) -> str:
    """A session of a parent, run by its child."""
    case = Case(matmul(), "fault", "plain", legal=True)
    session = runtime.session(case.write(folder), _fresh())
    outcome, told = isolated(
        lambda: (judge_output(case, np.asarray(session.run(None, case.feeds())[0])), "right")
    )
    return told if outcome == "legal" else outcome


def _no_memory(folder: Path) -> str:
    import resource

    case = Case(matmul(), "fault", "plain", legal=True)
    session = runtime.session(case.write(folder), _fresh())
    feed = np.zeros((400_000, 100), np.float32)  # its output takes 80 MB
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGESIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + (16 << 20), used + (16 << 20)))
    session.run(None, {"A": feed})
    return "right"


RUNTIMES = [
    Fault("OrtApiBase NULL", _no_base, ("got ONNX Runtime none", "expected release 1.21")),
    Fault("no API at all, no version", _no_api, ("got ONNX Runtime", "expected release 1.21")),
    Fault("ONNX Runtime 1.20", _old_api(b"1.20.1"), ("got ONNX Runtime 1.20.1", "expected release 1.21")),
    Fault(
        "old ONNX Runtime without a version", _old_api(None), ("got ONNX Runtime", "expected release 1.21")
    ),
    Fault(
        "version text of 10,000 bytes",
        _old_api(b"9" * 10_000),
        ("got ONNX Runtime 999", "expected release 1.21"),
    ),
    Fault("session options NULL", _no_options, ("session options: got none",)),
    Fault("onnxruntime package of 1.17", _old_release, ("got 1.17.3", "expected 1.21")),
    Fault("registered three times", _registered_twice),
    Fault("two copies of the library", _two_copies),
    Fault("settings after registration", _other_settings_later, ("session options: got", "expected")),
    Fault("two session options", _two_options),
    Fault("eight threads register at once", _many_threads),
    Fault("closed and opened again", _closed_and_opened),
    Fault("never registered", _never_registered, ("BcqMatMul",)),
    Fault("options and file gone before the run", _options_die_first),
    Fault("a session of the parent process", _forked),
    Fault("no memory for a run", _no_memory, ("lloc",)),
]


def faults() -> Iterator[Fault]:
    """All faults."""
    yield from (*FILES, *ENVIRONMENT, *RUNTIMES)
