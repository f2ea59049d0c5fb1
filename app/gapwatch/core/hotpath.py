"""Whole sections at once: a key's first write, a settled key's next one, and the answer to either, as columns; the first answer
may also come before what it answers, where the target's topic is read ahead of the source's. All else is handed back, event by
event.

It decides what ``core/keyrules`` would: a property test holds the two against each other. Only the order of *different* keys
within one record is its own; that of one key's events is kept, since all of a key's events in a record go the same way
from the first one on that is not plain.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, repeat
from typing import Final

import numpy as np
import numpy.typing as npt

from gapwatch.core.batches import NO_VERSION
from gapwatch.core.cells import DELAY_BOUNDS_MS, Cell
from gapwatch.core.compiledrows import CompiledRows, Told
from gapwatch.core.keyrows import ALONE, OLDER_MAX, SETTLED, UPDATED, Columns, Flags, Rows, are_awaited, are_lone, row_type
from gapwatch.core.keystate import BLANK, EXTRA, HEAD_BYTES, UNKNOWN_MAPPING, Write, with_tail
from gapwatch.core.pipelinestate import PipelineState
from gapwatch.model.pipeline import Match
from gapwatch.model.stream import Operation, PackedSection

LAST_PLAIN: Final = int(Operation.DELETE)  # UPSERT and DELETE
_BOUNDS: Final = np.array(DELAY_BOUNDS_MS, np.int64)
_HEAD_WORDS: Final = HEAD_BYTES // 8
_HEAD: Final = row_type(0)

Events = Iterator[tuple[bytes, Write]]
NOTHING: Final[Events] = iter(())


def numbers(column: bytes) -> npt.NDArray[np.int64]:
    """Return a column of a section as an array, without copying it."""
    return np.frombuffer(column, "<i8")


def is_plain(pipeline: PipelineState, section: PackedSection) -> bool:
    """Whether the section's writes have the form of the pipeline's rows: no tails, no ids, and no digest more or less."""
    if section.target_ids is not None or has_tails(pipeline, section):
        return False
    if section.masks is None:
        return pipeline.cell.rows.parts == 1 or 1 not in section.contents
    width = pipeline.cell.rows.parts - 1
    return all(len(masks) == width or not there for masks, there in zip(section.masks, section.contents, strict=True))


def has_tails(pipeline: PipelineState, section: PackedSection) -> bool:
    if pipeline.spec.match is Match.VERSION:
        return section.versions is not None
    return section.values is not None  # of an earlier mapping, where today's tolerates nothing


def expect_all(pipeline: PipelineState, sections: Sequence[PackedSection]) -> Events:
    """Open the keys that are new, settle those of which the target has shown just that already.

    Returns key and write of every event that has to be looked at by itself, in their order.
    """
    cell, rows = pipeline.cell, pipeline.cell.rows
    keys = _keys(sections)
    count = len(keys)
    first = rows.reserve(count)
    if rows.compiled is not None and rows.open + count <= cell.limits.pending:
        return _expect_compiled(rows.compiled, pipeline, sections)
    block = rows.writes[first : first + count]
    _fill(block, pipeline, sections)
    if rows.open + count > cell.limits.pending:
        return _events(keys, block.copy())
    own = np.arange(first, first + count)
    found = np.fromiter(map(rows.at.setdefault, keys, range(first, first + count)), np.int64, count)
    fresh = found == own
    plain = block["operation"] < (Operation.DELETE if pipeline.rules.several else LAST_PLAIN + 1)
    slow = NOTHING
    if not (fresh.all() and plain.all()):
        fast = fresh & plain
        taken = fast | _join(pipeline, found, ~fresh & plain, block) | _update(pipeline, found, ~fresh & plain, block)
        slow = _events(_chosen(keys, ~taken), block[~taken]) if not taken.all() else NOTHING
        for key in _chosen(keys, fresh & ~plain):
            del rows.at[key]
        keys = _chosen(keys, fast)
        count = len(keys)
        if not count:
            return slow
        block[:count] = block.take(np.flatnonzero(fast))
        rows.at.update(zip(keys, range(first, first + count), strict=True))
        block = block[:count]
    rows.added(keys, first, block["due"])
    cell.counters.expected += count
    pipeline.survey.low = min(pipeline.survey.low, int(block["event_time"].min()))
    return slow


def observe_all(pipeline: PipelineState, sections: Sequence[PackedSection]) -> Events:
    """Settle the keys whose only write is shown as it was expected, open unknown ones; return the rest as :func:`expect_all`."""
    cell, rows = pipeline.cell, pipeline.cell.rows
    keys = _keys(sections)
    count = len(keys)
    if not pipeline.rules.comparison.by_identity:
        return _events(keys, _block(pipeline, sections, count))
    if rows.compiled is not None:
        rows.reserve(count)
        return _observe_compiled(rows.compiled, pipeline, sections)
    block = _block(pipeline, sections, count)
    at = np.fromiter(map(rows.at.get, keys, repeat(-1)), np.int64, count)
    held = rows.writes.take(at, mode="clip") if rows.size else block
    places = rows.place.take(at, mode="clip")
    fast = are_awaited(places) & _answers(held, block) & (at >= 0) & _once(at)
    reopened = np.flatnonzero(fast & (places >= UPDATED))
    if len(reopened):
        newer = _is_newer(block.take(reopened), rows.shown[at[reopened]].view(_HEAD).ravel())
        fast[reopened[~newer]] = False
        rows.settle_again(at[reopened[newer]])
    slow = NOTHING
    if not fast.all():
        alone = _alone(pipeline, keys, at, block)
        taken = fast | alone
        slow = _events(_chosen(keys, ~taken), block[~taken])
        chosen = np.flatnonzero(fast)
        unknown, shown = _chosen(keys, alone), block[alone]
        at, held, block = at.take(chosen), held.take(chosen), block.take(chosen)
        _open_alone(pipeline, unknown, shown)
    _settle(cell, at, held, block)
    return slow


def _expect_compiled(compiled: CompiledRows, pipeline: PipelineState, sections: Sequence[PackedSection]) -> Events:
    """Open, update and join what is no more than that, for which there is room; return all other events."""
    cell, rows, rules = pipeline.cell, pipeline.cell.rows, pipeline.rules
    by = (LAST_PLAIN - rules.several, rules.comparison.by_identity, not rules.several, rules.history)
    fresh, updated, joined, rows.clock, low, rest = compiled.expect(
        _told(pipeline, sections), rows.at, rows.keys, pipeline.hold, by, rows.clock
    )
    rows.open += fresh + updated
    rows.open -= joined
    rows.settled += joined - updated
    cell.counters.expected += fresh + updated + joined
    cell.counters.settled += joined
    pipeline.survey.low = min(pipeline.survey.low, low)
    return iter(rest)


def _observe_compiled(compiled: CompiledRows, pipeline: PipelineState, sections: Sequence[PackedSection]) -> Events:
    """Settle what is shown as it was expected, open what is not known; return all other events."""
    cell, rows = pipeline.cell, pipeline.cell.rows
    room = max(0, cell.limits.pending - rows.open)
    alone, settled, rows.clock, low, delays, rest = compiled.observe(
        _told(pipeline, sections), rows.at, rows.keys, pipeline.hold, room, list(DELAY_BOUNDS_MS), rows.clock
    )
    rows.open += alone - settled
    rows.settled += settled
    cell.counters.observed += alone + settled
    cell.counters.settled += settled
    for number, more in enumerate(delays) if settled else ():
        cell.delays[number] += more
    pipeline.survey.low = min(pipeline.survey.low, low)
    return iter(rest)


def _told(pipeline: PipelineState, sections: Sequence[PackedSection]) -> Told:
    told: Told = []
    for section in sections:
        feed, mapping = pipeline.numbers_of(section)
        told.append((mapping << 16 | feed << 24 | section.feed_partition << 48, section))
    return told


def _join(pipeline: PipelineState, at: Rows, among: Flags, block: Columns) -> Flags:
    """Settle the keys, `among` these events, of which the target alone has shown just what is expected now; return which."""
    rows, counters = pipeline.cell.rows, pipeline.cell.counters
    joined = among & are_lone(rows.place.take(at))
    if not joined.any() or not pipeline.rules.comparison.by_identity:
        return np.zeros_like(joined)
    joined &= _once(at)
    chosen = np.flatnonzero(joined)
    right = _answers(rows.writes.take(at[chosen]), block.take(chosen))
    joined[chosen[~right]] = False
    chosen = chosen[right]
    if len(chosen):
        rows.join(at[chosen], block.take(chosen).view(np.uint64).reshape(len(chosen), -1))
        counters.expected += len(chosen)
        counters.settled += len(chosen)
    return joined


def _update(pipeline: PipelineState, at: Rows, among: Flags, block: Columns) -> Flags:
    """Open the settled keys, `among` these events, of which something new is expected now that the target does not show; return
    which.
    """
    rows, rules = pipeline.cell.rows, pipeline.rules
    updated: Flags = among & (rows.place.take(at) == SETTLED)
    if not updated.any() or rules.several or not rules.comparison.by_identity:
        return np.zeros_like(updated)
    updated &= _once(at)
    chosen = np.flatnonzero(updated)
    new, held = block.take(chosen), rows.writes.take(at[chosen])
    right = _is_newer(new, held) & _is_whole(new) & ~_might_show(rows.shown[at[chosen]].view(_HEAD).ravel(), held, new)
    right &= ~_is_remembered(pipeline, at[chosen], held["identity"])
    updated[chosen[~right]] = False
    chosen = chosen[right]
    if len(chosen):
        words = block.take(chosen)
        rows.reopen(at[chosen], words.view(np.uint64).reshape(len(chosen), -1), rules.history)
        pipeline.cell.counters.expected += len(chosen)
        pipeline.survey.low = min(pipeline.survey.low, int(words["event_time"].min()))
    return updated


def _is_newer(new: Columns, known: Columns) -> Flags:
    """Whether each write has a higher token than the other one, which may be blank."""
    newer: Flags = new["minor"] > known["minor"]
    for name in ("major", "epoch"):
        newer &= new[name] == known[name]
        newer |= new[name] > known[name]
    found: Flags = newer | (known["operation"] == 0)
    return found


def _is_whole(new: Columns) -> Flags:
    """Whether each is a delete, or leaves no field out."""
    identity = new["identity"]
    whole: Flags = new["parts"] > 0
    for part in range(2, identity.shape[1], 2):
        whole &= (identity[:, part] != 0) | (identity[:, part + 1] != 0)
    whole |= (new["operation"] == Operation.DELETE) & (new["parts"] == 0)
    return whole


def _might_show(shown: Columns, held: Columns, new: Columns) -> Flags:
    """Whether what the target shows, with the content that was expected before, could be what is expected now."""
    same: Flags = (shown["operation"] != 0) & ((shown["parts"] > 0) == (new["parts"] > 0))
    one, other = held["identity"], new["identity"]
    for part in range(0, one.shape[1], 2):
        equal = (one[:, part] == other[:, part]) & (one[:, part + 1] == other[:, part + 1])
        if part:  # a field that it does not carry says nothing
            equal |= (one[:, part] == 0) & (one[:, part + 1] == 0)
        same &= equal | (new["parts"] == 0)
    return same


def _is_remembered(pipeline: PipelineState, at: Rows, identity: npt.NDArray[np.uint64]) -> Flags:
    """Whether a key had this content before; it would have to be moved to the front."""
    rows = pipeline.cell.rows
    found = np.zeros(len(at), np.bool_)
    counts = rows.olders[at]
    for place in range(min(int(counts.max(initial=0)), OLDER_MAX)):
        some = np.flatnonzero(counts > place)
        found[some] |= (rows.older[at[some], place] == identity[some]).all(axis=1)
    return found


def _once(at: Rows) -> Flags:
    """Whether no other event of the block is of the same row."""
    ordered = np.sort(at)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    return ~np.isin(at, repeated) if len(repeated) else np.ones(len(at), np.bool_)


def _alone(pipeline: PipelineState, keys: Sequence[bytes], at: Rows, block: Columns) -> Flags:
    """Whether an event is the only one of a key of which nothing is known, and there is room for it."""
    rows, limits = pipeline.cell.rows, pipeline.cell.limits
    alone: Flags = at < 0
    count = int(np.count_nonzero(alone))
    if not count or rows.open + count > limits.pending:
        return np.zeros_like(alone)
    unknown = _chosen(keys, alone)
    if len(set(unknown)) < count:
        times = Counter(unknown)
        alone[np.flatnonzero(alone)] = [times[key] == 1 for key in unknown]
    return alone & (block["operation"] <= LAST_PLAIN)


def _open_alone(pipeline: PipelineState, keys: list[bytes], shown: Columns) -> None:
    rows, count = pipeline.cell.rows, len(keys)
    if not count:
        return
    first = rows.reserve(count)
    rows.writes[first : first + count] = shown
    rows.at.update(zip(keys, range(first, first + count), strict=True))
    rows.added(keys, first, shown["due"], place=ALONE)
    pipeline.cell.counters.observed += count
    pipeline.survey.low = min(pipeline.survey.low, int(shown["event_time"].min()))


def _answers(held: Columns, shown: Columns) -> Flags:
    """Whether each key's one write is exactly what came, in all of its fields."""
    same: Flags = held["operation"] == shown["operation"]
    for name in ("mapping", "parts"):
        same &= held[name] == shown[name]
    same &= (shown["operation"] <= LAST_PLAIN) & (shown["mapping"] != UNKNOWN_MAPPING)
    one, other = held["identity"], shown["identity"]
    for word in range(one.shape[1]):
        same &= one[:, word] == other[:, word]
    for part in range(2, one.shape[1], 2):  # a field that neither carries is not proven
        same &= (one[:, part] != 0) | (one[:, part + 1] != 0) | (shown["parts"] == 0)
    return same


def _settle(cell: Cell, at: Rows, held: Columns, block: Columns) -> None:
    if not len(at):
        return
    words = block.view(np.uint64).reshape(len(at), -1)
    cell.rows.settle(at, words[:, :_HEAD_WORDS])
    cell.counters.observed += len(at)
    cell.counters.settled += len(at)
    found = np.bincount(np.searchsorted(_BOUNDS, block["event_time"] - held["event_time"]))
    for number in np.flatnonzero(found).tolist():
        cell.delays[number] += int(found[number])


def one_by_one(pipeline: PipelineState, sections: Sequence[PackedSection]) -> Events:
    """Return key and write of every event, whatever it is."""
    for section in sections:
        tails = has_tails(pipeline, section)
        parts = 1 + max([len(masks) for masks in section.masks or ()], default=0)
        block = np.zeros(len(section.keys), row_type(parts))
        _fill(block, pipeline, [section], parts=parts)
        versions = numbers(section.versions).tolist() if section.versions is not None else None
        for at, (key, write) in enumerate(_events(section.keys, block)):
            if section.masks is not None and write[4]:
                write = write[:4] + bytes([1 + len(section.masks[at])]) + write[5 : HEAD_BYTES + 16 + 16 * len(section.masks[at])]
            if tails:
                values = section.values[at] if section.values is not None else None
                version = versions[at] if versions is not None else NO_VERSION
                tail = with_tail(values or None, None if version == NO_VERSION else version)
                write = write[:1] + bytes([write[1] | EXTRA]) + write[2:] + tail
            yield key, write


def ids_of(sections: Sequence[PackedSection]) -> Iterator[bytes]:
    """Return the target's own id of every event, empty where it has none."""
    for section in sections:
        yield from section.target_ids or repeat(b"", len(section.keys))


def _keys(sections: Sequence[PackedSection]) -> list[bytes]:
    return sections[0].keys if len(sections) == 1 else list(chain.from_iterable([section.keys for section in sections]))


def _chosen(keys: Sequence[bytes], chosen: Flags) -> list[bytes]:
    return [keys[number] for number in np.flatnonzero(chosen).tolist()]


def _events(keys: Sequence[bytes], block: Columns) -> Events:
    for key, write in zip(keys, block, strict=True):
        packed = write.tobytes()
        yield key, packed[: HEAD_BYTES + 16 * packed[4]]


def _block(pipeline: PipelineState, sections: Sequence[PackedSection], count: int) -> Columns:
    block: Columns = np.zeros(count, pipeline.cell.rows.type)
    _fill(block, pipeline, sections)
    return block


def _fill(block: Columns, pipeline: PipelineState, sections: Sequence[PackedSection], *, parts: int = 0) -> None:
    """Write the sections' events as writes, one after the other."""
    end = 0
    for section in sections:
        start, end = end, end + len(section.keys)
        _fill_one(block[start:end], pipeline, section, parts or pipeline.cell.rows.parts)


def _fill_one(block: Columns, pipeline: PipelineState, section: PackedSection, parts: int) -> None:
    feed, mapping = pipeline.numbers_of(section)
    block["first"] = mapping << 16 | feed << 24 | parts << 32 | section.feed_partition << 48
    block["second"] = section.epoch
    block["operation"] = np.frombuffer(section.operations, np.uint8)
    if 0 in section.contents:
        block["parts"] = np.frombuffer(section.contents, np.uint8) * np.uint8(parts)
    block["major"] = numbers(section.majors)
    block["minor"] = numbers(section.minors)
    block["offset"] = numbers(section.offsets)
    times = numbers(section.event_times)
    block["event_time"] = times
    block["due"] = np.maximum(times, numbers(section.append_times)) + pipeline.hold
    identity = block["identity"]
    identity[:, :2] = np.frombuffer(section.digests, np.uint64).reshape(-1, 2)
    if parts > 1:
        width = 16 * (parts - 1)
        masks = b"".join([b"".join([mask or BLANK for mask in masks]).ljust(width, b"\0") for masks in section.masks or ()])
        identity[:, 2:] = np.frombuffer(masks, np.uint64).reshape(-1, 2 * (parts - 1)) if masks else 0
