"""Two hosts on one machine: network namespaces joined by a bridge, each with a disk (folder) of its own. Needs root."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

NET = "10.213.7"
BRIDGE = "tybr0"
GATEWAY = f"{NET}.1"


def _ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, timeout=20, capture_output=True)


@dataclass
class Host:
    """One of the hosts: host 0 is 10.213.7.10, host 1 is 10.213.7.11."""

    number: int
    folder: Path
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"tyhost{self.number}"

    @property
    def address(self) -> str:
        return f"{NET}.{10 + self.number}"

    def start(self, *words: str, log: str) -> subprocess.Popen[str]:
        """Run a command on this host, in its folder, under its own host name; what it says goes to `log` there."""
        environment = os.environ | {"HOME": str(self.folder), "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        own = f'hostname {self.name}; mount --bind {self.folder}/hosts /etc/hosts; exec "$@"'  # undone with the process
        within = ["ip", "netns", "exec", self.name, "unshare", "--uts", "--mount", "sh", "-c", own, "sh"]
        with (self.folder / log).open("w") as out:
            process = subprocess.Popen(
                [*within, *words], cwd=self.folder, stdout=out, stderr=out, text=True, env=environment, start_new_session=True
            )
        self.processes.append(process)
        return process

    def torchrun(self, *words: str, log: str, torchrun: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        launcher = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            "1",
            *torchrun,
        ]
        return self.start(*launcher, "-m", "pipeline", *words, log=log)

    def said(self, log: str) -> str:
        return (self.folder / log).read_text()

    def link(self, state: str) -> None:
        """Cut this host off (`down`) or join it again (`up`)."""
        _ip("link", "set", f"tyveth{self.number}", state)

    def kill(self) -> None:
        """Take the power away: every process of this host is killed."""
        listed = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, timeout=20, check=False)
        for pid in map(int, listed.stdout.split()):
            os.kill(pid, signal.SIGKILL)
        for process in self.processes:
            process.wait(timeout=20)


@contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """Yield two hosts that reach each other and a server at GATEWAY. Raises CalledProcessError where that is not allowed."""
    hosts = tuple(Host(number, folder / f"host{number}") for number in range(2))
    try:
        _ip("link", "add", BRIDGE, "type", "bridge")
        _ip("addr", "add", f"{GATEWAY}/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        for host in hosts:
            host.folder.mkdir()
            names = "".join(f"{each.address} {each.name}\n" for each in hosts)
            (host.folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
            _ip("netns", "add", host.name)
            _ip("link", "add", f"tyveth{host.number}", "type", "veth", "peer", "name", "eth0", "netns", host.name)
            _ip("link", "set", f"tyveth{host.number}", "master", BRIDGE, "up")
            for words in (["addr", "add", f"{host.address}/24", "dev", "eth0"], ["link", "set", "eth0", "up"],
                          ["link", "set", "lo", "up"]):  # fmt: skip
                _ip("-n", host.name, *words)
        yield hosts  # type: ignore[misc]
    finally:
        for host in hosts:
            host.kill()
            _ip("netns", "del", host.name, check=False)
            _ip("link", "del", f"tyveth{host.number}", check=False)
        _ip("link", "del", BRIDGE, check=False)
