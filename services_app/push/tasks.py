"""The Celery tasks. Arguments are names; each reads what is true when it starts, and may run twice or late."""

import logging
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from celery import shared_task
from celery.signals import worker_init, worker_shutdown
from django.conf import settings
from django.db import close_old_connections
from django.db.models import Q
from django.utils import timezone

from services_app import audit as audits
from services_app import changes, store
from services_app.models import Namespace, NodeSync
from services_app.push import operations, pusher, snapshot
from services_app.push import wake as waking

logger = logging.getLogger(__name__)

HEARTBEAT = timedelta(seconds=5)
HAND_OVER_S = 0.0005  # Python's own is ten times as long
REPAIR_S = 170.0  # before the next one
AUDIT_S = 3.0  # of every 30; with very many nodes each has its turn more seldom
_audited = ""  # the last node that had its turn
_here = ThreadPoolExecutor(settings.TIMONEL_WORKER_THREADS, thread_name_prefix="push")
# Apart from those: a host that does not answer takes its time, and nodes with a session do not wait for it.
_opening = ThreadPoolExecutor(settings.TIMONEL_WORKER_THREADS, thread_name_prefix="open")
ACTOR = store.Actor("timonel:tasks")


@worker_init.connect
def _hand_over_often(**_: object) -> None:
    """Let pushes in between the steps of long computations: audit, a push of everything."""
    sys.setswitchinterval(HAND_OVER_S)


def queue_of(node: str) -> str:
    """The shard queue of a node: by its name alone, whatever workers there are."""
    return f"push-{zlib.crc32(node.encode()) % settings.PUSH_SHARDS:02d}"


def _start_pushes(wanted: dict[str, pusher.Wanted]) -> None:
    """Here, for nodes this process has a session with; through their shards' queues otherwise, a message a shard."""
    elsewhere: dict[str, list[str]] = {}
    for node, said in wanted.items():
        if pusher.pool.get(node) is not None:
            # Asked again before a push of everything: until its turn comes it may have been done.
            _here.submit(_push_here, node, None if said.is_full or said.failures else said)
        else:
            elsewhere.setdefault(queue_of(node), []).append(node)
    for queue, names in elsewhere.items():
        push_nodes.apply_async((names,), queue=queue, expires=30, retry=False)


def _push_here(node: str, wanted: pusher.Wanted | None = None) -> None:
    try:
        pusher.push(node, wanted)
    except Exception:  # top of a thread; the sweep comes again
        logger.exception("push to %s failed", node)
    finally:
        close_old_connections()


@shared_task
def wake() -> None:
    """After a commit: push to every node that is behind and may be tried."""
    waking.begin_look()
    newest = snapshot.newest_owner_revision()
    now = timezone.now()
    behind = Q(applied_revision__lt=newest) | Q(full_wanted=True)
    _start_pushes(pusher.wanted_of(NodeSync.objects.filter(behind, next_attempt_at__lte=now), newest))


@shared_task
def push_nodes(nodes: list[str]) -> None:
    """Bring nodes of one shard up to date, most of which have no session yet."""
    for node in nodes:
        _opening.submit(_push_here, node)


@shared_task
def sweep() -> None:
    """Every second: what wakes have missed, nodes to be tried again, and nodes not heard of for a while."""
    newest = snapshot.newest_owner_revision()
    now = timezone.now()
    wanted = (
        Q(applied_revision__lt=newest)
        | Q(full_wanted=True)
        | ~Q(state=NodeSync.State.LIVE)
        | Q(last_report_at__lt=now - HEARTBEAT)
    )
    _start_pushes(pusher.wanted_of(NodeSync.objects.filter(wanted, next_attempt_at__lte=now), newest))
    store.settle_programmed(actor=ACTOR)


@shared_task
def audit() -> None:
    """Compare live nodes' digests with what they should be, as many as AUDIT_S allows; whoever differs gets everything."""
    global _audited
    live = [*NodeSync.objects.filter(state=NodeSync.State.LIVE).order_by("node_id").values_list("node_id", flat=True)]
    turn = [*(node for node in live if node > _audited), *(node for node in live if node <= _audited)]
    deadline, others = time.monotonic() + AUDIT_S, []
    for node in turn:
        if time.monotonic() > deadline:
            break
        if not pusher.audit(node):
            others.append(node)
        _audited = node
    _start_pushes(pusher.wanted_of(NodeSync.objects.filter(node_id__in=others)))


@shared_task
def tidy() -> None:
    """Every few seconds: end Pods whose grace period is over, what owners leave, Namespaces and service ranges that go."""
    store.reap_pods(actor=ACTOR)
    store.collect(actor=ACTOR, at_most=2000)
    store.finish_retirements(actor=ACTOR)
    going = Namespace.objects.filter(document__contains='"phase":"Terminating"').values_list("name", flat=True)
    for name in [*going]:
        store.finish_namespace(name, actor=ACTOR, at_most=2000)


@shared_task
def repair() -> None:
    """Every few minutes: look whether allocations and endpoints are what Services say, tell and mend.

    In a process of its own, whose turn comes after all others': it reads everything there is, and threads here share one Python.
    """
    command = ["nice", "-n", "10", sys.executable, "-m", "django", "repair"]
    subprocess.run(command, stdout=subprocess.DEVNULL, timeout=REPAIR_S, check=True)  # what it finds is in the log


@shared_task
def compact() -> None:
    """Drop changes older than the hour watchers may look back, Events that old, and records of who did what past their time."""
    store.expire_events(actor=ACTOR)
    done = changes.compact()
    if done.removed:
        logger.info("compacted %s changes up to revision %s", done.removed, done.revision)
    if dropped := audits.drop_old(keep=settings.TIMONEL_AUDIT_KEPT):
        logger.info("dropped %s audit records older than %s", dropped, settings.TIMONEL_AUDIT_KEPT)
    operations.drop_old(keep=settings.TIMONEL_AUDIT_KEPT)


@worker_shutdown.connect
def _close_sessions(**_: object) -> None:
    pusher.pool.close_all()
