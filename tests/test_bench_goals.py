# SPDX-License-Identifier: Apache-2.0
"""Goals: each is judged by the right pair of measurements."""

from __future__ import annotations

from typing import Any

from bcq.bench import goals
from bcq.bench.goals import Goal
from bcq.bench.plan import goal_problems
from bcq.bench.result import BenchResult, Measurement
from bench_results import ours, peer, result

NBITS = "MatMulNBits 4-bit b=128"


def judged(*measurements: Measurement) -> list[Goal]:
    return goals.judge(result(*measurements))


def only(found: list[Goal], what: str, bits: int = 3, arithmetic: str = "near-exact") -> list[Goal]:
    return [g for g in found if (g.what, g.bits, g.arithmetic) == (what, bits, arithmetic)]


def test_streaming_is_judged_by_the_read_bandwidth_of_its_rounds() -> None:
    # 1 MB in 50 us is 20 GB/s, all of the made-up bandwidth; in 100 us it is half.
    (fast,) = judged(ours(50.0))[:1]
    (slow,) = judged(ours(100.0))[:1]
    assert (fast.wanted, fast.measured, fast.reached) == (0.9, 1.0, True)
    assert (slow.measured, slow.reached) == (0.5, False)
    assert slow.distance is not None
    assert abs(slow.distance - (0.5 / 0.9 - 1)) < 1e-9


def test_two_bits_meet_the_best_2_bit_peer_and_more_bits_the_best_4_bit_one() -> None:
    found = judged(
        ours(10.0, bits=2),
        ours(10.0, bits=3),
        peer("MatMulNBits 2-bit b=128", 20.0, 2),
        peer("ggml Q2_K", 14.0, 2),
        peer(NBITS, 30.0, 4),
        peer("ggml Q3_K", 40.0, 3),
    )
    streaming = [g for g in found if not g.against.startswith("memory read")]
    assert [(g.bits, g.measured, g.against) for g in streaming if g.measured] == [
        (2, 1.4, "ggml Q2_K, 14 us"),
        (3, 3.0, f"{NBITS}, 30 us"),
        (3, 4.0, "ggml Q3_K, 40 us"),
    ]


def test_a_peer_that_was_not_there_leaves_a_goal_unmeasured() -> None:
    found = [g for g in judged(ours(10.0)) if g.wanted == 1.8]
    assert [(g.measured, g.distance, g.reached) for g in found] == [(None, None, False)]
    assert "not measured" in goals.to_markdown(found)


def test_cached_products_are_judged_by_class() -> None:
    hot: dict[str, Any] = {"cold": False, "threads": 1}
    found = judged(ours(10.0, **hot), ours(5.0, arithmetic="int8", **hot), peer(NBITS, 10.0, 4, **hot))
    (near,) = only(found, "M=1, cache, 1 thread")
    (int8,) = only(found, "M=1, cache, 1 thread", arithmetic="int8")
    assert (near.wanted, near.measured) == (0.95, 1.0)
    assert (int8.wanted, int8.measured) == (1.5, 2.0)


def test_where_int8_has_no_kernel_of_its_own_the_near_exact_one_answers_for_it() -> None:
    hot: dict[str, Any] = {"cold": False, "threads": 1}
    (int8,) = only(
        judged(ours(10.0, **hot), peer(NBITS, 10.0, 4, **hot)), "M=1, cache, 1 thread", arithmetic="int8"
    )
    assert (int8.wanted, int8.measured, int8.reached) == (1.5, 1.0, False)


def test_batches_meet_the_best_peer_of_2_to_4_bits() -> None:
    batch: dict[str, Any] = {"cold": False, "tokens": 32}
    found = judged(
        ours(10.0, **batch),
        peer(NBITS, 30.0, 4, **batch),
        peer("ggml Q2_K", 20.0, 2, **batch),
        peer("torch int8 dynamic", 5.0, 8, **batch),
    )
    (goal,) = only(found, "M=32, cache, 2 threads")
    assert (goal.wanted, goal.measured, goal.against) == (1.5, 2.0, "ggml Q2_K, 20 us")


def test_scaling_is_the_time_of_one_thread_over_that_of_two() -> None:
    found = judged(ours(19.0, cold=False, threads=1), ours(10.0, cold=False, threads=2))
    (goal,) = only(found, "M=1, cache, 2 threads over 1")
    assert (goal.wanted, goal.measured, goal.reached) == (1.9, 1.9, True)


def test_the_named_plan_measures_every_goal() -> None:
    measurements: list[Measurement] = []
    for p in goal_problems((64, 64)):
        where: dict[str, Any] = {"tokens": p.tokens, "threads": p.threads, "cold": p.cold}
        measurements += [ours(10.0, bits, **where) for bits in (2, 3, 4)]
        measurements += [peer("MatMulNBits 2-bit b=128", 30.0, 2, **where), peer(NBITS, 30.0, 4, **where)]
    found = judged(*measurements)
    # per q: share, streaming, two cached classes, M=4, 32, 256, scaling; and Q3_K once
    assert len(found) == 3 * 8 + 1
    assert sum(g.measured is None for g in found) == 1


def test_the_markdown_says_wanted_measured_and_distance() -> None:
    shown = goals.to_markdown(
        [
            Goal("M=1", 2, "near-exact", 0.9, 0.45, "memory read, 20.0 GB/s"),
            Goal("M=4", 3, "int8", 1.8, 2.0, NBITS),
        ]
    )
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in shown.splitlines()[2:]]
    assert rows == [
        ["M=1", "2", "near-exact", "memory read, 20.0 GB/s", "90%", "45%", "-50%"],
        ["M=4", "3", "int8", NBITS, "1.80x", "2.00x", "reached"],
    ]


def test_the_text_counts_what_is_reached() -> None:
    measured: BenchResult = result(ours(50.0))
    found = goals.judge(measured)
    assert f"1 of {len(found)} goals reached." in goals.to_text(found, measured)
    assert goals.to_page(found, measured).startswith("## Goals\n\nA CPU, 2 cores, load 0.1, avx2;")
