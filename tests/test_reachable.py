"""Which addresses are public: asked of the address itself, in whatever clothes it comes."""

from __future__ import annotations

import ipaddress

import pytest

from rise.reachable import is_public, read_allowed

PUBLIC = [
    "1.1.1.1", "8.8.8.8", "93.184.216.34", "172.15.0.1", "172.32.0.1", "100.63.255.255", "100.128.0.1",
    "2606:4700:4700::1111", "2a00:1450:4001:80e::200e", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8",
]  # fmt: skip
NOT_PUBLIC = [
    # this machine, this network, this link
    "0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.255.254", "::", "::1", "169.254.169.254", "fe80::1", "fe80::1%eth0",
    # private, shared by a carrier
    "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "fd00:ec2::254", "fc00::1", "100.64.0.1",
    "100.100.100.200", "fec0::1",
    # for many, reserved, for documents and measurements
    "224.0.0.1", "239.255.255.255", "ff02::1", "ff0e::1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.51.100.1",
    "203.0.113.1", "198.18.0.1", "198.19.255.255", "192.0.0.192", "192.88.99.1", "2001:db8::1", "3fff::1", "100::1",
    # of clouds
    "168.63.129.16",
    # IPv4 in IPv6
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "::10.0.0.1",
    "64:ff9b::127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::10.0.0.1",
    "2002:7f00:1::", "2002:a00:1::", "2002:808:808::", "2001:0:7f00:1::", "::ffff:0:127.0.0.1",
    # nobody's
    "4000::1", "5f00::1", "1::1",
]  # fmt: skip


@pytest.mark.req("SEC-3")
@pytest.mark.parametrize("address", PUBLIC)
def test_an_address_of_the_internet_is_public(address: str):
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.req("SEC-3")
@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_an_address_that_leads_inside_is_not(address: str):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.req("SEC-3")
def test_hosts_addresses_and_networks_can_be_allowed():
    allowed = read_allowed(["Intranet.example.", "10.1.0.0/16", "127.0.0.1", "fd00::/8"])
    assert allowed.host("intranet.EXAMPLE")
    assert not allowed.host("sub.intranet.example")
    for inside in ("10.1.2.3", "127.0.0.1", "fd12::1", "::ffff:10.1.2.3", "64:ff9b::10.1.2.3"):
        assert allowed.address(ipaddress.ip_address(inside))
    for outside in ("10.2.0.1", "127.0.0.2", "fc00::1", "::ffff:10.2.0.1"):
        assert not allowed.address(ipaddress.ip_address(outside))


@pytest.mark.parametrize(
    "named", ["10.1.0.0/33", "256.1.1.1", "http://host", "host:80", "*.example", "", "a b", "10.1"]
)
def test_what_would_allow_nothing_is_refused_and_not_repeated(named: str):
    with pytest.raises(ValueError, match=r"^number 2 is no host, no address and no network$"):
        read_allowed(["fine.example", named])
