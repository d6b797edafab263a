# SPDX-License-Identifier: Apache-2.0
"""Folders and files on disk: read as if an attacker had made them, written whole or not at all."""
