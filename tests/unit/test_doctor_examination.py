"""An examination: nothing stops it, and nothing is asked twice."""

import logging

from r1mac.doctor.checks import CHECKS
from r1mac.doctor.examination import Check, CheckResult, Report, examine
from r1mac.machine import fake
from r1mac.machine.fake import FakeMachine
from r1mac.machine.readings import Readings
from r1mac.ui import doctor
from tests.doctors import examination


class BrokenMachine(FakeMachine):
    """A computer whose every answer is an error."""

    def __getattribute__(self, name: str) -> object:
        if name.startswith("__"):
            return super().__getattribute__(name)
        raise RuntimeError(f"{name} is broken")


def test_a_check_that_breaks_is_a_warning_and_the_others_go_on(caplog):
    """A fault of the doctor himself is a line of the report, without a traceback unless it is asked for."""

    def broken(_examination):
        yield CheckResult(name="first half", status="ok", found="fine")
        raise ZeroDivisionError("division by zero")

    def well(_examination):
        yield CheckResult(name="after", status="ok", found="fine")

    report = examine(examination(fake.M4_16), (Check("broken", broken), Check("after", well)))
    wound = next(result for result in report.results if result.name == "broken")

    assert wound.status == "warn"
    assert "could not be checked: ZeroDivisionError: division by zero" in wound.found
    assert report.results[-1].name == "after"
    assert report.named("fail") == []
    assert caplog.records == []


def test_the_traceback_is_there_for_those_who_ask(caplog):
    """With -v the log has it."""
    with caplog.at_level(logging.DEBUG, logger="r1mac.doctor.examination"):
        examine(examination(fake.M4_16), (Check("broken", lambda _: 1 // 0),))  # type: ignore[arg-type, return-value]

    assert "ZeroDivisionError" in caplog.text


def test_a_computer_that_answers_nothing_gets_a_report():
    """Even where every question fails there is a line for each check."""
    sick = examination(fake.M4_16)
    sick.machine = BrokenMachine(fake.M4_16)
    report = examine(sick, CHECKS)

    assert len(report.results) >= len(CHECKS) / 2
    assert "computer" in report.named("warn")


def test_every_computer_gets_through_all_checks():
    """No check breaks on any computer that r1mac knows of."""
    for name, profile in vars(fake).items():
        if name.isupper() and not isinstance(profile, int):
            report = examine(examination(profile), CHECKS)

            assert report.results, name
            assert [result for result in report.results if "could not be checked" in result.found] == [], name
            assert all(result.why for result in report.results if result.status != "ok"), name


class CountingMachine(FakeMachine):
    """A computer that counts how often it is asked for its state."""

    asked = 0

    def readings(self) -> Readings:
        """Count and answer."""
        self.asked += 1
        return super().readings()


def test_nothing_is_asked_twice():
    """The state of the computer is read once for all checks."""
    subject = examination(fake.M4_16)
    machine = CountingMachine(fake.M4_16)
    subject.machine = machine
    examine(subject, CHECKS)

    assert machine.asked == 1


def test_names_from_elsewhere_do_not_steer_the_terminal(capsys):
    """What another computer or a file calls itself is printed as text."""
    report = Report(results=[CheckResult(name="Thunderbolt", status="ok", found="port 1 to \x1b[2JMac\n")])
    doctor.show(report)

    assert capsys.readouterr().out == "ok    Thunderbolt  port 1 to �[2JMac�\n"
