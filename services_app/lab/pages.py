"""How long the dashboard's pages take among many Services and nodes: over HTTPS with a kept connection, logged in."""

import http.client
import re
import time
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from urllib.parse import urlencode, urlsplit

import psycopg

from services_app.lab.client import CORE, ApiClient

# Nodes as the tables know them: enrolled, live and up to date. None is tried: the next attempt is a day away.
_SIMULATED_NODES = """
    WITH simulated AS (SELECT 'simulated-' || n AS name, ('198.18.' || n / 250 || '.' || n %% 250 + 1) AS address
                         FROM generate_series(1, %(count)s::int) AS n),
    access AS (INSERT INTO services_app_nodeaccess
                 (node, address, port, "user", host_key, ssh_key_id, enrolled_at, enrolled_by)
               SELECT name, address, 22, 'root', 'ssh-ed25519 AAAA', (SELECT min(id) FROM services_app_sshkey), now(), ''
                 FROM simulated RETURNING node)
    INSERT INTO services_app_nodesync
      (node, state, reason, message, applied_revision, digest, rejected, problems, facts, agent_version, last_report_at,
       last_apply_ms, failures, next_attempt_at, full_wanted)
    SELECT node, 'Live', '', '', (SELECT revision FROM services_app_controlplane), '', '{}', '[]', '{}', '0.1.0', now(),
           11.5, 0, now() + interval '1 day', false
      FROM access
"""


def simulate_nodes(api: ApiClient, database_url: str, count: int) -> None:
    """Enrolled nodes that answer nobody, with a Node object each."""
    for number in range(1, count + 1):
        address = f"198.18.{number // 250}.{number % 250 + 1}"
        status = {"addresses": [{"type": "InternalIP", "address": address}]}
        api.create(f"{CORE}/nodes", {"metadata": {"name": f"simulated-{number}"}, "status": status})
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(_SIMULATED_NODES, {"count": count})
        connection.execute("ANALYZE")


@dataclass
class Browser:
    """Somebody who is logged in; keeps one connection and the cookies."""

    api: ApiClient
    cookies: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = urlsplit(self.api.url)
        self._origin = self.api.url
        self._connection = http.client.HTTPSConnection(
            parts.hostname or "", parts.port or 443, context=self.api.tls, timeout=60
        )

    def log_in(self, name: str, password: str) -> None:
        """Raises RuntimeError when the page does not let them in."""
        path = "/ui/login/"
        form = self._ask("GET", path).decode()
        token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', form)
        values = {"username": name, "password": password, "csrfmiddlewaretoken": token[1] if token else ""}
        self._ask("POST", path, urlencode(values))
        if "sessionid" not in self.cookies:
            raise RuntimeError(f"cannot log in as {name}")

    def load(self, path: str) -> float:
        """The milliseconds until the whole page was there. Raises RuntimeError unless it is one."""
        begin = time.perf_counter()
        self._ask("GET", path)
        return (time.perf_counter() - begin) * 1000

    def press(self, path: str) -> None:
        """Press a page's button that needs no more than that. Raises RuntimeError unless it leads on."""
        self._ask("POST", path, urlencode({"csrfmiddlewaretoken": self.cookies["csrftoken"]}))

    def _ask(self, method: str, path: str, body: str | None = None) -> bytes:
        headers = {
            "Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items()),
            "Referer": f"{self._origin}{path}",
            "Content-Type": "application/x-www-form-urlencoded",
        }

        def answered() -> http.client.HTTPResponse:
            self._connection.request(method, path, body, headers)
            return self._connection.getresponse()

        try:
            response = answered()
        except ConnectionError:  # the server ends a connection that idled for long
            self._connection.close()
            response = answered()
        content = response.read()
        for line in response.headers.get_all("Set-Cookie") or ():
            self.cookies.update({name: morsel.value for name, morsel in SimpleCookie(line).items()})
        if response.status != (200 if method == "GET" else 302):
            raise RuntimeError(f"{method} {path} was answered {response.status}")
        return content
