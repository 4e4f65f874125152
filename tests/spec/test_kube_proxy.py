"""KubeProxyConfiguration: what is read, refused, warned of, and what a node follows."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents import host
from services_app.spec import configmap, kube_proxy, node
from services_app.spec.kube_proxy import ANNOTATION, Configuration

HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
# Every field, most of them as nothing: so kubeadm writes it.
KUBEADM = (
    HEAD
    + """
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: ""
  burst: 0
  contentType: ""
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: 10.244.0.0/16,fd00:10:244::/56
configSyncPeriod: 0s
conntrack: {maxPerCore: null, min: null, tcpBeLiberal: false, tcpCloseWaitTimeout: null, udpTimeout: 0s}
detectLocal: {bridgeInterface: "", interfaceNamePrefix: ""}
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables: {localhostNodePorts: null, masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}
ipvs: {excludeCIDRs: null, scheduler: "", strictARP: false, syncPeriod: 0s, tcpTimeout: 0s}
logging: {flushFrequency: 0, options: {json: {infoBufferSize: "0"}}, verbosity: 0}
metricsBindAddress: ""
mode: ""
nftables: {masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel: {enableDSR: false, networkName: ""}
"""
)


def a_config_map(text, name="kube-proxy", namespace="kube-system"):
    return {"metadata": {"name": name, "namespace": namespace}, "data": {"config.conf": text}}


def a_node(text=None):
    annotations = {} if text is None else {ANNOTATION: text}
    return {"metadata": {"name": "n1", "resourceVersion": "1", "annotations": annotations}, "spec": {}, "status": {}}


def test_a_file_of_kubeadms_is_accepted_and_what_does_nothing_is_told():
    assert configmap.validate_create(a_config_map(KUBEADM)) == []
    told = [text.split(": ")[0] for text in kube_proxy.warnings(a_config_map(KUBEADM))]
    assert told == [f"data[config.conf].{key}" for key in ("bindAddress", "clientConnection", "clusterCIDR")]


KNOWN_MODES = ", ".join(f'"{mode}"' for mode in sorted(kube_proxy.MODES))


@pytest.mark.parametrize(
    ("line", "field", "words"),
    [
        ("mode: kernelspace", ".mode", f'Unsupported value: "kernelspace": supported values: {KNOWN_MODES}'),
        ("mode: 7", ".mode", f"Unsupported value: 7: supported values: {KNOWN_MODES}"),
        ("ipvs: {scheduler: random}", ".ipvs.scheduler", 'Unsupported value: "random": supported values: "dh", "lblc"'),
        ("modus: nftables", ".modus", "no such field in KubeProxyConfiguration"),
        ("iptables: {masqueradeBit: 32}", ".iptables.masqueradeBit", "a whole number from 0 to 31"),
        ("iptables: {masqueradeBits: 3}", ".iptables.masqueradeBits", "no such field"),
        ("iptables: nothing", ".iptables", "must be an object"),
        ("configSyncPeriod: 15", ".configSyncPeriod", "must be a duration"),
        ("configSyncPeriod: -5s", ".configSyncPeriod", "greater than or equal to 0"),
        ("nodePortAddresses: 10.0.0.0/8", ".nodePortAddresses", "must be a list"),
        ("nodePortAddresses: [10.0.0.0]", ".nodePortAddresses[0]", "valid CIDR block"),
        ("nodePortAddresses: [192.0.2.0/24, 10.0.0.1/8]", ".nodePortAddresses[1]", "valid CIDR block"),
        ("nodePortAddresses: [primary, 10.0.0.0/8]", ".nodePortAddresses", "'primary' stands alone"),
        ("bindAddress: here", ".bindAddress", "representation of an IP address"),
        ("healthzBindAddress: 0.0.0.0:70000", ".healthzBindAddress", "valid port"),
        ("metricsBindAddress: localhost:1", ".metricsBindAddress", "must be IP:port"),
        ("clusterCIDR: 10.0.0.0/8,10.1.0.0/16", ".clusterCIDR", "one of each family"),
        ("oomScoreAdj: 1001", ".oomScoreAdj", "from -1000 to 1000"),
        ("portRange: 9-1", ".portRange", "port range"),
        ("detectLocalMode: Guess", ".detectLocalMode", "Unsupported value"),
        ("enableProfiling: maybe", ".enableProfiling", "must be true or false"),
        ("featureGates: {A: 1}", ".featureGates.A", "must be true or false"),
        ("ipvs: {scheduler: best}", ".ipvs.scheduler", "Unsupported value"),
        ("conntrack: {maxPerCore: -1}", ".conntrack.maxPerCore", "a whole number from 0"),
        ("conntrack: {udpTimeout: 597h}", ".conntrack.udpTimeout", "must be at most 596h"),
        ("conntrack: {udpTimeout: 30}", ".conntrack.udpTimeout", "must be a duration"),
        ("conntrack: {min: 1000000000}", ".conntrack.min", "a whole number from 0 to 100000000"),
        ("conntrack: {maxPerCore: true}", ".conntrack.maxPerCore", "a whole number from 0"),
    ],
)
def test_what_is_unknown_or_impossible_is_refused_with_its_field(line, field, words):
    (error,) = configmap.validate_create(a_config_map(HEAD + line))
    assert error.field == f"data[config.conf]{field}"
    assert words in error.body()
    (error,) = kube_proxy.validate_node(None, a_node(line))
    assert error.field == f"metadata.annotations[{ANNOTATION}]{field}"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{maxPerCore: null, min: null, udpTimeout: 0s, tcpBeLiberal: false}", {}),
        ("{maxPerCore: 0, min: 5}", {}),
        ("{maxPerCore: 1000}", {"max": "1000 131072"}),
        ("{min: 200000}", {"max": "32768 200000"}),
        ("{maxPerCore: 7, min: 0}", {"max": "7 131072"}),
        ("{tcpEstablishedTimeout: 2h30m, udpStreamTimeout: 1500ms}", {"tcp-established": "9000", "udp-stream": "1"}),
        ("{tcpCloseWaitTimeout: 596h, udpTimeout: 999ms}", {"tcp-close-wait": "2145600"}),
        ("{tcpBeLiberal: true}", {"tcp-be-liberal": "1"}),
    ],
)
def test_conntracks_size_and_timeouts_are_what_is_asked_for(text, wanted):
    found = kube_proxy.configuration(a_config_map(f"{HEAD}conntrack: {text}"), None).conntrack
    assert dict(found) == wanted
    for name, value in found:
        host.check(f"conntrack {name}", value)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('""', ""),
        ("0.0.0.0:10256", "0.0.0.0:10256"),
        ("'[fd00:0::1]:010256'", "[fd00::1]:10256"),
        ("fd00:0::1:80", "[fd00:0:0::1]:80".replace(":0:0", "")),
        ("127.0.0.1:0", ""),
    ],
)
def test_where_healthz_is_answered(text, wanted):
    found = kube_proxy.configuration(a_config_map(f"{HEAD}healthzBindAddress: {text}"), None).healthz
    assert found == wanted


def test_a_part_of_a_field_that_does_nothing_is_told():
    text = "{conntrack: {max: 5, min: 7}, nftables: {masqueradeAll: true, syncPeriod: 1s}}"
    assert kube_proxy.node_warnings(None, a_node(text)) == [
        f"metadata.annotations[{ANNOTATION}].{field}: has no effect on Timonel's nodes"
        for field in ("conntrack.max", "nftables.syncPeriod")
    ]
    assert kube_proxy.configuration(None, a_node(text)).masquerade_all


@pytest.mark.parametrize(("mode", "wanted"), [("nftables", False), ("iptables", True)])
def test_rules_are_set_up_by_the_part_of_their_mode(mode, wanted):
    text = f"{{mode: {mode}, iptables: {{masqueradeAll: true}}}}"
    assert kube_proxy.node_warnings(None, a_node(text)) == []
    assert kube_proxy.configuration(None, a_node(text)).masquerade_all == wanted


@pytest.mark.parametrize(
    ("text", "field", "words"),
    [
        ("", "", "one YAML document, an object"),
        ("- mode", "", "one YAML document, an object"),
        ("{", "", "error converting YAML"),
        ("mode: nftables", ".apiVersion", "Required value: must be kubeproxy.config.k8s.io/v1alpha1"),
        (HEAD.replace("v1alpha1", "v2"), ".apiVersion", "Unsupported value"),
        (HEAD.replace("KubeProxy", "Kubelet"), ".kind", "Unsupported value"),
    ],
)
def test_what_is_no_configuration_is_refused(text, field, words):
    error = configmap.validate_create(a_config_map(text))[0]
    assert error.field == f"data[config.conf]{field}"
    assert words in error.body()


def test_other_config_maps_and_keys_are_anybodys():
    assert configmap.validate_create(a_config_map("no", name="other")) == []
    assert configmap.validate_create(a_config_map("no", namespace="shop")) == []
    document = a_config_map(HEAD)
    document["data"]["kubeconfig.conf"] = "no"
    assert configmap.validate_create(document) == []
    assert kube_proxy.configuration(document, None) == Configuration()


def test_what_a_node_has_already_is_not_judged_again():
    wrong = a_node("mode: other")
    assert kube_proxy.validate_node(wrong, wrong) == []
    assert node.validate_update(wrong, wrong) == []
    assert len(node.validate_update(a_node(), wrong)) == 1


def test_a_nodes_own_fields_win():
    whole = a_config_map(HEAD + "nodePortAddresses: [10.0.0.0/8]\nmode: nftables")
    assert kube_proxy.configuration(None, None) == Configuration("nftables", ())
    assert kube_proxy.configuration(whole, a_node()).node_port_addresses == ("10.0.0.0/8",)
    own = a_node("nodePortAddresses: [primary]")
    assert kube_proxy.configuration(whole, own) == Configuration("nftables", ("primary",))
    assert kube_proxy.configuration(whole, a_node("mode: [")).node_port_addresses == ("10.0.0.0/8",)


def test_a_scheduler_of_ipvs_is_followed_and_the_rest_of_it_warned_of():
    document = a_config_map(HEAD + "mode: ipvs\nipvs: {scheduler: lc, strictARP: true, syncPeriod: 30s}")
    assert configmap.validate_create(document) == []
    assert kube_proxy.configuration(document, None) == Configuration("ipvs", ipvs_scheduler="lc")
    assert kube_proxy.configuration(document, a_node("ipvs: {scheduler: sh}")).ipvs_scheduler == "sh"
    told = [text.split(": ")[0] for text in kube_proxy.warnings(document)]
    assert told == ["data[config.conf].ipvs.strictARP", "data[config.conf].ipvs.syncPeriod"]


def a_service(scheduler):
    return {"metadata": {"annotations": {kube_proxy.SCHEDULER_ANNOTATION: scheduler}}}


def test_a_service_may_choose_any_scheduler_but_no_other():
    assert [kube_proxy.validate_service(None, a_service(name)) for name in kube_proxy.SCHEDULERS] == [[]] * 11
    assert kube_proxy.validate_service(None, {"metadata": {}}) == []
    (error,) = kube_proxy.validate_service(a_service("rr"), a_service("rrr"))
    assert error.field == "metadata.annotations[timonel.io/ipvs-scheduler]"
    assert 'Unsupported value: "rrr": supported values: "dh", "lblc"' in error.body()
    assert kube_proxy.validate_service(a_service("rrr"), a_service("rrr")) == [], "judged when it was written"


def test_loopback_is_warned_of():
    document = a_config_map(HEAD + "nodePortAddresses: [127.0.0.0/8, '::1/128', 10.0.0.0/8]")
    assert [text.split(":")[0] for text in kube_proxy.warnings(document)] == [
        "data[config.conf].nodePortAddresses[0]",
        "data[config.conf].nodePortAddresses[1]",
    ]


NETWORKS = st.lists(
    st.one_of(
        st.ip_addresses(v=4).flatmap(
            lambda address: st.integers(0, 32).map(lambda size: str(ip_network((address, size), strict=False)))
        ),
        st.ip_addresses(v=6).flatmap(
            lambda address: st.integers(0, 128).map(lambda size: str(ip_network((address, size), strict=False)))
        ),
    ),
    min_size=1,
    max_size=4,
)


@given(NETWORKS, st.lists(st.ip_addresses(), max_size=6))
def test_node_ports_are_closed_exactly_outside_the_networks(networks, addresses):
    closed = Configuration(node_port_addresses=tuple(networks)).without_node_ports(())
    inside = [ip_network(text)[0] for text in networks] + [ip_network(text)[-1] for text in networks]
    for address in [*addresses, *inside]:
        is_open = any(address in ip_network(text) for text in networks)
        assert is_open == (not any(address in network for network in closed))
    assert len(closed) == len(set(closed))


def test_primary_is_the_nodes_own_address():
    own = [ip_address("192.0.2.11"), ip_address("2001:db8::11")]
    closed = Configuration(node_port_addresses=("primary",)).without_node_ports(own)
    assert not any(address in network for network in closed for address in own)
    assert sum(network.num_addresses for network in closed) == 2**32 - 1 + 2**128 - 1
