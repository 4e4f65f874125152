"""How a node spells what was planned: resources for nftables, DNS and the host. Plain functions only."""
