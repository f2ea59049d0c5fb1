"""``docker-compose.yml`` and the images: no engine is needed to say that they hold together."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import jsonschema
import pytest
import yaml
from debezium.register import configuration

from gapwatch import __version__
from gapwatch.config import parse
from gapwatch.kafka.topics import topic_plans
from gapwatch.model.pipeline import Settings

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "deploy" / "docker"
ROLES = ("capture", "ingest", "match", "repair", "api")
PROBES_PORT = 8641
# Postgres counts in two numbers, all others in three.
PINNED = re.compile(r"[a-z0-9][a-z0-9./-]*:v?\d+\.\d+\.\d+(?:-[a-z0-9.-]+)?|postgres:\d+\.\d+-[a-z]+")
SECRET_NAME = re.compile(r"password|secret|token|credential|api_?key", re.IGNORECASE)


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


COMPOSE = cast("dict[str, Any]", load(ROOT / "docker-compose.yml"))
SERVICES = cast("dict[str, dict[str, Any]]", COMPOSE["services"])
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
CONNECTORS = cast("dict[str, dict[str, Any]]", json.loads((DOCKER / "connectors.json").read_text()))


def waited_for(service: str) -> set[str]:
    """Return the conditions under which others wait for a service."""
    return {other["depends_on"][service]["condition"] for other in SERVICES.values() if service in other.get("depends_on", {})}


ONE_SHOT = {name for name in SERVICES if "service_completed_successfully" in waited_for(name)}


def environment(service: str) -> dict[str, str]:
    """Return what a role's process finds in its environment: the image's, and the service's over it."""
    image = dict(re.findall(r"(GAPWATCH_\w+)=(\S+)", DOCKERFILE))
    laid: dict[str, str] = SERVICES[service].get("environment", {})
    return image | laid


def settings(tmp_path: Path, service: str) -> Settings:
    text = (DOCKER / "gapwatch.yaml").read_text().replace("/run/secrets", str(secrets(tmp_path)))
    return parse(text, {name: value for name, value in environment(service).items() if name != "GAPWATCH_CONFIG"})


def secrets(tmp_path: Path) -> Path:
    subprocess.run(
        [ROOT / "scripts" / "secrets"], check=True, capture_output=True, env={**os.environ, "SECRETS_DIR": str(tmp_path)}
    )
    return tmp_path


def test_it_is_a_compose_file() -> None:
    schema = json.loads((Path(__file__).parent / "compose-spec.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.Draft7Validator(schema).validate(COMPOSE)


def test_nothing_must_be_set_to_start_it() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    required = [name for name in re.findall(r"(?<!\$)\$\{([^}]*)\}", text) if ":-" not in name]
    assert required == []


def test_it_has_every_part_of_the_production_shape() -> None:
    assert {*ROLES, "kafka", "connect", "postgres", "mongodb", "opensearch", "ledger", "prometheus", "alertmanager"} <= set(
        SERVICES
    )
    assert [SERVICES[role]["command"] for role in ROLES] == [["run", "--role", role] for role in ROLES]
    assert "wal_level=logical" in SERVICES["postgres"]["command"]
    assert "--replSet rs0" in (DOCKER / "mongodb" / "start.sh").read_text()
    assert SERVICES["kafka"]["environment"]["KAFKA_PROCESS_ROLES"] == "broker,controller"
    assert SERVICES["kafka"]["environment"]["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"


def test_every_image_is_pinned() -> None:
    images = [service["image"] for service in SERVICES.values()]
    for file in ("Dockerfile", "connect.Dockerfile"):
        images += re.findall(r"^FROM (\S+)", (DOCKER / file).read_text(), re.MULTILINE)
    assert [image for image in images if not PINNED.fullmatch(image)] == []
    built = {service["image"] for service in SERVICES.values() if "build" in service}
    assert built == {f"gapwatch:{__version__}", f"gapwatch-connect:{__version__}"}
    brokers = {image for image in images if image.startswith("apache/kafka:")}
    assert len(brokers) == 1, "Connect runs on the same Kafka as the broker"
    (embedded,) = re.findall(r"kafka_2\.13:(\d+\.\d+)\.", (ROOT / "app/gapwatch/embedded/resources/jars.lock").read_text())
    assert brokers.pop().startswith(f"apache/kafka:{embedded}."), "what is tested is what is deployed"


def test_who_waits_for_a_service_waits_for_its_health_or_its_end() -> None:
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            assert how["condition"] == ("service_completed_successfully" if other in ONE_SHOT else "service_healthy"), name
        check = service.get("healthcheck", {})
        if name in ONE_SHOT:
            assert service["restart"] == "on-failure"
        else:
            assert check["test"][0] == "CMD", f"{name} has a health check"
            assert {"interval", "timeout", "retries", "start_period"} <= set(check), name


@pytest.mark.parametrize("role", ROLES)
def test_a_role_starts_when_everything_that_it_needs_is_there(role: str) -> None:
    seen: set[str] = set()
    waiting = [role]
    while waiting:
        name = waiting.pop()
        seen.add(name)
        waiting += [other for other in SERVICES[name].get("depends_on", {}) if other not in seen]
    assert seen == {role, "setup", "connectors", "connect", "kafka", "ledger", "mongodb", "mongodb-setup", "postgres"}


def test_h3_no_secret_stands_in_a_file(tmp_path: Path) -> None:
    for name, service in SERVICES.items():
        for variable in service.get("environment", {}):
            assert not SECRET_NAME.search(variable) or variable.endswith("_FILE"), f"{name}: {variable}"
    declared = set(COMPOSE["secrets"])
    used = {secret for service in SERVICES.values() for secret in service.get("secrets", ())}
    made = {path.name for path in secrets(tmp_path).iterdir()}
    assert declared == used == made
    named = {
        secret
        for file in (ROOT / "docker-compose.yml", *(path for path in DOCKER.rglob("*") if path.parent.name != "secrets"))
        if file.is_file()
        for secret in re.findall(r"/run/secrets[}:/]+([a-z_]+)", file.read_text())
    }
    assert named <= declared
    ignored = subprocess.run(["git", "check-ignore", "-q", str(DOCKER / "secrets" / "gapwatch_token")], cwd=ROOT, check=False)
    assert ignored.returncode == 0


def test_secrets_are_made_once_and_nobody_else_on_the_host_reads_them(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    values = [{path.name: path.read_text() for path in secrets(folder).iterdir()} for _ in range(2)]
    assert values[0] == values[1]
    assert len(set(values[0].values())) == len(values[0])
    assert all(len(value) >= 40 for value in values[0].values())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o644}, "an image's user is nobody on the host"


def test_each_service_gets_the_secrets_that_its_files_name_and_no_other() -> None:
    wanted = {
        "capture": set(re.findall(r"file:/run/secrets/(\w+)", (DOCKER / "gapwatch.yaml").read_text())),
        "connect": set(re.findall(r"dir:/run/secrets:(\w+)", (DOCKER / "connectors.json").read_text())),
        "mongodb-setup": {"mongodb_password", "gapwatch_password", "sink_password"},
    }
    for service, secret in wanted.items():
        assert set(SERVICES[service]["secrets"]) == secret, service
    assert all(SERVICES[role]["secrets"] == SERVICES["capture"]["secrets"] for role in ROLES)


def test_whatever_is_mounted_or_copied_is_there() -> None:
    for name, service in SERVICES.items():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (ROOT / source).exists(), f"{name}: {source}"
            assert source in COMPOSE["volumes"] or volume.endswith(":ro"), f"{name}: {source} may not be written"
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for file in ("Dockerfile", "connect.Dockerfile"):
        for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", (DOCKER / file).read_text(), re.MULTILINE):
            for source in sources.split():
                assert (ROOT / source).exists(), source
                assert any(source == one or source.startswith(f"{one}/") for one in kept), f".dockerignore leaves {source} out"


@pytest.mark.parametrize("role", ROLES)
def test_k3_the_configuration_is_valid_in_the_environment_of_every_role(role: str, tmp_path: Path) -> None:
    file = tmp_path / "gapwatch.yaml"
    file.write_text((DOCKER / "gapwatch.yaml").read_text().replace("/run/secrets", str(secrets(tmp_path / "secrets"))))
    done = subprocess.run(
        [sys.executable, "-m", "gapwatch", "config", "validate"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], **environment(role), "GAPWATCH_CONFIG": str(file)},
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "no problem found" in done.stderr


def test_addresses_and_ports_agree(tmp_path: Path) -> None:
    found = settings(tmp_path, "api")
    assert found.bootstrap_servers == SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"].removeprefix("PLAINTEXT://")
    properties = dict(
        line.split("=", 1) for line in (DOCKER / "connect.properties").read_text().splitlines() if line and line[0] != "#"
    )
    assert properties["bootstrap.servers"] == found.bootstrap_servers
    assert found.connect_url == "http://connect:8083"
    assert properties["listeners"] == "http://:8083"
    assert found.connect_url in SERVICES["connectors"]["entrypoint"]
    hosts = re.findall(r"@(\w+):\d+/", (DOCKER / "gapwatch.yaml").read_text())
    assert set(hosts) == {"ledger", "postgres", "mongodb"} <= set(SERVICES)
    assert found.listen_host == "0.0.0.0"
    assert all(settings(tmp_path, role).listen_host == "127.0.0.1" for role in ROLES if role != "api")
    assert SERVICES["api"]["ports"] == [f"127.0.0.1:${{PAGE_PORT:-{found.listen_port}}}:{found.listen_port}"]
    published = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert f"EXPOSE {found.listen_port} {PROBES_PORT}" in DOCKERFILE


@pytest.mark.parametrize("role", ROLES)
def test_i4_every_role_is_probed_and_scraped(role: str, tmp_path: Path) -> None:
    assert settings(tmp_path, role).probes_port == PROBES_PORT
    assert f":{PROBES_PORT}/readyz" in SERVICES[role]["healthcheck"]["test"][-1]
    scraped = load(ROOT / "deploy" / "prometheus" / "prometheus.yml")["scrape_configs"]
    (gapwatch,) = [job for job in scraped if job["job_name"] == "gapwatch"]
    assert f"{role}:{PROBES_PORT}" in [target for config in gapwatch["static_configs"] for target in config["targets"]]


def test_the_connectors_are_those_of_debezium_and_make_the_pipeline_that_is_watched(tmp_path: Path) -> None:
    pipeline = settings(tmp_path, "ingest").pipelines["orders"]
    source, sink = (configuration(CONNECTORS[name]) for name in ("orders-source", "orders"))
    for entry in CONNECTORS.values():
        template = (ROOT / "debezium" / entry["template"]).read_text()
        assert set(re.findall(r"(?<!\$)\$(\w+)", template)) == set(entry["values"]), "as many values as names"
    assert source["database.hostname"] == "postgres"
    assert f"{source['topic.prefix']}.{source['table.include.list']}" == pipeline.source.feed.topic == sink["topics"]
    assert f"{sink['database']}.{sink['collection']}" == pipeline.target.collection
    made_there = json.loads((DOCKER / "mongodb" / "target.json").read_text())["collections"]
    assert {database: list(names) for database, names in made_there.items()} == {sink["database"]: [sink["collection"]]}
    assert pipeline.delivery.group == "connect-orders", "the sink connector's own group"
    assert source["slot.name"] == source["publication.name"] == "debezium"
    made = (DOCKER / "postgres" / "source.sh").read_text()
    assert f"CREATE PUBLICATION {source['publication.name']} FOR TABLE {source['table.include.list']}" in made
    assert "password" not in {value for config in (source, sink) for value in config.values()}
    assert all("${dir:/run/secrets:" in config[key] for config, key in ((source, "database.password"), (sink, "connection.uri")))


def test_k10_the_image_runs_as_nobody_in_particular_and_stops_when_asked(tmp_path: Path) -> None:
    final = DOCKERFILE.split("\nFROM ")[-1]
    (user,) = re.findall(r"^USER (\d+):\d+$", final, re.MULTILINE)
    assert int(user) >= 10_000
    assert "\nSTOPSIGNAL SIGTERM\n" in final
    assert f":{PROBES_PORT}/livez" in final.split("HEALTHCHECK")[1]
    for name in (*ROLES, "setup", "connectors"):
        service = SERVICES[name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]
        assert any(f"uid={user}" in mount for mount in service["tmpfs"])
        assert not service.get("privileged")
    requires = re.search(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    versions = {int(minor) for minor in re.findall(r"^FROM python:3\.(\d+)\.", DOCKERFILE, re.MULTILINE)}
    assert requires is not None
    assert all(int(requires.group(1)) <= minor < int(requires.group(2)) for minor in versions)


def test_what_is_installed_in_images_is_locked_by_hash() -> None:
    installs = re.findall(r"pip install (.+?)(?: \\)?$", DOCKERFILE, re.MULTILINE)
    assert all("--require-hashes" in line or "--no-index" in line for line in installs)
    for lock in ("run", "build"):
        entries = re.findall(r"^([a-z0-9._-]+)==\S+(.*?)(?=^[a-z0-9]|\Z)", _lock(lock), re.MULTILINE | re.DOTALL)
        assert entries
        assert [name for name, rest in entries if "--hash=sha256:" not in rest] == []
    connect = (DOCKER / "connect.Dockerfile").read_text()
    assert "sha256sum --check --strict" in connect


def _lock(name: str) -> str:
    return (ROOT / "requirements" / f"{name}.lock").read_text()


def test_topics_and_ports_are_those_of_the_documents(tmp_path: Path) -> None:
    found = settings(tmp_path, "ingest")
    text = (ROOT / "docs" / "topics.md").read_text()
    documented = {name.replace("<prefix>", found.topics.prefix) for name in re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)}
    documented |= {name.replace("<pipeline>", "orders").replace("<side>", "target") for name in documented}
    assert {plan.name for plan in topic_plans(found)} <= documented
    operations = (ROOT / "docs" / "operations.md").read_text()
    published = [port for service in SERVICES.values() for port in service.get("ports", ())]
    for inside in (port.rsplit(":", 1)[1] for port in published):
        assert f"| `127.0.0.1:{inside}` |" in operations
    assert f"`ROLE:{PROBES_PORT}`" in operations
    assert "deploy/docker/secrets/gapwatch_token" in operations
