"""Records as resources for the node's authoritative server."""

from collections.abc import Iterable

from services_app.plan.routing import Record

Resource = tuple[str, str, str]
DRIVER = "dns"
TTL_S = 5  # CoreDNS' default for the cluster zone; short, so that clients follow a change


def render_records(records: Iterable[Record]) -> list[Resource]:
    """One resource a record: ("dns", "<name> <TYPE> <data>", "<ttl in seconds>")."""
    return [(DRIVER, f"{r.name} {r.type} {r.data}", str(TTL_S)) for r in records]
