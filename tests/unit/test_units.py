"""Numbers to text and back."""

import pytest

from r1mac.units import (
    GB,
    GIB,
    KB,
    KIB,
    MB,
    MIB,
    TB,
    format_count,
    format_memory,
    format_seconds,
    format_size,
    parse_seconds,
)


@pytest.mark.parametrize(
    ("count_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (KIB, "1.0 KiB"),
        (MIB, "1.0 MiB"),
        (GIB, "1.0 GiB"),
        (39_727_792_128, "37.0 GiB"),  # 37 x 2**30
        (512 * GIB, "512.0 GiB"),
        (-3 * GIB, "-3.0 GiB"),
    ],
)
def test_memory_is_written_in_powers_of_two(count_bytes, text):
    """Memory is shown as Apple counts it: 2**30 bytes are a GiB."""
    assert format_memory(count_bytes) == text


@pytest.mark.parametrize(
    ("count_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (KB, "1.0 kB"),
        (MB, "1.0 MB"),
        (39_688_355_840, "39.7 GB"),
        (688_574_839_360, "688.6 GB"),
        (TB, "1.0 TB"),
        (-2 * GB, "-2.0 GB"),
    ],
)
def test_files_are_written_in_powers_of_ten(count_bytes, text):
    """Files and downloads are shown as disks and networks count them: 10**9 bytes are a GB."""
    assert format_size(count_bytes) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1_000, "1.0K"),
        (134_515_008, "135M"),
        (1_777_088_000, "1.8B"),
        (70_553_706_496, "70.6B"),
        (671_026_419_200, "671B"),
    ],
)
def test_a_number_of_parameters_is_written_as_people_say_it(count, text):
    """Parameters are shown with at most three digits before the letter, and a decimal where there is room."""
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.44, "0.4 s"),
        (59.94, "59.9 s"),
        (60, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3_599, "59 min 59 s"),
        (3_599.6, "1 h 00 min"),
        (7_500, "2 h 05 min"),
        (100_000, "27 h 46 min"),  # 27 x 3600 + 46 x 60 = 99,960
    ],
)
def test_a_duration_is_written_in_its_two_largest_units(seconds, text):
    """A duration is shown as seconds, minutes and seconds, or hours and minutes."""
    assert format_seconds(seconds) == text


def test_a_duration_just_below_a_minute_is_not_sixty_seconds():
    """Rounding never shows 60 seconds beside a unit of 60."""
    assert format_seconds(59.97) == "1 min 00 s"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("0.5", 0.5),
        ("2m", 120),
        ("2 min", 120),
        ("1h30m", 5_400),
        ("1.5h", 5_400),
        ("1h 30m 10s", 5_410),
        ("2 Minutes", 120),
        ("3 min 20 s", 200),
        ("2 h 05 min", 7_500),
    ],
)
def test_durations_are_read_as_people_write_them(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "0", "-5", "m", "2m30", "1:30", "ten", "1e3", "2m 1h", "5x", "9" * 40, "nan", "inf"]
)
def test_what_is_no_duration_is_refused_with_examples(text):
    with pytest.raises(ValueError, match="say seconds, or for example 90s, 2m or 1h30m"):
        parse_seconds(text)


@pytest.mark.parametrize("seconds", [1, 59.4, 61, 200, 3_600, 7_512])
def test_a_duration_that_was_written_is_read_again(seconds):
    assert parse_seconds(format_seconds(seconds)) == pytest.approx(seconds, rel=0.01)
