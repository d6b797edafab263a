# SPDX-License-Identifier: Apache-2.0
"""Fuzzers of everything that reads what strangers wrote: libFuzzer, which is Atheris in Python."""
