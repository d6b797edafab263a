# SPDX-License-Identifier: Apache-2.0
"""Many tasks on one base: factors bound to its codes, their folder, and where an export takes them."""
