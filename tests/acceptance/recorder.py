"""Stands between an OpenSearch node and those who use it: records what became of every item of every bulk, and makes trouble.

It refuses documents, and hangs: what comes then is held until it goes on; the bulk that it begins with may be done, and never
answered.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import msgspec

BEGIN_SECONDS = 300
ANSWER_SECONDS = 120
OK, NOT_FOUND, CONFLICT, TOO_MANY = 200, 404, 409, 429
SERVER_ERROR, BAD_GATEWAY, GATEWAY_TIMEOUT = 500, 502, 504  # the second is what we say where nobody listens: nothing was done
Span = tuple[int, int]


class Sender(Enum):
    GAPWATCH = "gapwatch"
    SINK = "sink"


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One item of a bulk.

    ``at_us``: when it came, in microseconds since the epoch. ``status``: what its sender was to be told; None where the node died
    before it said so. ``told_us``: when that was known. ``place``: primary term and sequence number of what the index did.
    """

    sender: Sender
    operation: str
    id: str
    seq: int | None
    at_us: int
    status: int | None = None
    place: tuple[int, int] | None = None
    version: int | None = None
    told_us: int = 0

    @property
    def was_done(self) -> bool:
        return self.status is not None and OK <= self.status < 300

    def is_unsure(self, lost_us: Collection[Span]) -> bool:
        """Whether nobody knows if it was done. ``lost_us``: from when to when a node died.

        What was on its way to a node that dies is sent once more to the one that takes over, which may have a copy of it: a guard
        then refuses what was done.
        """
        if self.status is None or (self.status >= SERVER_ERROR and self.status != BAD_GATEWAY):
            return True
        return self.status == CONFLICT and any(self.at_us <= end and begin <= self.told_us for begin, end in lost_us)

    @property
    def found_nothing(self) -> bool:
        return self.operation == "delete" and self.status == NOT_FOUND and self.place is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    method: str
    path: str
    content: str
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int
    content: str
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One item as it is sent: its lines."""

    operation: str
    id: str
    index: str
    document: Mapping[str, Any] | None
    lines: Sequence[bytes]


@dataclass(slots=True)
class Hang:
    """From the next bulk of Gapwatch on, these senders are answered when it is over. ``executes``: that bulk is done at once."""

    senders: frozenset[Sender]
    executes: bool
    bulk: Sequence[Command] = ()
    begun: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)


class Node:
    """A connection to the node, for one thread. None for an answer: it broke off, and nobody knows what was done."""

    def __init__(self, host: str, port: int) -> None:
        self._connection = http.client.HTTPConnection(host, port, timeout=ANSWER_SECONDS)

    def ask(self, request: Request) -> Answer | None:
        if self._connection.sock is None:
            try:
                self._connection.connect()
            except OSError:
                return Answer(status=BAD_GATEWAY, content="text/plain", body=b"Bad gateway")
        try:
            self._connection.request(request.method, request.path, request.body, {"Content-Type": request.content})
            with self._connection.getresponse() as response:
                content = response.headers.get("Content-Type", "application/json")
                return Answer(status=response.status, content=content, body=response.read())
        except (OSError, http.client.HTTPException):
            self.close()
            return None

    def close(self) -> None:
        self._connection.close()


class Recorder:
    """Listens on a port for each sender. ``refuses`` says which ids are refused, as they are by a node with too much to do."""

    def __init__(self, host: str, port: int) -> None:
        self.items: list[Item] = []
        self.refuses: Callable[[str], bool] = lambda _: False
        self._node = (host, port)
        self._lock = threading.Lock()
        self._hang: Hang | None = None
        self._servers: dict[Sender, ThreadingHTTPServer] = {}
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        for sender in Sender:
            server = self._servers[sender] = ThreadingHTTPServer((self._node[0], 0), _handler(self, sender))
            self._threads.append(threading.Thread(target=server.serve_forever, name=f"recorder-{sender.value}", daemon=True))
            self._threads[-1].start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers.values():
            server.shutdown()
            server.server_close()
        for thread in self._threads:
            thread.join(10)

    def url(self, sender: Sender) -> str:
        host, port = self._servers[sender].server_address[:2]
        return f"http://{host!s}:{port}"

    def node(self) -> Node:
        return Node(*self._node)

    @contextmanager
    def hanging(self, *senders: Sender, executes: bool) -> Iterator[Sequence[Command]]:
        """Hang while the block runs; it begins when a bulk of Gapwatch has come, and yields that one."""
        hang = Hang(frozenset(senders), executes)
        with self._lock:
            self._hang = hang
        try:
            assert hang.begun.wait(BEGIN_SECONDS), f"Gapwatch wrote nothing for {BEGIN_SECONDS} s"
            yield hang.bulk
        finally:
            with self._lock:
                self._hang = None
            hang.over.set()

    def serve(self, sender: Sender, node: Node, request: Request) -> Answer | None:
        """Return what is answered, None for nothing: the connection is to be closed."""
        came_us, is_bulk = time.time_ns() // 1_000, request.path.partition("?")[0].endswith("/_bulk")
        commands = list(_commands(request.body)) if is_bulk else []
        hang, begins = self._met(sender, commands)
        unanswered = begins and hang is not None and hang.executes
        if hang is not None and not unanswered:
            hang.over.wait()
        answer = self._bulk(sender, node, request, commands, came_us) if is_bulk else node.ask(request)
        if hang is not None and unanswered:
            hang.over.wait()
            return Answer(status=GATEWAY_TIMEOUT, content="text/plain", body=b"Gateway timeout")
        return answer

    def _met(self, sender: Sender, commands: Sequence[Command]) -> tuple[Hang | None, bool]:
        """Return the hang that a request runs into, and whether it begins with this one."""
        with self._lock:
            hang = self._hang
            if hang is None or sender not in hang.senders:
                return None, False
            if hang.begun.is_set():
                return hang, False
            if sender is Sender.GAPWATCH and commands:
                hang.bulk = commands
                hang.begun.set()
                return hang, True
            return None, False

    def _bulk(self, sender: Sender, node: Node, request: Request, commands: Sequence[Command], came_us: int) -> Answer | None:
        items = [
            Item(sender=sender, operation=one.operation, id=one.id, seq=(one.document or {}).get("seq"), at_us=came_us)
            for one in commands
        ]
        refused = [self.refuses(one.id) for one in commands]
        sent = [one for one, no in zip(commands, refused, strict=True) if not no]
        answer: Answer | None = Answer(status=OK, content="application/json", body=b'{"took":0,"errors":false,"items":[]}')
        if sent:
            body = b"".join(line + b"\n" for one in sent for line in one.lines)
            answer = node.ask(replace(request, body=body))
        if answer is None or answer.status != OK:
            status = None if answer is None else answer.status
            self._record([replace(item, status=TOO_MANY if no else status) for item, no in zip(items, refused, strict=True)])
            return answer
        said = msgspec.json.decode(answer.body)
        answers = iter(said["items"])
        said["items"] = [_refusal(one) if no else next(answers) for one, no in zip(commands, refused, strict=True)]
        self._record([_told(item, one) for item, one in zip(items, said["items"], strict=True)])
        return replace(answer, body=msgspec.json.encode({**said, "errors": True})) if any(refused) else answer

    def _record(self, items: Sequence[Item]) -> None:
        now = time.time_ns() // 1_000
        with self._lock:
            self.items += [replace(item, told_us=now) for item in items]


def _commands(body: bytes) -> Iterator[Command]:
    lines = iter(body.splitlines())
    for line in lines:
        [(operation, where)] = msgspec.json.decode(line).items()
        document = None if operation == "delete" else next(lines)
        yield Command(
            operation=operation,
            id=where["_id"],
            index=where["_index"],
            document=None if document is None else msgspec.json.decode(document),
            lines=[line] if document is None else [line, document],
        )


def _refusal(command: Command) -> dict[str, Any]:
    error = {"type": "es_rejected_execution_exception", "reason": "rejected execution of a primary operation: too much to do"}
    return {command.operation: {"_index": command.index, "_id": command.id, "status": TOO_MANY, "error": error}}


def _told(item: Item, answer: Mapping[str, Any]) -> Item:
    [said] = answer.values()
    place = (said["_primary_term"], said["_seq_no"]) if "_seq_no" in said else None
    return replace(item, status=said["status"], place=place, version=said.get("_version"))


def _handler(recorder: Recorder, sender: Sender) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # connections are kept
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            self.node = recorder.node()

        def finish(self) -> None:
            self.node.close()
            super().finish()

        def handle(self) -> None:
            try:
                super().handle()
            except ConnectionError:  # who asked has gone
                self.close_connection = True

        def serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            content = self.headers.get("Content-Type", "application/json")
            request = Request(method=self.command, path=self.path, content=content, body=body)
            answer = recorder.serve(sender, self.node, request)
            if answer is None:
                self.close_connection = True
                return
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.content)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve  # noqa: N815 - the server names them so

        def log_message(self, format: str, *arguments: Any) -> None:
            return

    return Handler
