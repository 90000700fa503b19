"""Which addresses an `http` stage may call: public ones, and those that RISE_HTTP_STAGE_ALLOW names.

A workflow is edited by people who need not be allowed into the network Rise runs in, and part of an address may come
from whoever writes to the bot. What is asked is always the address itself, never how it was spelled: names, `127.1`
and `0x7f000001` have been resolved by then.

Refuses: what is private, of this machine, of this link, shared by a carrier (100.64/10), for many, reserved or for
documents; IPv6 forms that carry such an IPv4 address; the services of clouds that answer to a public one.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
"""All that has been given out; the rest of IPv6 is special or nobody's."""
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_NOBODYS: Final[tuple[Network, ...]] = tuple(
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",        # protocols, and the services of Oracle's cloud
        "192.88.99.0/24",      # 6to4, its relays
        "168.63.129.16/32",    # Azure's own services, on every machine there
        "2001::/23",           # Teredo and other protocols
        "2002::/16",           # 6to4: leads to the IPv4 address within, and nobody needs it any more
        "3fff::/20",           # for documents
    )
)  # fmt: skip
_HOST: Final = re.compile(r"[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?")


def is_public(address: Address) -> bool:
    """Whether anybody on the internet could mean it."""
    if isinstance(address, ipaddress.IPv6Address):
        if (within := _carried(address)) is not None:
            return is_public(within)
        if address not in _UNICAST:
            return False
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not any(address.version == network.version and address in network for network in _NOBODYS)
    )


def _carried(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address to which it leads."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else None


@dataclass(frozen=True, slots=True)
class Allowed:
    """What may be called although it is not public."""

    hosts: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()

    def host(self, name: str) -> bool:
        """Whatever address it has."""
        return name.lower().rstrip(".") in self.hosts

    def address(self, address: Address) -> bool:
        """An IPv4 address is the same in its IPv6 clothes."""
        carried = _carried(address) if isinstance(address, ipaddress.IPv6Address) else None
        return any(
            one is not None and one.version == network.version and one in network
            for one in (address, carried)
            for network in self.networks
        )


def read_allowed(named: Iterable[str]) -> Allowed:
    """Hosts, addresses and networks. Raises `ValueError` for what is none of them, by its place, not repeated."""
    hosts, networks = set(), []
    for at, one in enumerate(named, start=1):
        try:
            networks.append(ipaddress.ip_network(one, strict=False))
            continue
        except ValueError:
            name = one.lower().rstrip(".")
        # What looks like an address or a network and is none would silently allow nothing.
        if not _HOST.fullmatch(name) or name.replace(".", "").isdigit():
            raise ValueError(f"number {at} is no host, no address and no network") from None
        hosts.add(name)
    return Allowed(frozenset(hosts), tuple(networks))
