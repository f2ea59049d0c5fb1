"""One key at a time: what one write does to it, whether it is late, and what is said of it. For one pipeline of one partition.

The general path, and the reference for ``core/hotpath``. ``design.md`` 3 and 4 say why each rule is as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec
import xxhash

from gapwatch.core.hotpath import Events
from gapwatch.core.keyrules import Effect
from gapwatch.core.keystate import (
    DEAD,
    Held,
    KeyState,
    Write,
    due_of,
    event_time_of,
    partition_of,
    pending_state,
    seen_of,
    times_of,
    token_of,
)
from gapwatch.core.pipelinestate import PipelineState
from gapwatch.core.watermarks import NEVER, FeedTimes
from gapwatch.model.stream import NO_DELIVERY, Letter, Operation, Outcome, Side, VerdictSection
from gapwatch.model.suspect import GivenUp, Heard, Hole, Limit, Suspect

EARLY_MAX: Final = 500  # letters that wait for the write that they mean; one that makes room costs a cause, never a verdict
OVERFLOW_MS: Final = 10_000  # stretches that overflow gives up are rounded up to this, so that one hole stands for many keys

Said = list[Suspect | Hole | Heard]


class Judge:
    """Args:
    pipeline: Its state in this partition.
    partition: The partition's number.
    times: The partition's feeds.
    """

    def __init__(self, pipeline: PipelineState, partition: int, times: FeedTimes) -> None:
        self._pipeline = pipeline
        self._cell = pipeline.cell
        self._partition = partition
        self._times = times
        self.append_time = 0  # of the record that is being applied

    # one write, one verdict

    def take(self, side: int, events: Events, said: Said, *, ids: Iterable[bytes] | None = None) -> None:
        """Take writes of one side, in their order; `ids`: the target's own ids of what they are of, where keys are not."""
        rules, cell = self._pipeline.rules, self._cell
        if ids is not None:
            for (key, write), target_id in zip(events, ids, strict=True):
                state = cell.state(key)
                self._file(key, state, rules.observe(state, write, cell, target_id), said)
            return
        rule = rules.expect if side == Side.EXPECTED else rules.observe
        for key, write in events:
            state = cell.state(key)
            self._file(key, state, rule(state, write, cell), said)

    def close(self, section: VerdictSection) -> None:
        """Take verdicts."""
        said: Said = []
        for key, side, token, outcome in zip(section.keys, section.sides, section.tokens, section.outcomes, strict=True):
            held = self._cell.rows.open_held(key)
            if held is None:
                continue
            state = pending_state(held)
            named = (token[0], token[1], token[2])
            effect = self._pipeline.rules.close(state, side == Side.EXPECTED, named, Outcome(outcome), self._cell)
            self._file(key, state, effect, said)
        assert not said, "a verdict opens no key"

    def hear(self, letter: Letter, said: Said) -> None:
        """Take what the sink says of a write; of one that the source's feed did not show yet, it is kept until that did."""
        pipeline, cell = self._pipeline, self._cell
        given_up = GivenUp(
            operation=letter.operation,
            feed=letter.feed,
            partition=letter.partition,
            offset=letter.offset,
            major=letter.major,
            minor=letter.minor,
            time=letter.time,
            reason=letter.reason,
        )
        if self._tell(letter.key, given_up, said):
            return
        if self._is_history(given_up):
            said.append(self._heard(letter.key, given_up))
            return
        pipeline.early.pop(letter.key, None)
        pipeline.early[letter.key] = given_up
        if len(pipeline.early) > EARLY_MAX:
            del pipeline.early[next(iter(pipeline.early))]
            cell.counters.forgotten += 1

    def _tell(self, key: bytes, given_up: GivenUp, said: Said) -> bool:
        """Mark the writes that are meant; return whether there is nothing more to wait for."""
        state = self._cell.state(key)
        effect = self._pipeline.rules.give_up(state, given_up, self._pipeline.skew)
        self._file(key, state, effect, said)
        if effect is not Effect.NONE:
            if state.raised:
                said.append(self._heard(key, given_up))
            return given_up.operation != Operation.DEAD_LETTERED or _has_come(state, given_up)
        if given_up.operation == Operation.DEAD_LETTERED and _has_come(state, given_up):
            said.append(self._heard(key, given_up))
            return True
        return False

    def _heard(self, key: bytes, given_up: GivenUp) -> Heard:
        identity = f"{self._pipeline.id}\0{given_up.feed}\0{given_up.partition}\0{given_up.offset}\0".encode() + key
        name = "heard_" + xxhash.xxh3_128_hexdigest(identity)
        return Heard(id=name, pipeline=self._pipeline.id, key=key, given_up=given_up, skew=self._pipeline.skew)

    def _is_history(self, given_up: GivenUp) -> bool:
        """Whether everything that can be meant was read, and is judged or settled."""
        return self._times.watermark(*self._pipeline.source) > given_up.time + self._pipeline.skew

    def _tell_again(self, said: Said) -> None:
        early = self._pipeline.early
        for key, given_up in list(early.items()):
            if self._tell(key, given_up, said) or self._is_history(given_up):
                del early[key]

    def _file(self, key: bytes, state: KeyState, effect: Effect, said: Said) -> None:
        """Put a key's state where it belongs now."""
        pipeline, cell = self._pipeline, self._cell
        if effect is Effect.NONE:
            return
        if effect is Effect.GONE:
            cell.drop(key)
            return
        is_open = state.open
        if is_open and cell.rows.open >= cell.limits.pending and cell.rows.open_held(key) is None:
            self._let_go(key, state, said, Limit.PENDING_KEYS)
            return
        out_of_reach = cell.file(key, state, is_open=is_open)
        if not is_open:
            return
        if out_of_reach or (effect is Effect.OPENED and key in cell.rows.long):
            pipeline.due.add(key, state.due)
        pipeline.survey.low = min(pipeline.survey.low, state.oldest_time)

    def _let_go(self, key: bytes, state: KeyState, said: Said, limit: Limit) -> None:
        """A limit is reached: the key becomes part of a hole, which a sweep covers."""
        pipeline, cell = self._pipeline, self._cell
        if state.writes:
            unverifiable = cell.counters.unverifiable
            unverifiable["overflow"] = unverifiable.get("overflow", 0) + len(state.writes)
        else:
            cell.counters.forgotten += 1
        opening, time = state.opening, state.oldest_time // OVERFLOW_MS * OVERFLOW_MS
        cell.drop(key)
        known = cell.hole
        if known is not None and known.time_from <= time and self.append_time <= known.time_to:
            return
        end = (self.append_time // OVERFLOW_MS + 1) * OVERFLOW_MS
        identity = f"{pipeline.id}\0{self._partition}\0overflow\0{end}\0{time}".encode()
        hole = Hole(
            id="hole_" + xxhash.xxh3_128_hexdigest(identity),
            pipeline=pipeline.id,
            side=int(Side.EXPECTED if state.awaits_expected else Side.OBSERVED),
            feed=pipeline.feeds[opening[3]],
            feed_partition=0,
            time_from=time,
            time_to=max(end, time),
            reason=limit.value,
        )
        said.append(hole)
        cell.hole = hole if known is None else msgspec.structs.replace(hole, time_from=min(known.time_from, time))

    # when something is due

    def judge(self, said: Said) -> None:
        """Raise what the streams' times have made late: the target's watermark passed it, and the source was read beyond it."""
        pipeline, times = self._pipeline, self._times
        self._tell_again(said)
        target = times.watermark(*pipeline.target)
        if not pipeline.start:
            pipeline.start = times.start(*pipeline.source)
        self._see_delivered()
        now = min(target - 1, times.caught_up(*pipeline.source))
        if now <= 0 or not pipeline.start:
            return
        for key in sorted({*self._cell.rows.due(now), *pipeline.due.due(now)}):
            self._look(key, now, target, said)
        for at, key in list(pipeline.due.again(target)):
            held = self._cell.rows.open_held(key)
            if isinstance(held, KeyState) and held.raised and held.raised + pipeline.confirm_again == at:
                said.append(self._raise(key, held, target, held.due, again=True))

    def _see_delivered(self) -> None:
        """Queue what the sink has passed since the last look."""
        pipeline = self._pipeline
        for (feed, number), state in pipeline.moved.items():
            position = NEVER if state.delivery == NO_DELIVERY or state.gone_below >= state.epoch else state.position
            where = (pipeline.feeds.index(feed) if feed in pipeline.feeds else -1, number)
            for key in list(pipeline.due.delivered(where, position)):
                held = self._cell.rows.open_held(key)
                if held is not None:
                    pipeline.due.add(key, _due(held))
        pipeline.moved.clear()

    def _look(self, key: bytes, now: int, target: int, said: Said) -> None:
        pipeline, cell = self._pipeline, self._cell
        held = cell.rows.open_held(key)
        if held is None or (isinstance(held, KeyState) and held.raised):
            return
        due, expected = _due(held), isinstance(held, bytes) or held.awaits_expected
        opening = held if isinstance(held, bytes) else held.opening
        # What the target shows is not odd for good while the sink still has the newest expected write to deliver.
        awaited = opening if isinstance(held, bytes) or expected else held.expected
        if awaited is not None and not awaited[1] & DEAD:
            clock = pipeline.passed(awaited)
            if clock is None:
                cell.rows.park(key)
                pipeline.due.wait_for_delivery((awaited[3], partition_of(awaited)), times_of(awaited)[0], key)
                return
            due = max(due, clock + pipeline.skew)
        if due > now:
            cell.rows.park(key)
            pipeline.due.add(key, due)
            return
        state = pending_state(held)
        if not expected and event_time_of(opening) < pipeline.start and (state.expected is None or state.duplicate is not None):
            _leave_to_the_baseline(state)
            self._file(key, state, Effect.OPENED, said)
        elif len(cell.raised) >= cell.limits.raised:
            self._let_go(key, state, said, Limit.SUSPECTS)
        else:
            cell.counters.raised += 1
            said.append(self._raise(key, state, target, due, again=False))

    def _raise(self, key: bytes, state: KeyState, target: int, due: int, *, again: bool) -> Suspect:
        state.raised = target
        if not again:  # a verdict may rest on reads that only the first raise asked for
            state.raised_on = token_of(state.observed) if state.observed is not None else None
        self._cell.file(key, state, is_open=True)
        self._pipeline.due.raise_again(key, target + self._pipeline.confirm_again)
        return self.suspect(key, state, due, again=again)

    def suspect(self, key: bytes, state: KeyState, due: int, *, again: bool) -> Suspect:
        """Return what is said of a raised key."""
        pipeline = self._pipeline

        def seen(write: Write, side: Side) -> Any:
            return seen_of(write, int(side), pipeline.feeds, comparable=pipeline.comparable(write))

        side = Side.EXPECTED if state.awaits_expected else Side.OBSERVED
        opening = state.opening
        epoch, major, minor = token_of(opening)
        identity = f"{pipeline.id}\0{int(side)}\0{epoch}\0{major}\0{minor}\0".encode() + key
        return Suspect(
            id="sus_" + xxhash.xxh3_128_hexdigest(identity),
            pipeline=pipeline.id,
            partition=self._partition,
            key=key,
            reason=pipeline.rules.reason(state),
            opening=seen(opening, side),
            newest_expected=seen(state.expected, Side.EXPECTED) if state.expected is not None else None,
            newest_observed=seen(state.observed, Side.OBSERVED) if state.observed is not None else None,
            older=list(state.older),
            due=due,
            source_watermark=self._times.watermark(*pipeline.source),
            target_watermark=self._times.watermark(*pipeline.target),
            since=state.floor if 0 < state.floor < event_time_of(opening) else 0,
            raised_again=again,
            given_up=state.given_up,
            target_ids=sorted(shown_id(name) for name, one in state.ids.known.items() if one.live)
            if state.ids is not None
            else [],
        )

    def raised_again(self) -> Said:
        """Return every raised key once more, after a restore."""
        found: Said = []
        for key in sorted(self._cell.raised):
            state = self._cell.state(key)
            found.append(self.suspect(key, state, state.due, again=True))
        return found


def _has_come(state: KeyState, given_up: GivenUp) -> bool:
    """Whether the write that a dead letter names was read."""
    return state.expected is not None and token_of(state.expected)[1:] >= (given_up.major, given_up.minor)


def _leave_to_the_baseline(state: KeyState) -> None:
    """Say no more of what the target showed before the source's feed began."""
    if state.duplicate is not None and state.ids is not None:
        state.ids.judge(token_of(state.opening))
    else:
        state.odd = False


def shown_id(target_id: bytes) -> str:
    """Return a target's id as it is shown: text as it is, what is none with its bytes spelt out."""
    return target_id.decode("utf-8", "backslashreplace")


def _due(held: Held) -> int:
    return due_of(held) if isinstance(held, bytes) else held.due
