"""A backfill's holder is frozen (SIGSTOP) between its check and its write; another one goes on; then it thaws."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from gapwatch.ledger import SqlLedger
from gapwatch.model.gap import RunKind, RunState

SECONDS = 2.0  # the lease


@pytest.mark.parametrize("taken_over", [True, False], ids=["taken_over", "nobody_else"])
def test_f4_lesson_40_a_holder_frozen_between_check_and_write_writes_only_what_is_still_its_own(
    ledger_url: str, opened: Callable[[str], SqlLedger], taken_over: bool
) -> None:
    ledger = opened(ledger_url)
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.contract.frozen_holder", ledger_url, str(SECONDS)], stdout=subprocess.PIPE, text=True
    )
    try:
        _, status = os.waitpid(child.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), "it stopped itself after the row that says what it is about to write"
        time.sleep(SECONDS + 0.2)
        other = None
        if taken_over:
            other = ledger.take_run(RunKind.BACKFILL, "other", seconds=60)
            assert other is not None
            assert other.fencing == 2
        os.kill(child.pid, signal.SIGCONT)
        said = json.loads(child.communicate(timeout=120)[0].splitlines()[-1])
    finally:
        child.kill()
        child.wait()
    stored = ledger.run(said["run"])
    assert stored is not None
    outcomes = [row.outcome for row in ledger.audit_rows(run_id=said["run"])]
    if other is None:
        assert (said["writes"], said["ended"], said["late"]) == (1, "succeeded", "stored"), "it renewed first, and went on"
        return
    assert (said["writes"], said["late"]) == (0, "refused")
    assert "no longer held" in said["ended"]
    assert outcomes == ["planned"], "what it meant to do is on record, and nothing after it"
    assert (stored.state, stored.fencing) == (RunState.RUNNING, 2)
    ledger.update_run(replace(other, state=RunState.SUCCEEDED), holder="other")
