"""The order in which a partition's state becomes durable, as a state machine that does nothing itself (``design.md`` 5).

1. suspects and holes said so far,
2. status records,
3. the records of the state that changed,
4. the commit marker,
5. the input records are acknowledged, in offset order.

A stage may begin only when everything of the one before is durable. A crash in between repeats what was said (ids are
deterministic), leaves records that no marker lists, or reads records again; it never loses any of them.
"""

from __future__ import annotations

from enum import IntEnum

from gapwatch.errors import ProtocolError


class Stage(IntEnum):
    SAID = 1
    STATUS = 2
    STATE = 3
    MARKER = 4
    ACKNOWLEDGE = 5


class Checkpoint:
    """One partition's (or worker's) checkpoints, one after the other. ``stage``: what is being made durable, None between two."""

    def __init__(self) -> None:
        self.stage: Stage | None = None

    def begin(self) -> Stage:
        """Start a checkpoint of what was cut at this instant; return what has to become durable first."""
        if self.stage is not None:
            raise ProtocolError(f"A checkpoint began while another one was at {self.stage.name}.")
        self.stage = Stage.SAID
        return self.stage

    def durable(self, stage: Stage) -> Stage | None:
        """Say that all of a stage is durable; return the next one, None when the checkpoint is complete."""
        if stage is not self.stage:
            at = self.stage.name if self.stage else "rest"
            raise ProtocolError(f"{stage.name} was reported durable while the checkpoint was at {at}.")
        self.stage = None if stage is Stage.ACKNOWLEDGE else Stage(stage + 1)
        return self.stage

    @property
    def running(self) -> bool:
        return self.stage is not None
