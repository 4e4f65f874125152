"""What can be wrong with a node: one class, a reason word that the page and the API show, and what to do about it."""


class NodeError(Exception):
    """A node cannot be reached or cannot apply. reason: one CamelCase word; the text says what to do."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class HostKeyChanged(NodeError):
    """The node shows another host key than the confirmed one: nothing is sent until a person confirms it."""

    def __init__(self, node: str, expected: str, shown: str) -> None:
        super().__init__(
            "HostKeyChanged",
            f"the host key of {node} is {shown}, not the confirmed {expected}. "
            f"If the host was reinstalled, run: timonel node confirm-key {node} --fingerprint {shown}",
        )
        self.shown = shown


# What a person does about each reason, told beside the message. What the message says already is not repeated.
REMEDIES = {
    "AddressUnknown": "Give the node's own address, the one its packets come from.",
    "AgentEnded": "Push again. If it ends again, /var/lib/timonel/agent.log on the node says why.",
    "AgentFailed": "Try again. /var/lib/timonel/agent.log on the node says more.",
    "AgentMissing": "Enrol the node again: that puts the agent back.",
    "AuthenticationFailed": "Enrol the node again with a login that works. For a host that is gone or was cleaned up, forget it.",
    "BadRequest": "Agent and control plane are of different versions: enrol the node again to renew the agent.",
    "BaseMismatch": "Push everything again.",
    "CannotAuthorize": "Make the login's home directory and its ~/.ssh writable for it, and try again.",
    "CannotInstallUnit": "Look at systemctl status on the host; /etc/systemd/system must be writable. Then try again.",
    "CannotPlaceAgent": "Look for a full or read-only disk under /usr/local/lib, and try again.",
    "CannotWriteSudoRule": "Install sudo with visudo on the host, or log in as root.",
    "ClockSkew": "Start a time service on the node (chrony or systemd-timesyncd), or on the control plane.",
    "ConnectionLost": "Try again; if it breaks again, look at sshd's log on the host.",
    "ConnectionRefused": "Start sshd on the host, or correct the port.",
    "ConntrackMissing": "Install the package conntrack on the host, and try again.",
    "ConntrackNotSized": "Set it on the host itself, whose setting it is, or take `conntrack` out of the node's configuration.",
    "DigestMismatch": "Push everything again.",
    "DiskFull": "Free some space under /var/lib/timonel on the host; the node catches up by itself.",
    "DnsFailed": "Look who else listens on port 53 or 8053 there; logs are in /var/lib/timonel/dns on the node.",
    "DnsMissing": "Install the packages knot and unbound on the host.",
    "Downgrade": "The node has a newer agent than this control plane: upgrade the control plane.",
    "HealthFailed": "Look into /var/lib/timonel/health/log on the node; it is tried again every second.",
    "HealthPortTaken": "End what listens on that port of the node, or give the Service another health check node port.",
    "HostFailed": "Look at addresses, routes and sysctls of the host: something there refuses what Services need.",
    "HostIsNode": "Remove the other node first, or enrol it again under its own name.",
    "HostKeyChanged": "If the host was reinstalled, compare the new key there and confirm it. If not, somebody may be in between.",
    "HostKeyNotConfirmed": "Ask the host again and compare its key; never confirm one that differs.",
    "InternalError": "The log of the control plane's web process says more.",
    "Interrupted": "Nothing is broken: every step may be done twice. Try again.",
    "IpMissing": "Install the package iproute2 on the host, and try again.",
    "IptablesFailed": "Look at the rules there with iptables-save; dmesg may say what the kernel lacks.",
    "IptablesMissing": "Install the package iptables on the host, or set its mode to nftables.",
    "IptablesTimeout": "Somebody holds the lock /run/xtables.lock there, or the host is overloaded. It is tried again by itself.",
    "IpvsFailed": "Look at the servers there with ipvsadm -Ln; dmesg may say what the kernel lacks.",
    "KernelRefused": "Everything else is in force. Look at the Service's addresses, ports and ranges; dmesg there may say more.",
    "KnotMissing": "Install the package knot on the host, and try again.",
    "Locked": "Another agent keeps the node busy; it is tried again by itself.",
    "LossyLink": "Look at the network between the control plane and the node; changes arrive later meanwhile.",
    "ModeFallback": "Install on the host what the message names; it is looked for every 30 s. Or set the mode it serves in.",
    "NftFailed": "Look at the message, and at dmesg there: the kernel refused. It is tried again by itself.",
    "NftMissing": "Install the package nftables on the host, and try again.",
    "NftTimeout": "The host is overloaded or its kernel hangs in nftables: look at dmesg there.",
    "NftUnsupported": "Use a newer kernel (5.10 or later) and nftables 1.0 or later.",
    "NotRoot": "Log in as root, or allow the login everything by sudo without a password for the enrolment.",
    "OperationRunning": "Wait until the other one has ended, and look what came of it.",
    "OtherCluster": "Another control plane has claimed the host. Enrol it again if it is to be a node of this one.",
    "PortsExhausted": "Mode userspace needs a free port for each Service's port. Set the node to mode nftables.",
    "ProgramBroken": "The new agent does not run on this host: see whether its Python is 3.9 or newer.",
    "ProtocolUnsupported": "Set the node to mode nftables, iptables or ipvs, or give the Service another protocol.",
    "ProxyFailed": "Look at the logs in /var/lib/timonel/userspace there. It is tried again by itself.",
    "ProxyMissing": "Install the packages haproxy, nginx-light and libnginx-mod-stream on the host, or set its mode to nftables.",
    "PythonMissing": "Install python3, 3.9 or newer, on the host.",
    "SignatureRefused": "The node does not know this control plane's key: enrol it again.",
    "SignatureTimeout": "The host is overloaded: it is tried again with the next session.",
    "SlowLink": "Nothing is broken; changes arrive later on this node than on others.",
    "SourceHashUnsupported": "Set the node to mode nftables or ipvs, or use sessionAffinity: ClientIP instead.",
    "SshKeygenMissing": "Install the package openssh-client on the host; the agent is renewed by itself then.",
    "StaleRevision": "Nothing: the node holds something newer.",
    "SudoRefused": "Give the login a sudo rule without a password for the enrolment (NOPASSWD: ALL), or log in as root.",
    "Timeout": "Look whether the host is up, the address right and the way to its port open.",
    "ToolFailed": "The message names the program that failed on the host.",
    "ToolMissing": "Install the package of the program that the message names.",
    "TooManyEndpoints": "Set the node to mode nftables, or give the Service fewer endpoints.",
    "UnboundMissing": "Install the package unbound on the host, and try again.",
    "UnknownHost": "Correct the name, or use the address.",
    "UnknownOperation": "The agent is older than the control plane: enrol the node again to renew it.",
    "Unreachable": "Look at the network between the control plane and the host.",
}


def remedy_of(reason: str) -> str:
    """What to do about a reason; "" where the message has to do."""
    return REMEDIES.get(reason, "")
