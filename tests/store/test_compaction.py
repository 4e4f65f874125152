"""What leaves the log, and who has to start again from everything because of it."""

from datetime import timedelta

from services_app import changes
from services_app.push import snapshot
from services_app.spec import kinds
from services_app.store.objects import Actor, create

ACTOR = Actor("tester")


def make_event(world, name):
    about = {"kind": "Service", "namespace": "shop", "name": "web"}
    create(kinds.EVENT, {"metadata": {"name": name}, "involvedObject": about}, namespace="shop", actor=ACTOR)


def delta_since(revision):
    return snapshot.read_delta("n1", "192.0.2.1", revision, with_base=False)


def test_a_node_needs_everything_only_when_a_change_for_nodes_has_left_the_log(committed_world):
    world = committed_world
    world.service()
    held = changes.head()
    newest = snapshot.newest_owner_revision()
    make_event(world, "one")
    make_event(world, "two")
    assert changes.compact(keep=timedelta(0)).removed > 2
    make_event(world, "three")
    assert changes.oldest() > held, "watchers from then start again"
    assert snapshot.newest_owner_revision() == newest
    delta = delta_since(held)
    assert delta.since == held, "events are no concern of nodes"
    assert delta.owners == {}
    assert delta_since(newest - 1).since is None, "it lacks a change that nobody can tell any more"
    changes.compact(keep=timedelta(0))
    assert snapshot.newest_owner_revision() == newest, "a compaction without changes for nodes forgets none"
    assert delta_since(held).since == held
