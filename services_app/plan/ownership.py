"""What metadata.ownerReferences say, and what becomes of an object whose owners go.

Nothing is looked up here: whether an owner is there comes from the caller.
Source: k8s v1.36 pkg/controller/garbagecollector (attemptToDeleteItem, classifyReferences, isDangling).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from services_app.spec import kinds
from services_app.spec.kinds import Kind

Document = dict[str, Any]

# Propagation policy -> the finalizer by which an object that goes tells that its dependents are seen to first
COLLECTORS = {"Foreground": "foregroundDeletion", "Orphan": "orphan"}


@dataclass(frozen=True)
class Reference:
    """One entry of ownerReferences, and where its owner would have to be.

    kind: None when nobody can say whether the owner is there: its kind is not served, or it lies in a namespace and the
    dependent in none. namespace: "" for owners that lie in none. blocks: the owner waits for the dependent to go.
    """

    uid: str
    kind: Kind | None
    namespace: str
    name: str
    blocks: bool


def references(metadata: Document) -> list[Reference]:
    """The owners that an object names, each uid once."""
    found: dict[str, Reference] = {}
    namespace = metadata.get("namespace", "")
    for entry in metadata.get("ownerReferences") or ():
        kind = kinds.by_kind(entry["apiVersion"], entry["kind"])
        if kind is not None and (kind not in kinds.STORED or (kind.namespaced and not namespace)):
            kind = None
        where = namespace if kind is not None and kind.namespaced else ""
        blocks = bool(entry.get("blockOwnerDeletion"))
        found[entry["uid"]] = Reference(entry["uid"], kind, where, entry["name"], blocks)
    return [*found.values()]


def propagation_of(metadata: Document) -> str | None:
    """The policy that an object's own finalizers ask for."""
    asked = metadata.get("finalizers") or ()
    return next((policy for policy, mark in COLLECTORS.items() if mark in asked), None)


def waits(metadata: Document) -> str | None:
    """The policy by which an object that goes waits for its dependents; None when it does not."""
    return propagation_of(metadata) if metadata.get("deletionTimestamp") else None


class Owner(Enum):
    """How an owner is found to be."""

    THERE = "there"
    WAITING = "goes, once its dependents are gone"
    GONE = "gone, or never where the reference says"


class Fate(Enum):
    """What becomes of a dependent."""

    STAYS = "stays as it is"
    LOSES_REFERENCES = "stays without the references to owners that go"
    GOES_FOREGROUND = "goes, after its own dependents"
    GOES = "goes by the policy its finalizers ask for"


def fate(owners: Sequence[Owner], *, has_dependents: bool) -> Fate:
    """What becomes of an object with such owners. has_dependents: whether others name it as their owner."""
    if all(owner is Owner.THERE for owner in owners):
        return Fate.STAYS
    if Owner.THERE in owners:
        return Fate.LOSES_REFERENCES
    return Fate.GOES_FOREGROUND if Owner.WAITING in owners and has_dependents else Fate.GOES


def without(metadata: Document, uids: set[str]) -> Document:
    """The metadata without the references to these owners."""
    left = [entry for entry in metadata.get("ownerReferences") or () if entry.get("uid") not in uids]
    kept = {key: value for key, value in metadata.items() if key != "ownerReferences"}
    return {**metadata, "ownerReferences": left} if left else kept


def unblocking(metadata: Document) -> Document:
    """The metadata with references for which no owner waits."""
    entries = [{**entry, "blockOwnerDeletion": False} for entry in metadata["ownerReferences"]]
    return {**metadata, "ownerReferences": entries}
