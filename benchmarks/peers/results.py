"""What came of each contestant, and how it stands in the table."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.peers.roster import Contestant
from benchmarks.work import Planted

BASIS = "faust"
LIMIT = "R"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run, or the sum of the processes that share the work."""

    events: int
    cpu: float
    wall: float
    peaks_mib: tuple[float, ...]
    right: bool

    @classmethod
    def of(cls, parts: Sequence[Mapping[str, Any]], *, right: bool) -> Run:
        return cls(
            events=parts[0]["events"],
            cpu=sum(part["cpu"] for part in parts),
            wall=sum(part["wall"] for part in parts),
            peaks_mib=tuple(part["peak_rss_mib"] for part in parts),
            right=right,
        )


@dataclass(slots=True, kw_only=True)
class Result:
    """``reason`` says why a run is missing; ``trial`` what ``kill -9`` left."""

    contestant: Contestant
    runs: list[Run] = field(default_factory=list)
    reason: str = ""
    trial: str = ""

    @property
    def right(self) -> bool:
        return all(run.right for run in self.runs)

    @property
    def rate(self) -> float:
        """Events per CPU second, median of the rounds."""
        return median(run.events / run.cpu for run in self.runs)

    @property
    def wall_rate(self) -> float:
        return median(run.events / run.wall for run in self.runs)

    @property
    def peaks_mib(self) -> list[float]:
        return [median(run.peaks_mib[part] for run in self.runs) for part in range(len(self.runs[0].peaks_mib))]

    def described(self, results: Sequence[Result]) -> dict[str, Any]:
        head: dict[str, Any] = {"name": self.contestant.name, "title": self.contestant.title, "state": self.contestant.state}
        if not self.runs:
            return head | {"reason": self.reason}
        return head | {
            "events_per_cpu_second": self.rate,
            "events_per_second": self.wall_rate,
            "times_faust": _ratio(self, results, BASIS),
            "times_r": _ratio(self, results, LIMIT),
            "peak_rss_mib": sum(self.peaks_mib),
            "right": self.right,
            "after_kill": self.trial,
            "rounds": len(self.runs),
            "reason": self.reason,
        }


def _ratio(result: Result, results: Sequence[Result], basis: str) -> float | None:
    found = [other.rate for other in results if other.contestant.name == basis and other.runs]
    return result.rate / found[0] if found else None


def is_right(answer: Planted, planted: Planted, undue: Collection[int]) -> bool:
    """Say whether exactly what was planted was found; what is not due yet at the end of the streams may be missing."""
    pairs = ((answer.missing, planted.missing), (answer.wrong, planted.wrong))
    return all(wanted - set(undue) <= found <= wanted for found, wanted in pairs)


def table(results: Sequence[Result]) -> list[str]:
    """Return the rows of the table, fastest first; who could not run stands at the end with the reason."""
    lines = [
        "| contestant | events / CPU s | × plain Faust | × R | events / s | peak RSS, MiB | answer | its state | after kill -9 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    ran = sorted((result for result in results if result.runs), key=lambda result: -result.rate)
    for result in ran:
        ratios = [f"{ratio:.{digits}f}" if ratio else "" for ratio, digits in _ratios(result, results)]
        peak = " + ".join(f"{value:,.0f}" for value in result.peaks_mib)
        answer = "right" if result.right else "**wrong**"
        answer += f" ({len(result.runs)} rounds; {result.reason})" if result.reason else ""
        cells = [result.contestant.title, f"{result.rate:,.0f}", *ratios, f"{result.wall_rate:,.0f}", peak, answer]
        lines.append(f"| {' | '.join([*cells, result.contestant.state, result.trial])} |")
    for result in results:
        if not result.runs:
            reason = result.reason.replace("|", "/")
            lines.append(f"| {result.contestant.title} | not run: {reason} | | | | | | {result.contestant.state} | |")
    return lines


def _ratios(result: Result, results: Sequence[Result]) -> list[tuple[float | None, int]]:
    return [(_ratio(result, results, BASIS), 1), (_ratio(result, results, LIMIT), 2)]
