"""The file kubectl reads: where the API is, whom to trust, which token to show."""

import base64
import os
from pathlib import Path

import yaml


def write(path: Path, *, server: str, ca: Path, token: str) -> None:
    """Write it readable for its owner only; the file appears whole or not at all."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "timonel",
                "cluster": {
                    "server": server,
                    "certificate-authority-data": base64.b64encode(ca.read_bytes()).decode(),
                },
            }
        ],
        "users": [{"name": "admin", "user": {"token": token}}],
        "contexts": [{"name": "timonel", "context": {"cluster": "timonel", "user": "admin", "namespace": "default"}}],
        "current-context": "timonel",
    }
    new = path.with_name(path.name + ".new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        yaml.safe_dump(document, file, sort_keys=False)
    new.rename(path)


def read_token(path: Path) -> str | None:
    """The token a kubeconfig shows; None when there is none to read."""
    try:
        return yaml.safe_load(path.read_text())["users"][0]["user"]["token"]
    except (OSError, KeyError, IndexError, TypeError, yaml.YAMLError):
        return None
