"""Nodes on one machine: network namespaces that stand for hosts, and what is shown and measured on them."""
