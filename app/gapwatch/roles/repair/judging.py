"""One queue of keys under judgement: read in batches, ask ``core.confirm.judge``, wait where it says wait.

The confirmer, the sweeper, the re-reading of open gaps and the verification after a backfill all judge keys here, so that no
difference is ever called one by a shorter way.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from msgspec import Struct

from gapwatch.core.confirm import (
    Cleared,
    Difference,
    Judgement,
    Presence,
    Progress,
    Reading,
    Retry,
    Superseded,
    WaitAndReadAgain,
    judge,
)
from gapwatch.core.gaps import Proof
from gapwatch.model.gap import Detector, Run
from gapwatch.model.stream import Side
from gapwatch.model.suspect import Suspect
from gapwatch.ports import Clock, Key
from gapwatch.roles.board import Delivered
from gapwatch.roles.repair.reads import KeyReads, read_batch
from gapwatch.roles.stores import PipelineStores

KEYS_PER_BATCH_MAX = 500
RETRY_SECONDS = 0.5
RETRY_SECONDS_MAX = 15.0
QUICK = 4  # times less than reading may take: then more keys are read at once again
READING_SECONDS_MAX = 5.0  # a difference whose reads took longer, and longer than the grace, is read again


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Keys that somebody else found, to be judged instead of a scan.

    ``keys``: with what a stream says of each, where that may serve as a proof. ``share``: of the whole work that was done to find
    them. ``conclude``: called before the run ends, with its counts; returns what is to be stored. ``unread``: in a sentence, what
    kept them from finding all keys; the run is inconclusive with it, whatever comes of those that were found.
    """

    keys: Mapping[Key, Suspect | None]
    detector: Detector
    share: float
    conclude: Callable[[Run], Awaitable[Run]]
    unread: str = ""


class Case(Struct, kw_only=True):
    """One key under judgement: when it may be read next, and what delivered-through must have passed (``waits_for_ms``)."""

    key: Key
    suspect: Suspect | None = None
    progress: Progress = Progress()
    not_before_ms: int = 0
    waits_for_ms: int = 0
    unread: str = ""
    tries: int = 0


class Decided(Struct, frozen=True, kw_only=True):
    """A final judgement (Cleared, Difference, Superseded, Unverifiable) with the reads that it rests on."""

    case: Case
    judgement: Judgement
    reads: KeyReads


def counted_as(item: Decided, *, by_key: bool) -> list[str]:
    """Return under which names of a sweep's counts a judgement goes; ``by_key``: keys are counted here, and by no scan."""
    names = []
    if by_key:
        sides = ((Side.EXPECTED, "source_keys"), (Side.OBSERVED, "target_keys"))
        names += ["keys", *[name for side, name in sides if _is_present(item, side)]]
    if isinstance(item.judgement, Difference):
        names += ["differences", item.judgement.kind.value]
    elif isinstance(item.judgement, Cleared):
        names.append("agreed_on_second_read")
    elif isinstance(item.judgement, Superseded):
        names.append("superseded")
    return names


def _is_present(item: Decided, side: Side) -> bool:
    reads = item.reads.reads
    reading = reads.after if side is Side.EXPECTED else reads.target
    return reading.presence in (Presence.PRESENT, Presence.SEVERAL)


class KeyJudge:
    """The keys of one pipeline under judgement. Not thread-safe: one task owns it."""

    def __init__(
        self,
        stores: Callable[[], Awaitable[PipelineStores]],
        *,
        grace_ms: Callable[[], int],
        delivered: Callable[[], Delivered],
        clock: Clock,
        batch: int = KEYS_PER_BATCH_MAX,
        digests: bool = True,
    ) -> None:
        """``digests``: whether rows without a document are wanted in canonical form; keys with a suspect always have it."""
        self._stores = stores
        self._grace_ms = grace_ms
        self._delivered = delivered
        self._clock = clock
        self._batch = self._most = batch
        self._digests = digests
        self._cases: dict[Key, Case] = {}
        self._turns: dict[int, dict[Key, Case]] = {}  # by ``not_before_ms``: what is due must not cost a look at every key
        self._all_due_read = True

    def __len__(self) -> int:
        return len(self._cases)

    @property
    def undecided(self) -> int:
        """How many keys wait because a store could not be read."""
        return sum(1 for case in self._cases.values() if case.unread)

    @property
    def is_busy(self) -> bool:
        """Whether the last step left keys that could be read at once: it took as many as are read together."""
        return not self._all_due_read and bool(self._cases)

    @property
    def cases(self) -> Mapping[Key, Case]:
        return self._cases

    def add(self, key: Key, suspect: Suspect | None = None, *, proof: Proof | None = None) -> None:
        """Put a key under judgement, or replace its suspect by a newer one; what was learnt of the source is kept.

        ``proof``: a difference was proved before; while the source's row is still the one it was proved for, a difference that is
        read now needs no other wait than for deliveries to have come as far as that.
        """
        case = self._cases.get(key)
        if case is None:
            self._put(_proven(key, proof) if proof is not None else Case(key=key, suspect=suspect))
            return
        if suspect is not None:
            is_other = case.suspect is None or case.suspect.id != suspect.id
            case.suspect = suspect
            if is_other and case.waits_for_ms == 0:  # a wait that has begun is never cut short: it is what proves a difference
                self._move(case, 0)

    def again(self, decided: Decided) -> None:
        """Put a key back that was decided: it is read once more, and what was learnt of its source is kept."""
        if decided.case.key not in self._cases:
            self._put(decided.case)

    def drop(self, key: Key) -> None:
        case = self._cases.pop(key, None)
        if case is not None:
            self._take_out(case)

    def _put(self, case: Case) -> None:
        self._cases[case.key] = case
        self._turns.setdefault(case.not_before_ms, {})[case.key] = case

    def _take_out(self, case: Case) -> None:
        turn = self._turns[case.not_before_ms]
        del turn[case.key]
        if not turn:
            del self._turns[case.not_before_ms]

    def _move(self, case: Case, not_before_ms: int) -> None:
        if self._cases.get(case.key) is not case:  # dropped while it was read
            return
        self._take_out(case)
        case.not_before_ms = not_before_ms
        self._put(case)

    def due(self) -> list[Case]:
        """Return the keys that may be read now, oldest first, at most one batch."""
        now = self._clock.now_ms()
        delivered = self._delivered()
        ready = (
            case
            for turn in sorted(turn for turn in self._turns if turn <= now)
            for case in self._turns[turn].values()
            if _delivery_passed(case, delivered)
        )
        due = list(islice(ready, self._most))
        self._all_due_read = len(due) < self._most
        return due

    async def step(self) -> Sequence[Decided]:
        """Read one batch of due keys and judge them; decided keys leave the queue. Empty when nothing was due.

        Raises StoreError when the pipeline's stores cannot even be opened; the queue is then unchanged.
        """
        cases = self.due()
        if not cases:
            return ()
        stores = await self._stores()
        asked = {case.key: case.suspect for case in cases}
        digested = None if self._digests else {key for key, suspect in asked.items() if suspect is not None}
        once = {case.key for case in cases if _is_read_once(case)}
        batch = await read_batch(stores, list(asked), self._clock, digested=digested, once=once)
        started = min(item.reads.started_ms for item in batch.by_key.values())
        self._pace(started, len(cases))
        decided = []
        for case in cases:
            if case.suspect is not asked[case.key]:
                continue  # raised meanwhile: what was read may be older than the write that it names
            key_reads, is_old = batch.by_key[case.key], self._is_old(started)
            too_many = is_old and len(cases) > 1  # fewer are read in less time: that fails none of them
            judgement = judge(
                case.suspect,
                key_reads.reads,
                case.progress,
                stores.spec.match,
                others_were_read=batch.others_were_read and not too_many,
                proven_by_wait=case.waits_for_ms > 0,
                is_old=is_old,
            )
            if isinstance(judgement, WaitAndReadAgain | Retry):
                self._postpone(case, judgement)
            elif self._cases.get(case.key) is case:
                self.drop(case.key)
                decided.append(Decided(case=case, judgement=judgement, reads=key_reads))
        return decided

    @property
    def _old_ms(self) -> float:
        return max(READING_SECONDS_MAX * 1000, self._grace_ms())

    def _is_old(self, started_ms: int) -> bool:
        """Whether so long has passed since the stores were read that a row may have come and gone, and be on its way."""
        return self._clock.now_ms() - started_ms > self._old_ms

    def _pace(self, started_ms: int, keys: int) -> None:
        """Read fewer keys at once where that took too long, and more again where it took little."""
        took = self._clock.now_ms() - started_ms
        if took > self._old_ms:
            self._most = max(1, keys // 2)
        elif took < self._old_ms / QUICK and keys >= self._most:
            self._most = min(self._batch, 2 * self._most)

    def _postpone(self, case: Case, judgement: WaitAndReadAgain | Retry) -> None:
        case.progress = judgement.progress
        case.tries += 1
        if isinstance(judgement, Retry):
            case.unread = judgement.reason
            pause = min(RETRY_SECONDS_MAX, RETRY_SECONDS * 2 ** min(case.tries, 10))
            self._move(case, self._clock.now_ms() + int(pause * 1000))
            return
        case.unread = ""
        case.waits_for_ms = judgement.since_ms
        self._move(case, judgement.since_ms + self._grace_ms())


def _proven(key: Key, proof: Proof) -> Case:
    baseline = Reading(presence=Presence.PRESENT, revision=proof.revision)
    return Case(key=key, progress=Progress(baseline=baseline, waiting_since_ms=proof.at_ms), waits_for_ms=proof.at_ms)


def _is_read_once(case: Case) -> bool:
    """Whether the source need not be read before the target too.

    A wait begins with whatever is there now; and one that began with a row whose revision changes with every write knows that it
    stood still from then on if the last read finds that revision. A suspect that was not waited for may be a difference at once.
    """
    baseline = case.progress.baseline
    if baseline is None:
        return case.suspect is None
    return baseline.presence is Presence.PRESENT and baseline.revision is not None


def _delivery_passed(case: Case, delivered: Delivered) -> bool:
    if case.waits_for_ms == 0 or delivered.age_alone:
        return True
    return delivered.through_ms is not None and delivered.through_ms > case.waits_for_ms
