"""Which node holds which Service's last change, from plain values."""

import pytest

from services_app.web.liveness import (
    BEHIND,
    FAILED,
    LIVE,
    NOT_ENROLLED,
    PENDING,
    QUARANTINED,
    REJECTED,
    UNREACHABLE,
    Lag,
    NodeReport,
    holding_of,
    liveness_of,
    sort_nodes,
    status_of,
)

KEY = "shop/web"
REFUSED = {KEY: {"reason": "BadAnnotation", "message": "no such mode"}}
LAG = Lag(revisions=(10, 20, 30, 40))


def node(name="n1", state=LIVE, applied=40, **more):
    return NodeReport(name=name, address="192.0.2.1", state=state, applied_revision=applied, **more)


@pytest.mark.parametrize(
    ("report", "changed", "expected"),
    [
        pytest.param(node(applied=40), 40, (LIVE, True), id="holds the last change"),
        pytest.param(node(applied=39), 40, (BEHIND, False), id="lacks the last change"),
        pytest.param(node(applied=20), 10, (LIVE, True), id="behind, but not for this Service"),
        pytest.param(node(applied=40, rejected=REFUSED), 40, (REJECTED, False), id="refused it"),
        pytest.param(node(applied=40, rejected={"shop/other": {}}), 40, (LIVE, True), id="refused another"),
        pytest.param(node(state=UNREACHABLE, applied=40), 40, (UNREACHABLE, True), id="unreachable, still serving it"),
        pytest.param(node(state=UNREACHABLE, applied=10), 40, (UNREACHABLE, False), id="unreachable without it"),
        pytest.param(node(state=QUARANTINED, applied=10), 40, (QUARANTINED, False), id="quarantined"),
        pytest.param(node(state=FAILED, applied=10), 40, (FAILED, False), id="failed"),
        pytest.param(node(state=PENDING, applied=0), 40, (PENDING, False), id="never reached"),
        pytest.param(
            node(state=UNREACHABLE, applied=40, rejected=REFUSED), 40, (REJECTED, False), id="refused, then lost"
        ),
    ],
)
def test_status_of_a_service_on_a_node(report, changed, expected):
    assert status_of(KEY, changed, report) == expected


@pytest.mark.parametrize(
    ("lag", "applied", "wanted", "expected"),
    [
        pytest.param(LAG, 40, 40, "0", id="nothing"),
        pytest.param(LAG, 20, 40, "2", id="changes are counted, not revisions"),
        pytest.param(LAG, 20, 30, "1", id="only up to what is wanted"),
        pytest.param(LAG, 0, 40, "4", id="everything"),
        pytest.param(Lag((30, 40), truncated=True), 0, 40, "2+", id="the list does not reach back"),
        pytest.param(Lag(tuple(range(1, 1001)), truncated=True), 0, 1000, "1,000+", id="very far"),
        pytest.param(Lag(), 5, 9, "1+", id="the log holds the change no more"),
        pytest.param(Lag(), 9, 5, "0", id="nothing wanted"),
    ],
)
def test_behind_counts_the_changes_that_concern_nodes(lag, applied, wanted, expected):
    assert lag.between(applied, wanted) == expected


def test_a_refusal_explains_itself_before_the_state_of_the_node_does():
    report = node(state=UNREACHABLE, reason="Timeout", message="no answer", rejected=REFUSED)
    holding = holding_of(KEY, 40, report, LAG)
    assert (holding.status, holding.reason, holding.message) == (REJECTED, "BadAnnotation", "no such mode")
    assert holding_of("shop/other", 40, report, LAG).reason == "Timeout"


def test_a_connected_node_that_lacks_changes_or_refused_some_is_not_plainly_live():
    assert node().status == LIVE
    assert node(behind="3").status == BEHIND
    assert node(behind="3", rejected=REFUSED).status == REJECTED
    assert node(state=FAILED, behind="3").status == FAILED


def test_few_nodes_are_all_listed_the_live_ones_first():
    nodes = [node("d"), node("b", UNREACHABLE), node("a"), node("c", applied=10)]
    liveness = liveness_of(KEY, 40, nodes, LAG)
    assert [holding.node.name for holding in liveness.listed] == ["a", "d", "b", "c"]
    assert liveness.counts == ((UNREACHABLE, 1), (BEHIND, 1), (LIVE, 2))
    assert (liveness.nodes, liveness.unlisted, liveness.all_live) == (4, 0, False)


def test_of_many_nodes_only_the_troubled_are_listed_the_worst_first():
    nodes = [node(f"live-{n}") for n in range(100)]
    nodes += [node(f"lost-{n}", UNREACHABLE) for n in range(8)] + [node("odd", rejected=REFUSED)]
    liveness = liveness_of(KEY, 40, nodes, LAG)
    assert [holding.node.name for holding in liveness.listed] == ["odd", *(f"lost-{n}" for n in range(5))]
    assert liveness.unlisted == 3


def test_all_live_needs_a_node():
    assert liveness_of(KEY, 40, [node(), node("n2")], LAG).all_live
    assert not liveness_of(KEY, 40, [], LAG).all_live


def test_nodes_that_ask_for_a_person_come_first():
    nodes = [
        node("live"),
        node("new", NOT_ENROLLED),
        node("lost", UNREACHABLE),
        node("odd", rejected=REFUSED),
        node("a"),
    ]
    assert [report.name for report in sort_nodes(nodes)] == ["odd", "lost", "new", "a", "live"]


def test_refusals_are_whole_even_when_the_node_said_little():
    report = node(rejected={"b/b": {"reason": "Why"}, "a/a": {}})
    assert report.refusals == [
        {"service": "a/a", "reason": "", "message": ""},
        {"service": "b/b", "reason": "Why", "message": ""},
    ]
