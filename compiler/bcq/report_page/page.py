# SPDX-License-Identifier: Apache-2.0
"""The page itself: figures on top, then the comparison, the time of a token, and every matrix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

from bcq.report import Row, megabytes
from bcq.report_page import charts
from bcq.report_page.contents import Contents, read_contents, rms
from bcq.report_page.style import CSS, SERIES

UNKNOWN = "-"


def write_page(folders: Sequence[Path], output: Path, names: Sequence[str] = ()) -> None:
    """Writes the page of exports as their files describe them; the same files make the same bytes.

    Args:
        folders: outputs of ``bcq export``.
        output: the ``.html`` file.
        names: what the page calls them, instead of their folders' names.

    Raises:
        InputError: as `read_contents`.
    """
    named = list(names) or [""] * len(folders)
    found = [read_contents(folder, name) for folder, name in zip(folders, named, strict=True)]
    output.write_text(to_html(found), encoding="utf-8")


def to_html(found: Sequence[Contents]) -> str:
    """The page of one or more exports."""
    title = found[0].name if len(found) == 1 else f"{len(found)} exports"
    body = [f"<h1>{escape(title)}</h1>", _made_by(found)]
    body += [_figures(found[0])] if len(found) == 1 else [_comparison(found)]
    body += [_times(found), *(_export(contents, len(found) == 1) for contents in found)]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}: packed model</title>\n<style>\n{CSS}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _made_by(found: Sequence[Contents]) -> str:
    versions = found[0].versions
    told = [f"{name} {versions[name]}" for name in ("onnx-bcq", "onnxruntime", "torch") if name in versions]
    return f'<p class="soft">{escape(", ".join(told))}</p>' if told else ""


def _figures(contents: Contents) -> str:
    """The figures that matter most, large."""
    summary = contents.summary
    shown = [
        (megabytes(summary.bytes_after), "graph and weights"),
        (
            f"{_ratio(summary.bytes_fp32, summary.bytes_after)}",
            f"smaller than float32 ({megabytes(summary.bytes_fp32)})",
        ),
        (f"{summary.bits_per_weight:.2f}", "bits a packed weight, scales included"),
        (f"{summary.packed} of {summary.total}", f"matrices packed, {summary.share:.1%} of their bytes"),
    ]
    if contents.error is not None:
        shown.append((f"{contents.error:.1%}", "relative error of the weights"))
    if contents.perplexity is not None:
        shown.append((f"{contents.perplexity:.2f}", "perplexity"))
    if contents.operators:
        shown.append((f"{sum(contents.operators.values()) / 1e3:.2f} ms", "all operators of a token"))
    items = "\n".join(f"<li><b>{escape(value)}</b><span>{escape(what)}</span></li>" for value, what in shown)
    return f'<ul class="figures">\n{items}\n</ul>'


def _comparison(found: Sequence[Contents]) -> str:
    header = [
        "export",
        "bits a weight",
        "size",
        "to float32",
        "to float16",
        "error",
        "worst matrix",
        "perplexity",
    ]
    header.append("token, ms")
    rows = []
    for contents in found:
        summary, worst = contents.summary, _worst(contents.rows)
        time = sum(contents.operators.values()) / 1e3
        rows.append([
            contents.name,
            f"{summary.bits_per_weight:.2f}",
            megabytes(summary.bytes_after),
            _ratio(summary.bytes_fp32, summary.bytes_after),
            _ratio(summary.bytes_fp16, summary.bytes_after),
            _percent(contents.error),
            UNKNOWN if worst is None else f"{worst.name} {_percent(rms(worst))}",
            UNKNOWN if contents.perplexity is None else f"{contents.perplexity:.2f}",
            f"{time:.2f}" if time else UNKNOWN,
        ])  # fmt: skip
    picture = _figure(charts.size_and_error(found), "Size of graph and weights, and error of the weights.")
    table = _table("Comparison of the exports", header, rows)
    return f"<h2>Comparison</h2>\n{picture}\n{table}"


def _times(found: Sequence[Contents]) -> str:
    """Where the time of a token goes; nothing where it was not measured."""
    timed = [contents for contents in found if contents.operators]
    if not timed:
        return ""
    most: Counter[str] = Counter()
    for contents in timed:
        for op, time in contents.operators.items():
            most[op] = max(most[op], time)  # type: ignore[assignment]
    types = [op for op, _ in most.most_common(len(SERIES) - 1)]
    rows = []
    for i, op in enumerate([*types, "others"]):
        times = [charts.split(contents.operators, types)[i] for contents in timed]
        shares = [
            time / sum(contents.operators.values()) for time, contents in zip(times, timed, strict=True)
        ]
        rows.append(
            [op, *(f"{share:.1%} ({time:,.0f} us)" for share, time in zip(shares, times, strict=True))]
        )
    keys = [f'<span class="key" style="background:var({colour})"></span>' for colour in SERIES]
    note = (
        f"Medians of single tokens, {timed[0].threads} threads, onnxruntime's profiler on, which lengthens "
    )
    picture = _figure(charts.time_bars(timed, types), note + "small operators.")
    header = ["operator", *(contents.name for contents in timed)]
    table = _table("Time of a generated token by operator", header, rows, keys)
    return f"<h2>Where the time of a token goes</h2>\n{picture}\n{table}"


def _export(contents: Contents, alone: bool) -> str:
    """Every matrix of an export."""
    heading = "Matrices" if alone else contents.name
    worst = _worst(contents.rows)
    caption = "Relative error of each packed matrix, in the order of the model"
    caption += f"; the largest is {worst.name}, in red." if worst else "."
    picture = _figure(charts.error_bars(contents), caption)
    timed = bool(contents.times)
    header = ["matrix", "kind", "rows x inputs", "bits", "group", "size", "error"] + ["us a token"] * timed
    rows = [_cells(row, contents.times, timed) for row in contents.rows]
    marks = [7 * (row is worst) for row in contents.rows]
    table = _table(f"Matrices of {contents.name}", header, rows, marked=marks)
    dense = [row for row in contents.rows if not row.packed and not row.tied]
    unpacked = "".join(f"<li>{escape(row.name)}: {escape(row.reason)}</li>" for row in dense)
    left = f"<h3>Not packed</h3>\n<ul>{unpacked}</ul>" if dense else ""
    opened = " open" if alone else ""
    listed = f"<details{opened}><summary>All {len(rows)} matrices</summary>\n{table}\n</details>"
    return f"<h2>{escape(heading)}</h2>\n{_options(contents)}\n{picture}\n{listed}\n{left}"


def _options(contents: Contents) -> str:
    told = [
        f"{key.replace('_', ' ')}: {value}"
        for key, value in contents.options.items()
        if value not in ([], "")
    ]
    return f'<p class="soft">{escape("; ".join(told))}</p>' if told else ""


def _cells(row: Row, times: dict[str, float], timed: bool) -> list[str]:
    cells = [row.name, row.kind, f"{row.rows:,} x {row.inputs:,}"]
    cells.append(UNKNOWN if row.bits is None else f"{row.bits}" + " + offset" * row.offset)
    cells += [
        str(row.group_size) if row.group_size else UNKNOWN,
        megabytes(row.packed_bytes if row.packed else row.dense_bytes),
        _percent(rms(row)),
    ]
    return cells + ([f"{times[row.name]:,.0f}" if row.name in times else UNKNOWN] if timed else [])


def _worst(rows: Sequence[Row]) -> Row | None:
    known = [row for row in rows if row.packed and row.relative_error is not None]
    return max(known, key=lambda row: row.relative_error or 0.0, default=None)


def _percent(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.1%}"


def _ratio(before: int, after: int) -> str:
    return f"{before / after:.1f}x" if after else UNKNOWN


def _figure(picture: str, caption: str) -> str:
    return (
        f'<figure class="wide">\n{picture}<figcaption>{escape(caption)}</figcaption>\n</figure>'
        if picture
        else ""
    )


def _table(
    caption: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    keys: Sequence[str] = (),
    marked: Sequence[int] = (),
) -> str:
    """A table whose first column names its rows.

    Args:
        caption: for readers and screen readers.
        header: titles of the columns.
        rows: cells.
        keys: HTML before the name of each row.
        marked: for each row, the column that is marked, counted from 1; 0 for none.
    """
    columns = "".join(f'<th scope="col">{escape(title)}</th>' for title in header)
    lines = []
    for i, row in enumerate(rows):
        key, mark = (keys[i] if keys else ""), (marked[i] - 1 if marked else -1)
        cells = [f'<th scope="row">{key}{escape(row[0])}</th>']
        for column, cell in enumerate(row[1:], 1):
            kind = ' class="worst"' if column == mark else ""
            cells.append(f"<td{kind}>{escape(cell)}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    body = "\n".join(lines)
    return (
        f'<div class="wide"><table>\n<caption>{escape(caption)}</caption>\n'
        f"<thead><tr>{columns}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
    )
