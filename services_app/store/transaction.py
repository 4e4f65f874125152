"""One write transaction: objects, what is derived from them, and the log, under the counter row.

Order inside: (claims, by the caller) → counter row → read what derivation needs → write → log → commit. Whoever holds
the counter sees everything committed before, so nothing that endpoints depend on can be missed.
"""

import json
import random
from datetime import datetime
from functools import cache
from typing import Any
from uuid import UUID, uuid4

from django.db import IntegrityError, connection
from psycopg.types.json import Jsonb

from services_app import models
from services_app.changes import BASE_OWNER, Writer, encode
from services_app.plan import endpoints
from services_app.plan.routing import group_key
from services_app.spec import kinds
from services_app.spec.errors import AlreadyExists
from services_app.spec.kinds import Kind
from services_app.store.columns import columns_of, model_of

Document = dict[str, Any]

SUFFIX_LETTERS = "bcdfghjklmnpqrstvwxz2456789"  # no vowels, so that no words appear (k8s apimachinery rand)


def name_suffix() -> str:
    """Five random characters, as behind generateName."""
    return "".join(random.choices(SUFFIX_LETTERS, k=5))


def timestamp(moment: datetime) -> str:
    """RFC 3339 in whole seconds, as Kubernetes writes times."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


# Plain SQL, not the ORM: building the queries cost more than running them (15 ms a create, now 4), and all of it is
# time under the counter row.


@cache
def _insert_sql(kind: Kind, columns: tuple[str, ...]) -> str:
    names = ("uid", "namespace", "name", "revision", "created_at", "labels", "document", *columns)
    table = model_of(kind)._meta.db_table
    return f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join(['%s'] * len(names))})"


@cache
def _update_sql(kind: Kind, columns: tuple[str, ...]) -> str:
    names = ("revision", "labels", "document", *columns)
    table = model_of(kind)._meta.db_table
    return f"UPDATE {table} SET {', '.join(f'{name} = %s' for name in names)} WHERE uid = %s"


def _value(value: Any) -> Any:
    return Jsonb(value) if isinstance(value, dict) else value


def _rows(sql: str, *values: Any) -> list[tuple[Any, ...]]:
    """The rows of a query; JSON columns come as text (Django turns psycopg's own loader off)."""
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        return cursor.fetchall()


def _execute(sql: str, *values: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql, values)


class Transaction:
    """The writes of one request. Use inside `transaction.atomic`; call `finish` last."""

    def __init__(self, *, user: str, request_id: str, now: datetime) -> None:
        self.now = now
        self.log = Writer(user=user, request_id=request_id, now=now)
        # Services to derive again, in order of appearance -> their document when it is at hand
        self.affected: dict[tuple[str, str], Document | None] = {}
        self.touched: set[tuple[str, str]] = set()  # Services whose rendering changed without a write of their own
        self.written: set[tuple[str, str]] = set()  # Services whose row says so already

    # Objects

    def insert(self, kind: Kind, document: Document) -> str:
        """Store a new object and return its text. Raises AlreadyExists."""
        metadata = document["metadata"]
        metadata["resourceVersion"] = str(self.log.next_revision())
        text = encode(document)
        columns = columns_of(kind, document)
        if kind is kinds.SERVICE:
            columns["changed_revision"] = self.log.revision
        values = (
            UUID(metadata["uid"]),
            metadata.get("namespace", ""),
            metadata["name"],
            self.log.revision,
            self.now,
            Jsonb(metadata.get("labels") or {}),
            text,
        )
        try:
            _execute(_insert_sql(kind, tuple(columns)), *values, *map(_value, columns.values()))
        except IntegrityError as err:
            if "name_is_unique" in str(err):
                raise AlreadyExists(kind, metadata["name"]) from err
            raise
        self._note(kind, document, text, "ADDED", None)
        return text

    def update(self, kind: Kind, document: Document, previous: str) -> str:
        """Store an object's new state and return its text. previous: its text before."""
        metadata = document["metadata"]
        metadata["resourceVersion"] = str(self.log.next_revision())
        text = encode(document)
        columns = columns_of(kind, document)
        if kind is kinds.SERVICE and owner_of(kind, document, json.loads(previous)):
            columns["changed_revision"] = self.log.revision
        labels = Jsonb(metadata.get("labels") or {})
        sql = _update_sql(kind, tuple(columns))
        _execute(sql, self.log.revision, labels, text, *map(_value, columns.values()), UUID(metadata["uid"]))
        self._note(kind, document, text, "MODIFIED", previous)
        return text

    def delete(self, kind: Kind, document: Document, previous: str) -> str:
        """Remove an object and return its last text, which carries the deletion's revision."""
        metadata = document["metadata"]
        metadata["resourceVersion"] = str(self.log.next_revision())
        text = encode(document)
        _execute(f"DELETE FROM {model_of(kind)._meta.db_table} WHERE uid = %s", UUID(metadata["uid"]))
        self._note(kind, document, text, "DELETED", previous)
        return text

    def finish(self) -> None:
        """Derive endpoints of every affected Service, then store the log."""
        while self.affected:
            namespace, name = next(iter(self.affected))
            self._derive(namespace, name, self.affected.pop((namespace, name)))
        # Everything here commits at once, so any revision of this transaction says the same to a node.
        for namespace, name in sorted(self.touched - self.written):
            _execute(
                "UPDATE services_app_service SET changed_revision = %s WHERE namespace = %s AND name = %s",
                self.log.revision,
                namespace,
                name,
            )
        self.log.finish()

    def _note(self, kind: Kind, document: Document, text: str, verb: str, previous: str | None) -> None:
        before = json.loads(previous) if previous is not None else None
        owner = owner_of(kind, document if verb != "DELETED" else None, before)
        self.log.record(kind.plural, document, text, verb, previous=previous, owner=owner)
        if owner and owner != BASE_OWNER:
            namespace, name = owner.split("/", 1)
            (self.written if kind is kinds.SERVICE else self.touched).add((namespace, name))
        after = document if verb != "DELETED" else None
        if kind is kinds.SERVICE and after is not None:
            if verb == "ADDED" or _derivation_differs(before, after):
                self.affected[after["metadata"]["namespace"], after["metadata"]["name"]] = after
                self._sync_groups(after, is_new=verb == "ADDED")
        elif kind is kinds.POD:
            self._pod_changed(before, after)
        elif kind is kinds.NODE:
            self._node_changed(before, after)
        elif kind in (kinds.ENDPOINT_SLICE, kinds.ENDPOINTS) and verb != "ADDED":
            self._derived_changed(kind, before)

    # What depends on what was written

    def _pod_changed(self, before: Document | None, after: Document | None) -> None:
        old = endpoints.traits(before) if before else None
        new = endpoints.traits(after) if after else None
        old_labels = (before or {}).get("metadata", {}).get("labels") or {}
        new_labels = (after or {}).get("metadata", {}).get("labels") or {}
        if old == new and old_labels == new_labels:
            return
        namespace = (after or before or {})["metadata"]["namespace"]
        for labels, present in ((old_labels, old), (new_labels, new)):
            if present is not None and labels:
                self._affect_selecting(namespace, labels)

    def _affect_selecting(self, namespace: str, labels: dict[str, str]) -> None:
        rows = _rows(
            "SELECT name, selector FROM services_app_service WHERE namespace = %s AND selector_pair = ANY(%s) ORDER BY name",
            namespace,
            endpoints.label_pairs(labels),
        )
        for name, selector_text in rows:
            selector = json.loads(selector_text)
            if all(labels.get(key) == value for key, value in selector.items()):
                self.affected.setdefault((namespace, name), None)

    def _node_changed(self, before: Document | None, after: Document | None) -> None:
        if before is not None and after is not None and _zone(before) == _zone(after):
            return
        name = (after or before or {})["metadata"]["name"]
        for namespace, labels in models.Pod.objects.filter(node_name=name).values_list("namespace", "labels"):
            if labels:
                self._affect_selecting(namespace, labels)

    def _derived_changed(self, kind: Kind, before: Document | None) -> None:
        """Someone else's hand on a derived object: look at its Service again."""
        metadata = (before or {}).get("metadata") or {}
        labels = metadata.get("labels") or {}
        if kind is kinds.ENDPOINTS:
            self.affected[metadata["namespace"], metadata["name"]] = None
        elif labels.get(endpoints.MANAGED_BY) == endpoints.SLICE_CONTROLLER and labels.get(endpoints.SERVICE_NAME):
            self.affected[metadata["namespace"], labels[endpoints.SERVICE_NAME]] = None

    def _derive(self, namespace: str, name: str, service: Document | None) -> None:
        """Bring a Service's slices and Endpoints in line with its Pods. service: its document, when at hand."""
        if service is None:
            found = _rows(
                "SELECT document FROM services_app_service WHERE namespace = %s AND name = %s", namespace, name
            )
            if not found:
                return
            service = json.loads(found[0][0])
        if service["metadata"].get("deletionTimestamp"):
            return
        now = timestamp(self.now)
        pods: list[Document] = []
        if endpoints.has_endpoints(service):
            pods = [
                json.loads(pod)
                for (pod,) in _rows(
                    "SELECT endpoint FROM services_app_pod WHERE namespace = %s AND labels @> %s AND endpoint IS NOT NULL",
                    namespace,
                    Jsonb(service["spec"]["selector"]),
                )
            ]
        slices = {
            document["metadata"]["uid"]: (document, text)
            for (text,) in _rows(
                "SELECT document FROM services_app_endpointslice"
                " WHERE namespace = %s AND service_name = %s AND managed_by = %s ORDER BY name",
                namespace,
                name,
                endpoints.SLICE_CONTROLLER,
            )
            if (document := json.loads(text))
        }
        zones = self._zones({pod["node"] for pod in pods if pod["node"]})
        plan = endpoints.plan_slices(
            service,
            pods,
            [document for document, _ in slices.values()],
            zones=zones,
            now=now,
            new_name=lambda prefix: prefix + name_suffix(),
        )
        affected_before = dict(self.affected)
        for document in plan.delete:
            self.delete(kinds.ENDPOINT_SLICE, document, slices[document["metadata"]["uid"]][1])
        for document in plan.update:
            self.update(kinds.ENDPOINT_SLICE, document, slices[document["metadata"]["uid"]][1])
        for document in plan.create:
            self._insert_derived(kinds.ENDPOINT_SLICE, document)
        self._derive_endpoints(service, pods, now)
        # Our own writes to derived objects are no reason to derive again.
        self.affected = affected_before

    def _zones(self, nodes: set[str]) -> dict[str, str]:
        """Node -> its zone, "" for none; a Node that does not exist is missing."""
        if not nodes:
            return {}
        rows = _rows("SELECT name, labels FROM services_app_node WHERE name = ANY(%s)", [*nodes])
        return {name: json.loads(labels).get(endpoints.ZONE, "") for name, labels in rows}

    def _derive_endpoints(self, service: Document, pods: list[Document], now: str) -> None:
        metadata = service["metadata"]
        if not endpoints.has_endpoints(service):
            return
        found = _rows(
            "SELECT document FROM services_app_endpoints WHERE namespace = %s AND name = %s",
            metadata["namespace"],
            metadata["name"],
        )
        text = found[0][0] if found else None
        existing = json.loads(text) if text is not None else None
        planned = endpoints.plan_endpoints(service, pods, existing, now=now)
        if planned is None:
            return
        if text is None:
            self._insert_derived(kinds.ENDPOINTS, planned)
        else:
            self.update(kinds.ENDPOINTS, planned, text)

    def _insert_derived(self, kind: Kind, document: Document) -> None:
        metadata = document["metadata"]
        metadata["uid"] = str(uuid4())
        metadata["creationTimestamp"] = timestamp(self.now)
        self.insert(kind, document)

    def _sync_groups(self, service: Document, *, is_new: bool) -> None:
        """One group id per port of a Service that has routes, kept as long as the port is there."""
        uid = UUID(service["metadata"]["uid"])
        spec = service["spec"]
        routed = spec.get("type") != "ExternalName" and spec.get("clusterIP") != "None"
        wanted = {group_key(port) for port in spec.get("ports") or ()} if routed else set()
        have: set[str] = set()
        if not is_new:
            have = {port for (port,) in _rows("SELECT port FROM services_app_endpointgroup WHERE service_id = %s", uid)}
        if have - wanted:
            sql = "DELETE FROM services_app_endpointgroup WHERE service_id = %s AND port = ANY(%s)"
            _execute(sql, uid, [*(have - wanted)])
        if wanted - have:
            sql = "INSERT INTO services_app_endpointgroup (service_id, port, policy) SELECT %s, unnest(%s::text[]), 'Cluster'"
            _execute(sql, uid, sorted(wanted - have))


def owner_of(kind: Kind, after: Document | None, before: Document | None) -> str | None:
    """The Service whose rendering a write may change, "*" for every node's base, None for no node's concern."""
    document = after or before or {}
    metadata = document["metadata"]
    if kind is kinds.SERVICE:
        if after is not None and before is not None and not _rendering_differs(before, after):
            return None
        return f"{metadata['namespace']}/{metadata['name']}"
    if kind is kinds.ENDPOINT_SLICE:
        name = (metadata.get("labels") or {}).get(endpoints.SERVICE_NAME)
        return f"{metadata['namespace']}/{name}" if name else None
    return None


def _rendering_differs(before: Document, after: Document) -> bool:
    """Whether nodes could see the difference: the spec, the labels proxies look at, load-balancer addresses."""
    keys = ("labels", "annotations")
    return (
        before["spec"] != after["spec"]
        or any((before["metadata"].get(k) or {}) != (after["metadata"].get(k) or {}) for k in keys)
        or (before.get("status") or {}).get("loadBalancer") != (after.get("status") or {}).get("loadBalancer")
    )


def _derivation_differs(before: Document | None, after: Document) -> bool:
    if before is None:
        return True
    return before["spec"] != after["spec"] or (before["metadata"].get("labels") != after["metadata"].get("labels"))


def _zone(node: Document) -> str | None:
    return (node["metadata"].get("labels") or {}).get(endpoints.ZONE)
