"""The private network of one cluster: a network namespace joined to the host by one link. Needs root.

The node's programs (containerd, kubelet, kube-proxy, CoreDNS) live in the namespace, so their ports, bridges
and iptables chains are theirs alone, two clusters do not meet, and deleting the namespace deletes all of it.
The API server and the S3 server stay on the host and listen on the host's end of the link, which pods can
reach. Pods reach nothing beyond the host: there is no NAT, on purpose, what they need is in their images.

All addresses come from the cluster's slot: 10.<200+slot>.0.0/16.
"""

import ipaddress
from dataclasses import dataclass
from pathlib import Path

import patience

from . import steps
from .errors import ClusterError


@dataclass(frozen=True)
class Network:
    """Names and addresses of one slot; nothing exists before `create`."""

    slot: int

    @property
    def name(self) -> str:
        """Name of the namespace, and of the link's end on the host."""
        return f"tlt{self.slot}"

    @property
    def _prefix(self) -> str:
        return f"10.{200 + self.slot}"

    @property
    def host(self) -> str:
        """The host's end of the link."""
        return f"{self._prefix}.0.1"

    @property
    def node(self) -> str:
        """The node's end of the link: its InternalIP."""
        return f"{self._prefix}.0.2"

    @property
    def services(self) -> str:
        """Range of service addresses."""
        return f"{self._prefix}.64.0/18"

    @property
    def api_service(self) -> str:
        """Address of the `kubernetes` service."""
        return f"{self._prefix}.64.1"

    @property
    def dns_service(self) -> str:
        """Address of the `kube-dns` service."""
        return f"{self._prefix}.64.10"

    @property
    def pods(self) -> str:
        """Range of pod addresses."""
        return f"{self._prefix}.128.0/17"

    def inside(self, *command: str | Path) -> list[str | Path]:
        """A command that runs another one in the namespace. Not `ip netns exec`: that hides the cgroups."""
        return ["nsenter", f"--net=/run/netns/{self.name}", *command]

    def create(self) -> None:
        """Makes the namespace, the link and the routes.

        Raises:
            ClusterError: the machine uses these addresses already.
        """
        self._check_unused()
        steps.run("ip", "netns", "add", self.name)
        steps.run("ip", "link", "add", self.name, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        steps.run("ip", "addr", "add", f"{self.host}/30", "dev", self.name)
        steps.run("ip", "link", "set", self.name, "up")
        for command in (
            ("ip", "link", "set", "lo", "up"),
            ("ip", "addr", "add", f"{self.node}/30", "dev", "eth0"),
            ("ip", "link", "set", "eth0", "up"),
            ("ip", "route", "add", "default", "via", self.host),
            ("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"),
        ):
            steps.run(*self.inside(*command))
        for block in (self.services, self.pods):
            steps.run("ip", "route", "add", block, "via", self.node)

    def delete(self) -> None:
        """Removes what `create` made; nothing to do where it is gone."""
        if Path(f"/run/netns/{self.name}").exists():
            steps.run("ip", "netns", "delete", self.name)
        # The kernel takes the link away with the namespace, a moment later: it may vanish under our hands.
        link = Path(f"/sys/class/net/{self.name}")
        if link.exists():
            steps.run("ip", "link", "delete", self.name, check=False)
        steps.until(f"the link {self.name} to be gone", lambda: not link.exists(), patience.SECONDS)

    def _check_unused(self) -> None:
        ours = ipaddress.ip_network(f"{self._prefix}.0.0/16")
        for line in steps.run("ip", "-4", "route", "show", "table", "all").splitlines():
            words = [word for word in line.split()[:2] if word[0].isdigit()]
            if words and ipaddress.ip_network(words[0], strict=False).overlaps(ours):
                raise ClusterError(
                    f"expected {ours} to be unused on this machine, but it has the route `{line.strip()}`"
                )
