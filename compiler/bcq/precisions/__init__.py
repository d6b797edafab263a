# SPDX-License-Identifier: Apache-2.0
"""Several precisions of one model that share their bit planes: solved, stored, exported and chosen.

Decision: ``docs/decisions/0017-nested-precision.md``.
"""
