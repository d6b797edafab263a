# SPDX-License-Identifier: Apache-2.0
"""Colours and type of the page, light or dark as the reader's system is."""

from __future__ import annotations

# Series colours keep a contrast of 3 to 1 and more with either background.
SERIES = ("--blue", "--orange", "--green", "--purple", "--red", "--teal", "--brown", "--grey")

CSS = """\
:root { color-scheme: light dark;
  --paper: #ffffff; --ink: #1b1f24; --soft: #59636e; --line: #d8dee4; --shade: #f4f6f8;
  --blue: #0b6bcb; --orange: #b35900; --green: #2c7a3f; --purple: #7d4cc2; --red: #c0262d;
  --teal: #0b7a75; --brown: #7a5c2e; --grey: #7a828a; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #14171a; --ink: #e8ebee; --soft: #a3adb8; --line: #343b43; --shade: #1d2226;
  --blue: #5aa9f5; --orange: #f0a04b; --green: #5fc27e; --purple: #b794f0; --red: #f27b7f;
  --teal: #4cc4bd; --brown: #cfa96a; --grey: #8f98a1; } }
body { margin: 0 auto; max-width: 76rem; padding: 2rem 1.25rem 4rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 Inter, 'Segoe UI', Helvetica, Arial, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; } p { margin: .25rem 0 .75rem; max-width: 46rem; }
.soft, caption, figcaption { color: var(--soft); }
caption, figcaption { text-align: left; font-size: .875rem; padding: .25rem 0 .5rem; }
.wide { overflow-x: auto; } figure { margin: 1rem 0; } svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .75rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
th:first-child, th[scope=row] { text-align: left; font-weight: 400; }
tbody tr:hover { background: var(--shade); } td.worst { color: var(--red); font-weight: 600; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; margin: 1rem 0; padding: 0; list-style: none; }
.figures b { display: block; font-size: 1.5rem; font-weight: 600; line-height: 1.2; }
.figures span { color: var(--soft); font-size: .875rem; }
summary { cursor: pointer; color: var(--blue); margin: .5rem 0; }
.key { display: inline-block; width: .7rem; height: .7rem; margin-right: .4rem; border-radius: 2px; }
@media print { body { max-width: none; padding: 0; } }
"""
