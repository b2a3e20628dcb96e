"""Which method is taken where none is named; what docs/benchmarks.md shows decides, not belief."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """A method, and what speaks for it."""

    method: str
    why: str

    @property
    def told(self) -> str:
        return f"No method is named: {self.method}, {self.why}"


BEST = Choice("abc", "...")
FAST = Choice("taylor", "...")


def choose(fast: bool = False) -> Choice:
    """The method that keeps most at equal cost of training, or the best that neither searches nor trains before.

    >>> choose(fast=True).method
    'taylor'
    """
    return FAST if fast else BEST
