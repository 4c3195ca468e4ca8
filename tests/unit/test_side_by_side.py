"""Works that wait for their tasks let others go on, and what comes of them is the same in whatever order."""

import threading
from functools import partial

import pytest

from r1mac.convert.side_by_side import Threads, Work, done_alone

PATIENCE_SECONDS = 30


def _squares(*numbers: int) -> Work[list[int]]:
    """Ask for one square after the other, and for two at once in the end."""
    found = []
    for number in numbers:
        found += yield [partial(pow, number, 2)]
    found += yield [partial(pow, number, 3) for number in numbers]
    found += yield []
    return found


def test_results_come_in_the_order_of_works_and_tasks() -> None:
    wanted = [done_alone(_squares(*numbers)) for numbers in ((1, 2, 3), (4,), (5, 6))]

    assert wanted[0] == [1, 4, 9, 1, 8, 27]
    for at_once in (1, 2, 3):
        with Threads() as threads:
            assert threads.done([_squares(1, 2, 3), _squares(4), _squares(5, 6)], at_once=at_once) == wanted


def test_what_one_work_waits_for_holds_up_no_other() -> None:
    other_done = threading.Event()

    def patient() -> Work[bool]:
        (waited,) = yield [partial(other_done.wait, PATIENCE_SECONDS)]
        return waited

    def quick() -> Work[bool]:
        yield [partial(pow, 2, 2)]
        other_done.set()
        return True

    with Threads() as threads:
        assert threads.done([patient(), quick()], at_once=2) == [True, True]


def test_only_so_many_are_begun_at_once() -> None:
    going: list[int] = []
    most: list[int] = []

    def work(number: int) -> Work[int]:
        going.append(number)
        most.append(len(going))
        yield [partial(pow, 2, 2)]
        yield [partial(pow, 2, 2)] * 3
        going.remove(number)
        return number

    with Threads() as threads:
        assert threads.done([work(number) for number in range(5)], at_once=2) == [0, 1, 2, 3, 4]
    assert max(most) == 2


def test_their_own_part_is_done_by_who_asked_for_it() -> None:
    own: set[int] = set()
    others: list[int] = []

    def work() -> Work[None]:
        own.add(threading.get_ident())
        others.extend((yield [threading.get_ident]))
        own.add(threading.get_ident())

    with Threads() as threads:
        threads.done([work(), work()], at_once=2)
    assert own == {threading.get_ident()}
    assert threading.get_ident() not in others


@pytest.mark.parametrize("at_once", [1, 2])
def test_an_error_ends_all_of_them(at_once: int) -> None:
    ended: list[str] = []

    def failing() -> Work[None]:
        try:
            yield [partial(pow, 2, 2), partial(divmod, 1, 0)]
        finally:
            ended.append("failing")

    def other() -> Work[None]:
        try:
            while True:
                yield [partial(pow, 2, 2)]
        finally:
            ended.append("other")

    with Threads() as threads:
        with pytest.raises(ZeroDivisionError):
            threads.done([failing(), other()], at_once=at_once)
        assert threads.results([partial(pow, 2, 5)]) == [32]
    assert "failing" in ended
    assert at_once == 1 or "other" in ended
