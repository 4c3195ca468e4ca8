"""``r1mac plan``: what it says on the Macs that people have, and on Macs that they think of."""

import json

import pytest

from r1mac.units import GIB
from tests.goldens import assert_golden
from tests.macs import MACHINES, Mac

# Each with the model that somebody would try there first.
MACS = {
    "m1-mini-8gb-macos26.3.2": "8b",
    "m4-16gb-macos26": "14b",
    "m4-max-36gb-macos15.7.7": "32b",
    "m3-max-36gb-macos26": "32b",
    "m4-pro-48gb-macos26": "70b",
    "m5-pro-64gb-macos26.6.1": "70b",
    "m3-max-96gb-macos26": "70b",
    "m4-max-128gb-macos15": "70b",
    "m4-max-128gb-macos26.2": "671b",
    "m5-max-64gb-override": "70b",
    "m3-ultra-256gb-macos15": "671b",
    "m3-ultra-512gb-macos26": "671b",
    "m6-mini-32gb-macos27.0.1": "32b",
    "github-virtual-m1": "7b",
    "m5-ultra-256gb": "671b",
}
# What was not recorded.
SYSCTL: dict[str, dict[str, str | int | None]] = {
    "github-virtual-m1": {"hw.memsize": 7 * GIB, "kern.osproductversion": "15.5"},
    "m5-ultra-256gb": {
        "hw.memsize": 256 * GIB,
        "machdep.cpu.brand_string": "Apple M5 Ultra",
        "kern.osproductversion": "26.6.2",
    },
}


@pytest.mark.parametrize(("recorded", "model"), MACS.items(), ids=MACS)
def test_the_plan_reads_right(tmp_path, recorded, model):
    """A real process on each recorded Mac: the family's table, then the model that one would try."""
    known = recorded if (MACHINES / recorded).is_dir() else None
    mac = Mac(tmp_path / "mac", known, sysctl=SYSCTL.get(recorded), gpu_core_count=None if known else 80)
    family, one = mac.r1mac("plan"), mac.r1mac("plan", model)
    assert family.returncode == 0
    assert one.returncode in {0, 4}
    assert_golden(
        f"plan/{recorded}.txt",
        f"$ r1mac plan\n{family.stdout}{family.stderr}\n$ r1mac plan {model}\n{one.stdout}{one.stderr}",
    )


@pytest.mark.parametrize("recorded", ["intel-macbook-pro"])
def test_a_mac_that_mlx_cannot_run_on_is_told(tmp_path, recorded):
    done = Mac(tmp_path / "mac", recorded).r1mac("plan", "8b")
    assert done.returncode == 8
    assert "Intel" in done.stderr
    assert len(done.stderr.splitlines()) == 2


def test_a_rosetta_python_is_told_with_the_way_out(tmp_path):
    done = Mac(tmp_path / "mac", "m4-pro-48gb-macos26", sysctl={"sysctl.proc_translated": 1}).r1mac("plan", "8b")
    assert done.returncode == 8
    assert "Rosetta" in done.stderr


def test_a_mac_one_thinks_of_is_planned_like_one_that_is_there(r1mac, tmp_path):
    """``--mac`` with the words for a recorded Mac says what that Mac says of itself."""
    there = json.loads(Mac(tmp_path / "mac", "m4-max-128gb-macos26.2").r1mac("plan", "70b", "--json").stdout)
    thought_of = json.loads(r1mac("plan", "70b", "--mac", "m4 max 40c 128gb", "--json").stdout)
    for key in ("total_bytes", "budget_bytes", "max_context_tokens", "most_bits", "speed"):
        assert thought_of[key] == there[key], key


def test_an_unknown_chip_is_said_to_be_unknown(r1mac):
    done = r1mac("plan", "70b", "--mac", "m9 ultra 256gb")
    assert done.returncode == 0
    assert "no forecast: r1mac does not know this chip" in done.stdout
    assert "estimated" in done.stdout


def test_what_is_no_mac_is_refused_with_an_example(r1mac):
    done = r1mac("plan", "70b", "--mac", "rtx 4090")
    assert done.returncode == 8
    assert "m4 max 40c 128gb" in done.stderr


def test_the_time_of_an_answer_follows_its_length(r1mac):
    def seconds(tokens: int) -> float:
        done = r1mac("plan", "32b", "--mac", "m4 max 40c 64gb", "--think-tokens", str(tokens), "--json")
        speed = json.loads(done.stdout)["speed"]
        assert speed["answer_tokens"] == tokens
        return float(speed["answer_seconds"])

    assert 2 * seconds(5_000) < seconds(10_000) < 3 * seconds(5_000)


def test_where_it_does_not_fit_the_exit_code_says_so_and_json_has_the_remedies(r1mac):
    done = r1mac("plan", "70b", "--mac", "m4 pro 48gb", "--json")
    data = json.loads(done.stdout)
    assert done.returncode == 4
    assert data["fits"] is False
    assert data["speed"] is None
    assert 1 <= len(data["remedies"]) <= 3
    assert all(remedy["command"].startswith("r1mac ") for remedy in data["remedies"])


def test_the_family_as_json_has_every_width(r1mac):
    data = json.loads(r1mac("plan", "--mac", "m3 ultra 512gb", "--json").stdout)
    assert {(row["alias"], row["bits"]) for row in data} >= {("671b", 4), ("671b", 2), ("70b", 8), ("1.5b", 3)}
    assert all(row["speed"]["decode_tokens_per_s"] > 0 for row in data if row["fits"])


def test_kv_bits_and_context_are_taken_into_the_plan(r1mac):
    wide = json.loads(r1mac("plan", "70b", "--mac", "m5 pro 64gb", "--json").stdout)
    narrow = json.loads(r1mac("plan", "70b", "--mac", "m5 pro 64gb", "--kv-bits", "8", "--json").stdout)
    assert narrow["kv_bits"] == 8
    assert narrow["max_context_tokens"] > 1.5 * wide["max_context_tokens"]
