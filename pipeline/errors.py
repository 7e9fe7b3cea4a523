"""The two kinds of error that are no mistake of ours: what the user can mend, and work that failed."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake that the user can mend. Each message says what was given, what is wrong and what to do; exit status 2."""

    def __init__(self, *messages: str) -> None:
        super().__init__("\n".join(messages))
        self.messages = messages


class Failure(RuntimeError):
    """Work that was asked for rightly and failed: a loss that diverged, an artifact that disagrees. Exit status 1."""


class Diverged(Failure):
    """A training whose loss or weights are not finite any more: its parameters are at fault, and nothing else."""
