"""Timonel's agent on a node: the standard library and the host's own tools, Python 3.9 or newer, shipped as one file.

Ways in      __main__ (commands), serve (frames over SSH), node (what was pushed, and bringing it into force)
What is held state (owners, elements, digest; the server imports it too), journal (the same on disk), lock
Data planes  planes (which one serves), view (elements as what they mean); nftables, iptables, ipvs, userspace with proxies;
             conntrack (flows that end), netlink
Names        dns, with knot
The host     host (addresses, routes, settings, preflight), health (answers to load balancers), daemons, process
Itself       build (the server's side: the one file), upgrade, version
"""
