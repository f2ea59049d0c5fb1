"""Stream, sweep and direct reading say the same of every key, whatever rows enter, leave and expire (M21)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gapwatch.core.confirm import Presence, satisfied
from gapwatch.core.digests import identity
from gapwatch.core.envelopes import Event, decoder_for
from gapwatch.core.mapping import CompiledMapping
from gapwatch.model.pipeline import FieldType, Match, PipelineSpec
from gapwatch.model.stream import Operation, Side
from gapwatch.roles.repair.leisure import Leisure
from gapwatch.roles.repair.reads import read_batch
from gapwatch.roles.repair.scanning import Scanning
from tests.simulation.stores import PLACEHOLDER, Rig, VirtualClock
from tests.unit.core import samples
from tests.unit.core.envelopes.test_feeds import ours

OFTEN = settings(max_examples=300, deadline=None, derandomize=True)
KEPT_MS = 1_000_000
NOW_MS = 1_700_000_000_000


def spec_of(*, full: bool, ignores: bool, kept: bool) -> PipelineSpec:
    spec = samples.pipeline(
        samples.field("total", FieldType.INT),
        samples.field("note"),
        samples.field("placed", FieldType.TIMESTAMP, wire="epoch_ms"),
    )
    source = replace(
        spec.source,
        where="state in ('live', 'sold') and rank >= 2",
        where_fields=(samples.field("state"), samples.field("rank", FieldType.INT)),
        on_leave="ignore" if ignores else "delete",
        feed=replace(spec.source.feed, full_before=full),
    )
    target = replace(spec.target, deleted_when="gone = true")
    if kept:
        target = replace(target, keep_seconds=KEPT_MS / 1000, keep_by="placed")
    return replace(spec, source=source, target=target)


ROWS = st.fixed_dictionaries(
    {
        "total": st.integers(0, 2),
        "note": st.sampled_from(["a", "b"]),
        "state": st.sampled_from(["live", "live", "sold", "draft", None]),
        "rank": st.sampled_from([2, 2, 3, 1, None]),
        "placed": st.sampled_from([None, NOW_MS - 2 * KEPT_MS, NOW_MS - KEPT_MS + 10_000, NOW_MS - KEPT_MS // 2]),
    }
)
WRITES = st.lists(st.tuples(st.integers(1, 3), st.none() | ROWS | ROWS, st.booleans()), min_size=2, max_size=16)
DOCUMENTS = st.dictionaries(
    st.integers(1, 4), st.fixed_dictionaries({"row": ROWS, "gone": st.sampled_from([True, False, None])}), max_size=4
)


@dataclass
class Story:
    """A source whose events are decoded as they come; ``told`` is what the stream says of each key."""

    spec: PipelineSpec
    rig: Rig = field(init=False)
    told: dict[int, bytes | None] = field(default_factory=dict)
    touched: set[int] = field(default_factory=set)
    left: set[int] = field(default_factory=set)  # outside a filter that ignores leavers

    def __post_init__(self) -> None:
        self.rig = Rig(spec=self.spec)
        self._decoder = decoder_for(self.spec, Side.EXPECTED, self.rig.mapping)

    def write(self, number: int, row: dict[str, Any] | None, *, toasted: bool) -> None:
        """Write a row. ``toasted``: an update that leaves the state as it was does not carry it, without a whole before image."""
        before = self.rig.source.get(number)
        full = self.spec.source.feed.full_before
        if row is None and before is None:
            return
        if row is None:
            self.rig.source_deletes(number)
            event = samples.change("d", before=before if full else {"id": number})
        else:
            self.rig.source_writes(number, **row)
            after = dict(self.rig.source[number])
            if toasted and not full and before is not None:
                self.rig.source[number] = after = after | {"state": before["state"]}
                after = after | {"state": PLACEHOLDER}
            event = samples.change("c" if before is None else "u", before=before if full else None, after=after)
        for said in self._decoder.decode(samples.record(event, key={"id": number})):
            assert isinstance(said, Event)
            self._take(number, said)

    def _take(self, number: int, event: Event) -> None:
        self.touched.discard(number)
        if event.operation == Operation.TOUCHED:
            self.touched.add(number)
        elif event.operation == Operation.DELETE:
            self.told[number] = None
        elif event.operation == Operation.UPSERT:
            self.told[number] = identity(event.digest, event.masks or ())
        else:
            assert event.operation == Operation.UNCHANGED

    def stands(self, documents: dict[int, dict[str, Any]]) -> None:
        for number, made in documents.items():
            row = {name: made["row"][name] for name in ("total", "note", "placed")}
            document = {"_id": number, **row, "placed": moment(row["placed"])}
            self.rig.target[number] = document if made["gone"] is None else {**document, "gone": made["gone"]}
        for row in self.rig.source.values():
            row["placed"] = moment(row["placed"])


def moment(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)


def swept(rig: Rig, *, content: bool) -> set[int]:
    """Return the keys in which a scan of both sides finds a difference."""

    async def scan() -> set[bytes]:
        clock = VirtualClock()
        pace = Leisure(clock, most=1, within=0)
        scanning = Scanning(rig.stores, content=content, clock=clock, leisure=pace, in_order=True, on_compared=lambda *_: None)
        return {key async for found in scanning.steps() for key in found.differing.all()}

    return {rig.number(key) for key in asyncio.run(scan())}


def observed(mapping: CompiledMapping, spec: PipelineSpec, document: dict[str, Any] | None) -> bytes | None:
    """Return what the target's stream says of a document as it stands."""
    if document is None:
        return None
    decoder = decoder_for(spec, Side.OBSERVED, mapping)
    (event,) = decoder.decode(ours("update", document, key={"_id": document["_id"]}))
    assert isinstance(event, Event)
    return None if event.operation == Operation.DELETE else identity(event.digest, event.masks or ())


def exempt(rig: Rig, number: int, *, inside: bool, shown: bool) -> bool:
    """Say by the declaration alone whether the target may hold the key or not."""
    row, document = rig.source.get(number), rig.target.get(number)
    if row is not None and not inside and rig.spec.source.on_leave == "ignore":
        return True
    counted = row if inside else document if shown else None
    placed = counted["placed"] if counted is not None else None
    past = placed is not None and placed.timestamp() * 1000 < NOW_MS - 1.5 * KEPT_MS
    return bool(rig.spec.target.keep_by) and past


@OFTEN
@given(WRITES, DOCUMENTS, st.booleans(), st.booleans(), st.booleans())
def test_m21_stream_sweep_and_reading_agree_on_every_key(
    writes: Sequence[tuple[int, dict[str, Any] | None, bool]],
    documents: dict[int, dict[str, Any]],
    full: bool,
    ignores: bool,
    kept: bool,
) -> None:
    story = Story(spec_of(full=full, ignores=ignores, kept=kept))
    for number, row, toasted in writes:
        story.write(number, row, toasted=toasted)
    story.stands(documents)
    rig, clock = story.rig, VirtualClock()
    numbers = range(1, 5)
    batch = asyncio.run(read_batch(rig.stores, [rig.key(number) for number in numbers], clock))
    candidates = swept(rig, content=True)
    for number in numbers:
        reads = batch.by_key[rig.key(number)].reads
        row = rig.source.get(number)
        inside = row is not None and row["state"] in ("live", "sold") and (row["rank"] or 0) >= 2
        document = observed(rig.mapping, story.spec, rig.target.get(number))
        assert (reads.after.presence is Presence.EXEMPT) is exempt(rig, number, inside=inside, shown=document is not None)
        if reads.after.presence is Presence.EXEMPT:
            assert satisfied(reads, Match.DIGEST)
            continue
        assert (reads.after.presence is Presence.PRESENT) is inside, "reading"
        if number not in story.touched:
            assert story.told.get(number) == (reads.after.identity if inside else None), "stream"
        wanted = reads.after.identity if inside else None
        agree = wanted == document
        assert agree is satisfied(reads, Match.DIGEST), "the two streams"
        if not agree:
            assert number in candidates, "the sweep passes over it"
        elif not reads.closing:
            assert number not in candidates, "the sweep reads it for nothing"
    assert swept(rig, content=False) <= candidates
