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
