# SPDX-License-Identifier: Apache-2.0
"""Options of quantization: what is refused, which override wins, what a pattern matches."""

from __future__ import annotations

from typing import Any

import pytest

from bcq.errors import UsageError
from bcq.matrices.plan import (
    Choice,
    Override,
    QuantizeOptions,
    check_overrides,
    choice_for,
    group_size_for,
    parse_override,
)

NAMES = ["transformer.wte.weight", "transformer.h.0.mlp.c_fc.weight", "transformer.h.1.attn.c_attn.weight"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"bits": 0},
        {"bits": 9},
        {"bits": True},
        {"group_size": 48},
        {"group_size": -32},
        {"method": "best"},
        {"seed": -1},
    ],
)
def test_a_value_outside_its_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        QuantizeOptions(**wrong)
    assert caught.value.code == "E202"
    assert caught.value.exit_code == 2


MALFORMED = [
    "h.*", "=3", "h.*=", "h.*=9", "h.*=0", "h.*=x", "h.*=-1", "h.*=3.5", "h=3:", "h=3:64", "h=3:g", "h=3:g48",
    "h=3:g-32", "h=3:g64:g64", "h=3:offset:no-offset", "h=keep:g64", "h=:g64", "h=3:g64:x", "h=3:g²",
]  # fmt: skip


@pytest.mark.parametrize("text", MALFORMED)
def test_a_malformed_override_is_refused_and_named(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_override(text)
    assert caught.value.code == "E202"
    assert f"--set '{text}'" in str(caught.value)
    assert "expected" in str(caught.value)


def test_overrides_are_parsed_and_print_as_written() -> None:
    assert parse_override("h.*.mlp.*=4") == Override("h.*.mlp.*", 4)
    assert parse_override("wpe*=keep") == Override("wpe*", None)
    assert parse_override("a=b=3:g64") == Override("a=b", 3, 64)
    assert parse_override("onnx::MatMul_7=2:g0:offset") == Override("onnx::MatMul_7", 2, 0, True)
    assert parse_override("h.*=4:no-offset") == Override("h.*", 4, None, False)
    for text in ("wpe*=keep", "h=3", "h=3:g64", "h=2:g0:offset", "h=2:no-offset"):
        assert str(parse_override(text)) == text
    assert parse_override("h=3:offset:g32") == parse_override("h=3:g32:offset")
    assert QuantizeOptions(overrides=("wpe*=keep",)).overrides == (Override("wpe*", None),)


def test_a_pattern_matches_the_full_name_or_a_dotted_suffix() -> None:
    name = "transformer.h.0.mlp.c_fc.weight"
    for pattern in ("transformer.*", "h.*.mlp.*", "h.0.mlp.c_fc", "c_fc.weight", "*c_fc*"):
        assert Override(pattern, 4).matches(name), pattern
    for pattern in ("h.1.*", "fc.weight", "mlp", "H.*"):
        assert not Override(pattern, 4).matches(name), pattern


def test_the_last_override_that_matches_wins() -> None:
    options = QuantizeOptions(bits=3, overrides=("h.*=4", "h.0.*=keep"))
    assert choice_for(NAMES[1], options).bits is None
    assert choice_for(NAMES[1], options).requested
    assert choice_for(NAMES[2], options).bits == 4
    assert choice_for(NAMES[0], options).bits == 3
    assert not choice_for(NAMES[0], options).requested


def test_an_override_changes_group_size_and_offset_only_where_it_says_so() -> None:
    options = QuantizeOptions(group_size=64, offset=True, overrides=("h.0.*=2", "h.1.*=3:g0:no-offset"))
    assert choice_for(NAMES[0], options) == Choice(3, group_size=64, offset=True)
    assert choice_for(NAMES[1], options) == Choice(2, requested=True, group_size=64, offset=True)
    assert choice_for(NAMES[2], options) == Choice(3, requested=True, group_size=0, offset=False)


def test_embeddings_can_be_kept_and_an_override_still_packs_one() -> None:
    kept = choice_for(NAMES[0], QuantizeOptions(embeddings=False), embedding=True)
    assert kept.bits is None
    assert kept.requested
    packed = QuantizeOptions(embeddings=False, overrides=("wte=4",))
    assert choice_for(NAMES[0], packed, embedding=True).bits == 4


def test_a_pattern_that_matches_nothing_names_the_closest() -> None:
    with pytest.raises(UsageError) as caught:
        check_overrides(QuantizeOptions(overrides=("h.*.mpl.*=4",)), NAMES)
    assert caught.value.code == "E201"
    assert "--set 'h.*.mpl.*=4' matches no matrix" in str(caught.value)
    assert "h.*.mlp" in caught.value.hint
    check_overrides(QuantizeOptions(overrides=("h.*.mlp.*=4",)), NAMES)


def test_group_size_zero_means_one_group_a_row() -> None:
    assert group_size_for(QuantizeOptions(group_size=0), 300) == 300
    assert group_size_for(QuantizeOptions(group_size=128), 64) == 128


@pytest.mark.parametrize("overrides", [[("h.*", 4)], [None], "h.*=4"])
def test_overrides_of_another_form_are_a_usage_error(overrides: Any) -> None:
    with pytest.raises(UsageError, match="overrides") as caught:
        QuantizeOptions(overrides=overrides)
    assert caught.value.code == "E202"
