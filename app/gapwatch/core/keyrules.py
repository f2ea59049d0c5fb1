"""What one write or one verdict does to one key (``design.md`` 4): it changes the key's state and its counters, nothing else."""

from __future__ import annotations

from bisect import bisect_left
from enum import Enum, auto

from gapwatch.core.cells import DELAY_BOUNDS_MS, Cell
from gapwatch.core.keystate import (
    DEAD,
    DELETE,
    HEAD_BYTES,
    REFUSED,
    SHARED,
    TOUCHED,
    Comparison,
    KeyState,
    Token,
    Write,
    dead_lettered,
    due_of,
    event_time_of,
    filled,
    identity_of,
    is_masked,
    refused,
    renewed,
    shared,
    tail_of,
    token_of,
    touched,
    unplaced,
    with_due,
)
from gapwatch.core.targetids import TargetIds
from gapwatch.model.pipeline import Match
from gapwatch.model.stream import Operation, Outcome
from gapwatch.model.suspect import GivenUp, Reason


class Effect(Enum):
    NONE = auto()  # nothing changed
    CHANGED = auto()
    OPENED = auto()  # changed, and what is to be judged first is another write now: it has to be scheduled
    GONE = auto()  # nothing is left to know of the key


class KeyRules:
    """The rules of one pipeline.

    Args:
        comparison: When a state of the target satisfies a version of the source.
        history: How many expected versions, and older identities, are kept of one key.
        tables: How many tables the source has.
    """

    def __init__(self, comparison: Comparison, history: int, *, tables: int = 1) -> None:
        self.comparison = comparison
        self.history = max(2, history)
        self.several = tables > 1

    # expected writes

    def expect(self, state: KeyState, write: Write, cell: Cell) -> Effect:
        """Take one write of the source."""
        operation, counters, newest = write[0], cell.counters, state.expected
        if self.several:
            if _is_contended(write, newest):
                return self._contended(state, write, cell)
            if newest is not None and newest[1] & SHARED:
                write = shared(write)
        if newest is not None and token_of(write) <= token_of(newest):
            counters.repeated += 1
            return Effect.NONE
        if operation == Operation.SNAPSHOT:
            counters.snapshot_reads["expected"] = counters.snapshot_reads.get("expected", 0) + 1
            return self._refresh_expected(state, write)
        if operation == Operation.UNCHANGED:
            counters.unchanged += 1
            return self._unchanged(state, write)
        counters.expected += 1
        opening = state.opening if state.open else None
        if state.odd and not state.writes:
            assert state.observed is not None
            _hold(state, event_time_of(state.observed))  # the target is wrong since then, whatever is written now
        self._know(state, filled(write, newest))
        assert state.expected is not None
        state.writes.append(state.expected)
        if self._was_shown(state, state.expected):
            self._settle(state, len(state.writes) - 1, cell)
            return self._after(state, opening, expected_moved=True)
        if len(state.writes) > self.history:
            let_go = state.writes.pop(1)  # the oldest keeps its due time, the newest ones stay
            _hold(state, event_time_of(let_go))
            state.overflowed = True
            counters.superseded += 1
        return self._after(state, opening)

    def _contended(self, state: KeyState, write: Write, cell: Cell) -> Effect:
        """Two rows may have the key, or one moved from table to table, and nothing orders the one's topic against the other's.

        What the target should show, only the stores can say: the key is due for them, since its oldest write that is not settled.
        """
        counters, newest = cell.counters, state.expected
        if newest is not None and write[0] in (Operation.SNAPSHOT, Operation.UNCHANGED):
            counters.unchanged += write[0] == Operation.UNCHANGED
            if write[0] == Operation.SNAPSHOT:
                counters.snapshot_reads["expected"] = counters.snapshot_reads.get("expected", 0) + 1
            return self._share(state, newest)
        counters.expected += 1
        due = due_of(write)
        if state.open:
            due = min(due, state.due)
            _hold(state, state.oldest_time)
        counters.superseded += len(state.writes)
        if newest is not None:
            state.remember(identity_of(newest), self.history)
        state.expected = touched(write, due)
        state.writes = [state.expected]
        state.overflowed, state.raised, state.raised_on = False, 0, None
        return Effect.OPENED

    def _share(self, state: KeyState, newest: Write) -> Effect:
        """A row is there that no write brought: it opens nothing, and the end of the other one will not be the key's."""
        state.expected = shared(newest)
        if state.writes and state.writes[-1] == newest:
            state.writes[-1] = state.expected
        return Effect.CHANGED

    def _was_shown(self, state: KeyState, write: Write) -> bool:
        """Whether the target shows this version, or did and has moved on since; what it showed before is explained, too.

        Only a version that is older than what was shown (but for grace and skew) explains it: a row may be again what it was.
        """
        time = event_time_of(write)
        state.shown = [shown for shown in state.shown if due_of(shown) >= time]
        for number, shown in enumerate(state.shown):
            if self.comparison.satisfies(write, shown):
                del state.shown[: number + 1]
                return True
        if state.observed is None or not self.comparison.satisfies(write, state.observed):
            return False
        state.shown.clear()
        return True

    def _know(self, state: KeyState, write: Write) -> None:
        if state.expected is not None:
            state.remember(identity_of(state.expected), self.history)
        state.expected = write

    def _refresh_expected(self, state: KeyState, write: Write) -> Effect:
        """A snapshot read opens nothing; it may explain what the target showed before it."""
        if state.writes:
            return Effect.NONE
        # It keeps the place of the last write: a write that the snapshot saw, and the stream shows later, is no repetition.
        self._know(state, renewed(write, state.expected) if state.expected is not None else unplaced(write))
        if state.odd and state.observed is not None and self.comparison.same(write, state.observed):
            state.odd, state.raised, state.raised_on = False, 0, None
        return Effect.CHANGED

    def _unchanged(self, state: KeyState, write: Write) -> Effect:
        if state.expected is None or state.writes:
            return Effect.NONE
        state.expected = renewed(state.expected, write)
        return Effect.CHANGED

    # what the sink says

    def give_up(self, state: KeyState, said: GivenUp, skew: int) -> Effect:
        """The sink says that it did not get a write into the target. What it put into its dead-letter topic is due at once.

        A refused write keeps its time: an indexer may send it again. Writes that came before the one that is meant are meant,
        too: the sink has passed them. Newer ones are not.
        """
        count = next((number for number, write in enumerate(state.writes) if not is_meant(said, write, skew)), len(state.writes))
        if not count:
            return Effect.NONE
        dead = said.operation == Operation.DEAD_LETTERED
        marked = [dead_lettered(write, said.time) if dead else refused(write) for write in state.writes[:count]]
        newer = state.given_up is None or _rank(said) > _rank(state.given_up)
        if not newer and marked == state.writes[:count]:
            return Effect.NONE
        if count == len(state.writes) and state.expected == state.writes[-1]:
            state.expected = marked[-1]
        state.writes[:count] = marked
        if newer:
            state.given_up = said
        return Effect.CHANGED if state.raised or not dead else Effect.OPENED

    # observed writes

    def observe(self, state: KeyState, write: Write, cell: Cell, target_id: bytes = b"") -> Effect:
        """Take one write of the target. ``target_id`` names the document where the key does not."""
        counters, opening = cell.counters, state.opening if state.open else None
        known = state.ids.known.get(target_id) if state.ids is not None else None
        if known is not None:
            repeated = token_of(write) <= token_of(known.newest)
        else:  # of a document that is not known, an older write is news, but for its end
            repeated = _is_older(write, state.observed) and (not target_id or write[0] == DELETE)
        if repeated:
            counters.repeated += 1
            return Effect.NONE
        if write[0] == Operation.SNAPSHOT:
            counters.snapshot_reads["observed"] = counters.snapshot_reads.get("observed", 0) + 1
        else:
            counters.observed += 1
        if not target_id:
            return self._show(state, write, opening, cell)
        shown = note_document(state, target_id, write)
        effect = Effect.NONE if shown is None else self._show(state, shown, opening, cell)
        return self._after(state, opening) if effect is Effect.NONE else effect

    def _show(self, state: KeyState, write: Write, opening: Write | None, cell: Cell) -> Effect:
        """The target shows this now."""
        matched = self._matched(state, write)
        at_newest = state.expected is not None and self.comparison.same(state.expected, write)
        if write[0] == Operation.SNAPSHOT:
            if matched is None and not at_newest:
                return self._refresh_observed(state, write)
        elif write[0] == Operation.UNCHANGED:
            if state.observed is None:
                return Effect.NONE
            state.observed = renewed(state.observed, write)
            return Effect.CHANGED
        if state.observed is not None and (state.odd or state.shown):
            state.shown.append(state.observed)
            del state.shown[: -self.history]
        state.observed = write
        state.odd = not at_newest
        if state.odd and state.writes and matched is None:
            _hold(state, event_time_of(write))
        if matched is not None:
            cell.delays[bisect_left(DELAY_BOUNDS_MS, event_time_of(write) - event_time_of(state.writes[matched]))] += 1
            self._settle(state, matched, cell)
        elif state.writes and state.overflowed and write[0] != TOUCHED:
            self._progressed(state, write)
            return Effect.OPENED
        return self._after(state, opening)

    def _matched(self, state: KeyState, write: Write) -> int | None:
        for number in range(len(state.writes) - 1, -1, -1):
            if self.comparison.satisfies(state.writes[number], write):
                return number
        return None

    def _refresh_observed(self, state: KeyState, write: Write) -> Effect:
        """A snapshot read that explains nothing opens nothing; of an unknown key it is remembered."""
        if state.expected is not None or state.observed is not None:
            return Effect.NONE
        state.observed = write
        return Effect.CHANGED

    def _progressed(self, state: KeyState, write: Write) -> None:
        """Versions were let go, and the target shows something that may be one of them: the oldest gets its grace anew."""
        state.writes[0] = with_due(state.writes[0], max(due_of(state.writes[0]), due_of(write)))
        state.raised, state.raised_on = 0, None

    def _settle(self, state: KeyState, number: int, cell: Cell) -> None:
        """The write at `number` is satisfied, and with it all older ones. What the target shows was set before."""
        counters, write = cell.counters, state.writes[number]
        counters.settled += 1
        counters.masked += is_masked(write) and self.comparison.match is Match.DIGEST
        counters.superseded += number
        del state.writes[: number + 1]
        if number or not state.overflowed:
            state.floor = 0  # what was let go is older than what is satisfied now
        state.overflowed = False
        assert state.observed is not None
        assert state.expected is not None
        state.odd = not self.comparison.same(state.expected, state.observed)

    def _after(self, state: KeyState, before: Write | None, *, expected_moved: bool = False) -> Effect:
        if not state.open:
            state.raised, state.raised_on, state.floor, state.given_up = 0, None, 0, None
            return Effect.CHANGED
        if state.opening == before and (not expected_moved or state.duplicate is not None):
            return Effect.CHANGED
        state.raised, state.raised_on = 0, None
        return Effect.OPENED

    # verdicts

    def close(self, state: KeyState, side_expected: bool, token: Token, outcome: Outcome, cell: Cell) -> Effect:
        """Close what a verdict's token names and everything older, nothing newer."""
        opening = state.opening
        if side_expected:
            if not self._close_expected(state, token, outcome, cell):
                return Effect.NONE
        elif not self._close_observed(state, token, outcome):
            return Effect.NONE
        if outcome is Outcome.GAP and not state.open:
            return Effect.GONE  # the ledger holds it; a later write of the key is a write like any other
        return self._after(state, opening)

    def _close_expected(self, state: KeyState, token: Token, outcome: Outcome, cell: Cell) -> bool:
        if self.several and not state.raised:
            return False  # it is of writes that another table's came after, whose tokens may be lower
        closed = sum(1 for write in state.writes if token_of(write) <= token)
        assert not state.writes or state.expected is not None
        if not closed:
            return False
        if outcome is Outcome.SUPERSEDED and state.expected is not None and token_of(state.expected) <= token:
            return False  # nothing newer is known here: the key stays raised
        _count(cell, outcome, closed)
        del state.writes[:closed]
        if state.ids is not None and state.raised_on is not None and outcome is not Outcome.SUPERSEDED:
            state.ids.judge(state.raised_on)
        if closed > 1 or not state.overflowed or not state.writes:
            state.floor = 0
        state.overflowed = state.overflowed and len(state.writes) > 1
        if state.odd and not state.writes and outcome is not Outcome.SUPERSEDED:
            # The stores were read after the raise: what the target had shown by then is judged with it, nothing later is.
            assert state.observed is not None
            state.odd = state.raised_on is None or token_of(state.observed) > state.raised_on
        return True

    def _close_observed(self, state: KeyState, token: Token, outcome: Outcome) -> bool:
        twin = state.ids.twin if state.ids is not None else None
        if state.ids is not None and twin is not None and token_of(twin) <= token:
            if outcome is Outcome.SUPERSEDED and not state.writes:
                return False
            read = token if state.raised_on is None else max(token, state.raised_on)
            state.ids.judge(read)
            state.odd = state.odd and state.observed is not None and token_of(state.observed) > read
            if not state.odd and not state.overflowed:
                state.floor = 0
            return True
        if not state.odd or state.observed is None or token_of(state.observed) > token:
            return False
        if outcome is Outcome.SUPERSEDED and not state.writes:
            return False
        state.odd = False
        if not state.overflowed:
            state.floor = 0
        return True

    # why

    def reason(self, state: KeyState) -> str:
        """Name why the key is raised."""
        opening, expected, observed = state.opening, state.expected, state.observed
        if state.duplicate is not None:
            return Reason.DUPLICATE
        if state.writes:
            if opening[1] & DEAD:
                return Reason.DEAD_LETTERED
            if opening[1] & REFUSED:
                return Reason.REJECTED
            if opening[0] == TOUCHED:
                return Reason.TOUCHED
            if observed is not None and self._incomparable(opening, observed):
                return Reason.MAPPING
            return Reason.UNSATISFIED
        if opening[0] == TOUCHED:
            return Reason.TOUCHED
        if expected is not None and self._incomparable(expected, opening):
            return Reason.MAPPING
        if expected is not None and (expected[0] == DELETE or identity_of(opening) in state.older):
            return Reason.REGRESSED
        return self._unexplained(expected, opening)

    def _unexplained(self, expected: Write | None, observed: Write) -> str:
        if self.comparison.match is Match.VERSION and expected is not None:
            known, shown = tail_of(expected)[1], tail_of(observed)[1]
            if known is not None and shown is not None and shown < known:
                return Reason.REGRESSED
        return Reason.UNEXPLAINED

    def _incomparable(self, expected: Write, observed: Write) -> bool:
        if self.comparison.match is not Match.DIGEST or DELETE in (expected[0], observed[0]):
            return False
        return expected[2] != observed[2]


def note_document(state: KeyState, target_id: bytes, write: Write) -> Write | None:
    """Take a write of one of the target's documents of the key; return what the target shows by it, None: what it did before.

    Where one document goes and another stays, that one is what it shows. Documents may come by several partitions of the
    target's feed: one that comes late is shown where no newer write of another one is.
    """
    place = token_of(state.observed) if state.observed is not None else None
    ids = state.ids = state.ids or TargetIds({}, place=place)
    one = ids.known.get(target_id)
    known = one.newest if one is not None and one.live else None
    content = renewed(known, write) if write[0] == Operation.UNCHANGED and known is not None else write
    late, in_step = _is_older(write, state.observed), ids.place == place
    ids.note(target_id, write, content)
    showing = ids.showing
    if not ids.known:
        state.ids = None
    if late:
        assert state.observed is not None
        if not in_step or (showing is None and write[0] != DELETE):
            return None
        placed = renewed(write, state.observed) if showing is None else _placed(showing, state.observed)
        return None if _shown_by(placed) == _shown_by(state.observed) else placed
    if write[0] == DELETE and showing is not None:
        return _placed(showing, write)
    return _placed(content, write) if content is not write else write


def _placed(content: Write, place: Write) -> Write:
    """Return what a document shows as a write of its own, at another write's place in the order."""
    known = content[0] in (Operation.UPSERT, Operation.SNAPSHOT, Operation.LOOKED_UP)
    return bytes([Operation.UPSERT if known else TOUCHED]) + renewed(content, place)[1:]


def _shown_by(write: Write) -> tuple[bool, bytes]:
    return write[0] == DELETE, write[HEAD_BYTES:]


def _is_older(write: Write, observed: Write | None) -> bool:
    return observed is not None and token_of(write) <= token_of(observed)


def _is_contended(write: Write, newest: Write | None) -> bool:
    """Whether another table may have a row of the key: its own end is then not the key's.

    A write of another table that merely follows the end in the one before does not say so.
    """
    if newest is None:
        return write[0] == DELETE
    if write[3] == newest[3]:
        return write[0] == DELETE and bool(newest[1] & SHARED)
    known, token = token_of(newest), token_of(write)
    return newest[0] != DELETE or known[0] != token[0] or token <= known


def is_meant(said: GivenUp, write: Write, skew: int) -> bool:
    """Whether the sink had this write when it said so: it is the one that is named, or an older one."""
    if said.operation == Operation.DEAD_LETTERED:  # of another epoch, positions say nothing: its writes came later
        return token_of(write)[1:] <= (said.major, said.minor) and event_time_of(write) <= said.time
    return event_time_of(write) <= said.time + skew


def _rank(said: GivenUp) -> tuple[int, int, int, int]:
    return said.time, said.major, said.minor, said.offset


def _hold(state: KeyState, time: int) -> None:
    """The key holds consistent-through at `time` at the latest, until what is newest is satisfied or judged."""
    state.floor = min(state.floor, time) if state.floor else time


def _count(cell: Cell, outcome: Outcome, closed: int) -> None:
    counters = cell.counters
    if outcome is Outcome.CLEARED:
        counters.cleared += closed
    elif outcome is Outcome.GAP:
        counters.gap += closed
    elif outcome is Outcome.SUPERSEDED:
        counters.superseded += closed
    else:
        counters.unverifiable["not_read"] = counters.unverifiable.get("not_read", 0) + closed
