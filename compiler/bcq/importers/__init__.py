# SPDX-License-Identifier: Apache-2.0
"""Weights that other programs quantized, as BCQ: exact, or refused with the measured error.

``factors.py`` says what is exact, one file per format says where its numbers lie, ``base_folder.py`` and
``graph.py`` write what comes out. ``docs/importers.md`` is the table of what is taken and what is refused.
"""
