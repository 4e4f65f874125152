"""The agent's commands. `serve` is the control plane's; the others are for people and for the boot."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import logging
import logging.handlers
import os
import pwd
import shutil
import signal
import sys
from pathlib import Path

from agents import health, host, planes, process, upgrade
from agents.errors import AgentError
from agents.lock import Lock
from agents.node import DIRECTORY, PROGRAM, RUN_DIRECTORY, Node
from agents.serve import serve
from agents.state import ApplyError
from agents.version import VERSION

UNIT, SUDO_RULE = Path("/etc/systemd/system/timonel-agent.service"), Path("/etc/sudoers.d/timonel")
KEY_COMMENT = "timonel control plane"


def main(arguments: list[str] | None = None) -> None:
    """Run a command; exit code 0, or 1 with a sentence on standard error."""
    parser = argparse.ArgumentParser(prog="timonel-agent", description="Timonel's agent on a node")
    parser.add_argument("--version", action="version", version=VERSION)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="answer the control plane on standard input and output")
    commands.add_parser("preflight", help="say what this host lacks to be a node, as JSON")
    adopt = commands.add_parser("adopt", help="belong to a control plane")
    adopt.add_argument("cluster", help="its uid")
    adopt.add_argument("--signer", required=True, help="the public key that may sign newer agents")
    commands.add_parser("restore", help="bring what was pushed last into force, as at boot")
    checks = commands.add_parser("health", help="answer load balancers' health checks, as long as the agent wants them")
    checks.add_argument("directory", type=Path, help="where it says which")
    commands.add_parser("status", help="say what this node holds, as JSON")
    commands.add_parser("cleanup", help="take everything of Timonel off this host")
    options = parser.parse_args(arguments)
    try:
        _COMMANDS[options.command](options)
    except (AgentError, ApplyError, OSError, ValueError) as err:
        logging.getLogger(__name__).error("%s failed: %s", options.command, err)
        print(f"timonel-agent {options.command}: {err}", file=sys.stderr)
        sys.exit(1)


def _serve(options: argparse.Namespace) -> None:
    _log_to_file()
    _collect_rarely()
    lock = Lock(DIRECTORY / "lock")
    serve(Node())
    del lock


def _preflight(options: argparse.Namespace) -> None:
    print(json.dumps({"agent": VERSION, "problems": host.preflight(), "facts": host.facts()}))


def _adopt(options: argparse.Namespace) -> None:
    lock = Lock(DIRECTORY / "lock")
    Node().adopt(options.cluster)
    upgrade.write_signer(DIRECTORY, options.signer)
    del lock


def _restore(options: argparse.Namespace) -> None:
    _log_to_file()
    _collect_rarely()
    lock = Lock(DIRECTORY / "lock")
    node = Node()
    if node.state.owners:
        node.repair()
    del lock


def _health(options: argparse.Namespace) -> None:
    health.serve(options.directory)


def _status(options: argparse.Namespace) -> None:
    node = Node()
    print(
        json.dumps(
            {
                "agent": VERSION,
                "cluster": node.cluster,
                "revision": node.revision,
                "digest": node.digest,
                "services": len([owner for owner in node.state.owners if owner]),
                "mode": node.state.value("host", "mode") or planes.DEFAULT,
                "rejected": node.rejected(),
                "problems": host.preflight(),
            },
            indent=2,
        )
    )


def _cleanup(options: argparse.Namespace) -> None:
    """Each line printed is something that was undone, or that stays.

    First what is in force, and only when that is gone the files without which it could not be tried again.
    """
    lock = Lock(DIRECTORY / "lock")
    Node().cleanup()
    _end_servers()
    _require_nothing_in_force()
    _say("rules, addresses and routes are taken back, the name servers have ended")
    if UNIT.exists():
        _remove_unit()
        _say("the systemd unit timonel-agent is gone")
    logins = _logins()
    for path in (SUDO_RULE, PROGRAM):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        PROGRAM.parent.rmdir()
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    shutil.rmtree(RUN_DIRECTORY, ignore_errors=True)
    for path in (SUDO_RULE, PROGRAM, DIRECTORY, RUN_DIRECTORY):
        if path.exists():
            _say(f"{path} stays: it cannot be deleted")
    _say("the agent and its files are gone")
    for login in logins:
        _forget_key(login)
    del lock


def _say(line: str) -> None:
    print(line, flush=True)


def _end_servers() -> None:
    """End the servers that run with our files, even if their pid files are lost."""
    ours = (
        *(str(DIRECTORY / name).encode() + b"/" for name in ("dns", "userspace")),
        str(DIRECTORY / "health").encode(),
    )
    here = os.readlink("/proc/self/ns/pid")
    for entry in Path("/proc").iterdir():
        try:
            number = int(entry.name)
            words = (entry / "cmdline").read_bytes().split(b"\0")
            # A container's processes are seen from here as well, and may be those of a node of its own.
            if any(word.startswith(ours) for word in words[1:]) and os.readlink(entry / "ns/pid") == here:
                os.kill(number, signal.SIGKILL)
        except (ValueError, OSError):
            continue


def _require_nothing_in_force() -> None:
    """Raises AgentError HostFailed, naming what could not be taken back."""
    left = Node().leftovers()
    for family in ("-4", "-6"):
        routes = process.run(["ip", family, "route", "show", "proto", host.ROUTE_PROTOCOL]).stdout.splitlines()
        left += [f"route {line.strip()}" for line in routes]
    if left:
        raise AgentError("HostFailed", f"cannot take back {', '.join(left)}; nothing else was removed, try again")


def _remove_unit() -> None:
    running = Path("/run/systemd/system").is_dir() and process.find("systemctl") is not None
    if running:
        process.run(["systemctl", "disable", "--quiet", "--now", UNIT.name], timeout_s=30)
    UNIT.unlink(missing_ok=True)
    (UNIT.parent / "multi-user.target.wants" / UNIT.name).unlink(missing_ok=True)
    if running:
        process.run(["systemctl", "daemon-reload"], timeout_s=30)


def _logins() -> list[str]:
    """Who the control plane may have logged in as: a second enrolment may have been by another login than the first."""
    found = {"root", os.environ.get("SUDO_USER", "root")}
    with contextlib.suppress(OSError):
        found |= {line.split()[0] for line in SUDO_RULE.read_text().splitlines() if line.split()}
    return sorted(found)


def _forget_key(login: str) -> None:
    """Take the control plane's key out of a login's authorized_keys.

    As that login: in its own directory it could have put a link to any file in the place of this one.
    """
    groups = os.getgroups()
    try:
        entry = pwd.getpwnam(login)
        directory = Path(entry.pw_dir) / ".ssh"
        os.setgroups(os.getgrouplist(login, entry.pw_gid))
        os.setegid(entry.pw_gid)
        os.seteuid(entry.pw_uid)
        if _drop_lines(directory / "authorized_keys"):
            _say(f"the control plane's key of {login} is gone")
    except KeyError:
        pass  # the login itself is gone
    except OSError as err:
        _say(f"the control plane's key of {login} stays: {err.strerror} ({err.filename})")
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def _drop_lines(path: Path) -> bool:
    """Whether the file had lines of the control plane. A file that holds nothing else goes, and an empty directory."""
    try:
        lines = path.read_text(errors="surrogateescape").splitlines(keepends=True)
    except FileNotFoundError:
        return False
    kept = [line for line in lines if not line.rstrip().endswith(KEY_COMMENT)]
    if kept == lines:
        return False
    if kept:
        path = path.resolve()
        new = path.with_name(path.name + ".timonel")
        new.write_text("".join(kept), errors="surrogateescape")
        new.chmod(path.stat().st_mode & 0o777)
        os.replace(new, path)
    else:
        path.unlink()
        with contextlib.suppress(OSError):
            path.parent.rmdir()
    return True


def _collect_rarely() -> None:
    """What is held has no cycles; to look for them among all of it took a fifth of the time of a big push."""
    gc.set_threshold(50_000, 20, 100)


def _log_to_file() -> None:
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    handler = logging.handlers.RotatingFileHandler(DIRECTORY / "agent.log", maxBytes=1 << 20, backupCount=2)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(process)d %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


_COMMANDS = {
    "serve": _serve,
    "preflight": _preflight,
    "adopt": _adopt,
    "restore": _restore,
    "health": _health,
    "status": _status,
    "cleanup": _cleanup,
}

if __name__ == "__main__":
    main()
