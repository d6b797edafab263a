# SPDX-License-Identifier: Apache-2.0
"""LoRA checkpoints: read, said with the codes of a base, or merged into a dense model."""
