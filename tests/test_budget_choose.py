# SPDX-License-Identifier: Apache-2.0
"""Plans: what they keep within, what the user has decided, what cannot be reached."""

from __future__ import annotations

from typing import Any

import pytest

from bcq.bench.cost_table import CostTable
from bcq.budget.choose import Budget, choose
from bcq.budget.formats import DENSE, Format, formats
from bcq.budget.latency import clock, foreign, measured_bits
from bcq.budget.proxy import proxy
from bcq.budget.sensitivity import Sensitivity, Table
from bcq.budget.subjects import EMBEDDING, HEAD, LINEAR, Model, Subject
from bcq.budget.target import Target
from bcq.budget.units import units
from bcq.errors import InputError, UsageError
from bcq.matrices.plan import QuantizeOptions, choice_for
from graphs import normal
from test_bench_cost_table import cost


def subject(name: str, rows: int = 64, inputs: int = 64, **changes: Any) -> Subject:
    fields: dict[str, Any] = {"kind": LINEAR, "dense_bytes": 4 * rows * inputs, **changes}
    return Subject(name=name, rows=rows, inputs=inputs, read=lambda: normal(rows, inputs), **fields)


def model(*subjects: Subject, other_bytes: int = 10_000) -> Model:
    return Model(subjects, other_bytes)


def table(weights: dict[str, float], inputs: int = 64, rows: int = 64) -> Table:
    """Losses in proportion to errors, which fall by four a plane and by little with scales."""
    errors = {
        form: 0.4 * 4.0 ** -(form.bits or 0) * (1 - 1e-3 * form.offset - 1e-3 * bool(form.group_size))
        for form in formats(inputs)
    }
    return Table("kl", "", {n: Sensitivity(rows, inputs, ((1.0, w),), errors) for n, w in weights.items()})


def bits(budget: Budget) -> dict[str, int | None]:
    return {chosen.subject.name: chosen.form.bits for chosen in budget.matrices}


@pytest.mark.parametrize("amount", [1.5, 2.25, 3.0, 4.7])
def test_bits_a_weight_stay_within_the_target_and_nearly_reach_it(amount: float) -> None:
    names = [f"w{i}" for i in range(20)]
    budget = choose(
        model(*map(subject, names)),
        QuantizeOptions(),
        Target("bpw", amount),
        table(dict.fromkeys(names, 1.0)),
    )
    weights = sum(chosen.subject.weights for chosen in budget.matrices)
    assert budget.spent == pytest.approx(8 * sum(chosen.nbytes for chosen in budget.matrices) / weights)
    assert amount - 0.1 < budget.spent <= amount + 1e-6
    assert budget.loss == pytest.approx(sum(chosen.loss for chosen in budget.matrices))
    assert sum(budget.shares().values()) == pytest.approx(1.0)


def test_the_sensitive_matrix_gets_more_planes() -> None:
    budget = choose(
        model(*map(subject, "abc")),
        QuantizeOptions(),
        Target("bpw", 3.2),
        table({"a": 1.0, "b": 50.0, "c": 1.0}),
    )
    found = bits(budget)
    assert (found["b"] or 0) > max(found["a"] or 0, found["c"] or 0)


def test_the_plan_is_in_the_options_as_exceptions_after_those_of_the_user() -> None:
    options = QuantizeOptions(overrides=("a=5:g32:offset", "c=keep"), method="greedy")
    subjects = [
        subject("a", fixed=Format(5, 32, True)), subject("b"), subject("c", fixed=DENSE), subject("x.b"),
    ]  # fmt: skip
    budget = choose(model(*subjects), options, Target("bpw", 4.0), table({"b": 1.0, "x.b": 1.0}))
    assert budget.options.method == "greedy"
    assert budget.options.overrides[:2] == options.overrides
    for chosen in budget.matrices:
        choice = choice_for(chosen.subject.name, budget.options)
        assert Format(choice.bits, choice.group_size, choice.offset) == chosen.form
    assert bits(budget)["a"] == 5
    assert bits(budget)["c"] is None
    assert set(budget.shares()) == {"b", "x.b"}


def test_what_the_user_decided_stays_though_another_name_is_its_end() -> None:
    options = QuantizeOptions(overrides=("y.x.b=keep",))
    subjects = [subject("x.b"), subject("y.x.b", fixed=DENSE), subject("b")]
    budget = choose(model(*subjects), options, Target("bpw", 3.0), table({"x.b": 1.0, "b": 9.0}))
    for chosen in budget.matrices:
        assert choice_for(chosen.subject.name, budget.options).bits == chosen.form.bits


def test_a_matrix_that_the_user_keeps_counts_for_the_size_and_not_for_bits_a_weight() -> None:
    subjects = [subject("a"), subject("kept", fixed=DENSE)]
    few = choose(model(*subjects), QuantizeOptions(), Target("bpw", 2.2), table({"a": 1.0}))
    assert few.spent <= 2.2
    small = choose(model(*subjects), QuantizeOptions(), Target("size", 34_000), table({"a": 1.0}))
    assert small.spent == 10_000 + subjects[1].dense_bytes + small.matrices[0].form.file_bytes(64, 64)


def test_a_size_that_suffices_for_everything_keeps_everything_dense() -> None:
    budget = choose(model(subject("a")), QuantizeOptions(), Target("size", 1e9), table({"a": 1.0}))
    assert budget.matrices[0].form == DENSE
    assert budget.loss == 0.0


@pytest.mark.parametrize(
    ("target", "smallest"),
    [
        # One plane, row-wise: a bit and 16 / 64 of a scale for each weight.
        (Target("bpw", 1.2), "1.250 bits a weight"),
        # 10,000 bytes beside it, 64 * 64 / 8 of codes and 64 * 2 of alphas; these are too small for pages.
        (Target("size", 10_500.0), "10,640 bytes"),
    ],
)
def test_a_target_that_cannot_be_reached_tells_the_smallest_that_can(target: Target, smallest: str) -> None:
    with pytest.raises(UsageError, match=f"the smallest that can is {smallest}") as caught:
        choose(model(subject("a")), QuantizeOptions(), target, table({"a": 1.0}))
    assert caught.value.code == "E204"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "wrong", [table({"b": 1.0}), table({"a": 1.0}, rows=32), table({"a": 1.0}, inputs=32)]
)
def test_a_table_of_another_model_is_refused_by_the_name_of_the_matrix(wrong: Table) -> None:
    with pytest.raises(InputError, match="sensitivity table: a") as caught:
        choose(model(subject("a")), QuantizeOptions(), Target("bpw", 3.0), wrong)
    assert caught.value.code == "E102"


def times(**machine: Any) -> CostTable:
    """A microsecond for each plane and 1024 weights; two to four planes."""
    costs = [cost(rows, 64, rows / 16 * q, q, group_size=64) for rows in (64, 256) for q in (2, 3, 4)]
    return CostTable(machine, tuple(costs))


def test_a_latency_counts_products_and_not_embeddings_and_uses_the_bits_of_the_table() -> None:
    subjects = [subject("a"), subject("b", rows=256), subject("e", kind=EMBEDDING), subject("h", kind=HEAD)]
    losses = table({"a": 1.0, "e": 1.0, "h": 1.0})
    losses = Table("kl", "", {**losses.matrices, **table({"b": 4.0}, rows=256).matrices})
    clocked = times()
    planned = (QuantizeOptions(), Target("latency", 75.0), losses, clock(clocked), measured_bits(clocked))
    budget = choose(model(*subjects), *planned)
    found = bits(budget)
    assert set(found.values()) <= {2, 3, 4}
    assert found["e"] == 4  # it costs no time
    assert 60.0 < budget.spent <= 75.0
    one = choose(model(subjects[0]), QuantizeOptions(), Target("latency", 8.0), losses, *planned[3:])
    assert (one.spent, one.matrices[0].form) == (8.0, Format(2))
    with pytest.raises(UsageError, match=r"the smallest that can is 0\.048 ms"):
        choose(model(*subjects), QuantizeOptions(), Target("latency", 20.0), *planned[2:])


def test_offsets_cost_time_by_their_bytes() -> None:
    measure = clock(times())
    plain, with_offset = (measure(subject("a"), Format(3, 0, offset)) for offset in (False, True))
    assert with_offset / plain == pytest.approx(Format(3, 0, True).nbytes(64, 64) / Format(3).nbytes(64, 64))


def test_a_cost_table_of_another_machine_is_told_from_one_of_this() -> None:
    from bcq import __version__
    from bcq.bench.machine import cpu_name

    assert foreign(times(cpu=cpu_name(), library=__version__)) == ""
    assert "cpu 'Elbrus'" in foreign(times(cpu="Elbrus", library=__version__))
    assert "library None" in foreign(times(cpu=cpu_name()))


def test_a_cost_table_without_single_tokens_is_refused() -> None:
    with pytest.raises(UsageError, match="no times for one token") as caught:
        measured_bits(CostTable({}, (cost(64, 64, 1.0, tokens=8),)))
    assert caught.value.code == "E202"


def test_the_proxy_needs_no_text_and_leaves_out_what_the_user_decided() -> None:
    losses = proxy([subject("a"), subject("b", fixed=DENSE), subject("e", kind=EMBEDDING)], "greedy")
    assert set(losses.matrices) == {"a", "e"}
    few, many = losses.matrices["a"].loss(Format(1)), losses.matrices["a"].loss(Format(4))
    assert few > many > 0


def test_matrices_that_are_fused_are_decided_together() -> None:
    names = [f"h.{i}.attn.{part}_proj.weight" for i in range(3) for part in "qkvo"]
    losses = table({name: 10.0 * ("q_proj" in name) + i for i, name in enumerate(names)})
    budget = choose(model(*map(subject, names)), QuantizeOptions(), Target("bpw", 2.9), losses)
    forms = {chosen.subject.name: chosen.form for chosen in budget.matrices}
    assert [chosen.subject.name for chosen in budget.matrices] == names
    for i in range(3):
        assert len({forms[f"h.{i}.attn.{part}_proj.weight"] for part in "qkv"}) == 1
    assert len(set(forms.values())) > 1


def test_what_the_user_decided_or_reads_another_value_is_apart() -> None:
    query, key = subject("a.query.weight"), subject("a.key.weight", fixed=DENSE)
    value, other = subject("a.value.weight", inputs=32), subject("b.query.weight")
    assert units([query, key, value, other]) == [(query,), (key,), (value,), (other,)]
    together = subject("a.value.weight")
    assert units([query, other, together]) == [(query, together), (other,)]


def test_the_same_request_gives_the_same_plan() -> None:
    names = [f"w{i}" for i in range(9)]
    plans = [
        choose(
            model(*map(subject, names)),
            QuantizeOptions(),
            Target("bpw", 2.7),
            proxy([subject(name) for name in names], "greedy"),
        ).to_dict()
        for _ in range(2)
    ]
    assert plans[0] == plans[1]
