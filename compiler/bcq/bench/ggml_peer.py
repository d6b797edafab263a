# SPDX-License-Identifier: Apache-2.0
"""llama.cpp's products, through the ggml libraries that the package llama-cpp-python brings along."""

from __future__ import annotations

import ctypes
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bcq.bench.contender import Contender, Float32, Weights

FLOAT = 0  # GGML_TYPE_F32
REPACKED_ROWS = 8  # rows that ggml's repacked kernels compute side by side
_FUNCTIONS = {  # result, then arguments: v void, p pointer, P parameters, i int, l int64, b bool, s text
    "ggml_init": "pP",
    "ggml_new_tensor_2d": "ppill",
    "ggml_mul_mat": "pppp",
    "ggml_new_graph_custom": "pplb",
    "ggml_build_forward_expand": "vpp",
    "ggml_backend_cpu_init": "p",
    "ggml_backend_cpu_set_n_threads": "vpi",
    "ggml_backend_cpu_buffer_type": "p",
    "ggml_backend_cpu_reg": "p",
    "ggml_backend_reg_get_proc_address": "pps",
    "ggml_backend_alloc_ctx_tensors_from_buft": "ppp",
    "ggml_backend_tensor_set": "vppll",
    "ggml_backend_tensor_get": "vppll",
    "ggml_backend_graph_compute": "ipp",
    "ggml_backend_buffer_free": "vp",
    "ggml_backend_free": "vp",
    "ggml_free": "vp",
    "ggml_log_set": "vpp",
    "ggml_cpu_has_avx2": "i",
    "ggml_cpu_has_avx512": "i",
}


class _InitParams(ctypes.Structure):
    """``ggml_init_params``."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


_QUIET = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)


@dataclass(frozen=True)
class Kind:
    """A format of ggml.

    Attributes:
        number: of its ``GGML_TYPE``.
        bits: per weight, scales not counted.
        block: weights in a block.
        size: bytes of a block.
        scales: where in a block its float16 scales lie.
        decode: the function of ggml that makes float32 of it.
        repacks: the ggml function that says whether this CPU has a repacked kernel, or an empty string.
    """

    number: int
    bits: int
    block: int
    size: int
    scales: tuple[int, ...]
    decode: str
    repacks: str = ""


KINDS = {
    "Q4_0": Kind(2, 4, 32, 18, (0,), "dequantize_row_q4_0", "ggml_cpu_has_avx2"),
    "Q2_K": Kind(10, 2, 256, 84, (80, 82), "dequantize_row_q2_K", "ggml_cpu_has_avx512"),
    "Q3_K": Kind(11, 3, 256, 110, (108,), "dequantize_row_q3_K"),
    "TQ2_0": Kind(35, 2, 256, 66, (64,), "dequantize_row_tq2_0"),
}


def ggml(name: str, rows: int, inputs: int) -> Contender:
    """``ggml_mul_mat`` on one of its formats, repacked where llama.cpp repacks it when it loads a model.

    Raises:
        ImportError: when llama-cpp-python is not installed, or its ggml lacks a function.
        ValueError: when K is no multiple of the format's block.
    """
    kind, library = KINDS[name], _library()
    if inputs % kind.block:
        raise ValueError(f"K={inputs} is no multiple of its block of {kind.block}")

    def draw(random: np.random.Generator) -> Weights:
        blocks = random_blocks(random, kind, rows * inputs // kind.block)
        return Weights({"blocks": blocks}, lambda: _decode(library, kind, blocks, rows, inputs))

    def prepare(copies: list[Weights], folder: Path) -> GgmlModel:
        return GgmlModel(library, kind, copies, rows, inputs)

    return Contender(f"ggml {name}", "ggml", kind.bits, "int8", draw, prepare, spins=True)


def random_blocks(random: np.random.Generator, kind: Kind, count: int) -> NDArray[np.uint8]:
    """Blocks of random codes with scales of about 0.01; uint8 ``[count, size]``."""
    blocks = np.frombuffer(random.bytes(count * kind.size), np.uint8).reshape(count, kind.size).copy()
    if kind.block == 256 and len(kind.scales) == 1 and kind.bits == 2:
        blocks &= ~(blocks & (blocks >> 1) & np.uint8(0x55))  # ternary: 3 is no code
    for at in kind.scales:
        scales = (random.uniform(0.5, 1.0, count) * 0.01).astype(np.float16)
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(count, 2)
    result: NDArray[np.uint8] = blocks
    return result


def _decode(library: Any, kind: Kind, blocks: NDArray[np.uint8], rows: int, inputs: int) -> Float32:
    dense = np.empty((rows, inputs), np.float32)
    decode = getattr(library, kind.decode)
    decode.argtypes, decode.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
    decode(blocks.ctypes.data, dense.ctypes.data, dense.size)
    return dense


@cache
def _library() -> Any:
    """The ggml libraries, loaded with global symbols so that each finds the other."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("No module named 'llama_cpp'")
    folder = Path(next(iter(spec.submodule_search_locations))) / "lib"
    loaded: dict[str, Any] = {}
    for name in ("libggml-base.so", "libggml-cpu.so"):
        loaded[name] = ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
    library = loaded["libggml-cpu.so"]  # a look-up in it reaches the base as well
    for name, signature in _FUNCTIONS.items():
        _declare(library, name, signature)
    library.ggml_log_set(_QUIET, None)
    return library


def _declare(library: Any, name: str, signature: str) -> None:
    function = getattr(library, name, None)
    if function is None:
        raise ImportError(f"ggml of llama-cpp-python has no {name}")
    kinds = {
        "v": None,
        "p": ctypes.c_void_p,
        "P": _InitParams,
        "i": ctypes.c_int,
        "l": ctypes.c_int64,
        "b": ctypes.c_bool,
        "s": ctypes.c_char_p,
    }
    function.restype, *function.argtypes = (kinds[letter] for letter in signature)


def _repack_buffer(library: Any, kind: Kind, rows: int) -> int | None:
    """The buffer type whose tensors are repacked, where llama.cpp would use it for this matrix."""
    if not kind.repacks or rows % REPACKED_ROWS or not getattr(library, kind.repacks)():
        return None
    address = library.ggml_backend_reg_get_proc_address(
        library.ggml_backend_cpu_reg(), b"ggml_backend_dev_get_extra_bufts"
    )
    if not address:
        return None
    kinds = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(address)(None)
    last = None
    for i in range(8):  # a null ends the list; the repacked type is its last entry
        if kinds[i] is None:
            break
        last = kinds[i]
    return last


class GgmlModel:
    """Weight tensors; see `bcq.bench.contender.Model`."""

    def __init__(self, library: Any, kind: Kind, copies: list[Weights], rows: int, inputs: int) -> None:
        self.library = library
        self.sizes = (rows, inputs)
        self._context = _context(library, len(copies))
        self.tensors = [library.ggml_new_tensor_2d(self._context, kind.number, inputs, rows) for _ in copies]
        place = _repack_buffer(library, kind, rows) or library.ggml_backend_cpu_buffer_type()
        self._buffer = library.ggml_backend_alloc_ctx_tensors_from_buft(self._context, place)
        for tensor, weights in zip(self.tensors, copies, strict=True):
            blocks = weights.tensors["blocks"]
            library.ggml_backend_tensor_set(tensor, blocks.ctypes.data, 0, blocks.nbytes)

    def session(self, a: Float32, threads: int) -> GgmlSession:
        """A graph of one product per copy."""
        return GgmlSession(self, a, threads)

    def __del__(self) -> None:
        self.library.ggml_backend_buffer_free(self._buffer)
        self.library.ggml_free(self._context)


class GgmlSession:
    """A graph and a backend; see `bcq.bench.contender.Session`."""

    def __init__(self, model: GgmlModel, a: Float32, threads: int) -> None:
        library = self._library = model.library
        self._model = model
        rows, inputs = model.sizes
        self._shape = (a.shape[0], rows)
        self._context = _context(library, 2 * len(model.tensors) + 8)
        tokens = library.ggml_new_tensor_2d(self._context, FLOAT, inputs, a.shape[0])
        self._outputs = [library.ggml_mul_mat(self._context, tensor, tokens) for tensor in model.tensors]
        self._graph = library.ggml_new_graph_custom(self._context, len(self._outputs) + 8, False)
        for output in self._outputs:
            library.ggml_build_forward_expand(self._graph, output)
        place = library.ggml_backend_cpu_buffer_type()
        self._buffer = library.ggml_backend_alloc_ctx_tensors_from_buft(self._context, place)
        library.ggml_backend_tensor_set(tokens, a.ctypes.data, 0, a.nbytes)
        self._backend = library.ggml_backend_cpu_init()
        library.ggml_backend_cpu_set_n_threads(self._backend, threads)

    def run(self) -> None:
        """Computes the graph."""
        self._library.ggml_backend_graph_compute(self._backend, self._graph)

    def output(self, copy: int) -> Float32:
        """The product with one copy."""
        y = np.empty(self._shape, np.float32)
        self._library.ggml_backend_tensor_get(self._outputs[copy], y.ctypes.data, 0, y.nbytes)
        return y

    def __del__(self) -> None:
        self._library.ggml_backend_free(self._backend)
        self._library.ggml_backend_buffer_free(self._buffer)
        self._library.ggml_free(self._context)


def _context(library: Any, tensors: int) -> Any:
    """Room for descriptions of tensors and one graph; their data lies in buffers."""
    return library.ggml_init(_InitParams(2**20 + tensors * 2048, None, True))
