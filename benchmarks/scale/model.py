"""The model: every resource has a demand that grows with the rate, and the one that is full first is the bottleneck. No I/O.

An ingester polls at most `POLL_EVENTS` events or `POLL_SECONDS`, and sends each poll as one record to every partition that has
events of it; so records get emptier with more partitions, and match pays for records as well as for events.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

POLL_EVENTS = 5_000  # as in gapwatch.roles.ingest.role
POLL_SECONDS = 0.08
FULL = 0.7  # planned utilisation: beyond it queues grow quickly
CATCH_UP_SECONDS = 300.0  # how long a lost worker's backlog may last
MATCHERS_MAX = 512
BROKERS_MAX = 200
INGESTERS_MAX = 2_000
US = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Measured in one run: CPU in microseconds at that run's `events_per_record`; bytes as they lie on the broker."""

    ingest_us: float  # for one raw event, its share of the records sent included
    match_us: float  # the same of match
    events_per_record: float
    raw_bytes: float
    packed_bytes: float
    changelog_bytes: float
    changelog_records: float  # for one raw event
    start_seconds: float  # of a worker on nothing
    restore_us: float  # for one pending key


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumed:
    """What this machine cannot tell."""

    match_record_us: float = 65.0  # Faust, for one record whatever it holds
    send_record_us: float = 20.0  # ingest, for one record sent
    broker_write_bytes: float = 150e6  # a second, replicas included
    broker_send_bytes: float = 400e6  # a second, to consumers and followers
    broker_requests: float = 10_000.0  # a second
    replication: int = 3
    pulse_seconds: float = 0.25
    linger_seconds: float = 0.002
    fetch_seconds: float = 0.05
    control_bytes: float = 600.0
    session_seconds: float = 10.0
    pending_seconds: float = 5.0  # how long an event waits for its other side


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """`feeds`: raw partitions of both sides together, an ingester needs at least one."""

    partitions: int
    matchers: int
    ingesters: int
    brokers: int
    feeds: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How full each resource is, 1 = full; the records on the events topic; and the delay of an event on its way, on average."""

    use: dict[str, float]
    records: float
    events_per_record: float
    delay_seconds: float

    @property
    def bottleneck(self) -> str:
        return max(self.use, key=lambda name: self.use[name])


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """After one matcher's loss: how long its partitions stand still, and how long the backlog lasts; infinite: for ever."""

    pause_seconds: float
    catch_up_seconds: float


def records_per_second(fleet: Fleet, rate: float) -> float:
    """Return the records with events that all ingesters send in a second."""
    if not rate:
        return 0.0
    share = rate / fleet.ingesters
    polled = min(max(share * POLL_SECONDS, 1.0), POLL_EVENTS)
    return rate / polled * _hit(fleet.partitions, polled)


def _hit(partitions: int, events: float) -> float:
    """Return how many partitions get at least one of so many events: keys are spread evenly."""
    return min(partitions * -math.expm1(events * math.log1p(-1 / partitions)) if partitions > 1 else 1.0, events)


def load(costs: Costs, assumed: Assumed, fleet: Fleet, rate: float) -> Load:
    """Return how full every resource is at so many raw events a second of both sides together."""
    records = records_per_second(fleet, rate)
    control = fleet.ingesters * fleet.partitions / assumed.pulse_seconds
    busiest = math.ceil(fleet.partitions / min(fleet.matchers, fleet.partitions)) / fleet.partitions
    match = rate * _match_event(costs, assumed) + (records + control) * assumed.match_record_us * US
    ingesters = min(fleet.ingesters, fleet.feeds)
    ingest = rate * _ingest_event(costs, assumed) + (records + control) * assumed.send_record_us * US
    own = rate * (costs.packed_bytes + costs.changelog_bytes) + control * assumed.control_bytes
    written = (rate * costs.raw_bytes + own) * assumed.replication
    changelog = rate * costs.changelog_bytes * assumed.replication
    sent = rate * costs.raw_bytes * 2 + own * assumed.replication  # to ingest, to match, and to the followers
    use = {
        "ingest CPU": ingest / ingesters,
        "match CPU": match * busiest,
        "broker writes": written / (fleet.brokers * assumed.broker_write_bytes),
        "changelog writes": changelog / (fleet.brokers * assumed.broker_write_bytes),
        "broker sends": sent / (fleet.brokers * assumed.broker_send_bytes),
        "broker requests": _requests(assumed, fleet, records + control) / (fleet.brokers * assumed.broker_requests),
    }
    service = match / (records + control)
    filling = min(POLL_SECONDS, POLL_EVENTS * fleet.ingesters / rate) if rate else POLL_SECONDS
    delay = filling / 2 + assumed.linger_seconds + assumed.fetch_seconds / 2 + service + _wait(use["match CPU"], service)
    return Load(use=use, records=records + control, events_per_record=rate / records if records else 0.0, delay_seconds=delay)


def _requests(assumed: Assumed, fleet: Fleet, records: float) -> float:
    """Return requests a second: produce at most one for each linger and leader, fetches and their waits, checkpoints, commits."""
    produce = min(records, fleet.ingesters * fleet.brokers / assumed.linger_seconds)
    fetch = (min(fleet.ingesters, fleet.feeds) + min(fleet.matchers, fleet.partitions)) * fleet.brokers / assumed.fetch_seconds
    followers = fleet.brokers * (assumed.replication - 1) / assumed.fetch_seconds
    return produce + fetch + followers + 2 * fleet.partitions + fleet.ingesters / assumed.pulse_seconds


def _wait(use: float, service: float) -> float:
    """Return the mean wait before a server with constant service times (M/D/1, Pollaczek and Khinchine)."""
    return use * service / (2 * (1 - use)) if use < 1 else math.inf


def _match_event(costs: Costs, assumed: Assumed) -> float:
    """Return the seconds for an event without its record, at least a tenth of what was measured with it."""
    return max(costs.match_us - assumed.match_record_us / costs.events_per_record, costs.match_us / 10) * US


def _ingest_event(costs: Costs, assumed: Assumed) -> float:
    return max(costs.ingest_us - assumed.send_record_us / costs.events_per_record, costs.ingest_us / 10) * US


def capacity(costs: Costs, assumed: Assumed, fleet: Fleet, *, full: float = 1.0) -> float:
    """Return the highest rate at which no resource is fuller than `full`; 0 where control records alone are too much."""
    low, high = 0.0, 1.0
    while _fits(costs, assumed, fleet, high, full):
        low, high = high, high * 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _fits(costs, assumed, fleet, middle, full) else (low, middle)
    return low


def _fits(costs: Costs, assumed: Assumed, fleet: Fleet, rate: float, full: float) -> bool:
    return max(load(costs, assumed, fleet, rate).use.values()) <= full


def loss_of_a_matcher(costs: Costs, assumed: Assumed, fleet: Fleet, rate: float) -> Loss:
    """Return what one matcher's loss costs its partitions, which the others take over. Their own short stop is not counted."""
    if min(fleet.matchers, fleet.partitions) == 1:
        return Loss(pause_seconds=math.inf, catch_up_seconds=math.inf)
    serving = min(fleet.matchers, fleet.partitions)
    moved = math.ceil(fleet.partitions / serving)
    each = math.ceil(moved / (serving - 1))  # of them for the busiest of the others
    pending = rate * assumed.pending_seconds / fleet.partitions * each
    pause = assumed.session_seconds + costs.start_seconds + pending * costs.restore_us * US
    after = load(costs, assumed, replace(fleet, matchers=serving - 1), rate).use["match CPU"]
    # The busiest worker has `after` of a core to do and what came in the pause besides.
    catch_up = pause * after / (1 - after) if after < 1 else math.inf
    return Loss(pause_seconds=pause, catch_up_seconds=catch_up)


def planned(costs: Costs, assumed: Assumed, rate: float) -> Fleet | None:
    """Return the smallest fleet for the rate that keeps `FULL` and catches up in time after a loss; None: there is none."""
    for fleet in _candidates():
        grown = _grown(costs, assumed, fleet, rate)
        if grown and loss_of_a_matcher(costs, assumed, grown, rate).catch_up_seconds <= CATCH_UP_SECONDS:
            return grown
    return None


def _candidates() -> Iterator[Fleet]:
    """Yield fleets with more and more matchers: two partitions for each, so that two share a lost one's; else one."""
    matchers = 2
    while matchers <= MATCHERS_MAX:
        for each in (2, 1):
            yield Fleet(partitions=each * matchers, matchers=matchers, ingesters=1, brokers=3, feeds=INGESTERS_MAX)
        matchers = max(matchers + 1, matchers * 5 // 4)


def _grown(costs: Costs, assumed: Assumed, fleet: Fleet, rate: float) -> Fleet | None:
    """Give the fleet the ingesters and brokers that it lacks; None where match stays too small, or more do not help."""
    while True:
        use = load(costs, assumed, fleet, rate).use
        if use["match CPU"] > FULL:
            return None
        if use["ingest CPU"] > FULL and fleet.ingesters < INGESTERS_MAX:
            more = max(math.ceil(fleet.ingesters * use["ingest CPU"] / FULL), fleet.ingesters + 1)
            fleet = replace(fleet, ingesters=min(more, INGESTERS_MAX))
        elif max(use.values()) > FULL and fleet.brokers < BROKERS_MAX:
            fleet = replace(fleet, brokers=max(fleet.brokers + 1, min(fleet.brokers * 21 // 20, BROKERS_MAX)))
        else:
            return fleet if max(use.values()) <= FULL else None


def plan_stops_at(costs: Costs, assumed: Assumed, above: float, below: float) -> float | None:
    """Return the first rate in between, in steps of a tenth, for which no fleet is found; None: there is one for all of them."""
    rate = above
    while rate <= below:
        if planned(costs, assumed, rate) is None:
            return rate
        rate *= 1.1
    return None
