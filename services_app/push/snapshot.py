"""What to send to a node: the owners changed since its revision, with their full resources as of one revision.

Rendered once and sent to many: what does not depend on the node is kept by owner and revision.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from django.conf import settings
from django.db import connection, transaction

from agents.state import digest_of_sums, owner_sum
from services_app import changes, models, store
from services_app.plan.endpoints import zone_of
from services_app.render.node import (
    BASE_OWNER,
    Cluster,
    NodeNetwork,
    OwnerState,
    Rendered,
    Resource,
    network_of,
    render_base,
    render_owner,
)
from services_app.spec import kube_proxy

KEPT = 50_000  # rendered owners; a Service with ten endpoints takes some 5 KB


@dataclass(frozen=True)
class Delta:
    """What a node gets. since None: everything, what is not named goes. owners: name -> resources.

    node_revision: of the Node object that its base was made from; 0 without one.
    """

    revision: int
    since: int | None
    owners: dict[str, list[Resource]]
    node_revision: int = 0

    def message(self, cluster: str) -> dict[str, Any]:
        """The agent's `apply` request."""
        return {
            "op": "apply",
            "cluster": cluster,
            "revision": self.revision,
            "since": self.since,
            "owners": self.owners,
        }


class _Kept:
    """Rendered owners by (owner, changed revision), oldest dropped first; shared by the threads of a process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rendered: OrderedDict[tuple[str, int], Rendered] = OrderedDict()

    def get(self, key: tuple[str, int]) -> Rendered | None:
        with self._lock:
            return self._rendered.get(key)

    def put(self, key: tuple[str, int], rendered: Rendered) -> None:
        with self._lock:
            self._rendered[key] = rendered
            while len(self._rendered) > KEPT:
                self._rendered.popitem(last=False)


_kept = _Kept()


def cluster() -> Cluster:
    """What every node's base depends on: ranges that go are routed as long as they are in use. One query."""
    virtual = store.cluster_settings().virtual_cidrs
    return Cluster(virtual, settings.TIMONEL_CLUSTER_DOMAIN, tuple(settings.TIMONEL_POD_CIDRS))


@dataclass(frozen=True)
class _Reading:
    """What changed after `since`, as of `revision`; `newest` was the last revision for nodes then.

    has_base: whether nodes' base may have changed, too.
    """

    since: int | None
    newest: int
    revision: int
    rendered: dict[str, Rendered]
    has_base: bool


class _Readings:
    """The last few readings: nodes that are at the same revision share one, and wait for it instead of reading too."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: OrderedDict[int | None, _Reading] = OrderedDict()

    def after(self, since: int | None, at_least: int | None) -> _Reading:
        """at_least: a reading with this change is new enough; None: only one with the last that there is."""
        with self._lock:
            found = self._last.get(since)
            if found is not None and at_least is not None and found.newest >= at_least:
                return found
            newest = newest_owner_revision()
            if found is None or found.newest != newest:
                found = self._last[since] = _read(since, newest)
                self._last.move_to_end(since)
                while len(self._last) > 4:
                    self._last.popitem(last=False)
        return found


_readings, _readings_of_all = _Readings(), _Readings()  # who wants what changed does not wait for who wants everything


def read_delta(node: str, address: str, since: int | None, *, with_base: bool, at_least: int | None = None) -> Delta:
    """The delta for a node from a revision, or everything when since is None or the log has lost a change for nodes since.

    All of it is of one revision but the base, which is as of now. address: the node's own when its Node names none.
    at_least: as of _Readings.after.
    """
    reading = (_readings_of_all if since is None else _readings).after(since, at_least)
    has_base = with_base or reading.has_base
    document, node_revision, zone = None, 0, ""
    if has_base or any(rendered.nearby for rendered in reading.rendered.values()):
        document, node_revision = _node(node)
        zone = zone_of(document)
    owners = {owner: rendered.on(node, zone) for owner, rendered in reading.rendered.items()}
    if has_base:
        owners[BASE_OWNER] = _base(document, address)
    return Delta(reading.revision, reading.since, owners, node_revision)


class Expected(NamedTuple):
    """What a node must hold: the newest revision, the digest of exactly that, and the Node's revision its base was made from."""

    revision: int
    digest: str
    node_revision: int


def expected(node: str, address: str) -> Expected:
    """As of the newest revision; of owners that are kept nothing is worked out."""
    reading = _readings_of_all.after(None, None)
    document, node_revision = _node(node)
    zone = zone_of(document)
    sums = [rendered.sum_on(node, zone) for rendered in reading.rendered.values()]
    digest = digest_of_sums([*sums, owner_sum(BASE_OWNER, _base(document, address))])
    return Expected(reading.revision, digest, node_revision)


def _node(name: str) -> tuple[dict[str, Any] | None, int]:
    """A Node's document and revision; None and 0 when there is none."""
    found = models.Node.objects.filter(name=name).values_list("document", "revision").first()
    text, revision = found or (None, 0)
    return json.loads(text) if text else None, revision


def _base(document: dict[str, Any] | None, address: str) -> list[Resource]:
    return _Bases().of(document, network_of(document, address))


class _Bases:
    """What Nodes' bases are made of besides the Nodes, as of now. Two reads, for any number of Nodes."""

    def __init__(self) -> None:
        self._cluster, self._config_map = cluster(), _proxy_config_map()

    def of(self, document: dict[str, Any] | None, network: NodeNetwork) -> list[Resource]:
        return render_base(self._cluster, network, kube_proxy.configuration(self._config_map, document))


class OnNode(NamedTuple):
    """A node's own addresses, and what it should hold: owner -> resources."""

    addresses: list[str]
    owners: dict[str, list[Resource]]


def owner_on_nodes(owner: str, nodes: Mapping[str, str]) -> dict[str, OnNode]:
    """What these nodes should hold of one owner, and their bases, as of now. nodes: with the address each was enrolled by.

    The number of queries does not depend on that of nodes.
    """
    rendered = _read_owners({owner})[owner]
    documents = dict(models.Node.objects.filter(name__in=[*nodes]).values_list("name", "document"))
    bases, found = _Bases(), {}
    for node, address in nodes.items():
        document = json.loads(documents[node]) if node in documents else None
        network = network_of(document, address)
        owners = {BASE_OWNER: bases.of(document, network), owner: rendered.on(node, zone_of(document))}
        found[node] = OnNode([str(one) for one in network.addresses], owners)
    return found


def _proxy_config_map() -> dict[str, Any] | None:
    rows = models.ConfigMap.objects.filter(namespace=kube_proxy.NAMESPACE, name=kube_proxy.NAME)
    text = rows.values_list("document", flat=True).first()
    return json.loads(text) if text else None


def _read(since: int | None, newest: int) -> _Reading:
    """In one read-only transaction, so that all of it is of one revision."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        plane = models.ControlPlane.objects.get(id=1)
        if since is not None and since < plane.compacted_for_nodes:
            since = None
        changed = None if since is None else changes.owners_changed(since)
        rendered = _read_owners(None if changed is None else changed - {changes.BASE_OWNER})
        has_base = changed is None or changes.BASE_OWNER in changed
    return _Reading(since, newest, plane.revision, rendered, has_base)


def newest_owner_revision() -> int:
    """The last revision nodes must have; 0 when nothing ever concerned them. One query by index, two after a quiet hour."""
    newest = changes.newest_for_nodes(models.Change.objects.all())
    if newest is None:
        newest = models.ControlPlane.objects.filter(id=1).values_list("compacted_for_nodes", flat=True).first()
    return newest or 0


def _read_owners(wanted: set[str] | None) -> dict[str, Rendered]:
    """Owner -> what it renders to; None: every owner there is. A wanted owner that is gone renders to nothing."""
    where, values = "", []
    if wanted is not None:
        if not wanted:
            return {}
        where = " WHERE (namespace, name) IN (SELECT * FROM unnest(%s::text[], %s::text[]))"
        pairs = [owner.split("/", 1) for owner in sorted(wanted)]
        values = [[p[0] for p in pairs], [p[1] for p in pairs]]
    found: dict[str, Rendered] = {owner: Rendered() for owner in wanted or ()}
    missing: dict[str, tuple[int, Any]] = {}
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT namespace, name, changed_revision, uid FROM services_app_service{where}", values)
        while rows := cursor.fetchmany(500):  # to make all of them in one go would hold up who pushes meanwhile
            for namespace, name, changed, uid in rows:
                owner = f"{namespace}/{name}"
                kept = _kept.get((owner, changed))
                if kept is None:
                    missing[owner] = (changed, uid)
                else:
                    found[owner] = kept
    names = sorted(missing)
    if not names:
        return found
    known = cluster()
    for start in range(0, len(names), 500):
        for state in _read_states(names[start : start + 500], missing):
            rendered = render_owner(state, known)
            _kept.put((state.owner, missing[state.owner][0]), rendered)
            found[state.owner] = rendered
    return found


def _read_states(owners: list[str], rows: dict[str, tuple[int, Any]]) -> list[OwnerState]:
    pairs = [owner.split("/", 1) for owner in owners]
    namespaces, names = [p[0] for p in pairs], [p[1] for p in pairs]
    unnest = "SELECT * FROM unnest(%s::text[], %s::text[])"
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT namespace, name, document FROM services_app_service WHERE (namespace, name) IN ({unnest})",
            [namespaces, names],
        )
        services = {f"{namespace}/{name}": json.loads(text) for namespace, name, text in cursor.fetchall()}
        cursor.execute(
            "SELECT namespace, service_name, document FROM services_app_endpointslice"
            f" WHERE (namespace, service_name) IN ({unnest}) ORDER BY namespace, name",
            [namespaces, names],
        )
        slices: dict[str, list[Any]] = {}
        for namespace, name, text in cursor.fetchall():
            slices.setdefault(f"{namespace}/{name}", []).append(json.loads(text))
        cursor.execute(
            "SELECT service_id, port, policy, id FROM services_app_endpointgroup WHERE service_id = ANY(%s)",
            [[rows[owner][1] for owner in owners]],
        )
        groups: dict[Any, dict[tuple[str, str], int]] = {}
        for uid, port, policy, number in cursor.fetchall():
            groups.setdefault(uid, {})[port, policy] = number
    return [
        OwnerState(owner, services[owner], tuple(slices.get(owner, ())), groups.get(rows[owner][1], {}))
        for owner in owners
        if owner in services
    ]
