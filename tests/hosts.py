"""Two hosts on this machine: network namespaces with a cable between them, which can be pulled. Needs root and `ip`."""

import json
import os
import shutil
import subprocess
from contextlib import suppress

HEAD, WORKER = "10.213.77.1", "10.213.77.2"
MISSING = os.geteuid() != 0 or shutil.which("ip") is None
"""Whether there can be none here."""
CABLES = {HEAD: "sentei0", WORKER: "sentei1"}


class Hosts:
    """While it is entered there are two, at HEAD and WORKER; what runs on them ends with it."""

    def __init__(self):
        self.names = {HEAD: f"sh{os.getpid()}", WORKER: f"sw{os.getpid()}"}

    def __enter__(self):
        try:
            for name in self.names.values():
                ip("netns", "add", name)
            (head, worker), (a, b) = self.names.values(), CABLES.values()
            ip("link", "add", a, "netns", head, "type", "veth", "peer", "name", b, "netns", worker)
            for address, name in self.names.items():
                ip("-n", name, "addr", "add", f"{address}/24", "dev", CABLES[address])
                ip("-n", name, "link", "set", CABLES[address], "up")
                ip("-n", name, "link", "set", "lo", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for address, name in self.names.items():
            self.kill(address)
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    def kill(self, address):
        """Whatever runs on a host, and nothing else."""
        found = subprocess.run(["ip", "netns", "pids", self.names[address]], capture_output=True, text=True)
        for pid in map(int, found.stdout.split()):
            with suppress(ProcessLookupError):
                os.kill(pid, 9)

    def inside(self, address, *command):
        """The command line that runs a command on a host."""
        return ["ip", "netns", "exec", self.names[address], *map(str, command)]

    def cable(self, state):
        """Plug it (up) or pull it (down)."""
        ip("-n", self.names[HEAD], "link", "set", CABLES[HEAD], state)

    def received(self):
        """Bytes that WORKER has got through the cable."""
        link = CABLES[WORKER]
        told = subprocess.run(
            ["ip", "-n", self.names[WORKER], "-s", "-j", "link", "show", link], capture_output=True, check=True
        )
        return json.loads(told.stdout)[0]["stats64"]["rx"]["bytes"]


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
