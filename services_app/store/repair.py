"""Repair: compare what is claimed with what is held, both ways, tell of every difference, and mend what can be mended.

One look: (1) read everything in one snapshot, (2) note each finding, counting in how many looks in a row it was seen,
(3) tell of it as an Event on its Service, (4) mend what is due (`plan.checks.Finding.is_due`). Several may run at once.
"""

import json
import logging
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from uuid import UUID

from django.db import transaction
from django.db.models import F
from django.utils import timezone

from services_app import models
from services_app.plan.checks import Finding, Mend
from services_app.spec import kinds
from services_app.spec.errors import NotFound
from services_app.store import addresses, checks, claims, events, references
from services_app.store.objects import Actor, cluster_settings, get, retried
from services_app.store.transaction import Transaction

logger = logging.getLogger(__name__)

COMPONENT = "timonel-repair"
OF_A_SERVICE = (Mend.CLAIM, Mend.RELEASE, Mend.WRITE)  # wrong when the Service has changed meanwhile


@dataclass(frozen=True)
class Sighting:
    """A finding, how often in a row it was seen, and whether this look set it right."""

    finding: Finding
    count: int
    mended: bool


def repair(*, actor: Actor) -> list[Sighting]:
    """Look once, tell and mend; empty when all holds. Reads the whole database."""
    found, revisions = checks.find()
    counts = _count(found)
    sightings = []
    for finding in found:
        count = counts[_identity(finding)]
        logger.warning("%s reason=%s sighting=%d", finding, finding.reason, count)
        if finding.service:
            _tell(finding, actor)
        mended = finding.is_due(count) and retried(partial(_mend, finding, revisions.get(finding.uid), actor))
        sightings.append(Sighting(finding, count, mended))
    return sightings


def _identity(finding: Finding) -> tuple[str, str, str, str]:
    return finding.reason, finding.value, finding.service, finding.pool


def _count(found: list[Finding]) -> dict[tuple[str, str, str, str], int]:
    """Note this look's findings and forget those that are no more; identity -> looks in a row that saw it."""
    now = timezone.now()
    with transaction.atomic():
        for finding in found:
            reason, value, service, pool = _identity(finding)
            models.RepairFinding.objects.update_or_create(
                defaults={"message": finding.message, "last_seen_at": now, "sightings": F("sightings") + 1},
                create_defaults={"message": finding.message, "first_seen_at": now, "last_seen_at": now},
                reason=reason,
                value=value,
                service=service,
                pool=pool,
            )
        models.RepairFinding.objects.filter(last_seen_at__lt=now).delete()
        rows = models.RepairFinding.objects.values_list("reason", "value", "service", "pool", "sightings")
        return {(reason, value, service, pool): count for reason, value, service, pool, count in rows}


def _tell(finding: Finding, actor: Actor) -> None:
    namespace, name = finding.service.split("/")
    with transaction.atomic():
        tx = Transaction(user=actor.user, request_id=actor.request_id, now=timezone.now())
        try:
            service = get(kinds.SERVICE, namespace, name)
        except NotFound:
            return
        about = json.loads(service.document)
        events.record(tx, kinds.SERVICE, about, finding.reason, finding.message, component=COMPONENT)
        tx.finish()


def _mend(finding: Finding, revision: int | None, actor: Actor) -> bool:
    """Whether the finding was set right. revision: of its Service when it was found; a newer one has to be looked at anew."""
    with transaction.atomic():
        # As in every write, claims come before the counter row.
        _mend_claims(finding)
        tx = Transaction(user=actor.user, request_id=actor.request_id, now=timezone.now())
        service = models.Service.objects.filter(uid=finding.uid, revision=revision) if finding.uid else None
        if finding.mend in OF_A_SERVICE and service is not None and not service.exists():
            transaction.set_rollback(True)
            return False
        if finding.mend in (Mend.WRITE, Mend.REMOVE):
            addresses.delete(tx, [finding.value])
        if finding.mend is Mend.WRITE:
            addresses.insert(tx, finding.value, *finding.service.split("/"))
        if finding.mend is Mend.DERIVE:
            namespace, name = finding.value.split("/")
            tx.affected[namespace, name] = None
        if finding.mend is Mend.REFER:
            _note_owners(tx, UUID(finding.uid), finding.value)
        tx.finish()
    logger.warning("mended %s by: %s reason=%s", finding, finding.mend.value, finding.reason)
    return True


def _note_owners(tx: Transaction, uid: UUID, place: str) -> None:
    """place: "plural/namespace/name"."""
    plural, namespace, name = place.split("/")
    kind = references.BY_PLURAL[plural]
    metadata = None
    with suppress(NotFound):
        found = json.loads(get(kind, namespace, name).document)["metadata"]
        metadata = found if found["uid"] == str(uid) else None
    tx.write(references.anew(uid, kind, metadata))


def _mend_claims(finding: Finding) -> None:
    cluster = cluster_settings()
    uid = UUID(finding.uid) if finding.uid else None
    if finding.mend is Mend.CLAIM and uid is not None:
        claims.claim_held(uid, finding.value, cluster)
    elif finding.mend is Mend.CLAIM:
        claims.claim_by_hand(finding.value, cluster)
    elif finding.mend is Mend.RELEASE:
        claims.release_leaked(uid, finding.value, cluster)
    elif finding.mend is Mend.REMOVE:
        claims.release_by_hand(finding.value, cluster)
    elif finding.mend is Mend.LIST:
        claims.offer(finding.value, cluster)
    elif finding.mend is Mend.UNLIST:
        claims.withdraw(finding.pool, finding.value)
