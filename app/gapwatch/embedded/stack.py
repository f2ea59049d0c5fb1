"""The whole stack, started side by side in a throw-away directory."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from gapwatch.embedded.opensearch import OpenSearchPart
from gapwatch.embedded.parts import ConnectPart, KafkaPart, MongoPart, Part, PostgresPart
from gapwatch.embedded.process import Watchdog
from gapwatch.embedded.schema_registry import SchemaRegistryPart
from gapwatch.embedded.watchdog import MARK
from gapwatch.errors import GapwatchError, UsageError

USUAL = ("kafka", "connect", "postgres", "mongodb")
ALL = (*USUAL, "opensearch", "registry")
STOPPED_LAST = ("postgres", "mongodb", "kafka", "connect", "opensearch", "registry")


class EmbeddedStack:
    """Kafka, Connect, Postgres, MongoDB, OpenSearch and a schema registry as one thing to start and stop.

    Args:
        parts: Which parts; ``connect`` needs ``kafka``, and ``opensearch`` and ``registry`` are there only where asked for.
        converters: Whether Connect can write Avro and JSON Schema.
        directory: Where data and logs go, and stay: empty or not there yet; else a temporary directory, removed at the end.
        on_progress: Called with one line for each download, where standard error is no terminal; else those lines go there.
    """

    def __init__(
        self,
        *,
        parts: Collection[str] = USUAL,
        converters: bool = False,
        directory: Path | None = None,
        on_progress: Callable[[str], None] | None = None,
    ) -> None:
        unknown = sorted(set(parts) - set(ALL))
        if unknown:
            raise UsageError(f"There is no part {unknown[0]!r}.", remedy=f"Parts: {', '.join(ALL)}.")
        if "connect" in parts and "kafka" not in parts:
            raise UsageError("Kafka Connect needs Kafka.", remedy="Start both.")
        self._names = tuple(name for name in ALL if name in parts)
        self._given = directory
        self._converters = converters
        self._say = on_progress or _tell
        self._parts: dict[str, Part] = {}
        self._watchdog: Watchdog | None = None
        self.directory: Path | None = None

    @property
    def kafka(self) -> KafkaPart:
        part = self._part("kafka")
        assert isinstance(part, KafkaPart)
        return part

    @property
    def connect(self) -> ConnectPart:
        part = self._part("connect")
        assert isinstance(part, ConnectPart)
        return part

    @property
    def postgres(self) -> PostgresPart:
        part = self._part("postgres")
        assert isinstance(part, PostgresPart)
        return part

    @property
    def mongodb(self) -> MongoPart:
        part = self._part("mongodb")
        assert isinstance(part, MongoPart)
        return part

    @property
    def opensearch(self) -> OpenSearchPart:
        part = self._part("opensearch")
        assert isinstance(part, OpenSearchPart)
        return part

    @property
    def registry(self) -> SchemaRegistryPart:
        part = self._part("registry")
        assert isinstance(part, SchemaRegistryPart)
        return part

    def add_opensearch_node(self) -> OpenSearchPart:
        """Start one more node of the OpenSearch cluster, a process of its own, for data only; it ends with the stack."""
        manager = self.opensearch
        assert self.directory is not None
        assert self._watchdog is not None
        name = f"opensearch-{sum(part.startswith('opensearch') for part in self._parts) + 1}"
        node = OpenSearchPart(self.directory, self._watchdog, self._say, name=name, member_of=manager)
        self._parts[name] = node
        node.start()
        return node

    def start(self) -> None:
        """Start all parts side by side; return when each answers. What was started is stopped again when one fails.

        Raises:
            EnvironmentLacks: this machine lacks something; says what, and how to get it.
            GapwatchError: a download failed, or a part did not start; with the end of its log.
        """
        if self._watchdog is not None:
            raise UsageError("This stack is running.", remedy="Stop it first.")
        directory = self._given or Path(tempfile.mkdtemp(prefix="gapwatch-"))
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise UsageError(f"{directory} is not empty.", remedy="Name a directory that is, or none.")
        directory.chmod(0o755)  # Postgres' own account must be able to enter
        self.directory = directory
        self._watchdog = Watchdog(None if self._given else directory)
        try:
            self._make(directory, self._watchdog)
            with ThreadPoolExecutor(len(ALL)) as pool:
                for future in [pool.submit(start) for start in self._starts()]:
                    future.result()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop everything, last things first. A part that has gone, or will not stop, does not keep the others alive."""
        with ExitStack() as ending:  # what comes first here is done last, whatever the others raise
            ending.callback(self._clean)
            first = [name for name in STOPPED_LAST if name in self._parts]
            for name in (*first, *(name for name in self._parts if name not in first)):
                ending.callback(self._parts[name].close)
            self._parts = {}

    def mark(self) -> dict[str, str]:
        """Return what goes into the environment of a process that shall end with this stack, however its parent dies."""
        assert self._watchdog is not None, "the stack is running"
        return {MARK: self._watchdog.mark}

    def _clean(self) -> None:
        if self._watchdog is not None:
            self._watchdog.close()
            self._watchdog = None
        if self._given is None and self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)
            self.directory = None

    def __enter__(self) -> EmbeddedStack:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _make(self, directory: Path, watchdog: Watchdog) -> None:
        for name in self._names:
            if name == "kafka":
                self._parts[name] = KafkaPart(directory, watchdog, self._say)
            elif name == "connect":
                self._parts[name] = ConnectPart(directory, watchdog, self._say, self.kafka, converters=self._converters)
            elif name == "postgres":
                self._parts[name] = PostgresPart(directory, watchdog, self._say)
            elif name == "opensearch":
                self._parts[name] = OpenSearchPart(directory, watchdog, self._say)
            elif name == "registry":
                self._parts[name] = SchemaRegistryPart(directory, watchdog, self._say)
            else:
                self._parts[name] = MongoPart(directory, watchdog, self._say)

    def _starts(self) -> list[Callable[[], None]]:
        def kafka_then_connect() -> None:
            self.kafka.start()
            if "connect" in self._names:
                self.connect.start()

        alone = [name for name in self._names if name not in ("kafka", "connect")]
        starts: list[Callable[[], None]] = [self._parts[name].start for name in alone]
        return [kafka_then_connect, *starts] if "kafka" in self._names else starts

    def _part(self, name: str) -> Part:
        if name not in self._parts:
            raise GapwatchError(f"The part {name} is not running.")
        return self._parts[name]


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")
