"""One match worker as a process of its own: ``python -m tests.integration.match_process FILE NAME``."""

from __future__ import annotations

import asyncio
import pickle
import signal
import sys
from pathlib import Path
from typing import Any

from gapwatch.clock import SystemClock
from gapwatch.parent import end_with_parent
from gapwatch.roles.match.role import MatchRole


def tell(role: MatchRole) -> None:
    """Print where the worker stands: its group, its recovery, what it holds, and where our and Faust's tasks wait."""
    worker = role._worker
    if worker is None:
        print("--- no worker", file=sys.stderr, flush=True)
        return
    app, consumer = worker._app, worker._app.consumer
    recovery = app.tables.recovery
    print(
        f"--- rebalancing={app.rebalancing} actives_ready={app.tables.actives_ready} in_recovery={recovery.in_recovery}"
        f" recovery={recovery.state} generation={app.consumer_generation_id}/{consumer._thread.generation}"
        f" flow={consumer.flow_active}/{app.flow_control.is_active()}"
        f" starting={recovery.signal_recovery_start.is_set()} ended={recovery.signal_recovery_end.is_set()}"
        f" remaining={dict(recovery.active_remaining())} failed={worker._failure}\n"
        f"    held={ {n: one.expected for n, one in worker._held.items()} } assignment={sorted(consumer.assignment())}\n"
        f"    paused={sorted(consumer._paused_partitions)} read={dict(consumer._read_offset)}",
        file=sys.stderr,
    )
    for task in asyncio.all_tasks():
        awaited: Any = task.get_coro()
        places = []
        while awaited is not None:
            frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None) or getattr(awaited, "ag_frame", None)
            if frame is not None:
                places.append(f"{Path(frame.f_code.co_filename).stem}:{frame.f_lineno} {frame.f_code.co_name}")
            awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
        print("   ", " < ".join(places[:6]), file=sys.stderr)
    sys.stderr.flush()


async def main(given: bytes, name: str) -> None:
    settings, fingerprints, tuning = pickle.loads(given)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    role = MatchRole(settings, fingerprints, SystemClock(), stop=stop, tuning=tuning, name=name)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, tell, role)
    await role.run()


if __name__ == "__main__":
    end_with_parent()
    asyncio.run(main(Path(sys.argv[1]).read_bytes(), sys.argv[2]))
