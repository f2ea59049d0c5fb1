"""No false green: a copier that follows a plan of faults; the gaps are those of the plan, kinds included, and no other.

What is expected is computed from the plan, and checked against both stores' contents: never from what Gapwatch says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pymongo import DeleteOne, ReplaceOne

from gapwatch.embedded import EmbeddedStack
from tests.acceptance.copier import Change, Operation, Rule, fields_of
from tests.acceptance.scenery import TABLE, Scene, watched
from tests.acceptance.service import wait_for

pytestmark = [pytest.mark.acceptance, pytest.mark.integration, pytest.mark.timeout(600)]

EACH = 20
BIG = "'" + "toast" * 1_200 + "'"
Plan = list[tuple[float, Operation | None]]


def drop(_: Change) -> Plan:
    return [(0, None)]


def later(seconds: float) -> Rule:
    return lambda change: [(seconds, change.applied())]


def twice(change: Change) -> Plan:
    return [(0, change.applied()), (0, change.applied())]


def altered(**fields: Any) -> Rule:
    def apply(change: Change) -> Plan:
        assert change.after is not None
        return [(0, ReplaceOne({"_id": change.key}, {**fields_of(change.after), **fields}, upsert=True))]

    return apply


def only_first(change_rule: Rule) -> Rule:
    """Apply the first write with this number, and let the rule have the next one."""
    seen: list[Change] = []

    def apply(change: Change) -> Plan:
        seen.append(change)
        return [(0, change.applied())] if len(seen) == 1 else change_rule(change)

    return apply


@dataclass
class Story:
    """The plan: statements in order, the copier's rules, and what must be found for which key."""

    statements: list[str] = field(default_factory=list)
    rules: dict[Any, Rule] = field(default_factory=dict)
    expected: dict[int, str] = field(default_factory=dict)  # key → kind of the gap that stays open
    passing: dict[int, str] = field(default_factory=dict)  # key → kind of the gap that opens and resolves by itself
    _number: int = 1_000

    def number(self) -> int:
        self._number += 1
        return self._number

    def insert(self, *, big: bool = False) -> tuple[int, int]:
        """Add an insert; return its key and its number."""
        key = seq = self.number()
        column = BIG if big else "NULL"
        self.statements.append(f"INSERT INTO {TABLE} VALUES ({key}, {seq}, 'v{seq}', {seq}.25, {column})")
        return key, seq

    def update(self, key: int, seq: int | None = None) -> int:
        seq = self.number() if seq is None else seq
        self.statements.append(f"UPDATE {TABLE} SET seq = {seq}, v = 'v{seq}', amount = {seq}.25 WHERE id = {key}")
        return seq

    def delete(self, key: int) -> None:
        self.statements.append(f"DELETE FROM {TABLE} WHERE id = {key}")


def lost_last_insert(story: Story) -> None:
    key, seq = story.insert()
    story.rules[seq] = drop
    story.expected[key] = "missing"


def lost_last_update(story: Story) -> None:
    key, _ = story.insert()
    story.rules[story.update(key)] = drop
    story.expected[key] = "stale"


def lost_then_overwritten(story: Story) -> None:
    key, _ = story.insert()
    story.rules[story.update(key)] = drop
    story.update(key)


def lost_delete(story: Story) -> None:
    key, _ = story.insert()
    story.delete(key)
    story.rules["d", key] = drop
    story.expected[key] = "undeleted"


def resurrected(story: Story) -> None:
    key, seq = story.insert()
    story.delete(key)

    def back(change: Change) -> Plan:
        assert change.before is not None
        return [(0, DeleteOne({"_id": key})), (0.5, ReplaceOne({"_id": key}, fields_of(change.before), upsert=True))]

    story.rules["d", key] = back
    story.expected[key] = "undeleted"
    assert seq


def delayed_below_grace(story: Story) -> None:
    key, _ = story.insert()
    story.rules[story.update(key)] = later(0.6)


def delayed_beyond_grace(story: Story) -> None:
    """Until its gap is open."""
    key, _ = story.insert()
    story.rules[story.update(key)] = later(600.0)
    story.passing[key] = "stale"


def duplicated(story: Story) -> None:
    key, _ = story.insert()
    story.rules[story.update(key)] = twice


def reordered(story: Story) -> None:
    key, _ = story.insert()
    story.rules[story.update(key)] = later(0.8)
    story.update(key)
    story.expected[key] = "stale"


def back_and_forth_lost_between(story: Story) -> None:
    key, first = story.insert()
    story.rules[story.update(key)] = drop
    story.update(key, first)


def back_and_forth_lost_last(story: Story) -> None:
    key, first = story.insert()
    story.update(key)
    story.update(key, first)
    story.rules[first] = only_first(drop)
    story.expected[key] = "stale"


def blanked(story: Story) -> None:
    key, _ = story.insert(big=True)
    story.rules[story.update(key)] = altered(big=None)
    story.expected[key] = "mismatch"


def wrong_value(story: Story) -> None:
    key, _ = story.insert()
    story.rules[story.update(key)] = altered(v="wrong")
    story.expected[key] = "mismatch"


def key_change_without_its_delete(story: Story) -> None:
    key, _ = story.insert()
    new = story.number()
    story.statements.append(f"UPDATE {TABLE} SET id = {new} WHERE id = {key}")
    story.rules["d", key] = drop
    story.expected[key] = "undeleted"


def key_change_without_its_create(story: Story) -> None:
    key, _ = story.insert()
    new = story.number()
    story.statements.append(f"UPDATE {TABLE} SET id = {new} WHERE id = {key}")
    story.rules["c", new] = drop
    story.expected[new] = "missing"


def extra_document(story: Story) -> None:
    key, seq = story.insert()
    stranger = story.number()

    def more(change: Change) -> Plan:
        assert change.after is not None
        return [(0, change.applied()), (0, ReplaceOne({"_id": stranger}, fields_of(change.after), upsert=True))]

    story.rules[seq] = more
    story.expected[stranger] = "extra"
    assert key


TALES: tuple[Callable[[Story], None], ...] = (
    lost_last_insert,
    lost_last_update,
    lost_then_overwritten,
    lost_delete,
    resurrected,
    delayed_below_grace,
    delayed_beyond_grace,
    duplicated,
    reordered,
    back_and_forth_lost_between,
    back_and_forth_lost_last,
    blanked,
    wrong_value,
    key_change_without_its_delete,
    key_change_without_its_create,
    extra_document,
)
CLASSES = {"missing": "missing", "undeleted": "extra", "extra": "extra", "stale": "different", "mismatch": "different"}


def test_no_false_green_under_faults(stack: EmbeddedStack, postgres_database: str, tmp_path: Path) -> None:
    story = Story()
    for _ in range(EACH):
        for tale in TALES:
            tale(story)
    # What is delayed below grace must be so on a busy machine as well.
    with watched(stack, postgres_database, tmp_path, partitions=4, grace="5s") as scene:
        scene.copier.rules.update(story.rules)
        for statement in story.statements:
            scene.sql(statement)
        _wait_for_plan(scene, story)
        assert _truth(scene) == {key: CLASSES[kind] for key, kind in story.expected.items()}, "the plan itself went as planned"
        assert _found(scene) == story.expected
        resolved = {int(gap["key"]["id"]): (gap["kind"], gap["resolution"]) for gap in scene.service.gaps(state="resolved")}
        assert resolved == {key: (kind, "late_arrival") for key, kind in story.passing.items()}


def _wait_for_plan(scene: Scene, story: Story) -> None:
    """Wait until as many gaps are open as planned and the passing ones are over; what they are is asserted afterwards."""

    def late() -> bool:
        return story.passing.keys() <= _found(scene).keys()

    def done() -> bool:
        view = scene.service.view()
        quiet = view["pending_keys"] == 0 and view["in_transit_keys"] == 0 and scene.copier.delayed == 0
        return (
            quiet
            and len(_found(scene)) >= len(story.expected)
            and len(scene.service.gaps(state="resolved")) >= len(story.passing)
        )

    try:
        wait_for(late, "what is late to be gaps", 90)
        scene.copier.release()
        wait_for(done, "as many gaps as planned", 120)
    except AssertionError as error:
        found = _found(scene)
        missed = {key: kind for key, kind in story.expected.items() if found.get(key) != kind}
        invented = {key: kind for key, kind in found.items() if key not in story.expected}
        raise AssertionError(f"{error} missed {missed}, invented {invented}") from None


def _found(scene: Scene) -> dict[int, str]:
    return {int(gap["key"]["id"]): gap["kind"] for gap in scene.service.gaps()}


def _truth(scene: Scene) -> dict[int, str]:
    """Compare both stores completely with plain queries."""
    rows, documents = scene.rows(), scene.documents()
    truth = dict.fromkeys(rows.keys() - documents.keys(), "missing")
    truth |= dict.fromkeys(documents.keys() - rows.keys(), "extra")
    for key in rows.keys() & documents.keys():
        _, seq, value, amount = rows[key]
        document = documents[key]
        blank = document.get("big") is None and _has_big(scene, key)
        if blank or (document["seq"], document["v"], document["amount"].to_decimal()) != (seq, value, amount):
            truth[key] = "different"
    return truth


def _has_big(scene: Scene, key: int) -> bool:
    import psycopg

    with psycopg.connect(scene.dsn) as connection:
        row = connection.execute(f"SELECT big IS NOT NULL FROM {TABLE} WHERE id = %s", (key,)).fetchone()
    return bool(row and row[0])
