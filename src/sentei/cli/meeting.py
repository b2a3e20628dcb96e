"""Where the machines of `sentei launch` meet, and by which of its addresses the others reach this one.

torchrun finds out by the machine's name. On many systems that name leads to an address of the machine itself (127.0.1.1
on Debian): then none of them takes the meeting place for its own, and they wait for each other at a door that
nobody opens. Sockets know better: an address that can be bound is here, and a route has an address that it begins with.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sentei.errors import ConfigError

ADDRESS_OF = 0x8915
"""SIOCGIFADDR, Linux: the address of a network interface."""


@dataclass(frozen=True)
class Meeting:
    """A meeting place HOST:PORT, seen from this machine."""

    host: str
    port: int
    address: str
    """Of HOST."""

    @classmethod
    def at(cls, endpoint: str) -> Meeting:
        """ConfigError for what is no HOST:PORT, or a host that nobody knows.

        >>> Meeting.at("127.0.0.1:29500")
        Meeting(host='127.0.0.1', port=29500, address='127.0.0.1')
        """
        host, _, port = endpoint.rpartition(":")
        if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
            raise ConfigError(f"rdzv_endpoint is {endpoint!r}; expected HOST:PORT, for instance node0:29500")
        try:
            address = socket.getaddrinfo(host, None, socket.AF_INET)[0][4][0]
        except OSError as error:
            raise ConfigError(
                f"rdzv_endpoint is {endpoint!r}, and no address is known here for {host} ({error}): give the address "
                "itself, the same on all machines"
            ) from error
        return cls(host, int(port), str(address))

    @property
    def is_outside(self) -> bool:
        """Whether other machines can reach it."""
        return not self.address.startswith("127.")

    @property
    def is_here(self) -> bool:
        """Whether it is an address of this machine."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
            probe.bind((self.address, 0))
            return True
        return False

    @property
    def is_open(self) -> bool:
        """Whether somebody listens there already."""
        with suppress(OSError), socket.create_connection((self.address, self.port), 1):
            return True
        return False

    @property
    def own(self) -> str | None:
        """The address of this machine on the way there; None where it leads nowhere."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
            probe.connect((self.address, self.port))  # sends nothing
            return str(probe.getsockname()[0])
        return None

    def settings(self, minutes: float) -> dict[str, Any]:
        """What the agent has to be told: how long to wait for the others, who opens the door, and under which address
        this machine is known."""
        seconds = max(2, round(60 * minutes))
        patience = {"join_timeout": seconds, "read_timeout": seconds, "last_call_timeout": min(30, seconds // 2)}
        if not self.is_outside:
            return {"rdzv_configs": patience}
        opens = self.is_here and not self.is_open
        return {"local_addr": self.own, "rdzv_configs": {**patience, "is_host": opens}}

    def interface(self) -> str | None:
        """The network interface of `own`, where the system tells."""
        own = self.own if self.is_outside else None
        return next((name for _, name in socket.if_nameindex() if own and _address(name) == own), None)


def _address(interface: str) -> str | None:
    try:
        import fcntl

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            asked = struct.pack("256s", interface.encode()[:15])
            return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), ADDRESS_OF, asked)[20:24])
    except (ImportError, OSError):  # no Linux, or an interface without an address
        return None
