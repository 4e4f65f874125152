"""Asks backends over HTTP who they are; standard library only, because it is also run inside containers.

python3 - HOST PORT COUNT TIMEOUT_S < http_probe.py      prints the answers as a JSON list
"""

import http.client
import json
import sys
from typing import Any


def ask_often(host: str, port: int, count: int, timeout_s: float) -> list[dict[str, Any]]:
    """As many answers, one connection each: what the backend says, or {"error": reason}."""
    return [_ask(host, port, timeout_s) for _ in range(count)]


def _ask(host: str, port: int, timeout_s: float) -> dict[str, Any]:
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request("GET", "/")
        said = json.loads(connection.getresponse().read())
    except TimeoutError:
        return {"error": "timeout"}
    except ConnectionRefusedError:
        return {"error": "refused"}
    except OSError as err:
        return {"error": (err.strerror or str(err)).lower()}
    except (http.client.HTTPException, ValueError):
        return {"error": "not an answer of a backend"}
    finally:
        connection.close()
    return said if isinstance(said, dict) and "backend" in said else {"error": "not an answer of a backend"}


if __name__ == "__main__":
    print(json.dumps(ask_often(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))))
