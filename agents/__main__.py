"""The agent's commands. `serve` is the control plane's; the others are for people and for the boot."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import logging.handlers
import os
import shutil
import sys
from pathlib import Path

from agents import host, upgrade
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
    lock = Lock(DIRECTORY / "lock")
    node = Node()
    if node.state.owners:
        node.repair()
    del lock


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
                "rejected": node.rejected(),
                "problems": host.preflight(),
            },
            indent=2,
        )
    )


def _cleanup(options: argparse.Namespace) -> None:
    lock = Lock(DIRECTORY / "lock")
    Node().cleanup()
    for path in (UNIT, SUDO_RULE, PROGRAM):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        PROGRAM.parent.rmdir()
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    shutil.rmtree(RUN_DIRECTORY, ignore_errors=True)
    _forget_key()
    del lock


def _forget_key() -> None:
    """Take the control plane's key out of the login's authorized_keys."""
    path = Path(f"~{os.environ.get('SUDO_USER', 'root')}").expanduser() / ".ssh" / "authorized_keys"
    try:
        lines = path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if not line.rstrip().endswith(KEY_COMMENT)]
        if kept != lines:
            path.write_text("".join(kept))
    except OSError as err:
        print(f"the control plane's key stays in {path}: {err}", file=sys.stderr)


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
    "status": _status,
    "cleanup": _cleanup,
}

if __name__ == "__main__":
    main()
