# SPDX-License-Identifier: Apache-2.0
"""The matrices of a model: which they are, what is asked for each, how each is packed."""
