"""The baselines: score, allocate, cut, in one or several steps."""

from sentei.methods.oneshot.oneshot import OneShot

__all__ = ["OneShot"]
