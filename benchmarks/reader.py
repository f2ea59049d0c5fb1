"""A paced reader by key: ``python -m benchmarks.reader STORE URL NAME ROWS RATE SECONDS`` prints its rate and its latencies.

Several clients ask at random moments that make the rate together; each request is timed from when it was due, so that a store
that stalls is charged for all that waited. With rate 0 they ask as fast as they can. Postgres is read by pgbench instead.
"""

from __future__ import annotations

import json
import random
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import bson
from pymongo.uri_parser import parse_uri

from benchmarks.figures import percentile
from benchmarks.sweep_contestants import DATABASE
from gapwatch.core.search_address import SearchAddress
from gapwatch.model.pipeline import StoreType

CLIENTS = 8
WARM_SECONDS = 1.0
SWITCH_SECONDS = 0.0005  # a client in Python should not wait long for another
MS = 1_000.0
OP_MSG_CODE = 2013
OP_MSG = struct.Struct("<iiiiIb")  # length, number, answer to, code, flags, kind of the section
LENGTH = struct.Struct("<i")

Ask = Callable[[int], object]


def ask_of(kind: StoreType, url: str, name: str) -> Ask:
    """Return what reads one document by key, over a connection of its own; no driver, which would cost more than the store."""
    if kind is StoreType.MONGODB:
        return _mongo(parse_uri(url)["nodelist"][0], name)
    host, _, port = SearchAddress.parse(url).hosts[0].rpartition(":")
    return _search((host, int(port)), name)


def _mongo(address: tuple[str, int], name: str) -> Ask:
    connection = socket.create_connection(address)
    stream = connection.makefile("rb")

    def find(key: int) -> None:
        body = bson.encode({"find": name, "filter": {"_id": key}, "limit": 1, "singleBatch": True, "$db": DATABASE})
        connection.sendall(OP_MSG.pack(OP_MSG.size + len(body), 1, 0, OP_MSG_CODE, 0, 0) + body)
        (size,) = LENGTH.unpack(stream.read(LENGTH.size))
        said = stream.read(size - LENGTH.size)
        if b"firstBatch" not in said:
            raise OSError(f"MongoDB says {bson.decode(said[OP_MSG.size - LENGTH.size :])}")

    return find


def _search(address: tuple[str, int], name: str) -> Ask:
    connection = socket.create_connection(address)
    stream = connection.makefile("rb")

    def get(key: int) -> None:
        connection.sendall(b"GET /%s/_doc/%d HTTP/1.1\r\nHost: search\r\n\r\n" % (name.encode(), key))
        status, size = stream.readline(), 0
        while (line := stream.readline().strip().lower()) != b"":
            if line.startswith(b"content-length:"):
                size = int(line.partition(b":")[2])
        body = stream.read(size)
        if b" 200 " not in status and b" 404 " not in status:
            raise OSError(f"OpenSearch says {status!r} {body!r}")

    return get


def read(ask: Ask, client: int, rows: int, rate: float, began: float, seconds: float) -> list[float]:
    """Ask at this rate for so long; return the seconds that each request took, but for the first moments'."""
    chosen, took, due = random.Random(client), list[float](), began
    while True:
        due = due + chosen.expovariate(rate) if rate else time.monotonic()
        if due > began + seconds:
            return took
        if (left := due - time.monotonic()) > 0:
            time.sleep(left)
        ask(chosen.randrange(1, rows + 1))
        if due > began + WARM_SECONDS:
            took.append(time.monotonic() - due)


def figures(took: Sequence[float], seconds: float) -> dict[str, float]:
    """Return requests per second, and percentiles in milliseconds."""
    return {"rate": len(took) / seconds, "p50": percentile(took, 0.5) * MS, "p99": percentile(took, 0.99) * MS}


def latencies(log: str, since_us: int) -> list[float]:
    """Return the seconds of pgbench's log, each from when the transaction was due, of those that ended later than that."""
    lines = [line.split() for line in log.splitlines()]
    return [int(line[2]) / 1e6 for line in lines if int(line[4]) * 1_000_000 + int(line[5]) >= since_us]


def main(kind: StoreType, url: str, name: str, rows: int, rate: float, seconds: float) -> None:
    sys.setswitchinterval(SWITCH_SECONDS)
    asks = [ask_of(kind, url, name) for _ in range(CLIENTS)]
    for ask in asks:
        ask(1)  # connects
    began = time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as pool:
        reading = [pool.submit(read, ask, client, rows, rate / CLIENTS, began, seconds) for client, ask in enumerate(asks)]
    took = [one for client in reading for one in client.result()]
    print(json.dumps(figures(took, seconds - WARM_SECONDS)))


if __name__ == "__main__":
    store, at, dataset, *numbers = sys.argv[1:]
    main(StoreType(store), at, dataset, int(numbers[0]), float(numbers[1]), float(numbers[2]))
