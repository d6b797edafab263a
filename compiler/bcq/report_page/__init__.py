# SPDX-License-Identifier: Apache-2.0
"""One HTML file about exports: error, bits and size of every matrix, time of a token, comparison.

The page needs no script, no network and no other file.
"""

from __future__ import annotations

from bcq.report_page.contents import Contents, read_contents
from bcq.report_page.page import to_html, write_page

__all__ = ["Contents", "read_contents", "to_html", "write_page"]
