# SPDX-License-Identifier: Apache-2.0
"""The bench's tables: all figures as plain text, and ratios to the best peer of each class as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from bcq import report
from bcq.bench.result import BenchResult, Measurement, fastest

_HEADER = (
    f"  {'contender':<30}{'us':>10}{'best':>10}{'quartiles':>17}{'bits/w':>8}"
    f"{'MB':>8}{'GB/s':>7}{'of read':>9}{'error':>10}"
)
_RATIOS = ("N x K", "M", "threads", "weights", "q", "class", "us", "of read")
CLASSES = {"near-exact": "near-exact", "int8": "int8", "float32": "exact"}
LEGEND = """\
Above 1x BcqMatMul is faster than the best peer of that width, which is named, below it is slower. Peers'
activations are int8 unless fp32 is said. 'of read' = bytes of weights and scales / time / read bandwidth of
the same rounds."""


def to_table(result: BenchResult) -> str:
    """All measurements as plain text, who was absent, then the ratios."""
    return "\n".join([to_figures(result), "", to_markdown(result), "", LEGEND])


def to_figures(result: BenchResult) -> str:
    """All measurements as plain text, one block a problem, then who was absent."""
    lines = [to_machine(result)]
    for group in result.by_problem():
        lines += ["", _title(group[0]), _HEADER, *(_line(m) for m in group)]
    if result.absent:
        lines += ["", "absent:", *(f"  {name}: {reason}" for name, reason in result.absent.items())]
    return "\n".join(lines)


def to_page(result: BenchResult) -> str:
    """A Markdown page of everything."""
    ratios = ["## Ratios of medians", "", to_markdown(result), "", LEGEND]
    return "\n".join([*ratios, "", "## All figures", "", "```", to_figures(result), "```"])


def to_markdown(result: BenchResult) -> str:
    """Times of the best peer of each width over times of BcqMatMul: above 1 means faster than the peer."""
    return _ratios(result, list(PEERS), lambda m: m.ours)


def to_summary(result: BenchResult) -> str:
    """The same in short: the near-exact class, weights from memory, and batches at the largest shape."""
    largest = max((m.rows * m.inputs for m in result.measurements), default=0)

    def is_shown(m: Measurement) -> bool:
        ours = m.ours and m.arithmetic == "near-exact"
        return ours and (m.cold if m.tokens == 1 else m.rows * m.inputs == largest)

    return _ratios(result, ["2-bit", "3-bit", "4-bit", "fp32"], is_shown)


def _ratios(result: BenchResult, names: list[str], is_shown: Callable[[Measurement], bool]) -> str:
    peers = [m for m in result.measurements if not m.ours]
    columns = {name: PEERS[name] for name in names if any(PEERS[name](m) for m in peers)}
    rows = [
        [*_ours(m), *(_ratio(m, fastest(filter(key, _others(group)))) for key in columns.values())]
        for group in result.by_problem()
        for m in group
        if is_shown(m)
    ]
    return report.table([*_RATIOS, *columns], rows, "lrrlrlrr" + "r" * len(columns))


PEERS: dict[str, Callable[[Measurement], bool]] = {
    "2-bit": lambda m: m.bits == 2,
    "3-bit": lambda m: m.bits == 3,
    "4-bit": lambda m: m.bits == 4,
    "4-bit fp32": lambda m: m.bits == 4 and m.arithmetic == "float32",
    "8-bit": lambda m: m.bits == 8,
    "fp32": lambda m: m.bits == 32,
}


def _others(group: Iterable[Measurement]) -> list[Measurement]:
    return [m for m in group if not m.ours]


def _ours(m: Measurement) -> list[str]:
    kind = CLASSES[m.arithmetic]
    return [
        f"{m.rows} x {m.inputs}",
        str(m.tokens),
        str(m.threads),
        "memory" if m.cold else "cache",
        str(m.bits),
        f"{kind} {m.contender.split()[-1]}" if m.contender.endswith(("mapped", "resident")) else kind,
        f"{m.microseconds:.0f}",
        f"{m.share:.0%}" if m.cold else "",
    ]


def _ratio(ours: Measurement, peer: Measurement | None) -> str:
    if peer is None:
        return "-"
    return f"{peer.microseconds / ours.microseconds:.2f}x {short_name(peer)}".rstrip()


def short_name(peer: Measurement) -> str:
    """A peer's name where its width is said already: ``b=128``, ``b=32``, ``lut``, ``OpenVINO``, ``Q4_0``."""
    name = peer.contender
    if name.startswith("MatMulNBits"):
        return " ".join(name.split()[2:]).replace("b=128 lut", "lut").replace(" fp32", "")
    if peer.family == "onnxruntime":
        return ""
    return name.replace("ggml ", "").split()[0]


def to_machine(result: BenchResult) -> str:
    """One line: processor, versions, date."""
    m = result.machine
    where = f"{m['cpu']}, {m['cores']} cores, load {m['load']}, {m['isa']}"
    return f"{where}; bcq {m['library']}, onnxruntime {m['onnxruntime']}, numpy {m['numpy']}; {m['made']}"


def _title(m: Measurement) -> str:
    return f"{m.problem}, memory read {m.bandwidth:.1f} GB/s (best {m.bandwidth_best:.1f})"


def _line(m: Measurement) -> str:
    quartiles = f"{m.low:.0f} - {m.high:.0f}"
    share = f"{m.share:.0%}" if m.cold else "-"
    return (
        f"  {m.contender:<30}{m.microseconds:>10.1f}{m.best:>10.1f}{quartiles:>17}{m.bits_per_weight:>8.2f}"
        f"{m.weight_bytes / 1e6:>8.2f}{m.gigabytes_per_second:>7.1f}{share:>9}{m.error:>10.1e}"
        f"  {m.kernel}".rstrip()
    )
