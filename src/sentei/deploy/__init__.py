"""What leaves the house: networks in other runtimes, and how fast they are there."""

from sentei.deploy.latency import LatencyTable

__all__ = ["LatencyTable"]
