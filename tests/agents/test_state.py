"""What a push changes: deltas and full pushes end in the same state."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.state import BaseMismatch, Refusal, StaleRevision, State, apply, bar, digest

OWNERS = st.sampled_from(["", "a/one", "a/two", "b/one"])
RESOURCES = st.lists(
    st.tuples(st.sampled_from(["nft4", "dns"]), st.sampled_from(["k1", "k2", "k3"]), st.sampled_from(["v1", "v2"])).map(
        list
    ),
    max_size=4,
    unique_by=lambda resource: (resource[0], resource[1]),
)
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
