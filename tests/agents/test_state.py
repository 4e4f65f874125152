"""What a push changes: deltas and full pushes end in the same state."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.state import EMPTY_DIGEST, BaseMismatch, Change, Refusal, StaleRevision, State, apply, bar, digest

OWNERS = st.sampled_from(["", "a/one", "a/two", "b/one"])
RESOURCES = st.lists(
    st.tuples(st.sampled_from(["nft4", "dns"]), st.sampled_from(["k1", "k2", "k3"]), st.sampled_from(["v1", "v2"])).map(
        list
    ),
    max_size=4,
    unique_by=lambda resource: (resource[0], resource[1]),
)
BAD = Refusal("InvalidResource", "cannot read it")
PUSHES = st.lists(st.dictionaries(OWNERS, RESOURCES, min_size=1, max_size=3), min_size=1, max_size=8)


@given(PUSHES)
def test_deltas_and_one_full_push_end_in_the_same_state(pushes):
    state, kernel, held = State("c"), {}, {}
    for revision, owners in enumerate(pushes, start=1):
        state, delta = apply(state, revision, revision - 1, owners)
        held.update(owners)
        for driver, change in delta.changes.items():
            for key, value in change.deletes.items():
                assert kernel.pop((driver, key)) == value
            for key, value in change.adds.items():
                assert kernel.setdefault((driver, key), value) == value
    held = {owner: resources for owner, resources in held.items() if resources}
    whole, _ = apply(State("c"), len(pushes), None, held)
    for driver in ("nft4", "dns"):
        assert state.elements(driver) == whole.elements(driver)
        assert {key: value for (d, key), value in kernel.items() if d == driver} == whole.elements(driver)
    assert state.digest == whole.digest == digest(held)
    assert state.refused.keys() == whole.refused.keys()


def test_an_element_that_two_claim_stays_until_both_are_gone():
    same = [["dns", "key", "5"]]
    state, _ = apply(State(), 1, None, {"a": same, "b": same})
    state, delta = apply(state, 2, 1, {"a": []})
    assert not delta
    state, delta = apply(state, 3, 2, {"b": []})
    assert delta.of("dns").deletes == {"key": "5"}


def test_of_two_that_disagree_the_later_name_is_refused_until_the_other_goes():
    state, delta = apply(State(), 1, None, {"b": [["nft4", "k", "2"], ["dns", "d", "5"]], "a": [["nft4", "k", "1"]]})
    assert delta.refused["b"].reason == "ElementConflict"
    assert state.elements("nft4") == {"k": "1"}
    assert state.elements("dns") == {}
    state, delta = apply(state, 2, 1, {"a": []})
    assert state.elements("nft4") == {"k": "2"}
    assert delta.of("dns").adds == {"d": "5"}


def test_a_full_push_removes_who_is_not_named():
    state, _ = apply(State(), 1, None, {"a": [["dns", "x", "5"]], "b": [["dns", "y", "5"]]})
    state, delta = apply(state, 2, None, {"b": [["dns", "y", "5"]]})
    assert delta.of("dns").deletes == {"x": "5"}
    assert not delta.of("dns").adds


def test_old_pushes_and_gaps_are_refused_before_anything_changes():
    state, _ = apply(State(), 5, None, {"a": [["dns", "x", "5"]]})
    before = state.digest
    with pytest.raises(StaleRevision):
        apply(state, 4, None, {})
    with pytest.raises(BaseMismatch):
        apply(state, 9, 6, {"a": []})
    assert (state.revision, state.digest) == (5, before)


def test_barred_owners_count_but_have_no_elements():
    state, _ = apply(State(), 1, None, {"a": [["dns", "x", "5"]]}, {"a": Refusal("InvalidResource", "bad")})
    assert state.elements("dns") == {}
    assert state.digest == digest({"a": [["dns", "x", "5"]]})
    state, delta = apply(state, 2, 1, {"a": [["dns", "x", "5"]]})
    assert delta.of("dns").adds == {"x": "5"}
    assert bar(state, {"a": Refusal("NftFailed", "no")}).of("dns").deletes == {"x": "5"}


def held(state):
    """All that can be seen of a state but its revision."""
    return (
        state.owners,
        state.digest,
        {driver: state.elements(driver) for driver in ("nft4", "dns")},
        {owner: why.reason for owner, why in state.refused.items()},
        state.barred,
    )


def followed(elements, change):
    """The elements after a change, as a kernel would take it: what is deleted exists, what is added does not."""
    left = dict(elements)
    for key, value in change.deletes.items():
        assert left.pop(key) == value
    for key, value in change.adds.items():
        assert key not in left
        left[key] = value
    return left


TWICE = st.lists(
    st.tuples(st.sampled_from(["nft4", "dns"]), st.sampled_from("pqr"), st.sampled_from("12")).map(list), max_size=4
)
MIXED = st.lists(
    st.tuples(
        st.dictionaries(OWNERS, TWICE, max_size=4), st.frozensets(OWNERS, max_size=2), st.booleans(), st.booleans()
    ),
    max_size=8,
)


@settings(max_examples=300)
@given(MIXED)
def test_deltas_full_pushes_and_bad_owners_in_any_order_end_where_one_full_push_does(pushes):
    state, wanted, bad = State("c"), {}, {}
    seen = {"nft4": {}, "dns": {}}
    for revision, (owners, barred, is_full, is_barred_later) in enumerate(pushes, start=1):
        refusals = {owner: BAD for owner in barred if owners.get(owner)}
        if is_full:
            wanted, bad = {}, {}
        wanted = {owner: given for owner, given in {**wanted, **owners}.items() if given}
        bad = {**{owner: why for owner, why in bad.items() if owner not in owners}, **refusals}
        state, delta = apply(
            state, revision, None if is_full else revision - 1, owners, {} if is_barred_later else refusals
        )
        deltas = [delta, bar(state, refusals)] if is_barred_later else [delta]
        for driver in seen:
            for each in deltas:
                seen[driver] = followed(seen[driver], each.of(driver))
            assert seen[driver] == state.elements(driver)
        assert deltas[-1].refused == state.refused
    whole, _ = apply(State("c"), len(pushes) + 1, None, wanted, bad)
    assert held(state) == held(whole)
    assert digest(wanted) == digest(state.resources()) == state.digest


@given(st.dictionaries(OWNERS, RESOURCES), st.randoms())
def test_digest_knows_no_order(owners, random):
    names = list(owners)
    random.shuffle(names)
    shuffled = {name: random.sample(owners[name], len(owners[name])) for name in names}
    assert digest(shuffled) == digest(owners)


@pytest.mark.parametrize(
    "other",
    [
        {"b": [["nft4", "p", "1"]]},
        {"a": [["dns", "p", "1"]]},
        {"a": [["nft4", "q", "1"]]},
        {"a": [["nft4", "p", "2"]]},
        {"a": [["nft4", "p", "1"], ["nft4", "q", "1"]]},
        {},
    ],
    ids=["owner", "driver", "key", "value", "more", "nothing"],
)
def test_digest_sees_every_part(other):
    assert digest(other) != digest({"a": [["nft4", "p", "1"]]})


def test_digest_of_nothing_is_zeros():
    assert State().digest == digest({}) == digest({"a": []}) == EMPTY_DIGEST


def test_conflicts_pass_on_along_the_names():
    # b loses to a, so c, which would lose to b, is in; without a it turns round.
    owners = {
        "a": [["nft4", "p", "1"]],
        "b": [["nft4", "p", "2"], ["nft4", "q", "2"]],
        "c": [["nft4", "q", "3"]],
    }
    state, _ = apply(State(), 1, None, owners)
    assert set(state.refused) == {"b"}
    assert state.elements("nft4") == {"p": "1", "q": "3"}
    state, delta = apply(state, 2, 1, {"a": []})
    assert set(state.refused) == {"c"}
    assert delta.of("nft4") == Change({"p": "1", "q": "3"}, {"p": "2", "q": "2"})


def test_an_owner_that_contradicts_itself_is_out_alone():
    state, _ = apply(State(), 1, None, {"a": [["dns", "p", "1"], ["dns", "p", "2"]], "b": [["dns", "q", "1"]]})
    assert state.elements("dns") == {"q": "1"}
    assert state.refused["a"].reason == "ElementConflict"
    state, _ = apply(state, 2, 1, {"a": [["dns", "p", "1"]]})
    assert not state.refused


def test_a_delta_sent_again_because_its_answer_was_lost_changes_nothing():
    state, _ = apply(State(), 5, None, {"a": [["dns", "x", "5"]]})
    state, delta = apply(state, 5, 4, {"a": []})
    assert not delta
    assert state.elements("dns") == {"x": "5"}


def test_a_delta_does_not_fit_what_another_control_plane_left():
    state, _ = apply(State("new"), 0, None, {"a": [["dns", "x", "5"]]})
    with pytest.raises(BaseMismatch, match="another control plane"):
        apply(state, 3, 0, {})
    assert apply(state, 3, None, {})[0].owners == {}
