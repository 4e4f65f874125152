"""Label and field selectors: what their text means and what they match."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services_app.spec.errors import BadRequest
from services_app.spec.kinds import EVENT, NAMESPACE, NODE, POD, SERVICE
from services_app.spec.selectors import match_labels, parse_field_selector, parse_label_selector

LABELS = {"app": "web", "tier": "front", "release": "12", "empty": ""}

# selector -> whether it matches LABELS
MATCHES = {
    "": True,
    "  ": True,
    "app=web": True,
    "app==web": True,
    "app = web": True,
    "app=db": False,
    "app!=db": True,
    "app!=web": False,
    "gone!=web": True,
    "gone=web": False,
    "app": True,
    "gone": False,
    "!gone": True,
    "! gone": True,
    "!app": False,
    "app in (web,db)": True,
    "app in (db)": False,
    "app in ( web , db )": True,
    "app notin (db)": True,
    "app notin (web)": False,
    "gone notin (web)": True,
    "gone in (web)": False,
    "empty=": True,
    "app=": False,
    "empty in ()": True,
    "empty in (,a)": True,
    "app=web,tier=front": True,
    "app=web,tier=back": False,
    "app=web,!gone,release>11,release<13": True,
    "release>12": False,
    "release<12": False,
    "app>1": False,
    "gone<1": False,
    "example.com/name": False,
    "in": False,
    "notin=x": False,
}


@pytest.mark.parametrize("text, expected", MATCHES.items(), ids=[text or "(empty)" for text in MATCHES])
def test_a_label_selector_matches_what_it_says(text, expected):
    assert parse_label_selector(text).matches(LABELS) is expected


@pytest.mark.parametrize(
    "text",
    [
        ",",
        "a,",
        ",a",
        "a b",
        "a=b=c",
        "a=b,,c",
        "=a",
        "!",
        "!a=b",
        "a in",
        "a in x",
        "a in (b",
        "a in b)",
        "a in (b c)",
        "a notin",
        "a>b",
        "a<",
        "a>1.5",
        "a=b c",
        "a b=c",
        "(a)",
        "a=(b)",
        "-a",
        "a=-b",
        "a/b/c",
        "a=é",
        "a" * 64,
        "a=" + "b" * 64,
        "a in (b_)",
    ],
)
def test_what_is_no_label_selector_is_refused(text):
    with pytest.raises(BadRequest, match="unable to parse requirement"):
        parse_label_selector(text)


def test_no_labels_at_all_are_an_empty_set():
    assert parse_label_selector("!a").matches(None)
    assert not parse_label_selector("a").matches(None)


_word = st.text(string.ascii_letters + string.digits, min_size=1, max_size=8).filter(lambda t: t not in ("in", "notin"))
_labels = st.dictionaries(_word, _word, max_size=5)


@given(_labels, _labels)
def test_equalities_match_as_the_selector_of_a_service_does(selector, labels):
    text = ",".join(f"{key}={value}" for key, value in selector.items())
    expected = all(labels.get(key) == value for key, value in selector.items())
    assert parse_label_selector(text).matches(labels) is expected
    assert match_labels(selector, labels) is (bool(selector) and expected)


@given(_word, st.lists(_word, min_size=1, max_size=4), _labels)
def test_in_and_notin_are_opposites(key, values, labels):
    listed = f"({','.join(values)})"
    inside = parse_label_selector(f"{key} in {listed}").matches(labels)
    assert parse_label_selector(f"{key} notin {listed}").matches(labels) is not inside
    assert inside is any(parse_label_selector(f"{key}={value}").matches(labels) for value in values)


@given(st.text(max_size=30))
def test_any_text_is_a_label_selector_or_a_bad_request(text):
    try:
        parse_label_selector(text).matches(LABELS)
    except BadRequest:
        pass


@given(st.text("abin(),=!<> \t1", max_size=16))
def test_any_row_of_tokens_is_a_label_selector_or_a_bad_request(text):
    try:
        parse_label_selector(text).matches(LABELS)
    except BadRequest:
        pass


# --- of a Service


@pytest.mark.parametrize(
    "selector, labels, expected",
    [
        ({"app": "web"}, LABELS, True),
        ({"app": "web", "tier": "front"}, LABELS, True),
        ({"app": "web", "tier": "back"}, LABELS, False),
        ({"gone": ""}, LABELS, False),
        ({"empty": ""}, LABELS, True),
        ({}, LABELS, False),
        (None, LABELS, False),
        ({"app": "web"}, None, False),
    ],
)
def test_a_service_selects_pods_that_have_every_pair(selector, labels, expected):
    assert match_labels(selector, labels) is expected


# --- fields

SERVICE_DOCUMENT = {
    "metadata": {"name": "web", "namespace": "shop"},
    "spec": {"type": "NodePort", "clusterIP": "10.96.0.9"},
}
POD_DOCUMENT = {
    "metadata": {"name": "p", "namespace": "shop"},
    "spec": {"nodeName": "n1", "hostNetwork": True},
    "status": {"phase": "Running", "podIP": "192.0.2.7"},
}
EVENT_DOCUMENT = {"metadata": {"name": "e"}, "involvedObject": {"kind": "Service", "name": "web"}, "reason": "Synced"}

FIELDS = [
    (SERVICE, SERVICE_DOCUMENT, "", True),
    (SERVICE, SERVICE_DOCUMENT, "metadata.name=web", True),
    (SERVICE, SERVICE_DOCUMENT, "metadata.name==web", True),
    (SERVICE, SERVICE_DOCUMENT, "metadata.name!=web", False),
    (SERVICE, SERVICE_DOCUMENT, "metadata.name=web,spec.type=NodePort", True),
    (SERVICE, SERVICE_DOCUMENT, "metadata.name=web,spec.type!=NodePort", False),
    (SERVICE, SERVICE_DOCUMENT, "spec.clusterIP=10.96.0.9", True),
    (SERVICE, SERVICE_DOCUMENT, "metadata.namespace=", False),
    (SERVICE, SERVICE_DOCUMENT, r"metadata.name=a\,b", False),
    (SERVICE, SERVICE_DOCUMENT | {"metadata": {"name": "a,b=c"}}, r"metadata.name=a\,b\=c", True),
    (POD, POD_DOCUMENT, "spec.nodeName=n1,status.phase=Running,status.podIP=192.0.2.7", True),
    (POD, POD_DOCUMENT, "spec.nodeName=", False),
    (POD, {"metadata": {"name": "p"}, "spec": {}}, "spec.nodeName=", True),
    (POD, POD_DOCUMENT, "spec.hostNetwork=true", True),
    (NODE, {"metadata": {"name": "n"}}, "spec.unschedulable=false", True),
    (NAMESPACE, {"metadata": {"name": "n"}, "status": {"phase": "Active"}}, "status.phase=Active", True),
    (EVENT, EVENT_DOCUMENT, "involvedObject.kind=Service,involvedObject.name=web,reason=Synced", True),
]


@pytest.mark.parametrize("kind, document, text, expected", FIELDS, ids=[f"{f[0].kind}: {f[2]}" for f in FIELDS])
def test_a_field_selector_compares_texts(kind, document, text, expected):
    assert parse_field_selector(kind, text).matches(document) is expected


@pytest.mark.parametrize(
    "kind, text",
    [
        (SERVICE, "spec.selector=x"),
        (SERVICE, "spec.nodeName=n"),
        (SERVICE, "metadata.name"),
        (SERVICE, "metadata.labels=x"),
        (SERVICE, "metadata.name=a=b"),
        (SERVICE, r"metadata.name=a\x"),
        (NODE, "metadata.namespace=x"),
        (SERVICE, "metadata.name>a"),
    ],
)
def test_other_fields_and_operators_are_refused(kind, text):
    with pytest.raises(BadRequest):
        parse_field_selector(kind, text)


@given(st.text(max_size=20))
def test_every_value_can_be_escaped(value):
    escaped = value.replace("\\", r"\\").replace(",", r"\,").replace("=", r"\=")
    assert parse_field_selector(SERVICE, f"metadata.name={escaped}").matches({"metadata": {"name": value}})


@given(st.text(r"a.,=!\\ ", max_size=20))
def test_any_text_is_a_field_selector_or_a_bad_request(text):
    try:
        parse_field_selector(SERVICE, text).matches(SERVICE_DOCUMENT)
    except BadRequest:
        pass
