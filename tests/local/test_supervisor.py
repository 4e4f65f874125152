"""`make serve`: starts everything of its own, starts again what dies, leaves nothing behind."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services_app.lab.client import CORE, ApiClient

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def directory() -> Iterator[Path]:
    # Not pytest's own: PostgreSQL's user may not enter that, and has to pass.
    path = Path(tempfile.mkdtemp(prefix="timonel-serve-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def serve(directory: Path) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("DATABASE_URL", "REDIS_URL")}
    environment |= {"TIMONEL_DATA_DIR": str(directory), "TIMONEL_BIND": "127.0.0.1:0", "TIMONEL_WEB_PROCESSES": "1"}
    return subprocess.Popen(
        [sys.executable, "manage.py", "serve"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_until_up(process: subprocess.Popen[str]) -> str:
    """What it printed until it runs."""
    assert process.stdout is not None
    printed = ""
    for line in process.stdout:
        printed += line
        if "Ctrl-C" in line:
            return printed
    raise AssertionError(printed)


def processes_of(directory: Path) -> list[str]:
    """The command lines of processes that work in a directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if str(directory) in (entry / "cmdline").read_bytes().decode() + os.readlink(entry / "cwd"):
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
    return found


def test_serve_runs_answers_and_leaves_nothing(directory: Path) -> None:
    process = serve(directory)
    try:
        printed = wait_until_up(process)
        assert str(directory / "kubeconfig") in printed
        api = ApiClient(directory / "kubeconfig")
        assert api.request("GET", f"{CORE}/services")["items"][0]["metadata"]["name"] == "kubernetes"
        second = serve(directory)
        assert second.wait(30) == 1
        assert second.stdout is not None
        assert "another control plane runs" in second.stdout.read()
        assert api.request("GET", f"{CORE}/namespaces")["items"]
    finally:
        process.send_signal(signal.SIGINT)
    assert process.wait(40) == 0
    assert processes_of(directory) == []


def test_data_and_secrets_stay_between_starts(directory: Path) -> None:
    tokens = []
    for start in range(2):
        process = serve(directory)
        try:
            wait_until_up(process)
            api = ApiClient(directory / "kubeconfig")
            tokens.append((directory / "kubeconfig").read_text().split("token:")[1])
            if start == 0:
                api.ensure_namespace("kept")
            assert "kept" in [item["metadata"]["name"] for item in api.request("GET", f"{CORE}/namespaces")["items"]]
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(40) == 0
    assert tokens[0] == tokens[1]


def test_nothing_is_left_when_the_supervisor_is_killed(directory: Path) -> None:
    process = serve(directory)
    wait_until_up(process)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while (left := processes_of(directory)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        ("TIMONEL_BIND", "nonsense", "write address and port such as 127.0.0.1:8443"),
        ("TIMONEL_SERVICE_CIDRS", "10.96.0.0/33", "10.96.0.0/33"),
        ("TIMONEL_NODE_PORT_RANGE", "9-1", "30000-32767"),
    ],
)
def test_a_bad_setting_is_named_with_its_rule(directory: Path, setting: str, value: str, told: str) -> None:
    environment = {**os.environ, "TIMONEL_DATA_DIR": str(directory), setting: value}
    done = subprocess.run(
        [sys.executable, "manage.py", "serve"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert setting in done.stderr
    assert told in done.stderr
