"""docker-compose.yml and its images, as far as they can be judged without a container engine; `make compose-check` runs them."""

import ast
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest
import yaml

from agents import host
from services_app.lab.compose import CONTROL_PLANE, NODES, RESTARTED, NoEngine, find_compose
from services_app.lab.http_probe import ask_often
from services_app.lab.samples import SAMPLES
from services_app.local.postgres import SETTINGS as POSTGRES_SETTINGS

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docker-compose.yml").read_text()
DOCUMENTATION = (ROOT / "docs/compose.md").read_text()
VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")
CONTROL_PLANE_IMAGE = ROOT / "docker/control-plane"
NODE_IMAGE = ROOT / "docker/node"
BACKEND = NODE_IMAGE / "backend.py"

COMPOSE: dict[str, Any] = yaml.safe_load(VARIABLE.sub(r"\2", TEXT))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def table(heading: str) -> dict[str, list[str]]:
    """First cell of each row under a heading of docs/compose.md, without backquotes -> the other cells."""
    section = DOCUMENTATION.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found = re.findall(r"^\| `([^`]+)` \| (.+) \|$", section, re.MULTILINE)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in found}


def words(service: str) -> list[str]:
    command = SERVICES[service].get("command", [])
    return command.split() if isinstance(command, str) else [str(word) for word in command]


def of_control_plane() -> dict[str, dict[str, Any]]:
    return {name: s for name, s in SERVICES.items() if s.get("image") == "timonel-control-plane:local"}


def address_of(service: str) -> IPv4Address:
    return IPv4Address(SERVICES[service]["networks"]["hosts"]["ipv4_address"])


def test_services_are_exactly_those_documented() -> None:
    assert sorted(table("What is in it")) == sorted(SERVICES)


def test_variables_and_their_defaults_are_exactly_those_documented() -> None:
    used = {(name, default) for name, default in VARIABLE.findall(TEXT)}
    assert len(used) == len(dict(used)), "one default each"
    documented = {(name, cells[0].strip("`")) for name, cells in table("Changing ports and addresses").items()}
    assert used == documented
    assert not re.findall(r"\$\{\w+\}(?!\.0/24:)", TEXT), "a variable without default"


def test_environment_of_the_control_plane_is_settings_that_load(tmp_path: Path) -> None:
    assert len({str(service["environment"]) for service in of_control_plane().values()}) == 1
    given = dict(SERVICES["web"]["environment"])
    assert given.pop("PGPASSFILE").endswith("/pgpass")  # read by libpq itself
    settings = (ROOT / "services_app/settings.py").read_text()
    assert not [name for name in given if f'"{name}"' not in settings], "no such setting"
    done = subprocess.run(
        [sys.executable, "-c", "import django; django.setup(); print('loaded')"],
        env={
            **os.environ,
            **given,
            "TIMONEL_DATA_DIR": str(tmp_path),
            "DJANGO_SETTINGS_MODULE": "services_app.settings",
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "loaded\n", done.stderr


def test_every_image_from_elsewhere_has_its_reason() -> None:
    used = {s["image"] for s in SERVICES.values() if "build" not in s}
    for path in (CONTROL_PLANE_IMAGE, NODE_IMAGE):
        used |= set(re.findall(r"^FROM (\S+)", (path / "Dockerfile").read_text(), re.MULTILINE))
    section = (ROOT / "docs/dependencies.md").read_text().partition("\n## Container images\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)) == used


def test_whoever_is_waited_for_has_a_minute_to_become_healthy() -> None:
    """The engine gives up after three tries otherwise, and compose with it."""
    for name, service in SERVICES.items():
        if check := service.get("healthcheck"):
            assert int(check["interval"].removesuffix("s")) * check["retries"] >= 60, name


def test_no_secret_is_in_the_file() -> None:
    for name, service in SERVICES.items():
        for key, value in (service.get("environment") or {}).items():
            assert not re.search(r"PASSWORD$|SECRET|TOKEN", key), f"{name}: {key}"
            assert not re.search(r"//[^/@]*:[^/@]*@", str(value)), f"{name}: {key} has a password"


def test_everything_is_published_on_loopback_unless_asked_otherwise() -> None:
    published = {name: s["ports"] for name, s in SERVICES.items() if "ports" in s}
    assert published == {"web": ["127.0.0.1:8443:8443"], "node-1": ["127.0.0.1:30007:30007"]}


def test_database_and_broker_are_on_a_network_without_hosts() -> None:
    assert COMPOSE["networks"]["control"]["internal"] is True
    assert SERVICES["postgres"]["networks"] == SERVICES["redis"]["networks"] == ["control"]
    for name, service in SERVICES.items():
        if service.get("image") == "timonel-host:local":
            assert list(service["networks"]) == ["hosts"], name


def test_no_container_is_privileged() -> None:
    for name, service in SERVICES.items():
        assert "privileged" not in service
        assert service.get("cap_add", []) == (["NET_ADMIN"] if name in NODES else []), name


def test_fixed_addresses_are_apart_from_each_other_and_from_those_given_out() -> None:
    (config,) = COMPOSE["networks"]["hosts"]["ipam"]["config"]
    network, given_out = IPv4Network(config["subnet"]), IPv4Network(config["ip_range"])
    fixed = [address_of(name) for name, s in SERVICES.items() if isinstance(s["networks"], dict)]
    assert len(fixed) == len(set(fixed)) == 9
    for address in fixed:
        assert address in network
        assert address not in given_out
    assert not network.overlaps(IPv4Network("10.96.0.0/16")), "the default range of Services"


def test_every_pod_of_the_samples_has_its_workload() -> None:
    wanted = {}
    for sample in SAMPLES:
        for pod in sample.pods:
            place = NODES[pod.node] if pod.is_on_node else pod.name
            wanted[place] = [pod.name, *(str(target_port) for _, target_port in sample.ports.values())]
    workloads = [n for n, s in SERVICES.items() if s.get("entrypoint") == ["backend.py"] or n in NODES]
    assert {name: words(name) for name in workloads} == wanted


def test_every_node_has_a_volume_of_its_own_that_enrol_can_only_read() -> None:
    for name in NODES:
        assert SERVICES[name]["volumes"] == [f"{name}:/var/lib/host"]
        assert SERVICES[name]["hostname"] == name
        assert f"{name}:/hosts/{name}:ro" in SERVICES["enrol"]["volumes"]
        assert [s for s in SERVICES if f"{name}:" in str(SERVICES[s].get("volumes"))] == ["enrol", name]


def test_every_command_exists() -> None:
    commands = {path.stem for path in (ROOT / "services_app/management/commands").glob("*.py")}
    scripts = {path.name for path in CONTROL_PLANE_IMAGE.iterdir()}
    for name in of_control_plane():
        program, *rest = words(name)
        assert program in scripts, name
        if program == "timonel":
            assert rest[0] in commands, name
    for command in re.findall(
        r"^\s*(?:exec )?timonel (\w+)", (CONTROL_PLANE_IMAGE / "enrol").read_text(), re.MULTILINE
    ):
        assert command in commands


def test_every_volume_and_network_is_declared_and_used() -> None:
    volumes = {text.partition(":")[0] for s in SERVICES.values() for text in s.get("volumes", ())}
    assert volumes == set(COMPOSE["volumes"])
    assert {n for s in SERVICES.values() for n in s["networks"]} == set(COMPOSE["networks"])


def test_the_database_is_set_as_the_embedded_one() -> None:
    """As far as its image leaves it to us; the rest is speed."""
    given = dict(word.split("=") for word in words("postgres") if "=" in word)
    assert given == {name: POSTGRES_SETTINGS[name] for name in given}
    assert {"max_connections", "client_connection_check_interval", "idle_in_transaction_session_timeout"} == set(given)


def test_what_runs_on_comes_back_after_the_machine_did_and_what_ends_does_not() -> None:
    ends = {"database-password", "prepare", "enrol"}
    assert {name for name, s in SERVICES.items() if s.get("restart") != "unless-stopped"} == ends


def test_compose_check_restarts_every_kind_of_service_and_stops_the_whole_control_plane() -> None:
    assert set(RESTARTED) <= set(SERVICES)
    assert set(CONTROL_PLANE) < set(RESTARTED)
    assert {"node-2", "myapp-2"} < set(RESTARTED)


def test_the_host_has_every_package_a_node_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.process, "find", lambda name: None)
    needed = {m[1] for p in host.preflight() if (m := re.search(r"install package (\S+)$", p["message"]))}
    assert len(needed) >= 5
    assert needed | {"openssh-server", "python3"} <= set((NODE_IMAGE / "Dockerfile").read_text().split())


def test_the_user_of_the_control_plane_is_whom_a_host_lets_read_its_login_key() -> None:
    (user,) = re.findall(r"useradd --uid (\d+)", (CONTROL_PLANE_IMAGE / "Dockerfile").read_text())
    assert f'chown {user} "$own/login"' in (NODE_IMAGE / "start").read_text()


def test_the_image_is_given_what_it_copies_and_nothing_else() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", (CONTROL_PLANE_IMAGE / "Dockerfile").read_text(), re.MULTILINE)
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[1] == "*"
    assert sorted(line[1:] for line in lines if line.startswith("!")) == sorted(" ".join(copied).split())
    for path in " ".join(copied).split():
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize(
    "path", sorted(p for d in (CONTROL_PLANE_IMAGE, NODE_IMAGE) for p in d.iterdir()), ids=lambda p: p.name
)
def test_scripts_can_be_run_and_read(path: Path) -> None:
    first = path.read_text().partition("\n")[0]
    assert bool(path.stat().st_mode & stat.S_IXUSR) == first.startswith("#!")
    if first == "#!/bin/sh":
        done = subprocess.run(["sh", "-n", str(path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    elif "python" in first:
        ast.parse(path.read_text(), feature_version=(3, 11))


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not installed")
def test_compose_reads_the_file() -> None:
    done = subprocess.run(
        ["docker-compose", "config", "--services"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == sorted(SERVICES)


# The workload and how it is asked


@pytest.fixture
def backend() -> Iterator[tuple[int, int]]:
    """Two ports of a backend named shop-1."""
    ports = []
    for _ in range(2):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            ports.append(s.getsockname()[1])
    process = subprocess.Popen([sys.executable, str(BACKEND), "shop-1", *map(str, ports)])
    try:
        deadline = time.monotonic() + 10
        while any("error" in ask_often("127.0.0.1", port, 1, 1.0)[0] for port in ports):
            assert time.monotonic() < deadline, "the backend does not start"
            time.sleep(0.02)
        yield ports[0], ports[1]
    finally:
        process.terminate()
        process.wait(timeout=10)


def test_a_workload_says_on_each_port_who_it_is_and_who_asked(backend: tuple[int, int]) -> None:
    for port in backend:
        first, second = ask_often("127.0.0.1", port, 2, 1.0)
        assert first | {"client_port": 0} == {
            "backend": "shop-1",
            "address": "127.0.0.1",
            "port": port,
            "client": "127.0.0.1",
            "client_port": 0,
        }
        assert first["client_port"] != second["client_port"], "a connection each"


def test_the_probe_prints_its_answers_when_it_is_fed_to_python(backend: tuple[int, int]) -> None:
    """As it is run inside containers."""
    source = (ROOT / "services_app/lab/http_probe.py").read_text()
    argv = [sys.executable, "-I", "-", "127.0.0.1", str(backend[0]), "3", "1.0"]
    done = subprocess.run(argv, input=source, capture_output=True, text=True, timeout=30, check=True)
    assert [answer["backend"] for answer in yaml.safe_load(done.stdout)] == ["shop-1"] * 3


def test_the_probe_says_why_nobody_answered() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert ask_often("127.0.0.1", closed.getsockname()[1], 1, 1.0) == [{"error": "refused"}]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert ask_often("127.0.0.1", silent.getsockname()[1], 1, 0.1) == [{"error": "timeout"}]
    with socket.create_server(("127.0.0.1", 0)) as other:

        def greet() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n[]")

        thread = threading.Thread(target=greet)
        thread.start()
        assert ask_often("127.0.0.1", other.getsockname()[1], 1, 1.0) == [{"error": "not an answer of a backend"}]
        thread.join()


# With and without an engine


@pytest.mark.parametrize(
    "programs, expected",
    [
        ({"docker": "exit 0", "docker-compose": "exit 0"}, ["docker", "compose"]),
        ({"docker": '[ "$1" = version ]', "docker-compose": "exit 0"}, ["docker-compose"]),
        ({"docker": '[ "$1" = version ]'}, "neither `docker compose` nor `docker-compose`"),
        ({"docker": "echo 'cannot connect' >&2; exit 1"}, "no engine answers: cannot connect"),
        ({}, "docker is not installed"),
    ],
    ids=["plugin", "program of its own", "engine alone", "no engine", "nothing"],
)
def test_compose_is_looked_for_as_plugin_and_as_program(
    programs: dict[str, str], expected: list[str] | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, script in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    if isinstance(expected, list):
        assert find_compose() == expected
    else:
        with pytest.raises(NoEngine, match=expected):
            find_compose()


def check_without_engine(*options: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"DOCKER_HOST": "unix:///nonexistent/docker.sock"}
    argv = [sys.executable, "manage.py", "compose_check", *options]
    return subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def test_compose_check_says_that_it_skipped() -> None:
    done = check_without_engine()
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.strip().splitlines()
    assert line.startswith("SKIPPED, nothing was checked: ")
    assert "apt-get install docker.io" in line


def test_compose_check_fails_without_an_engine_where_one_is_required() -> None:
    done = check_without_engine("--required")
    assert done.returncode == 1
    assert "SKIPPED" not in done.stdout
    assert "apt-get install docker.io" in done.stderr
