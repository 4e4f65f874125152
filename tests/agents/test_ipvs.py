"""Virtual servers of mode ipvs: what elements ask for, what ipvsadm says, and the commands between the two."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents import ipvs
from agents.errors import InvalidResource
from agents.ipvs import FAMILIES
from agents.state import Change
from agents.virtual_servers import Held, Key, Server, Wanted, commands, parse
from services_app.spec import kube_proxy

# As ipvsadm 1.31 says it; flags that a scheduler has no name for are an empty pair of brackets.
LISTING = """IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn
TCP  10.96.0.1:80 rr (flag-3)
  -> 192.0.2.11:8080              Masq    1      2          3
  -> 192.0.2.12:8080              Masq    0      0          0
UDP  10.96.0.1:53 wrr (flag-3) persistent 60
SCTP 10.96.0.1:80 nq
TCP  [fd00::1]:80 sh () persistent 600
  -> [2001:db8::11]:8080          Masq    3      0          0
TCP  198.51.100.1:80 sh (sh-port) persistent 600 mask 255.255.255.0
  -> 192.0.2.11:8080              Route   1      0          0
FWM  1610612741 lc (flag-3)
FWM  1610612741 IPv6 lc (flag-3)
  -> [2001:db8::11]:8080          Masq    1      0          0
"""


def test_what_ipvsadm_says_is_read():
    assert parse(LISTING) == {
        Key("tcp", "10.96.0.1", 80): Held("rr", None, True, {"192.0.2.11:8080": (1, 5), "192.0.2.12:8080": (0, 0)}),
        Key("udp", "10.96.0.1", 53): Held("wrr", 60, True, {}),
        Key("sctp", "10.96.0.1", 80): Held("nq", None, False, {}),
        Key("tcp", "fd00::1", 80): Held("sh", 600, True, {"[2001:db8::11]:8080": (3, 0)}),
        Key("tcp", "198.51.100.1", 80): Held("sh", 600, False, {"192.0.2.11:8080": (-1, 0)}),
        Key("fwm", "", 0x60000005): Held("lc", None, True, {}),
        Key("fwm6", "", 0x60000005): Held("lc", None, True, {"[2001:db8::11]:8080": (1, 0)}),
    }


ELEMENTS = {
    "frontends 10.96.0.1 . tcp . 80": "0x00000001",
    "frontends 203.0.113.1 . tcp . 80": "0x60000002",
    "nodeports tcp . 30001": "0x40000002",
    "to_cluster 0x60000002": "0x00000001",
    "to_cluster 0x40000002": "0x00000001",
    "groups 0x00000001": "goto aff_600_2",
    "slots 0x00000001 . 1": "10.1.0.1 . 8080",
    "slots 0x00000001 . 2": "10.1.0.2 . 8080",
    "pick 0x00000001 . 0": "1",
    "pick 0x00000001 . 1": "2",
    "groups 0x00000002": "goto lb_1",
    "slots 0x00000002 . 0": "10.1.0.1 . 8080",
    "frontends 10.96.0.2 . udp . 53": "0x00000003",
    "groups 0x00000003": "goto refuse",
    "without_node_ports 192.0.2.64/26": "",
}
BOTH = {"10.1.0.1:8080": 1, "10.1.0.2:8080": 1}


def a_wanted(schedulers=None, elements=ELEMENTS):
    wanted = Wanted(FAMILIES["nft4"], schedulers or {})
    wanted.move(frozenset({"192.0.2.1", "192.0.2.77"}))
    wanted.follow(Change(adds=dict(elements)))
    return wanted


def test_elements_become_virtual_servers():
    wanted = a_wanted()
    assert {key: wanted.server(key) for key in wanted.everything()} == {
        Key("tcp", "10.96.0.1", 80): Server("rr", 600, BOTH),
        Key("tcp", "203.0.113.1", 80): Server("rr", None, {"10.1.0.1:8080": 1}),
        Key("tcp", "192.0.2.1", 30001): Server("rr", None, {"10.1.0.1:8080": 1}),
        Key("udp", "10.96.0.2", 53): Server("rr", None, {}, is_udp=True),
        # Who is not outside takes all endpoints; by mark clients are known by their hash.
        Key("fwm", "", 0x60000001): Server("mh", None, BOTH),
    }
    assert wanted.server(Key("tcp", "192.0.2.77", 30001)) is None  # has no node ports


def test_node_ports_follow_the_addresses_of_the_node():
    wanted = a_wanted()
    assert wanted.move(frozenset({"192.0.2.1", "192.0.2.2"})) == {Key("tcp", "192.0.2.2", 30001)}
    assert wanted.move(frozenset({"192.0.2.2"})) == {Key("tcp", "192.0.2.1", 30001)}
    assert wanted.server(Key("tcp", "192.0.2.1", 30001)) is None
    assert wanted.server(Key("tcp", "192.0.2.2", 30001))
    assert wanted.follow(Change(deletes={"without_node_ports 192.0.2.64/26": ""})) == set()
    assert wanted.move(frozenset({"192.0.2.2", "192.0.2.77"})) == {Key("tcp", "192.0.2.77", 30001)}


def test_a_service_chooses_a_scheduler_before_its_node():
    wanted = a_wanted({"": "lc", "0x00000002": "nq"})
    assert wanted.server(Key("tcp", "10.96.0.1", 80)).scheduler == "lc"
    assert wanted.server(Key("tcp", "203.0.113.1", 80)).scheduler == "nq"


def test_an_endpoint_in_more_slots_takes_more_connections():
    elements = {**ELEMENTS, "groups 0x00000002": "goto lb_3", "slots 0x00000002 . 1": "10.1.0.2 . 8080"}
    wanted = a_wanted(elements={**elements, "slots 0x00000002 . 2": "10.1.0.2 . 8080"})
    server = wanted.server(Key("tcp", "203.0.113.1", 80))
    assert server == Server("wrr", None, {"10.1.0.1:8080": 1, "10.1.0.2:8080": 2})


def test_an_endpoint_of_weight_0_keeps_what_it_has():
    wanted = a_wanted(elements={**ELEMENTS, "slots 0x00000002 . 1": "10.1.0.2 . 8080"})
    assert wanted.server(Key("tcp", "203.0.113.1", 80)) == Server("rr", None, {"10.1.0.1:8080": 1, "10.1.0.2:8080": 0})


def test_a_client_is_served_by_its_hash_where_the_service_says_so():
    elements = {**ELEMENTS, "groups 0x00000002": "goto hash_1"}
    assert a_wanted({"": "lc"}, elements).server(Key("tcp", "203.0.113.1", 80)).scheduler == "mh"
    assert a_wanted({"0x00000002": "sh"}, elements).server(Key("tcp", "203.0.113.1", 80)).scheduler == "sh"


SERVERS = st.none() | st.builds(
    Server,
    st.sampled_from(["rr", "lc"]),
    st.none() | st.just(600),
    st.dictionaries(st.sampled_from([f"10.1.0.{n}:80" for n in range(4)]), st.integers(0, 3)),
    st.just(False),
)


@given(st.lists(SERVERS, max_size=8), st.booleans())
def test_commands_lead_from_any_state_to_any_other(states, is_udp):
    """Played on a model of the kernel that refuses what ipvsadm refuses."""
    kind = "udp" if is_udp else "tcp"
    key, kernel, leaving, old = Key(kind, "10.96.0.1", 80), None, set(), None
    for state in states:
        new = Server(state.scheduler, state.affinity_s, state.endpoints, is_udp) if state else None
        first, then = commands(key, old, new, leaving)
        for line in first:
            assert not line.startswith(("-D", "-d")), "what connections are to get to comes first"
        for line in [*first, *then]:
            verb, _, _, *words = line.split()
            options = dict(zip(words[::2], words[1::2], strict=False))
            if verb in ("-A", "-E"):
                assert (kernel is None) == (verb == "-A")
                kernel = Held(
                    options["-s"],
                    int(options["-p"]) if "-p" in options else None,
                    True,
                    kernel.endpoints if kernel else {},
                )
            elif verb == "-D":
                assert kernel is not None
                kernel = None
            else:
                assert (options["-r"] in kernel.endpoints) == (verb != "-a")
                if verb == "-d":
                    del kernel.endpoints[options["-r"]]
                else:
                    kernel.endpoints[options["-r"]] = int(line.split()[-1]), 0
        if kernel is None:
            assert new is None or not new.endpoints
            assert not leaving
            old = None
        else:
            assert kernel.is_like(new, leaving)
            assert not (is_udp and leaving)
            old = new


def test_deltas_ask_for_what_all_elements_ask_for():
    choice = random.Random(4)
    elements: dict[str, str] = {}
    wanted = a_wanted(elements={})
    for _ in range(300):
        number = choice.randrange(1, 5)
        pool = {
            f"frontends 10.96.0.{number} . tcp . 80": choice.choice(["0x00000001", "0x00000002", "0x40000003"]),
            f"nodeports udp . {30000 + number}": choice.choice(["0x00000001", "0x40000002"]),
            f"to_cluster 0x4000000{number}": f"0x0000000{choice.randrange(1, 4)}",
            f"groups 0x0000000{number}": choice.choice(["goto lb_1", "goto refuse", "drop", "goto aff_9_1"]),
            f"slots 0x0000000{number} . {choice.randrange(2)}": f"10.1.0.{choice.randrange(1, 4)} . 80",
            f"pick 0x0000000{number} . 0": str(choice.randrange(2)),
            "without_node_ports 192.0.2.64/26": "",
        }
        changed = choice.sample(sorted(pool), 2)
        before = {key: wanted.server(key) for key in wanted.everything()}
        deletes = {key: elements[key] for key in changed if key in elements}
        adds = {key: pool[key] for key in changed if choice.random() < 0.7}
        touched = wanted.follow(Change(deletes, adds))
        for key in deletes:
            del elements[key]
        elements |= adds
        fresh = a_wanted(elements=elements)
        after = {key: wanted.server(key) for key in wanted.everything()}
        assert after == {key: fresh.server(key) for key in fresh.everything()}
        assert {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)} <= touched


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scheduler", "random"),
        ("scheduler 5", "rr"),
        ("scheduler 0x10000005", "rr"),
        ("servers", "rr"),
        ("scheduler ", "rr"),
    ],
)
def test_other_resources_are_refused(key, value):
    with pytest.raises(InvalidResource):
        ipvs.check(key, value)


def test_every_scheduler_that_may_be_chosen_is_known_to_the_agent():
    assert kube_proxy.SCHEDULERS == ipvs.SCHEDULERS
    for name in kube_proxy.SCHEDULERS:
        ipvs.check("scheduler", name)
        ipvs.check("scheduler 0x00000005", name)
