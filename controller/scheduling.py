"""When `spec.training.schedule` asks for another training. Pure: the times follow from the clock that was read and from the status.

`status.schedule.nextTime` is all that is remembered. A time that has come asks for one training, by the mechanism of a request
(`retraining`), and is then seen to, whatever came of it: nothing waits in a queue, and of times that passed unseen only the last counts.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from controller import history, names
from controller.model import Event, Observed, Problem, ScheduleStatus
from controller.spec import Schedule, Trigger
from controller.status import age_s, timestamp

FIELD = "spec.training.schedule"


def problem(schedule: Schedule | None) -> Problem | None:
    """Why a schedule that the schema has let through cannot be followed."""
    if schedule is None:
        return None
    try:
        ZoneInfo(schedule.time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        # OSError: a folder of the time zone database.
        why = f"{FIELD}.timeZone: the IANA database has no {schedule.time_zone}; Europe/Berlin or Etc/UTC are such names"
        return Problem("InvalidSchedule", why)
    try:
        next(CronSim(schedule.cron, datetime(2000, 1, 1, tzinfo=UTC)))
    except (CronSimError, StopIteration) as error:
        why = str(error) or "it never comes"
        return Problem(
            "InvalidSchedule",
            f"{FIELD}.cron: {schedule.cron!r} names no time ({why}); minute hour day-of-month month day-of-week is allowed",
        )
    return None


def asked(observed: Observed, number: int) -> Trigger | None:
    """The trigger of a scheduled time that has come, where nothing hinders it.

    Args:
        observed: with the trigger that counts otherwise.
        number: of one more training of this spec.
    """
    due = _due(observed)
    if due is None:
        return None
    # Of a time whose Job was made, and whose status was not written, the Job goes on.
    for time in (due, timestamp(_moment(_remembered(observed)))):
        trigger = Trigger("Schedule", observed.spec.origin, time, number)
        if any(job.run == replace(observed.spec, trigger=trigger).run for job in observed.jobs):
            return trigger
    return None if _hindrance(observed, due) else Trigger("Schedule", observed.spec.origin, due, number)


def status(observed: Observed) -> ScheduleStatus | None:
    """What is remembered after this plan; `observed` has the trigger that counts now."""
    schedule, before = observed.spec.training.schedule, _followed(observed)
    if schedule is None or problem(schedule):
        return None
    due = _due(observed)
    if before and due is None:
        return before
    fired = _fired(observed)
    after = _moment(fired) if fired else observed.now
    last = observed.status.schedule.last_time if observed.status.schedule else None
    return ScheduleStatus(schedule.cron, schedule.time_zone, timestamp(_next(schedule, after)), fired or last)


def events(observed: Observed) -> tuple[Event, ...]:
    """What is told of a time that has come: each once."""
    due, fired = _due(observed), _fired(observed)
    if due is None:
        return ()
    if fired:
        return (
            Event("Normal", "ScheduleFired", f"another training is asked for, as scheduled at {fired}, from seed {observed.spec.seed}"),
        )
    another = Problem("ScheduleSkipped", f"the training scheduled at {due} is skipped: another one is asked for")
    why = _hindrance(observed, due) or another
    return (Event("Warning" if why.reason == "ScheduleMissed" else "Normal", why.reason, why.message),)


def next_in_s(observed: Observed) -> float | None:
    """Seconds until the next scheduled time."""
    told = status(observed)
    return None if told is None else max(0.0, -age_s(told.next_time, observed.now))


def _hindrance(observed: Observed, due: str) -> Problem | None:
    """Why nothing is trained at a time that has come."""
    schedule = observed.spec.training.schedule
    assert schedule
    if observed.spec.paused:
        return Problem("ScheduleSkipped", f"the training scheduled at {due} is skipped: spec.paused is true")
    late_s = age_s(due, observed.now)
    if late_s > schedule.starting_deadline_s:
        limit = f"{late_s:.0f} s late, and {FIELD}.startingDeadlineSeconds is {schedule.starting_deadline_s}"
        return Problem("ScheduleMissed", f"the training scheduled at {due} is missed: it would begin {limit}")
    under_way = _under_way(observed)
    return Problem("ScheduleSkipped", f"the training scheduled at {due} is skipped: {under_way}") if under_way else None


def _under_way(observed: Observed) -> str | None:
    """What of the training before is not at its end: its policy is seen through, or none would ever serve where times are close."""
    spec = observed.spec
    trainings = [job for job in observed.jobs if job.role == names.ROLE_TRAIN]
    if any(job.phase == "Running" for job in trainings):
        return "a training is running"
    candidate = history.newest(history.revisions(observed), spec.run)
    if candidate is None:
        has_failed = any(job.run == spec.run and (job.phase == "Failed" or job.problem) for job in trainings)
        return None if has_failed else "the training before it has not begun"
    look = None if candidate.approval else history.wanted_look(candidate, observed)
    if look:
        has_failed = any(job.evaluation == look.id and job.phase == "Failed" for job in observed.jobs)
        return None if has_failed else f"revision {candidate.number} is being evaluated"
    serving = observed.status.serving.digest if observed.status.serving else None
    is_on_its_way = candidate.is_good and spec.served_revision is None
    if observed.status.candidate or (is_on_its_way and serving != candidate.digest):
        return f"revision {candidate.number} is being rolled out"
    return None


def _followed(observed: Observed) -> ScheduleStatus | None:
    """What is remembered of this schedule; one that was changed begins anew, and its times before that do not count."""
    schedule, before = observed.spec.training.schedule, observed.status.schedule
    is_same = schedule and before and (schedule.cron, schedule.time_zone) == (before.cron, before.time_zone)
    return before if is_same else None


def _remembered(observed: Observed) -> str:
    before = _followed(observed)
    assert before
    return before.next_time


def _due(observed: Observed) -> str | None:
    """The last scheduled time that has come and is not seen to."""
    schedule, before = observed.spec.training.schedule, _followed(observed)
    if schedule is None or before is None or problem(schedule) or age_s(before.next_time, observed.now) < 0:
        return None
    return max(before.next_time, timestamp(_last(schedule, observed.now)))


def _fired(observed: Observed) -> str | None:
    """The time that has come and that the trigger of this plan is of."""
    trigger, due = observed.spec.trigger, _due(observed)
    is_of_this = due is not None and trigger is not None and trigger.kind == "Schedule" and trigger.id in (due, _remembered(observed))
    return trigger.id if is_of_this and trigger else None


def _next(schedule: Schedule, after: datetime) -> datetime:
    """The first scheduled time after another. Of the hour that a clock goes through twice, CronSim knows the first time only."""
    times = (time.astimezone(UTC) for time in CronSim(schedule.cron, after.astimezone(ZoneInfo(schedule.time_zone))))
    return next(time for time in times if time > after)


def _last(schedule: Schedule, now: datetime) -> datetime:
    """The scheduled time at `now`, or else the last one before."""
    just_after = now.replace(microsecond=0) + timedelta(seconds=1)
    local = just_after.astimezone(ZoneInfo(schedule.time_zone))
    times = (time.astimezone(UTC) for time in CronSim(schedule.cron, local, reverse=True))
    return next(time for time in times if time <= now)


def _moment(time: str) -> datetime:
    return datetime.fromisoformat(time)
