"""`source.where`, `target.deleted_when` and `target.keep` in the file."""

from __future__ import annotations

import pytest

from gapwatch.config import parse, render
from tests.unit.config.test_load import GOOD, problems, settings

ORDERS = "collection: shop.orders,"
TABLE = "table: public.orders,"


def test_m21_what_counts_is_read_as_declared() -> None:
    text = GOOD.replace(TABLE, f"""{TABLE} where: "status in ('paid', 'sent')", on_leave: ignore,""")
    text = text.replace(ORDERS, f'{ORDERS} deleted_when: "gone = true", keep: 90d by customer,')
    (spec,) = settings(text).pipelines.values()
    assert (spec.source.where, spec.source.on_leave) == ("status in ('paid', 'sent')", "ignore")
    assert (spec.target.deleted_when, spec.target.keep_seconds, spec.target.keep_by) == ("gone = true", 90 * 86_400, "customer")
    assert parse(render(settings(text)), {}).pipelines["orders"] == spec


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (TABLE, f"{TABLE} where: status = paid,", "source.where: It is no condition: 'paid' is no constant"),
        (TABLE, f"{TABLE} on_leave: ignore,", "source.on_leave: There is no `where` that a row could leave."),
        (ORDERS, f"{ORDERS} deleted_when: gone,", "target.deleted_when: It is no condition: it ends too early."),
        (ORDERS, f"{ORDERS} keep: 90d,", "target.keep: '90d' does not say how long, and from when."),
        (ORDERS, f"{ORDERS} keep: 90d by nothing,", "target.keep: `nothing` is no field of the pipeline."),
        (ORDERS, f"{ORDERS} keep: 14s by customer,", "target.keep: Within 7 s (grace and clock_skew_max) of a document's end"),
    ],
)
def test_m21_what_is_wrong_is_named_with_its_place(old: str, new: str, said: str) -> None:
    found = problems(GOOD.replace(old, new))
    assert any(said in problem for problem in found), found
