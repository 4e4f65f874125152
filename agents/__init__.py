"""Timonel's agent on a node: the standard library and the host's own tools, Python 3.9 or newer, shipped as one file.

Ways in      __main__ (commands), serve (frames over SSH), node (what was pushed, and bringing it into force)
What is held state (owners, elements, digest; the server imports it too), journal (the same on disk), lock
Data planes  planes (which one serves), view (elements as what they mean); nftables with ruleset (its text) and readback (what the
             kernel has), iptables with chains, ipvs with virtual_servers, userspace with proxies; conntrack (flows that end)
Looking      netlink (what the kernel tells without a tool), pace (how often what costs much is looked at)
Names        dns, with knot
The host     host (addresses, routes, settings, preflight), health (answers to load balancers), daemons, process, files
Itself       build (the server's side: the one file), upgrade, version
"""
