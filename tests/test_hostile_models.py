# SPDX-License-Identifier: Apache-2.0
"""Every malformed model is refused by a message that names node and field; odd but valid ones run right."""

from __future__ import annotations

import re

import pytest

from hostile import catalog
from hostile.case import Case
from hostile.runner import MODES, isolated
from hostile.scoreboard import bad_ones, run_group

OURS = [case for group in catalog.GENERATORS for case in catalog.cases(group) if case.subject.domain == "bcq"]


def test_there_are_at_least_two_hundred_malformed_models_and_no_two_share_a_name() -> None:
    assert sum(not case.legal for case in OURS) >= 200
    assert len({case.key for case in OURS}) == len(OURS)


@pytest.mark.parametrize("group", catalog.GENERATORS)
def test_no_model_crashes_hangs_is_accepted_or_is_refused_without_a_reason(group: str) -> None:
    verdicts = run_group(group, MODES[0], "quick")
    assert len(verdicts) >= 30
    assert bad_ones(verdicts) == []
    for verdict in verdicts:
        if verdict.outcome == "clear" and verdict.detail.startswith("error[E109]"):
            assert re.search(r"got .*, expected |refuses|inputs?|type", verdict.detail), verdict


def test_a_crash_and_a_hang_are_seen_as_such() -> None:
    import os
    import signal
    import time

    def crash() -> tuple[str, str]:
        os.kill(os.getpid(), signal.SIGKILL)
        return "clear", ""

    def hang() -> tuple[str, str]:
        time.sleep(60)
        return "clear", ""

    assert isolated(crash) == ("crash", f"exit status {-signal.SIGKILL}")
    assert isolated(hang, seconds=0.2)[0] == "hang"
    assert isolated(lambda: ("clear", "x" * 10**6)) == ("clear", "x" * 10**6)


def test_a_valid_case_with_a_wrong_result_counts_as_accepted() -> None:
    import numpy as np

    from hostile.case import judge_output

    case: Case = next(case for case in OURS if case.legal)
    right = case.right()[0].astype(np.float32)
    assert judge_output(case, right) == "legal"
    assert judge_output(case, right + 1) == "accepted"
    assert judge_output(case, np.full_like(right, np.nan)) == "accepted"
