"""Only the exact forms of the contract reach a tool: no other text does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents import conntrack, dns, health, host, ruleset
from agents.errors import InvalidResource
from agents.node import judge
from agents.state import ApplyError, Change

NFT = [
    ("frontends 10.96.0.10 . tcp . 80", "0x00000001", ("frontends", "10.96.0.10 . tcp . 80", "0x00000001")),
    ("nodeports udp . 30053", "0x0000000a", ("nodeports", "udp . 30053", "0x0000000a")),
    ("groups 0x00000001", "goto lb_3", ("groups", "0x00000001", "goto lb_3")),
    ("groups 0x00000001", "goto refuse", ("groups", "0x00000001", "goto refuse")),
    ("slots 0x00000001 . 0", "10.1.0.1 . 8080", ("slots", "0x00000001 . none", "10.1.0.1 . 8080")),
    ("slots 0x00000001 . 26", "10.1.0.1 . 8080", ("slots", "0x00000001 . 0:1a", "10.1.0.1 . 8080")),
    ("cluster_ips 10.96.0.10", "", ("cluster_ips", "10.96.0.10", "")),
    (
        "slots 0x00000001 . 3735928559",
        "10.1.0.1 . 8080",
        ("slots", "0x00000001 . dead:beef", "10.1.0.1 . 8080"),
    ),
    ("pick 0x00000001 . 1", "65536", ("pick", "0x00000001 . 0:1", "1:0")),
    ("groups 0x00000001", "goto aff_10800_3", ("groups", "0x00000001", "goto aff_10800_3")),
    ("groups 0x00000001", "drop", ("groups", "0x00000001", "drop")),
    ("frontends 192.0.2.1 . sctp . 80", "0x40000002", ("frontends", "192.0.2.1 . sctp . 80", "0x40000002")),
    ("to_cluster 0x40000002", "0x00000001", ("to_cluster", "0x40000002", "0x00000001")),
    ("pod_cidrs 10.1.0.0/16", "", ("pod_cidrs", "10.1.0.0/16", "")),
    ("frontends 192.0.2.1 . tcp . 80", "0x20000002", ("frontends", "192.0.2.1 . tcp . 80", "0x20000002")),
    ("to_cluster 0x60000002", "0x00000001", ("to_cluster", "0x60000002", "0x00000001")),
    ("source_ranges 0x20000002 . 10.1.0.0/16", "", ("source_ranges", "0x20000002 . 10.1.0.0/16", "")),
    ("source_ranges 0x60000002 . 10.1.0.1/32", "", ("source_ranges", "0x60000002 . 10.1.0.1/32", "")),
]
NFT6 = [
    ("frontends fd00::a . tcp . 80", "0x00000001", ("frontends", "fd00::a . tcp . 80", "0x00000001")),
    ("slots 0x00000001 . 0", "2001:db8::1 . 8080", ("slots", "0x00000001 . none", "2001:db8::1 . 8080")),
    ("cluster_ips fd00::a", "", ("cluster_ips", "fd00::a", "")),
    ("local_endpoints ::1", "", ("local_endpoints", "::1", "")),
    ("local_endpoints ::1:2", "", ("local_endpoints", "::1:2", "")),
    ("pod_cidrs fd00:1::/64", "", ("pod_cidrs", "fd00:1::/64", "")),
    ("source_ranges 0x20000002 . fd00:1::/64", "", ("source_ranges", "0x20000002 . fd00:1::/64", "")),
    ("nodeports udp . 30053", "0x0000000a", ("nodeports", "udp . 30053", "0x0000000a")),
]
BAD_NFT6 = [
    ("frontends 10.96.0.10 . tcp . 80", "0x00000001"),
    ("frontends fd00::A . tcp . 80", "0x00000001"),
    ("frontends fd00:0::a . tcp . 80", "0x00000001"),
    ("frontends fe80::1%eth0 . tcp . 80", "0x00000001"),
    ("slots 0x00000001 . 0", "fd00:::1 . 80"),
    ("slots 0x00000001 . 0", "10.1.0.1 . 80"),
    ("cluster_ips :", ""),
    ("pod_cidrs fd00:1::1/64", ""),
    ("pod_cidrs fd00:1::/129", ""),
]
BAD_NFT = [
    ("frontends 10.96.0.10 . tcp . 0", "0x00000001"),
    ("frontends 10.96.0.10 . tcp . 65536", "0x00000001"),
    ("frontends 10.96.0.256 . tcp . 80", "0x00000001"),
    ("frontends 10.96.0.10 . icmp . 80", "0x00000001"),
    ("frontends 10.96.0.10 . tcp . 80", "0x10000001"),
    ("frontends 10.96.0.10 . tcp . 80 }; flush ruleset; #", "0x00000001"),
    ("groups 0x00000001", "goto services"),
    ("groups 0x00000001", "accept"),
    ("slots 0x00000001 . 4294967295", "10.1.0.1 . 80"),
    ("slots 0x00000001 . 01", "10.1.0.1 . 80"),
    ("pick 0x00000001 . 65536", "77"),
    ("pick 0x00000001 . 0", "0"),
    ("pick 0x00000001 . 0", "4294967295"),
    ("groups 0x00000001", "goto aff_0_3"),
    ("groups 0x00000001", "goto aff_86401_3"),
    ("groups 0x00000001", "goto hit_10"),
    ("groups 0x00000000", "drop"),
    ("frontends 10.96.0.10 . tcp . 80", "0x20000000"),
    ("frontends 10.96.0.10 . tcp . 80", "0x30000001"),
    ("source_ranges 0x40000002 . 10.1.0.0/16", ""),
    ("source_ranges 0x20000000 . 10.1.0.0/16", ""),
    ("source_ranges 0x20000002 . 10.1.0.1/16", ""),
    ("source_ranges 0x20000002 . 10.1.0.0/33", ""),
    ("source_ranges 0x20000002 . fd00::/64", ""),
    ("source_ranges 0x20000002 . 10.1.0.1", ""),
    ("frontends 10.96.0.10 . tcp . 80", "0x40000000"),
    ("to_cluster 0x00000002", "0x00000001"),
    ("to_cluster 0x40000002", "0x40000001"),
    ("pod_cidrs 10.1.0.1/16", ""),
    ("pod_cidrs 10.1.0.0/33", ""),
    ("pod_cidrs 10.1.0.0", ""),
    ("frontends fd00::1 . tcp . 80", "0x00000001"),
    ("cluster_ips 10.96.0.10", "x"),
    ("cluster_ips 10.96.0.10\n", ""),
    ("same_link eth0", ""),
]


def spelled_by(family, key, value):
    ruleset.check(family, key, value)
    return ruleset.spell(key, value)


@pytest.mark.parametrize(("key", "value", "spelled"), NFT)
def test_elements_are_spelled_as_nft_reads_them(key, value, spelled):
    assert spelled_by(ruleset.IPV4, key, value) == spelled


@pytest.mark.parametrize(("key", "value"), BAD_NFT)
def test_other_elements_are_refused(key, value):
    with pytest.raises(InvalidResource):
        spelled_by(ruleset.IPV4, key, value)


@pytest.mark.parametrize(("key", "value", "spelled"), NFT6)
def test_ipv6_elements_are_spelled_as_nft_reads_them(key, value, spelled):
    assert spelled_by(ruleset.IPV6, key, value) == spelled


@pytest.mark.parametrize(("key", "value"), BAD_NFT6)
def test_other_ipv6_elements_are_refused(key, value):
    with pytest.raises(InvalidResource):
        spelled_by(ruleset.IPV6, key, value)


@given(st.sampled_from([ruleset.IPV4, ruleset.IPV6]), st.text(max_size=60), st.text(max_size=30))
def test_no_text_gets_through_that_could_end_an_element(family, key, value):
    try:
        spelled = spelled_by(family, key, value)
    except InvalidResource:
        return
    assert not set("{};\n\"'#") & set("".join(spelled))


RECORDS = [
    "web.shop.svc.cluster.local. A 10.96.0.10",
    "web.shop.svc.cluster.local. AAAA fd00::1",
    "10.0.96.10.in-addr.arpa. PTR web.shop.svc.cluster.local.",
    "ext.shop.svc.cluster.local. CNAME example.org.",
    "_http._tcp.web.shop.svc.cluster.local. SRV 0 100 80 web.shop.svc.cluster.local.",
]


@pytest.mark.parametrize("key", RECORDS)
def test_records_are_read(key):
    owner, kind, data, ttl = dns.parse(key, "5")
    assert (f"{owner} {kind} {data}", ttl) == (key, "5")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("web.shop. A 10.96.0", "5"),
        ("web.shop A 10.96.0.10", "5"),
        ("web.shop. TXT hello", "5"),
        ("web.shop. A 10.96.0.10\nx", "5"),
        ("web.shop. CNAME example.org", "5"),
        ("web.shop. SRV 0 100 80", "5"),
        ("web.shop. A 10.96.0.10", "soon"),
        ("web.shop. A 10.96.0.10", "\u00b2"),
        ("web.shop. A 10.96.0.10", "\u0663"),
        ("web.shop. A 10.96.0.10", ""),
        ("web.shop. A 10.96.0.10", "9" * 10),
        ("web.shop. A 999.1.1.1", "5"),
        ("web.shop. A 010.96.0.10", "5"),
        ("web.shop. AAAA :::::", "5"),
        ("web.shop. AAAA fe80::1%eth0", "5"),
        ("web.shop. SRV 0 100 65536 web.shop.", "5"),
        (f"{'abcdefg.' * 32} A 10.96.0.10", "5"),
        (f"web.shop. CNAME {'abcdefg.' * 32}", "5"),
        (f"10.in-addr.arpa. PTR {'abcdefg.' * 32}", "5"),
        ("web.shop. A 10.96.0.10 5\nzone-purge", "5"),
        (f"{'a' * 64}.shop. A 10.96.0.10", "5"),
    ],
)
def test_other_records_are_refused(key, value):
    with pytest.raises(InvalidResource):
        dns.parse(key, value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("node-address", "10.0.0.1; reboot"),
        ("node-address", "fe80::1%\nserver:"),
        ("node-address", ""),
        ("dns-listen", "fe80::1%\n    access-control: 0.0.0.0/0 allow"),
        ("dns-listen", "2001:db8::1"),
        ("dns-listen x", "169.254.20.10"),
        ("dns-listen", "169.254.20.10\n"),
        ("route 10.96.0.1/16", ""),
        ("route 10.96.0.0", ""),
        ("route 10.96.0.0/255.255.0.0", ""),
        ("route 2001:db8::1/64", ""),
        ("route fe80::%eth0/64", ""),
        ("node-address7", "192.0.2.1"),
        ("route default", ""),
        ("zone", "cluster.local."),
        ("zone", "cluster.local\n"),
        ("zone", "../etc/passwd"),
        ("zone", "a." * 127 + "a"),
        ("zone", ""),
        ("reverse 96.10.in-addr.arpa.\n", ""),
        ("", ""),
        ("route 10.96.0.0/33", ""),
        ("route 10.96.0.0/16", "x"),
        ("zone", "Cluster Local"),
        ("reverse 96.10.in-addr.arpa", ""),
        ("sysctl net.ipv4.ip_forward", "0"),
        ("conntrack max", "131072"),
        ("conntrack max", "32768 131072 "),
        ("conntrack max", "0 0"),
        ("conntrack udp", "30s"),
        ("conntrack udp", "0"),
        ("conntrack tcp-be-liberal", "0"),
        ("conntrack ../../../vm/drop_caches", "1"),
    ],
)
def test_other_host_settings_are_refused(key, value):
    with pytest.raises(InvalidResource):
        host.check(key, value)


def test_health_checks_are_read():
    assert health.parse("port 32000", "shop/web 2") == (("", 32000), health.Check("shop", "web", 2))
    assert health.parse("healthz 192.0.2.1:10256", "leaving") == (("192.0.2.1", 10256), health.Fitness(False))
    assert health.parse("healthz [::]:10256", "eligible") == (("::", 10256), health.Fitness(True))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("port 0", "shop/web 2"),
        ("port 65536", "shop/web 2"),
        ("port 032", "shop/web 2"),
        ("port 32000\n", "shop/web 2"),
        ("ports 32000", "shop/web 2"),
        ("port 32000", "shop/web"),
        ("port 32000", "shop/web -1"),
        ("port 32000", "shop/web 02"),
        ("port 32000", "shop/web/x 2"),
        ("port 32000", 'shop/w"b 2'),
        ("port 32000", "web 2"),
        ("port 32000", ""),
        ("healthz :10256", "eligible"),
        ("healthz 192.0.2.300:10256", "eligible"),
        ("healthz [fd00:0::1]:10256", "eligible"),
        ("healthz [::]:65536", "eligible"),
        ("healthz [::]:10256", "shop/web 2"),
        ("port 10256", "eligible"),
    ],
)
def test_other_health_checks_are_refused(key, value):
    with pytest.raises(InvalidResource):
        health.parse(key, value)


def test_flows_to_endpoints_that_left_are_forgotten_and_others_stay():
    flows = conntrack.UdpFlows("ipv4")
    flows.refill([("frontends 10.96.0.1 . udp . 53", "0x00000001"), ("frontends 10.96.0.2 . tcp . 80", "0x00000002")])
    moved = Change(
        deletes={"slots 0x00000001 . 0": "10.1.0.1 . 53", "slots 0x00000001 . 1": "10.1.0.2 . 53"},
        adds={"slots 0x00000001 . 0": "10.1.0.2 . 53"},
    )
    assert flows.follow(moved) == [
        ["-f", "ipv4", "--mark", "0x00000001", "--reply-src", "10.1.0.1", "--reply-port-src", "53"]
    ]
    assert flows.follow(Change(deletes={"slots 0x00000002 . 0": "10.1.0.1 . 80"})) == []


def test_what_was_sent_before_an_address_was_a_services_is_forgotten():
    flows = conntrack.UdpFlows("ipv4")
    made = Change(adds={"nodeports udp . 30053": "0x00000003"})
    assert flows.follow(made) == [["-f", "ipv4", "--orig-port-dst", "30053", "--mark", "0"]]
    gone = Change(deletes={"nodeports udp . 30053": "0x00000003"})
    assert flows.follow(gone) == [["-f", "ipv4", "--orig-port-dst", "30053", "--mark", "0x00000003"]]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("node-address", "192.0.2.1"),
        ("node-address", "2001:db8::1"),
        ("dns-listen", "169.254.20.10"),
        ("route 10.96.0.0/16", ""),
        ("route 10.96.0.1/32", ""),
        ("route 2001:db8::/64", ""),
        ("node-address6", "2001:db8::1"),
        ("zone", "cluster.local"),
        ("reverse 96.10.in-addr.arpa.", ""),
        ("reverse 8.b.d.0.1.0.0.2.ip6.arpa.", ""),
    ],
)
def test_host_settings_are_read(key, value):
    host.check(key, value)


HOSTILE = st.sampled_from(
    [*"{};\n\r\t\0\"'#$`\\%@/ .:*-", "flush ruleset", "\u0663", "\u00b2", "\ud800", "é", "x" * 5000]
)


def spell_ipv4(key, value):
    return spelled_by(ruleset.IPV4, key, value)


def spell_ipv6(key, value):
    return spelled_by(ruleset.IPV6, key, value)


READERS = {
    spell_ipv4: [(key, value) for key, value, _ in NFT],
    spell_ipv6: [(key, value) for key, value, _ in NFT6],
    dns.parse: [(key, "5") for key in RECORDS],
    health.parse: [("port 32000", "shop/web 2")],
    host.check: [
        ("node-address", "192.0.2.1"),
        ("dns-listen", "192.0.2.1"),
        ("zone", "a.b"),
        ("route 10.96.0.0/16", ""),
    ],
}


@given(st.data())
def test_what_is_put_into_a_good_resource_is_refused_or_harmless(data):
    read = data.draw(st.sampled_from(list(READERS)))
    parts = list(data.draw(st.sampled_from(READERS[read])))
    which = data.draw(st.integers(0, 1))
    at = data.draw(st.integers(0, len(parts[which])))
    parts[which] = parts[which][:at] + data.draw(HOSTILE) + parts[which][at:]
    refusal = None
    try:
        read(*parts)
    except InvalidResource as err:
        refusal = str(err)
    if refusal is not None:
        assert len(refusal) < 1500
        refusal.encode()
        return
    text = "".join(parts)
    assert text.isascii()
    assert text.isprintable()
    assert not set("{};\"'#$`\\%@") & set(text)


@given(st.text(max_size=60), st.text(max_size=30))
def test_no_text_gets_through_to_the_name_servers_files(key, value):
    for read in (dns.parse, health.parse, host.check):
        try:
            read(key, value)
        except InvalidResource:
            continue
        assert (key + value).isascii()
        assert (key + value).isprintable()


GOOD = [["dns", "web.shop.svc.cluster.local. A 10.96.0.10", "5"]]


def test_only_the_owner_of_a_bad_resource_is_barred():
    barred = judge({"a": GOOD, "b": [*GOOD, ["nft4", "groups 0x00000001", "accept"]], "c": [["exec", "rm", "-rf"]]})
    assert {owner: why.reason for owner, why in barred.items()} == {"b": "InvalidResource", "c": "InvalidResource"}
    assert "knows no driver 'exec'" in barred["c"].message


@pytest.mark.parametrize(
    "owners",
    [
        {"a": [["dns", "x"]]},
        {"a": [["dns", "x", 5]]},
        {"a": [[]]},
        {"\ud800": GOOD},
        {"a": [["dns", "\ud800", "5"]]},
        {"a": [["nft4", "bad", "1"], ["dns", "x", "\udfff"]]},
    ],
    ids=["two parts", "a number", "nothing", "half a character as name", "as key", "as value behind a bad one"],
)
def test_what_is_no_push_at_all_is_refused_as_a_whole(owners):
    with pytest.raises(ApplyError):
        judge(owners)


def test_a_flow_cannot_be_forgotten_without_the_tool_and_that_is_said(monkeypatch):
    monkeypatch.setattr("agents.process.SEARCH_PATH", "/nowhere")
    monkeypatch.setattr("agents.process._found", {})
    assert conntrack.forget([["--mark", "0"]]) == ["cannot run 'conntrack': not installed"]


def test_conntracks_size_is_by_cores_and_what_else_is_asked_for(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr(conntrack, "_read", lambda name: 20000)

    def size(value):
        found = conntrack.settings({"conntrack max": value, "conntrack udp": "30", "zone": "cluster.local"})
        assert found.pop("net/netfilter/nf_conntrack_udp_timeout") == "30"
        return found["net/netfilter/nf_conntrack_max"], found["net/netfilter/nf_conntrack_buckets"]

    assert size("32768 131072") == ("262144", "65536")
    assert size("1024 131072") == ("131072", "32768")
    assert size("1000 9000") == ("9000", "20000"), "more buckets are no harm"
    assert size("12345 1") == ("98760", "32768"), "the kernel rounds them up"


def test_a_kernel_setting_comes_back_as_it_was_first(tmp_path, monkeypatch):
    """Whatever was set in between; and not when somebody else has set it since."""
    monkeypatch.setattr(host, "_SYSCTL", tmp_path)
    names = ["first", "second", "third"]
    for name in names:
        (tmp_path / name).write_text("1\n")
    before = host.Before(tmp_path / "noted")
    for value in ("2", "3"):
        for name in names:
            before.set(name, value)
    (tmp_path / "second").write_text("9\n")
    before.give_back(["first", "unknown"])
    assert [(tmp_path / name).read_text() for name in names] == ["1\n", "9\n", "3\n"]
    (tmp_path / "first").write_text("3\n")
    before.restore()
    assert [(tmp_path / name).read_text() for name in names] == ["3\n", "9\n", "1\n"]
    assert not (tmp_path / "noted").exists()
