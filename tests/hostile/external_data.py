# SPDX-License-Identifier: Apache-2.0
"""Attacks through external data: each turns a good model with a data file beside it into a hostile one."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

from bcq.exporting.write import write_model
from graphs import model_of, normal

LINEAR = "main (float[m, 64] x) => (float[m, 64] y) { h = MatMul (x, w) y = MatMul (h, v) }"
NBYTES = 64 * 64 * 4
Attack = Callable[[Path], None]


def good_model(root: Path) -> Path:
    """``root/model/model.onnx`` with its data beside it, and a secret of the same size outside."""
    folder = root / "model"
    folder.mkdir()
    write_model(model_of(LINEAR, w=normal(64, 64), v=normal(64, 64, seed=2)), folder / "model.onnx")
    (root / "secret").write_bytes(bytes(2 * NBYTES))
    return folder / "model.onnx"


def edit(path: Path, **fields: str) -> None:
    """Changes where the first tensor says that its bytes are."""
    proto = onnx.load(path, load_external_data=False)
    tensor = proto.graph.initializer[0]
    kept = {entry.key: entry.value for entry in tensor.external_data}
    del tensor.external_data[:]
    for key, value in {**kept, **fields}.items():
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())


def located(location: str) -> Attack:
    """The first tensor lies at another path."""
    return lambda path: edit(path, location=location)


def absolute(path: Path) -> None:
    edit(path, location=str(path.parent.parent / "secret"))


def traversal_through_a_folder(path: Path) -> None:
    (path.parent / "sub").mkdir()
    edit(path, location="sub/../../secret")


def symlink(path: Path) -> None:
    (path.parent / "link").symlink_to("../secret")
    edit(path, location="link")


def symlink_with_the_usual_name(path: Path) -> None:
    data = path.with_name("model.onnx.data")
    data.rename(path.parent.parent / "moved")
    data.symlink_to("../moved")


def chain_of_symlinks(path: Path) -> None:
    for number in range(5):
        (path.parent / f"link{number}").symlink_to(f"link{number + 1}")
    (path.parent / "link5").symlink_to("../secret")
    edit(path, location="link0")


def loop_of_symlinks(path: Path) -> None:
    (path.parent / "one").symlink_to("two")
    (path.parent / "two").symlink_to("one")
    edit(path, location="one")


def dangling_symlink(path: Path) -> None:
    (path.parent / "link").symlink_to("../nothing")
    edit(path, location="link")


def symlinked_folder(path: Path) -> None:
    (path.parent / "link").symlink_to("..")
    edit(path, location="link/secret")


def nested_symlinked_folder(path: Path) -> None:
    (path.parent / "a" / "b").mkdir(parents=True)
    (path.parent / "a" / "b" / "c").symlink_to("../../..")
    edit(path, location="a/b/c/secret")


def hard_link(path: Path) -> None:
    os.link(path.parent.parent / "secret", path.parent / "hard")
    edit(path, location="hard")


def hard_link_with_the_usual_name(path: Path) -> None:
    os.link(path.with_name("model.onnx.data"), path.parent.parent / "elsewhere")


def pipe(path: Path) -> None:
    os.mkfifo(path.parent / "pipe")
    edit(path, location="pipe")


def socket_file(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket is at most 108 bytes long
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("socket")
    finally:
        os.chdir(here)
    edit(path, location="socket")


def device_node(path: Path) -> None:
    """Needs the right to make devices; without it, a link to one."""
    try:
        os.mknod(path.parent / "zero", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    except OSError:
        (path.parent / "zero").symlink_to("/dev/zero")
    edit(path, location="zero")


def linked_to(target: str) -> Attack:
    """The data file is a link to a file of the system."""

    def attack(path: Path) -> None:
        (path.parent / "link").symlink_to(target)
        edit(path, location="link")

    return attack


def folder(path: Path) -> None:
    (path.parent / "sub").mkdir()
    edit(path, location="sub")


def missing(path: Path) -> None:
    path.with_name("model.onnx.data").unlink()


def truncated(path: Path) -> None:
    os.truncate(path.with_name("model.onnx.data"), 2 * NBYTES - 1)


def placed(**fields: str) -> Attack:
    """The first tensor lies at another offset or has another length."""
    return lambda path: edit(path, **fields)


def sparse_and_huge(path: Path) -> None:
    """A terabyte of holes, claimed by a tensor of fitting shape."""
    proto = onnx.load(path, load_external_data=False)
    tensor = proto.graph.initializer[0]
    del tensor.dims[:]
    tensor.dims.extend([2**19, 2**19])
    path.write_bytes(proto.SerializeToString())
    edit(path, length=str(2**40))
    os.truncate(path.with_name("model.onnx.data"), 2**40 + NBYTES)


def said_twice(path: Path) -> None:
    proto = onnx.load(path, load_external_data=False)
    proto.graph.initializer[0].external_data.add(key="location", value="../secret")
    path.write_bytes(proto.SerializeToString())


def _hostile(name: str = "hidden", location: str = "../secret") -> TensorProto:
    tensor = TensorProto(name=name, dims=[64, 64], data_type=1, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", str(NBYTES))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def in_a_branch(path: Path) -> None:
    text = """main (bool c) => (float[2] y) {
        y = If (c) <then_branch = one () => (float[2] a) { a = Identity (p) },
                    else_branch = two () => (float[2] b) { b = Identity (p) }> }"""
    proto = ir.to_proto(model_of(text, p=normal(2)))
    proto.graph.node[0].attribute[1].g.initializer.append(_hostile())
    path.write_bytes(proto.SerializeToString())


def in_a_constant(path: Path) -> None:
    proto = onnx.load(path, load_external_data=False)
    proto.graph.node.append(helper.make_node("Constant", [], ["hidden"], value=_hostile()))
    path.write_bytes(proto.SerializeToString())


def in_a_function(path: Path) -> None:
    proto = onnx.load(path, load_external_data=False)
    node = helper.make_node("Constant", [], ["hidden"], value=_hostile())
    opsets = [helper.make_opsetid("", 18)]
    proto.functions.append(helper.make_function("local", "F", [], ["hidden"], [node], opsets))
    path.write_bytes(proto.SerializeToString())


def in_a_sparse_initializer(path: Path) -> None:
    proto = onnx.load(path, load_external_data=False)
    sparse = proto.graph.sparse_initializer.add(dims=[64, 64])
    sparse.values.CopyFrom(_hostile("s"))
    sparse.indices.CopyFrom(_hostile("i"))
    path.write_bytes(proto.SerializeToString())


ATTACKS: dict[str, Attack] = {
    "absolute": absolute,
    "/proc": located("/proc/self/mem"),
    "traversal": located("../secret"),
    "traversal through a folder": traversal_through_a_folder,
    "Windows traversal": located("..\\secret"),
    "Windows drive": located("C:/secret"),
    "Windows share": located("\\\\server\\secret"),
    "empty": located(""),
    "dot": located("."),
    "NUL": located("model.onnx.data\0"),
    "newline": located("model.onnx.data\nmodel.onnx"),
    "address": located("file:///etc/passwd"),
    "home": located("~/secret"),
    "memory of the process": located("*/_ORT_MEM_ADDR_/*"),
    "other case": located("MODEL.ONNX.DATA"),
    "said twice": said_twice,
    "symlink": symlink,
    "symlink with the usual name": symlink_with_the_usual_name,
    "chain of symlinks": chain_of_symlinks,
    "loop of symlinks": loop_of_symlinks,
    "dangling symlink": dangling_symlink,
    "symlinked folder": symlinked_folder,
    "nested symlinked folder": nested_symlinked_folder,
    "hard link": hard_link,
    "hard link with the usual name": hard_link_with_the_usual_name,
    "pipe": pipe,
    "socket": socket_file,
    "device": device_node,
    "link to a device": linked_to("/dev/zero"),
    "link to /proc": linked_to("/proc/self/environ"),
    "folder": folder,
    "missing": missing,
    "truncated": truncated,
    "offset past the end": placed(offset=str(4 * NBYTES)),
    "negative offset": placed(offset="-4096"),
    "offset of 2^63": placed(offset=str(2**63)),
    "offset that wraps": placed(offset=str(2**64 - 4096)),
    "length past the end": placed(length=str(4 * NBYTES)),
    "negative length": placed(length="-1"),
    "length that wraps": placed(length=str(2**64 - 1)),
    "overlapping": placed(offset="4096"),
    "sparse and huge": sparse_and_huge,
    "in a branch": in_a_branch,
    "in a constant": in_a_constant,
    "in a function": in_a_function,
    "in a sparse initializer": in_a_sparse_initializer,
}
