"""One write transaction: objects, what is derived from them, and the log, under the counter row.

Order inside: (claims, by the caller) → counter row → read what derivation needs → write → log → commit. Whoever holds
the counter sees everything committed before, so nothing that endpoints depend on can be missed.
"""

import json
import random
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cache
from typing import Any
from uuid import UUID, uuid4

from django.conf import settings
from django.db import IntegrityError, connection
from psycopg.types.json import Jsonb

from services_app import models
from services_app.changes import BASE_OWNER, Rows, Statement, Writer, encode, together
from services_app.plan import endpoints, mirroring
from services_app.plan.routing import groups_wanted
from services_app.spec import kinds, kube_proxy
from services_app.spec.errors import AlreadyExists
from services_app.spec.kinds import Kind
from services_app.spec.meta import timestamp
from services_app.spec.node import is_leaving
from services_app.store import addresses, events, forms, ranges, references
from services_app.store.columns import columns_of, model_of

Document = dict[str, Any]

DERIVED_BY = (endpoints.SLICE_CONTROLLER, mirroring.MIRROR_CONTROLLER)  # who "manages" the slices written here

SUFFIX_LETTERS = "bcdfghjklmnpqrstvwxz2456789"  # no vowels, so that no words appear (k8s apimachinery rand)


def name_suffix() -> str:
    """Five random characters, as behind generateName."""
    return "".join(random.choices(SUFFIX_LETTERS, k=5))


# Plain SQL, not the ORM: building the queries cost more than running them (15 ms a create, now 4), and all of it is
# time under the counter row.


_SLICES_SQL = (
    "SELECT managed_by, document FROM services_app_endpointslice"
    " WHERE namespace = %s AND service_name = %s AND managed_by = ANY(%s) ORDER BY name"
)
_ENDPOINTS_SQL = "SELECT document FROM services_app_endpoints WHERE namespace = %s AND name = %s"
_PODS_SQL = "SELECT endpoint FROM services_app_pod WHERE namespace = %s AND labels @> %s AND endpoint IS NOT NULL"


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
    if isinstance(value, str):
        return value.replace("\0", "\N{REPLACEMENT CHARACTER}")  # PostgreSQL keeps no NUL; the document has it escaped
    return Jsonb(value) if isinstance(value, dict | list) else value


def _new_name(prefix: str) -> str:
    return prefix + name_suffix()


def derivation_questions(service: Document) -> list[Statement]:
    """What the derivation of a Service reads: its slices, its Endpoints, its Pods if it selects any."""
    return _questions(service["metadata"]["namespace"], service["metadata"]["name"], service)


def _questions(namespace: str, name: str, service: Document | None) -> list[Statement]:
    selector = service["spec"].get("selector") if service is not None and endpoints.has_endpoints(service) else None
    return [
        (_SLICES_SQL, (namespace, name, [*DERIVED_BY])),
        (_ENDPOINTS_SQL, (namespace, name)),
        *([(_PODS_SQL, (namespace, Jsonb(selector)))] if selector else []),
    ]


class Transaction:
    """The writes of one request. Use inside `transaction.atomic`; call `finish` last: it commits.

    Writes wait until something is read here, or for `finish`: they go to the database together, in one round trip, as
    the counter row is held all the while. A violation of uniqueness shows then.
    """

    def __init__(
        self,
        *,
        user: str,
        request_id: str,
        now: datetime,
        asked: Sequence[Statement] = (),
        deriving: Document | None = None,
    ) -> None:
        """asked: what to read in the round trip that takes the counter row, rows in `answers`. deriving: a Service that
        is about to be written, so that what its endpoints depend on is read along with it.
        """
        self.now = now
        questions = derivation_questions(deriving) if deriving is not None else []
        self.log = Writer(user=user, request_id=request_id, now=now, asked=[*asked, *questions])
        self.answers: list[Rows] = self.log.answers[: len(asked)]
        # Service -> what its derivation reads, as long as nothing of it was written here
        self._read: dict[tuple[str, str], list[Rows]] = {}
        if deriving is not None:
            metadata = deriving["metadata"]
            self._read[metadata["namespace"], metadata["name"]] = self.log.answers[len(asked) :]
        # Services to derive again, in order of appearance -> their document when it is at hand
        self.affected: dict[tuple[str, str], Document | None] = {}
        self.touched: set[tuple[str, str]] = set()  # Services whose rendering changed without a write of their own
        self.written: set[tuple[str, str]] = set()  # Services whose row says so already
        self.readdressed: list[tuple[Document | None, Document | None]] = []  # Services before and after
        self._waiting: list[Statement] = []
        self._inserted: dict[str, tuple[Kind, str]] = {}  # table -> what was last inserted into it

    # Objects

    def insert(self, kind: Kind, document: Document, *, is_derived: bool = False) -> str:
        """Store a new object and return its text. `finish`, or the next reading, raises AlreadyExists.

        is_derived: whoever removes its owner removes it as well.
        """
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
            forms.stored_text(kind, document, text),
        )
        self._write(_insert_sql(kind, tuple(columns)), *values, *map(_value, columns.values()))
        if metadata.get("ownerReferences") and not is_derived:
            self.write(references.statements(kind, None, metadata))
        self._inserted[model_of(kind)._meta.db_table] = kind, metadata["name"]
        self._note(kind, document, text, "ADDED", None, None)
        return text

    def update(self, kind: Kind, document: Document, previous: str) -> str:
        """Store an object's new state and return its text. previous: its text before."""
        before = json.loads(previous)
        metadata = document["metadata"]
        metadata["resourceVersion"] = str(self.log.next_revision())
        text = encode(document)
        columns = columns_of(kind, document)
        if kind is kinds.SERVICE and owner_of(kind, document, before):
            columns["changed_revision"] = self.log.revision
        labels = Jsonb(metadata.get("labels") or {})
        sql = _update_sql(kind, tuple(columns))
        stored = forms.stored_text(kind, document, text)
        self._write(sql, self.log.revision, labels, stored, *map(_value, columns.values()), UUID(metadata["uid"]))
        had = before["metadata"]
        if metadata.get("ownerReferences") != had.get("ownerReferences") or metadata.get("deletionTimestamp"):
            self.write(references.statements(kind, had, metadata))
        self._note(kind, document, text, "MODIFIED", previous, before)
        return text

    def delete(self, kind: Kind, document: Document, previous: str) -> str:
        """Remove an object and return its last text, which carries the deletion's revision."""
        metadata = document["metadata"]
        metadata["resourceVersion"] = str(self.log.next_revision())
        text = encode(document)
        before = json.loads(previous)
        self._write(f"DELETE FROM {model_of(kind)._meta.db_table} WHERE uid = %s", UUID(metadata["uid"]))
        self.write(references.statements(kind, before["metadata"], None))
        self._note(kind, document, text, "DELETED", previous, before)
        return text

    def finish(self) -> None:
        """Write the IPAddresses of written Services, derive endpoints of every affected one, then store the log."""
        for before, after in self.readdressed:
            addresses.follow(self, before, after)
        while self.affected:
            namespace, name = next(iter(self.affected))
            self._derive(namespace, name, self.affected.pop((namespace, name)))
        # Everything here commits at once, so any revision of this transaction says the same to a node.
        for namespace, name in sorted(self.touched - self.written):
            self._write(
                "UPDATE services_app_service SET changed_revision = %s WHERE namespace = %s AND name = %s",
                self.log.revision,
                namespace,
                name,
            )
        self._waiting = _combined(self._waiting, self.log.finish())
        # The commit travels with the last writes. In a block inside another one it is not ours to give.
        self.send(commits=bool(self._waiting) and not connection.savepoint_ids)

    # The database

    def write(self, statements: Iterable[Statement]) -> None:
        """Send statements without an answer along with what waits."""
        self._waiting += statements

    def _write(self, sql: str, *values: Any) -> None:
        self._waiting.append((sql, values))

    def _rows(self, sql: str, *values: Any) -> Rows:
        """The rows of a query; JSON columns come as text (Django turns psycopg's own loader off)."""
        return self.send((sql, values))[0]

    def send(self, *questions: Statement, commits: bool = False) -> list[Rows]:
        """Send what waits and then questions, all in one round trip; the rows of each question.

        commits: the transaction is over with it.
        """
        waiting, self._waiting = self._waiting, []
        if not waiting and not questions:
            return []
        try:
            return together(questions, waiting, commits=commits)
        except IntegrityError as err:
            diagnosis = getattr(err.__cause__, "diag", None)
            if diagnosis is not None and "name_is_unique" in (diagnosis.constraint_name or ""):
                raise AlreadyExists(*self._inserted[diagnosis.table_name]) from err
            raise

    def _note(
        self, kind: Kind, document: Document, text: str, verb: str, previous: str | None, before: Document | None
    ) -> None:
        """before: the document of `previous`."""
        owner = owner_of(kind, document if verb != "DELETED" else None, before)
        stored = forms.stored_text(kind, document, text)
        had = forms.stored_text(kind, before, previous) if before is not None and previous is not None else None
        self.log.record(kind.plural, document, stored, verb, previous=had, owner=owner)
        if owner and owner != BASE_OWNER:
            namespace, name = owner.split("/", 1)
            (self.written if kind is kinds.SERVICE else self.touched).add((namespace, name))
        after = document if verb != "DELETED" else None
        if kind is kinds.SERVICE:
            self.readdressed.append((before, after))
        elif kind is kinds.SERVICE_CIDR:
            self._write("UPDATE services_app_controlplane SET ranges_revision = %s WHERE id = 1", self.log.revision)
            ranges.forget()
        if kind is kinds.SERVICE and after is not None:
            if verb == "ADDED" or _derivation_differs(before, after):
                self.affected[after["metadata"]["namespace"], after["metadata"]["name"]] = after
                self._sync_groups(after, is_new=verb == "ADDED")
        elif kind is kinds.POD:
            self._read.clear()
            self._pod_changed(before, after)
        elif kind is kinds.NODE:
            self._node_changed(before, after)
        elif kind is kinds.SERVICE and before is not None and not before["spec"].get("selector"):
            self.affected[before["metadata"]["namespace"], before["metadata"]["name"]] = None  # its mirror goes
        elif kind in (kinds.ENDPOINTS, kinds.ENDPOINT_SLICE):
            self._read.clear()
            for known in (before, after):
                if known is not None:
                    self._derived_changed(kind, known)

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
        rows = self._rows(
            "SELECT name, selector FROM services_app_service WHERE namespace = %s AND selector_pair = ANY(%s) ORDER BY name",
            namespace,
            endpoints.label_pairs(labels),
        )
        for name, selector_text in rows:
            selector = json.loads(selector_text)
            if all(labels.get(key) == value for key, value in selector.items()):
                self.affected.setdefault((namespace, name), None)

    def _node_changed(self, before: Document | None, after: Document | None) -> None:
        if before is not None and after is not None and _base_differs(before, after):
            # To it alone: with an owner for all nodes the enrolment of one was a push to each of the others.
            self._write(
                "UPDATE services_app_nodesync SET full_wanted = true WHERE node = %s", after["metadata"]["name"]
            )
            self.log.concerns_nodes = True
        if before is not None and after is not None and endpoints.zone_of(before) == endpoints.zone_of(after):
            return
        name = (after or before or {})["metadata"]["name"]
        for namespace, labels in models.Pod.objects.filter(node_name=name).values_list("namespace", "labels"):
            if labels:
                self._affect_selecting(namespace, labels)

    def _derived_changed(self, kind: Kind, changed: Document) -> None:
        """Someone's hand on Endpoints or on a derived slice: look at its Service again."""
        metadata = changed["metadata"]
        labels = metadata.get("labels") or {}
        if kind is kinds.ENDPOINTS:
            self.affected.setdefault((metadata["namespace"], metadata["name"]), None)
        elif labels.get(endpoints.MANAGED_BY) in DERIVED_BY and labels.get(endpoints.SERVICE_NAME):
            self.affected.setdefault((metadata["namespace"], labels[endpoints.SERVICE_NAME]), None)

    def _derive(self, namespace: str, name: str, service: Document | None) -> None:
        """Bring a Service's slices and Endpoints in line with its Pods, or with Endpoints written by hand.

        service: its document, when at hand.
        """
        if service is None:
            found = self._rows(
                "SELECT document FROM services_app_service WHERE namespace = %s AND name = %s", namespace, name
            )
            service = json.loads(found[0][0]) if found else None
        if service is not None and service["metadata"].get("deletionTimestamp"):
            return
        slice_rows, endpoints_rows, *pod_rows = self._read.pop((namespace, name), None) or self.send(
            *_questions(namespace, name, service)
        )
        slices: dict[str, dict[str, tuple[Document, str]]] = {controller: {} for controller in DERIVED_BY}
        for managed_by, text in slice_rows:
            document = json.loads(text)
            slices[managed_by][document["metadata"]["uid"]] = document, text
        stored = endpoints_rows[0][0] if endpoints_rows else None
        affected_before = dict(self.affected)
        if service is not None:
            pods = [json.loads(pod) for rows in pod_rows for (pod,) in rows]
            self._derive_from_pods(service, pods, slices[endpoints.SLICE_CONTROLLER], stored)
        self._derive_mirror(service, stored, slices[mirroring.MIRROR_CONTROLLER])
        # Our own writes to derived objects are no reason to derive again.
        self.affected = affected_before

    def _derive_from_pods(
        self, service: Document, pods: list[Document], slices: dict[str, tuple[Document, str]], stored: str | None
    ) -> None:
        """stored: the text of the Endpoints object of the Service's name, None when there is none."""
        now = timestamp(self.now)
        plan = endpoints.plan_slices(
            service,
            pods,
            [document for document, _ in slices.values()],
            zones=self._zones({pod["node"] for pod in pods if pod["node"]}),
            now=now,
            new_name=_new_name,
            capacity=settings.TIMONEL_MAX_ENDPOINTS_PER_SLICE,
        )
        self._carry_out(plan, slices)
        if endpoints.has_endpoints(service):
            existing = json.loads(stored) if stored is not None else None
            planned = endpoints.plan_endpoints(service, pods, existing, now=now)
            if planned is not None and stored is None:
                self._insert_derived(kinds.ENDPOINTS, planned)
            elif planned is not None and stored is not None:
                self.update(kinds.ENDPOINTS, planned, stored)

    def _derive_mirror(
        self, service: Document | None, stored: str | None, slices: dict[str, tuple[Document, str]]
    ) -> None:
        """stored: as for _derive_from_pods."""
        by_hand = service is not None and not service["spec"].get("selector") and stored is not None
        if not by_hand and not slices:
            return
        found = json.loads(stored) if by_hand and stored is not None else None
        plan = mirroring.plan_mirror(service, found, [document for document, _ in slices.values()], new_name=_new_name)
        self._carry_out(plan, slices)
        if found is not None and (plan.create or plan.update):
            self._tell_what_is_left_out(found)

    def _tell_what_is_left_out(self, document: Document) -> None:
        left_out = mirroring.addresses_left_out(document)
        if left_out:
            message = (
                f"A max of {mirroring.MAX_ENDPOINTS_PER_SUBSET} addresses can be mirrored to EndpointSlices per "
                f"Endpoints subset. {left_out} addresses were skipped"
            )
            component = mirroring.MIRROR_CONTROLLER
            events.record(self, kinds.ENDPOINTS, document, "TooManyAddressesToMirror", message, component=component)

    def _carry_out(self, plan: endpoints.SliceChanges, slices: dict[str, tuple[Document, str]]) -> None:
        """slices: uid -> (document, text) of those that were planned with."""
        for document in plan.delete:
            self.delete(kinds.ENDPOINT_SLICE, document, slices[document["metadata"]["uid"]][1])
        for document in plan.update:
            self.update(kinds.ENDPOINT_SLICE, document, slices[document["metadata"]["uid"]][1])
        for document in plan.create:
            self._insert_derived(kinds.ENDPOINT_SLICE, document)

    def _zones(self, nodes: set[str]) -> dict[str, str]:
        """Node -> its zone, "" for none; a Node that does not exist is missing."""
        if not nodes:
            return {}
        rows = self._rows("SELECT name, labels FROM services_app_node WHERE name = ANY(%s)", [*nodes])
        return {name: json.loads(labels).get(endpoints.ZONE, "") for name, labels in rows}

    def _insert_derived(self, kind: Kind, document: Document) -> None:
        metadata = document["metadata"]
        metadata["uid"] = str(uuid4())
        metadata["creationTimestamp"] = timestamp(self.now)
        self.insert(kind, document, is_derived=True)

    def _sync_groups(self, service: Document, *, is_new: bool) -> None:
        """One group id per port and policy of a Service that has routes, kept as long as both are there."""
        uid = UUID(service["metadata"]["uid"])
        wanted = groups_wanted(service)
        have: set[tuple[str, str]] = set()
        if not is_new:
            have = {*self._rows("SELECT port, policy FROM services_app_endpointgroup WHERE service_id = %s", uid)}
        if gone := sorted(have - wanted):
            sql = (
                "DELETE FROM services_app_endpointgroup WHERE service_id = %s"
                " AND (port, policy) IN (SELECT * FROM unnest(%s::text[], %s::text[]))"
            )
            self._write(sql, uid, *_columns(gone))
        if new := sorted(wanted - have):
            sql = (
                "INSERT INTO services_app_endpointgroup (service_id, port, policy)"
                " SELECT %s, * FROM unnest(%s::text[], %s::text[])"
            )
            self._write(sql, uid, *_columns(new))


def _combined(writes: list[Statement], log: list[Statement]) -> list[Statement]:
    """The same writes, inserts at their end and the log in one statement: each of its own costs as much again.

    The parts of such a statement do not see each other's rows, so only what touches rows of its own may join: inserts,
    and the counter.
    """
    if not log:
        return writes
    joined = [*log]
    while writes and writes[-1][0].startswith("INSERT "):
        joined.insert(0, writes[-1])
        writes = writes[:-1]
    *parts, (last, _) = joined
    common = ", ".join(f"write{number} AS ({sql})" for number, (sql, _) in enumerate(parts))
    return [*writes, (f"WITH {common} {last}", tuple(value for _, values in joined for value in values))]


def _columns(rows: list[tuple[str, str]]) -> tuple[list[str], list[str]]:
    return [first for first, _ in rows], [second for _, second in rows]


def owner_of(kind: Kind, after: Document | None, before: Document | None) -> str | None:
    """The Service whose rendering a write may change, "*" for every node's base, None for no node's concern.

    What a Node's own base depends on is that node's concern alone, and no owner's: see `_node_changed`.
    """
    document = after or before or {}
    metadata = document["metadata"]
    if kind is kinds.SERVICE:
        if after is not None and before is not None and not _rendering_differs(before, after):
            return None
        return f"{metadata['namespace']}/{metadata['name']}"
    if kind is kinds.ENDPOINT_SLICE:
        name = (metadata.get("labels") or {}).get(endpoints.SERVICE_NAME)
        return f"{metadata['namespace']}/{name}" if name else None
    if kind is kinds.CONFIG_MAP and kube_proxy.is_cluster_configuration(document):
        return BASE_OWNER
    if kind is kinds.SERVICE_CIDR and (before or {}).get("spec") != (after or {}).get("spec"):
        return BASE_OWNER  # every node has a route and a reverse zone for each range
    return None


def _base_differs(before: Document, after: Document) -> bool:
    """Whether a node's own base could differ: addresses, containers' networks, configuration, whether it leaves; or its zone."""
    return (
        before["spec"].get("podCIDRs") != after["spec"].get("podCIDRs")
        or (before.get("status") or {}).get("addresses") != (after.get("status") or {}).get("addresses")
        or kube_proxy.of_node(before) != kube_proxy.of_node(after)
        or endpoints.zone_of(before) != endpoints.zone_of(after)
        or is_leaving(before) != is_leaving(after)
    )


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
