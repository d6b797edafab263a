# SPDX-License-Identifier: Apache-2.0
"""The parts that `bcq.export` puts together: functions inside the model, tasks, a LoRA, the file itself."""
