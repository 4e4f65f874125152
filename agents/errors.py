"""The agent's failures: each has the protocol's reason word."""

from __future__ import annotations


class AgentError(Exception):
    """Something the control plane is told: `reason` in CamelCase, and the sentence."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    @property
    def message(self) -> str:
        return str(self)


class Refused(AgentError):
    """The kernel or a tool refused a transaction; nothing of it is in force."""


class NftRefused(Refused):
    """nft or nftables in the kernel did."""

    def __init__(self, message: str) -> None:
        super().__init__("NftFailed", message)


class InvalidResource(ValueError):
    """A resource whose text no parser accepts; it never reaches a tool."""
