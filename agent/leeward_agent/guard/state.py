"""What the guard knows, its rules for changing it, and the file that lets a restarted guard go on.

Standard library only.
"""

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from leeward_agent.guard.protocol import Arm

KERNEL_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class ArmState:
    """Whether the guard watches, until when the agent has vouched, and for what."""

    armed: bool = False
    deadline_s: float = 0.0
    ttl_s: float = 0.0
    roots: tuple[str, ...] = ()

    def expired(self, now_s: float, *, delay_s: float) -> bool:
        """Whether guests on shared pools must not run now. `delay_s` is granted after the deadline."""
        return self.armed and now_s >= self.deadline_s + delay_s

    def lapsed_before(self, arm: Arm, *, delay_s: float) -> bool:
        """Whether there was a moment, before this message vouches again, in which they had to be dead.

        The guests must be killed even if the guard itself slept through that moment: they may have been started
        elsewhere.
        """
        return self.armed and arm.since_s > self.deadline_s + delay_s

    def vouched(self, arm: Arm) -> "ArmState":
        """After an arm message. The deadline only moves forward and roots are only added.

        A message that was long on its way must not shorten what has been promised, and an agent that could not open a
        pool this time must not leave that pool's guests unwatched. Only disarming forgets.
        """
        return ArmState(
            armed=True,
            deadline_s=max(self.deadline_s, arm.deadline_s) if self.armed else arm.deadline_s,
            ttl_s=arm.ttl_s,
            roots=self.roots + tuple(root for root in arm.roots if root not in self.roots),
        )


def save_state(path: Path, state: ArmState, *, boot_id: str) -> None:
    """Keep the state for a restarted guard. Not synced to disk: it means nothing after a reboot."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(json.dumps({"boot_id": boot_id, **asdict(state)}), encoding="utf-8")
    os.replace(temporary, path)


def load_state(path: Path, *, boot_id: str) -> ArmState:
    """The state that was kept since the host started, else an unarmed one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return ArmState()
    try:
        if content.pop("boot_id") != boot_id:
            return ArmState()
        state = ArmState(**content)
        return replace(state, deadline_s=float(state.deadline_s), roots=tuple(map(str, state.roots)))
    except (AttributeError, KeyError, TypeError, ValueError):
        return ArmState()


def kernel_boot_id() -> str:
    """New at each start of the kernel, whose clock the deadlines are of."""
    return KERNEL_BOOT_ID.read_text(encoding="ascii").strip()
