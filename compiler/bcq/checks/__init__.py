# SPDX-License-Identifier: Apache-2.0
"""What is checked before a model or the operator library is opened, since it may come from anyone."""
