"""A Mac's Thunderbolt ports and disks, from what real Macs printed (tests/captures)."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1mac.machine import darwin_profiler
from r1mac.machine.darwin_profiler import parse_device, parse_disk, parse_ports, parse_rdma_devices
from r1mac.machine.readings import Disk, Port, Thunderbolt
from tests.recorded import CAPTURES, recorded

STORAGE = (CAPTURES / "ssd-1tb-with-usb/storage.json").read_text()
DEVICES = """\
    device          \t   node GUID
    ------          \t----------------
    rdma_en2        \t8096a9d9edbaac05
    rdma_en3        \t8196a9d9edbaac05
"""


def test_ports_of_a_macbook_with_a_cable_to_another_mac():
    """Free ports say what they could do; the one with a cable says what it does, and to whom."""
    machine = recorded(
        "m5-max",
        "m5-max-macbook-pro-cabled",
        answers={darwin_profiler.RDMA_STATUS: "enabled\n", darwin_profiler.RDMA_DEVICES: DEVICES},
    )

    assert machine.thunderbolt() == Thunderbolt(
        ports=(
            Port(name="1", gbit_per_s=80, peer="Mac Studio"),
            Port(name="2", gbit_per_s=120),
            Port(name="3", gbit_per_s=120),
        ),
        rdma="enabled",
        rdma_devices=("rdma_en2", "rdma_en3"),
    )


def test_a_drive_is_no_computer():
    """The drive at receptacle 4 names no domain of its own, so it is no peer; the MacBook at 2 is."""
    ports = parse_ports((CAPTURES / "m3-ultra-studio-cabled/thunderbolt.json").read_text())

    assert [port.name for port in ports] == ["1", "2", "3", "4", "5", "6"]
    assert {port.name: port.peer for port in ports if port.peer} == {"2": "MacBook Pro"}
    assert {port.name: port.gbit_per_s for port in ports if port.gbit_per_s != 120} == {"2": 80, "4": 80}


def test_a_macos_without_rdma():
    """Before 26.2 there is no rdma_ctl, and nothing is known of it."""
    thunderbolt = recorded("m5-max", "m5-max-macbook-pro-cabled").thunderbolt()

    assert (thunderbolt.rdma, thunderbolt.rdma_devices) == (None, ())


def test_rdma_without_ports_that_can_do_it():
    """A Mac with Thunderbolt 4 prints a header and no device."""
    assert parse_rdma_devices("\n".join(DEVICES.splitlines()[:2])) == ()


# Disks --------------------------------------------------------------------------------------------


def df(device: str, mount: str) -> str:
    """Return what ``df -P`` prints of one volume."""
    header = "Filesystem     512-blocks      Used Available Capacity  Mounted on"
    return f"{header}\n{device}   1942700360 961472248 854368512    53%    {mount}\n"


@pytest.mark.parametrize(
    ("device", "mount", "disk"),
    [
        ("/dev/disk3s5", "/System/Volumes/Data", Disk(kind="internal", file_system="APFS", connection="Apple Fabric")),
        (
            "/dev/disk7s2",
            "/Volumes/USB_TM_1TB",
            Disk(kind="external", file_system="Case-sensitive APFS", connection="USB"),
        ),
        (
            "//me@nas._smb._tcp.local/models",
            "/Volumes/models",
            Disk(kind="network", file_system=None, connection="//me@nas._smb._tcp.local/models"),
        ),
        (
            "nas.local:/export/my models",
            "/Volumes/my models",
            Disk(kind="network", file_system=None, connection="nas.local:/export/my models"),
        ),
        ("/dev/disk9s1", "/Volumes/unlisted", Disk()),
    ],
)
def test_the_kind_of_a_volume(device, mount, disk, tmp_path):
    """A path is on the Mac's own disk, on another, or on a network; a folder that is not there yet as well."""
    machine = recorded(
        "m5-max",
        "ssd-1tb-with-usb",
        answers={("/bin/df", "-P", str(tmp_path.resolve())): df(device, mount)},
    )

    assert machine.disk(tmp_path / "models" / "not yet") == disk


@pytest.mark.parametrize("text", ["", "df: /x: No such file or directory\n", "Filesystem 512-blocks\nrubbish\n"])
def test_a_df_that_fails_is_unknown(text):
    """Without an answer nothing is said of the disk."""
    assert parse_device(text) is None


@given(st.text())
def test_any_text_is_no_error(text):
    """Whatever system_profiler prints, nothing is raised."""
    assert parse_disk(text, "disk1") == Disk()
    assert parse_ports(text) == ()


_NAMES = st.sampled_from(["_items", "_name", "receptacle_1_tag", "receptacle_id_key", "physical_drive", "bsd_name"])
_JSON = st.recursive(
    st.none() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(_NAMES, inner), max_leaves=20
)


@given(st.lists(_JSON))
def test_any_json_is_no_error(items):
    """JSON of another form than a Mac's is as good as none."""
    ports = parse_ports(json.dumps({"SPThunderboltDataType": items}))

    assert all(isinstance(port, Port) for port in ports)
    assert parse_disk(json.dumps({"SPStorageDataType": items}), "disk1").kind is None
