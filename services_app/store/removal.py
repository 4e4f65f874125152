"""Taking objects out, in the caller's transaction: with their claims and what was derived from them."""

import json
from typing import Any
from uuid import UUID

from services_app import models
from services_app.plan import ownership
from services_app.spec import kinds
from services_app.spec.kinds import Kind
from services_app.spec.meta import ordered, timestamp
from services_app.store import addresses, claims, ranges
from services_app.store.transaction import Transaction

Document = dict[str, Any]


def is_held(kind: Kind, document: Document) -> bool:
    """Whether something still keeps a deleted object: finalizers, a Namespace's contents, or a Pod's grace period."""
    metadata = document["metadata"]
    if metadata.get("finalizers") or kind is kinds.NAMESPACE:  # a Namespace goes when it is empty: finish_namespace
        return True
    return kind is kinds.POD and bool(metadata.get("deletionGracePeriodSeconds"))


def remove(
    tx: Transaction,
    kind: Kind,
    document: Document,
    previous: str,
    propagation: str | None = None,
) -> tuple[str, int]:
    """Take an object out, with its claims and what was derived from it; its last text, and the deletion's revision."""
    holder = None
    if kind is kinds.IP_ADDRESS:
        address = document["metadata"]["name"]
        holder = addresses.service_of(address)
        if holder is None:
            claims.release_by_hand(address, ranges.at(tx.log.ranges_revision))
    if kind is kinds.SERVICE:
        uid = UUID(document["metadata"]["uid"])
        claims.release(uid, document, None, ranges.at(tx.log.ranges_revision))
        models.EndpointGroup.objects.filter(service_id=uid).delete()
        collect_derived(tx, kind, document, propagation)
    text = tx.delete(kind, document, previous)
    revision = tx.log.revision
    if holder is not None:
        addresses.insert(tx, address, *holder)  # the Service still has it: Kubernetes' repair makes it anew
    tx.finish()
    return text, revision


def collect_derived(tx: Transaction, kind: Kind, owner: Document, propagation: str | None) -> None:
    """See to what was derived from an object: removed, or left behind without its owner when that is the policy."""
    if kind is not kinds.SERVICE:
        return
    metadata = owner["metadata"]
    slices = models.EndpointSlice.objects.filter(namespace=metadata["namespace"], service_name=metadata["name"])
    for text in slices.order_by("name").values_list("document", flat=True):
        document = json.loads(text)
        had = document["metadata"]
        if all(reference.get("uid") != metadata["uid"] for reference in had.get("ownerReferences") or ()):
            continue
        document["metadata"] = ownership.without(had, {metadata["uid"]})
        if propagation == "Orphan":
            tx.update(kinds.ENDPOINT_SLICE, document, text)
        elif document["metadata"].get("ownerReferences") or had.get("deletionTimestamp"):
            continue  # left to `deletion.follow`, or on its way
        elif had.get("finalizers"):
            document["metadata"] = ordered(
                {**had, "deletionTimestamp": timestamp(tx.now), "deletionGracePeriodSeconds": 0}
            )
            tx.update(kinds.ENDPOINT_SLICE, document, text)
        else:
            document["metadata"] = had
            tx.delete(kinds.ENDPOINT_SLICE, document, text)
    if propagation == "Orphan":
        return
    rows = models.Endpoints.objects.filter(namespace=metadata["namespace"], name=metadata["name"])
    for text in rows.values_list("document", flat=True):
        # As in Kubernetes, Endpoints of a Service's name go with it, whoever wrote them.
        tx.delete(kinds.ENDPOINTS, json.loads(text), text)
