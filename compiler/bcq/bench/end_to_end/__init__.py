# SPDX-License-Identifier: Apache-2.0
"""Generation from prompt to tokens: our exports against their peers, in turns, each in its own process.

Data flows ``plan -> shapes -> prepare (gguf_file) -> measure (process -> worker -> engine_*) -> result ->
tables, figure``.
"""
