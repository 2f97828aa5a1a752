"""What the guard does with messages and with time. Standard library only."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from leeward_agent.guard.kill import Killer, KillEvent
from leeward_agent.guard.protocol import (
    KILL_BOUND_S,
    Answer,
    Arm,
    Disarm,
    ProtocolError,
    check_arm,
    decode_request,
    encode_answer,
)
from leeward_agent.guard.state import ArmState, load_state, save_state
from leeward_agent.guard.watchdog import Watchdog

_SWEEP_INTERVAL_S = 0.1
_REAP_INTERVAL_S = 0.01
# Waiting does not notice that the host was suspended, so it is never long.
_IDLE_INTERVAL_S = 0.25
# Longer between two looks at the clock than any wait and sweep: this process did not run.
_AWAY_S = 1.0

Log = Callable[[dict[str, object]], None]


class Guard:
    """Arms when told to, and kills when nobody vouches any more. Before the first message it does nothing.

    When it finds its deadline passed after it was itself away (restarted, or stopped while the host ran on), it gives
    the agent `restart_grace_s` to say that it vouched all the time: the guard was blind then, and must not kill guests
    whose agent was well. After the host was suspended there is no such grace: then the agent slept, too.
    """

    def __init__(
        self,
        *,
        killer: Killer,
        clock: Callable[[], float],
        log: Log,
        state_path: Path,
        boot_id: str,
        delay_s: float = 0.0,
        restart_grace_s: float = 2.0,
        watchdog: Watchdog | None = None,
        running_clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` goes on while the host is suspended, `running_clock` does not."""
        self._killer = killer
        self._clock = clock
        self._log = log
        self._state_path = state_path
        self._boot_id = boot_id
        self._delay_s = delay_s
        self._watchdog = watchdog
        self._state = load_state(state_path, boot_id=boot_id)
        self._was_expired = False
        self._guests_left = False
        self._restart_grace_s = restart_grace_s
        self._running_clock = running_clock
        self._last_tick_s = running_clock()
        self._blind_until_s = 0.0
        self._was_away(clock())
        if self._state.armed:
            self._start_watchdog()
            self._log_state("resumed")

    def handle(self, data: bytes) -> bytes:
        """Follow one message; the answer to it."""
        error = ""
        try:
            match decode_request(data):
                case Arm() as arm:
                    self._arm(arm)
                case Disarm():
                    self._disarm()
        except ProtocolError as refused:
            error = str(refused)
            self._log({"event": "refused", "error": error})
        return encode_answer(self._answer(error))

    def tick(self) -> float:
        """Do what is due now; after how many seconds to come again."""
        now_s = self._clock()
        running_s = self._running_clock()
        if running_s - self._last_tick_s > _AWAY_S:
            self._was_away(now_s)
        self._last_tick_s = running_s
        expired = self._state.expired(now_s, delay_s=self._delay_s) and now_s >= self._blind_until_s
        if expired != self._was_expired:
            self._was_expired = expired
            self._log_state("expired" if expired else "vouched_again")
        if expired:
            self._sweep()
        elif self._killer.waiting_for_end:
            self._log_events(self._killer.reap())
        if self._watchdog is not None and not (expired and self._guests_left):
            self._pet(self._watchdog)
        if self._killer.waiting_for_end:
            return _REAP_INTERVAL_S
        if expired:
            return _SWEEP_INTERVAL_S
        if not self._state.armed:
            return _IDLE_INTERVAL_S
        due_s = max(self._state.deadline_s + self._delay_s, self._blind_until_s)
        return min(_IDLE_INTERVAL_S, max(0.0, due_s - self._clock()))

    def _was_away(self, now_s: float) -> None:
        if self._state.expired(now_s, delay_s=self._delay_s) and not self._was_expired:
            self._blind_until_s = now_s + self._restart_grace_s

    def _arm(self, arm: Arm) -> None:
        check_arm(arm, now_s=self._clock())
        first = not self._state.armed
        if self._state.lapsed_before(arm, delay_s=self._delay_s):
            self._log({"event": "lapsed", "deadline_s": self._state.deadline_s, "since_s": arm.since_s})
            self._sweep()
        self._blind_until_s = 0.0
        self._state = self._state.vouched(arm)
        self._save()
        if first:
            self._start_watchdog()
            self._log_state("armed")

    def _disarm(self) -> None:
        left = self._killer.find(self._state.roots) if self._state.armed else []
        if left:
            raise ProtocolError(f"guests with disks on shared pools run: processes {', '.join(map(str, left))}")
        self._state = ArmState()
        self._blind_until_s = 0.0
        self._save()
        if self._watchdog is not None:
            try:
                self._watchdog.stop()
            except OSError as error:
                self._log({"event": "watchdog_failed", "error": str(error)})
        self._log({"event": "disarmed"})

    def _sweep(self) -> None:
        try:
            events = self._killer.sweep(self._state.roots)
        except OSError as error:
            # Out of descriptors or memory, say. The next sweep is near, and the watchdog is not petted until one works.
            self._guests_left = True
            self._log({"event": "sweep_failed", "error": str(error)})
            return
        self._guests_left = self._killer.waiting_for_end
        self._log_events(events)

    def _save(self) -> None:
        try:
            save_state(self._state_path, self._state, boot_id=self._boot_id)
        except OSError as error:
            # The guard still works; only a restarted one would not know.
            self._log({"event": "state_not_saved", "error": str(error)})

    def _start_watchdog(self) -> None:
        if self._watchdog is None:
            return
        try:
            self._watchdog.start()
        except OSError as error:
            self._log({"event": "watchdog_failed", "error": str(error)})

    def _pet(self, watchdog: Watchdog) -> None:
        with suppress(BlockingIOError):
            watchdog.pet()

    def _answer(self, error: str) -> Answer:
        delay_s = self._delay_s + KILL_BOUND_S
        if self._watchdog is not None and self._watchdog.running:
            # What the guard cannot kill, the watchdog ends: at the latest its timeout after it was petted last.
            delay_s = max(delay_s, self._delay_s + self._watchdog.timeout_s)
        state = self._state
        return Answer(
            armed=state.armed,
            expired=state.expired(self._clock(), delay_s=self._delay_s),
            deadline_s=state.deadline_s,
            ttl_s=state.ttl_s,
            delay_s=delay_s,
            error=error,
            clear=self._was_expired and not self._guests_left and state.expired(self._clock(), delay_s=self._delay_s),
        )

    def _log_state(self, event: str) -> None:
        self._log({"event": event, "deadline_s": self._state.deadline_s, "roots": list(self._state.roots)})

    def _log_events(self, events: list[KillEvent]) -> None:
        for event in events:
            line: dict[str, object] = {"event": event.event, "pid": event.pid, "at_s": event.at_s}
            if event.event == "kill":
                line |= {"why": event.why, "deadline_s": self._state.deadline_s}
            self._log(line)
