"""What the HTTP side is handed, and may do with it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from aiohttp import web

from gapwatch.model.gap import Gap, Run
from gapwatch.model.view import PipelineView
from gapwatch.ports import Clock, GapFilter, Ledger

READY: Final = "ok"


class Operations(Protocol):
    """What a person may ask for; ``roles/desk.py`` implements it. ``actor`` names the token, for the audit trail.

    All raise NotFoundError, UsageError, ConflictError (with the running id) or a StoreError.
    """

    def pipeline(self, name: str) -> Any:
        """Return a configured pipeline; NotFoundError otherwise."""

    async def views(self) -> Sequence[PipelineView]:
        """Return how every configured pipeline stands now."""

    async def view(self, pipeline: str) -> PipelineView: ...
    async def pause(self, pipeline: str, *, actor: str, reason: str = "") -> None: ...
    async def resume(self, pipeline: str, *, actor: str) -> None: ...
    async def key_story(self, pipeline: str, text: str) -> dict[str, Any]: ...
    async def start_sweep(self, pipeline: str, request: Mapping[str, Any], *, actor: str) -> Run: ...
    async def plan_backfill(self, pipeline: str, kinds: Sequence[str], *, actor: str, mode: str = "") -> Run: ...
    async def apply_backfill(self, plan_id: str, *, actor: str) -> Run: ...
    async def start_replay(self, pipeline: str, time_from: str, time_to: str, of: str, *, actor: str) -> Run: ...
    async def requeue_repairs(self, pipeline: str, keys: Sequence[str], *, actor: str) -> Run: ...
    async def resume_repair(self, pipeline: str, *, actor: str) -> None: ...
    async def cancel(self, run_id: str, *, actor: str) -> Run: ...
    async def change_gap(
        self, gap_id: str, action: str, *, actor: str, note: str = "", resolution: str = "manual", seconds: float = 3600.0
    ) -> Gap: ...


class ApiLedger(Ledger, Protocol):
    """The ledger, as the API reads it."""

    def count_gaps(self, where: GapFilter) -> int:
        """Return how many gaps the filter lets through, whatever a page's limit."""


class Token(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def scopes(self) -> tuple[str, ...]: ...


class Tokens(Protocol):
    """Where bearer tokens are looked up; blocking, called from threads."""

    def token_by_secret(self, secret: str) -> Token | None:
        """Return the valid token with this secret."""

    def has_tokens(self) -> bool:
        """Whether any token is valid now."""


Readiness = Callable[[], Mapping[str, str]] | Callable[[], Awaitable[Mapping[str, str]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeDeps:
    """``readiness`` names every part with ``"ok"`` or what is wrong with it; ``metrics`` is the exposition, may block."""

    readiness: Readiness
    metrics: Callable[[], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiDeps:
    operations: Operations
    ledger: ApiLedger
    tokens: Tokens
    probes: ProbeDeps
    clock: Clock
    version: str


PROBES: Final = web.AppKey("probes", ProbeDeps)
DEPS: Final = web.AppKey("deps", ApiDeps)
