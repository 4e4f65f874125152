"""docs/settings.md and docs/dependencies.md name exactly what there is, no more and no less."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = ROOT / "services_app/settings.py"


def rows(text: str) -> dict[str, list[str]]:
    """First cell of every table row, without its backquotes -> the other cells. Fails for one that comes twice."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if match := re.match(r"\| `([^`]+)` \|(.*)\|$", line):
            assert match[1] not in found, f"{match[1]} is documented twice"
            found[match[1]] = [cell.strip() for cell in match[2].split("|")]
    return found


def section(text: str, title: str) -> dict[str, list[str]]:
    """The rows under one heading."""
    return rows(text.partition(f"\n## {title}\n")[2].partition("\n## ")[0])


def read_settings() -> dict[str, object]:
    """Setting read from the environment -> its default where the code has a plain one, else None."""
    found: dict[str, object] = {}
    for node in ast.walk(ast.parse(SETTINGS.read_text())):
        if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant):
            continue
        call = ast.unparse(node.func)
        if not (call.startswith("read_") or call in ("os.environ.get", "os.getenv")):
            continue
        default = node.args[1] if len(node.args) > 1 else None
        plain = default.value if isinstance(default, ast.Constant) else None
        found[node.args[0].value] = plain or found.get(node.args[0].value)
    return found


DOCUMENTED = rows((ROOT / "docs/settings.md").read_text())
DEPENDENCIES = (ROOT / "docs/dependencies.md").read_text()


def test_every_setting_is_documented_and_every_documented_one_exists() -> None:
    found = read_settings()
    assert len(found) > 8, "the reader of settings.py finds them"
    assert sorted(DOCUMENTED) == sorted(found)


def test_nothing_else_in_settings_reads_the_environment() -> None:
    names = {
        match for match in re.findall(r'environ\["([^"]+)"\]|environ\[(\w+)\]', SETTINGS.read_text()) if any(match)
    }
    assert not names, "by os.environ[…] a setting would escape this test"


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_documented_setting_has_default_meaning_and_example(name: str) -> None:
    default, meaning, example = DOCUMENTED[name]
    assert default
    assert len(meaning) > 20
    assert re.fullmatch(r"`[^`]+`", example)
    if (plain := read_settings()[name]) is not None:
        assert default == f"`{plain}`"


def load_settings(values: dict[str, str], directory: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in DOCUMENTED}
    environment["TIMONEL_DATA_DIR"] = str(directory)
    program = "import django; django.setup(); print('loaded')"
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**environment, "DJANGO_SETTINGS_MODULE": "services_app.settings", **values},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_all_examples_are_accepted(tmp_path: Path) -> None:
    done = load_settings({name: cells[2].strip("`") for name, cells in DOCUMENTED.items()}, tmp_path)
    assert done.stdout == "loaded\n", done.stderr


@pytest.mark.parametrize(
    "name, value",
    [
        ("TIMONEL_SERVICE_CIDRS", "10.96.0.0/31"),
        ("TIMONEL_SERVICE_CIDRS", "somewhere"),
        ("TIMONEL_POD_CIDRS", "10.244.0.1/16"),
        ("TIMONEL_NODE_PORT_RANGE", "32767-30000"),
        ("TIMONEL_CLUSTER_DOMAIN", "two words"),
        ("TIMONEL_BIND", "8443"),
        ("TIMONEL_SECRET_KEY", "short"),
        ("TIMONEL_WEB_PROCESSES", "0"),
        ("TIMONEL_WORKER_THREADS", "many"),
        ("TIMONEL_DATABASE_POOL_SIZE", "1000"),
        ("TIMONEL_LOG_LEVEL", "LOUD"),
        ("DATABASE_URL", "mysql://db.example.org/timonel"),
        ("REDIS_URL", "redis.example.org"),
    ],
)
def test_a_bad_value_stops_the_start_and_says_what_to_write(name: str, value: str, tmp_path: Path) -> None:
    done = load_settings({name: value}, tmp_path)
    assert done.returncode
    last = done.stderr.strip().splitlines()[-1]
    assert f"{name}=" in last
    assert "is not usable" in last
    assert "write" in last


def bare(requirement: str) -> str:
    return re.split(r"[\[<>=~! ;]", requirement)[0]


def test_every_python_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert sorted(section(DEPENDENCIES, "At run time")) == sorted(map(bare, project["dependencies"]))
    assert sorted(section(DEPENDENCIES, "For development")) == sorted(
        map(bare, project["optional-dependencies"]["dev"])
    )


def test_every_debian_package_has_its_reason() -> None:
    install = (ROOT / "services_app/local/install.sh").read_text()
    needed = set(re.findall(r"^ +need \S+ (\S+)$", install, re.MULTILINE))
    needed |= set(re.findall(r'missing="\$missing ([a-z0-9-]+)"', install))
    for script in (ROOT / "services_app/local").glob("*.sh"):
        needed |= set(re.findall(r"install\.sh ([a-z0-9 -]+)$", script.read_text(), re.MULTILINE))
    assert len(needed) > 8, "the reader of install.sh finds them"
    assert sorted(section(DEPENDENCIES, "Debian packages")) == sorted(needed)


def test_every_vendored_kit_has_its_reason() -> None:
    vendored = (ROOT / "static/vendor/README.md").read_text()
    folders = {path.name for path in (ROOT / "static/vendor").iterdir() if path.is_dir()}
    kits = rows(vendored)
    assert folders == set(kits)
    packages = {match[1] for cells in kits.values() if (match := re.match(r"`([^`]+)`", cells[0]))}
    assert set(section(DEPENDENCIES, "Vendored files")) == packages


def test_every_reason_is_a_sentence() -> None:
    for name, (reason,) in rows(DEPENDENCIES).items():
        assert reason.endswith("."), name
