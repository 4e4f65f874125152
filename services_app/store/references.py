"""ownerReferences turned round: who names an owner, and whose owner is gone. Kept by `transaction` with the objects.

Objects without references cost nothing here. Slices that are derived have no rows: they are found by their Service, and
go with it in one transaction.
"""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.db import connection

from services_app import models
from services_app.changes import Statement
from services_app.plan import ownership
from services_app.plan.ownership import Owner, Reference
from services_app.spec import kinds
from services_app.spec.kinds import Kind
from services_app.store.columns import model_of

Document = dict[str, Any]

_INSERT = (
    "INSERT INTO services_app_ownerreference (owner, owner_kind, owner_name, blocks, dependent, kind, namespace, name)"
    " SELECT row.*, %s::uuid, %s, %s, %s FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::boolean[]) AS row"
)
_DELETE = "DELETE FROM services_app_ownerreference WHERE dependent = %s"
_WAIT = "INSERT INTO services_app_waitingowner (uid, kind, namespace, name, policy) VALUES (%s, %s, %s, %s, %s)"
_WAIT_NO_MORE = "DELETE FROM services_app_waitingowner WHERE uid = %s"


@dataclass(frozen=True)
class Dependent:
    """An object that names an owner."""

    uid: UUID
    kind: Kind
    namespace: str
    name: str


def statements(kind: Kind, before: Document | None, after: Document | None) -> list[Statement]:
    """What to write along with an object whose metadata was `before` and is `after`; None: it was, or is, not there."""
    had, has = ((metadata or {}).get("ownerReferences") or [] for metadata in (before, after))
    metadata = after or before or {}
    uid = UUID(metadata["uid"])
    place = kind.plural, metadata.get("namespace", ""), metadata["name"]
    made: list[Statement] = []
    if had != has and kind not in (kinds.EVENT, kinds.EVENTS_EVENT):  # Kubernetes follows no reference of an Event
        if had:
            made.append((_DELETE, (uid,)))
        if has:
            made.append((_INSERT, (uid, *place, *map(list, zip(*rows(metadata), strict=True)))))
    waited, waits = (ownership.waits(metadata) if metadata else None for metadata in (before, after))
    if waited != waits:
        if waited:
            made.append((_WAIT_NO_MORE, (uid,)))
        if waits:
            made.append((_WAIT, (uid, *place, waits)))
    return made


# owner, owner_kind, owner_name, blocks
Row = tuple[UUID | None, str, str, bool]


def rows(metadata: Document) -> list[Row]:
    """What is kept of an object's references."""
    return [
        (uid_of(one.uid), one.kind.plural if one.kind else "", _name(one), one.blocks)
        for one in ownership.references(metadata)
    ]


def _name(reference: Reference) -> str:
    return reference.name.replace("\0", "\N{REPLACEMENT CHARACTER}")  # PostgreSQL keeps no NUL; no name has either


def uid_of(text: str) -> UUID | None:
    """The uid that a reference names; None for a text that is no object's, as they are compared letter by letter."""
    try:
        uid = UUID(text)
    except ValueError:
        return None
    return uid if str(uid) == text else None


def anew(uid: UUID, kind: Kind, metadata: Document | None) -> list[Statement]:
    """What to write so that all that is kept of an object is as its metadata is; None: there is no such object."""
    return [(_DELETE, (uid,)), (_WAIT_NO_MORE, (uid,)), *(statements(kind, None, metadata) if metadata else ())]


def has_dependents(kind: Kind, namespace: str, name: str) -> Statement:
    """Asks whether anybody names an object as its owner: one row when somebody does."""
    owner = f"SELECT uid FROM {model_of(kind)._meta.db_table} WHERE namespace = %s AND name = %s"
    return f"SELECT 1 FROM services_app_ownerreference WHERE owner = ({owner}) LIMIT 1", (namespace, name)


def blockers(uid: str | UUID, policy: str) -> Statement:
    """Asks for what an object that waits has to wait on, one row of it: dependents that block it, or are to be orphaned."""
    only = " AND blocks" if policy == "Foreground" else ""
    return f"SELECT 1 FROM services_app_ownerreference WHERE owner = %s{only} LIMIT 1", (UUID(str(uid)),)


def is_blocked(uid: UUID, policy: str) -> bool:
    """Whether `blockers` finds something. One query."""
    with connection.cursor() as cursor:
        cursor.execute(*blockers(uid, policy))
        return cursor.fetchone() is not None


def is_owner(uid: UUID) -> bool:
    """Whether anybody names it as its owner. One query."""
    return models.OwnerReference.objects.filter(owner=uid).exists()


def has_waiting_dependents(uid: UUID) -> bool:
    """Whether one of its dependents goes itself, and waits for its own. One query."""
    dependents = models.OwnerReference.objects.filter(owner=uid).values("dependent")
    return models.WaitingOwner.objects.filter(uid__in=dependents, policy="Foreground").exists()


def dependents_of(uid: UUID) -> list[Dependent]:
    """Those that name an owner. One query."""
    rows = models.OwnerReference.objects.filter(owner=uid).order_by("id")
    return [*map(_dependent, rows.values_list("dependent", "kind", "namespace", "name"))]


def state_of(reference: Reference) -> Owner:
    """How the owner is at this moment. One query."""
    assert reference.kind is not None
    uid = uid_of(reference.uid)
    rows = model_of(reference.kind).objects.filter(uid=uid, namespace=reference.namespace, name=_name(reference))
    if uid is None or not rows.exists():
        return Owner.GONE
    waiting = models.WaitingOwner.objects.filter(uid=uid, policy="Foreground").exists()
    return Owner.WAITING if waiting else Owner.THERE


def is_elsewhere(reference: Reference) -> bool:
    """Whether the owner lies in another namespace than the dependent. One query."""
    assert reference.kind is not None
    uid = uid_of(reference.uid)
    rows = model_of(reference.kind).objects.filter(uid=uid, name=_name(reference))
    return uid is not None and rows.exclude(namespace=reference.namespace).exists()


def _of_gone_owners() -> str:
    """References whose owner is not where they say; none of objects of which an owner cannot be judged."""
    parts = []
    for kind in kinds.STORED:
        if kind is kinds.EVENTS_EVENT:
            continue
        place = " AND owner.namespace = reference.namespace" if kind.namespaced else ""
        parts.append(
            "SELECT dependent, kind, namespace, name FROM services_app_ownerreference AS reference"
            f" WHERE owner_kind = '{kind.plural}' AND NOT EXISTS (SELECT FROM {model_of(kind)._meta.db_table} AS owner"
            f" WHERE owner.uid = reference.owner AND owner.name = reference.owner_name{place})"
        )
    unknown = "SELECT dependent FROM services_app_ownerreference WHERE owner_kind = ''"
    return f"SELECT * FROM ({' UNION '.join(parts)}) AS found WHERE dependent NOT IN ({unknown})"


def of_gone_owners() -> list[Dependent]:
    """Objects with an owner that is gone; among them some that only wait for a finalizer. One query over all references."""
    with connection.cursor() as cursor:
        cursor.execute(_of_gone_owners())
        return [*map(_dependent, cursor.fetchall())]


def _dependent(row: tuple[UUID, str, str, str]) -> Dependent:
    uid, plural, namespace, name = row
    return Dependent(uid, BY_PLURAL[plural], namespace, name)


# An Event is kept in its older form
BY_PLURAL = {kind.plural: kind for kind in reversed(kinds.STORED)}
