# SPDX-License-Identifier: Apache-2.0
"""``bcq serve``: an endpoint as OpenAI's over an export.

`server` (sockets, signals), `app` (paths, streams), `request` (what a body may say), `engine` (what becomes
of it), `scheduler` (whose turn it is), `reply` and `refusal` (what is answered), `limits`. Why this way:
``docs/decisions/0021-serving.md``.
"""
