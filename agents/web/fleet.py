"""Which rollout server to ask next: the least busy of those that are up and have the weights.

A server that fails is taken out. It is looked at again and again in a thread of its own, and comes
back once it is well and has been given the weights anew, for it may have been restarted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from research_rl.agents.types import ModelUnavailable
from research_rl.agents.web.client import RefusedRequestError, RolloutClient
from research_rl.envs.web import TransientError

log = logging.getLogger(__name__)
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0


@dataclass(eq=False)
class Member:
    """One server of a fleet.

    Args:
        client: speaks to it.
        up: whether it may be asked.
        in_flight: requests under way.
        error: why it was taken out.
        probe_at: when it is looked at again, on the fleet's clock.
        pause: seconds until the look after that.
        probing: whether it is being looked at.
        served: requests it has answered.
    """

    client: RolloutClient
    up: bool = False
    in_flight: int = 0
    error: str = ""
    probe_at: float = 0.0
    pause: float = _FIRST_PAUSE
    probing: bool = False
    served: int = 0


class Fleet:
    """Servers of one model; thread-safe.

    Args:
        clients: one for each server; none is asked before it was admitted.
        revive: readies and admits a server that is well again, or raises.
    """

    def __init__(self, clients: Sequence[RolloutClient], revive: Callable[[Member], None]) -> None:
        self.members = [Member(client) for client in clients]
        self._revive = revive
        self._changed = threading.Condition()
        self._probes: ThreadPoolExecutor | None = None

    def acquire(self, deadline: float, cancelled: threading.Event) -> Member:
        """Return the least busy server that is up; it is to be given back.

        Args:
            deadline: on ``time.monotonic``, until when one may come back.
            cancelled: nobody waits for this any more.

        Raises:
            ModelUnavailable: none came back in time, or it was cancelled.
        """
        with self._changed:
            while not cancelled.is_set():
                self._look_again()
                if ready := [member for member in self.members if member.up]:
                    chosen = min(ready, key=lambda member: member.in_flight)
                    chosen.in_flight += 1
                    return chosen
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(min(left, 0.1))
            raise ModelUnavailable(self.why_none())

    def succeeded(self, member: Member) -> None:
        """Give back a server that answered."""
        with self._changed:
            member.in_flight -= 1
            member.served += 1
            member.pause = _FIRST_PAUSE

    def released(self, member: Member) -> None:
        """Give back a server of whose health the request said nothing."""
        with self._changed:
            member.in_flight -= 1

    def failed(self, member: Member, error: Exception) -> None:
        """Give back a server that did not answer, and take it out."""
        with self._changed:
            member.in_flight -= 1
            self._take_out(member, error)

    def admit(self, member: Member) -> None:
        """Let a server be asked."""
        with self._changed:
            if member.error:
                log.info("the rollout server %s is back", member.client.url)
            member.up, member.error = True, ""
            member.pause = min(2 * member.pause, _LONGEST_PAUSE)  # until it has answered something
            self._changed.notify_all()

    def refuse(self, member: Member, error: Exception) -> None:
        """Do not ask a server until it is found well."""
        with self._changed:
            self._take_out(member, error)

    def why_none(self) -> str:
        """Say why no server can be asked."""
        told = "; ".join(f"{m.client.url}: {m.error or 'not asked yet'}" for m in self.members)
        return f"a rollout server must be left that answers, got none ({told}); start or mend one"

    def close(self) -> None:
        """Look at no server any more, and close the connections."""
        if self._probes is not None:
            self._probes.shutdown(wait=False, cancel_futures=True)
            self._probes = None
        for member in self.members:
            member.client.close()

    def _take_out(self, member: Member, error: Exception) -> None:
        if member.up or not member.error:
            log.warning("the rollout server %s is taken out: %s", member.client.url, error)
            member.probe_at = time.monotonic() + member.pause
        member.up, member.error = False, str(error)

    def _look_again(self) -> None:
        """Begin a probe of each server that is due; the lock is held."""
        now = time.monotonic()
        for member in self.members:
            if not member.up and not member.probing and now >= member.probe_at:
                if self._probes is None:
                    self._probes = ThreadPoolExecutor(len(self.members), "probe")
                member.probing = True
                self._probes.submit(self._probe, member)

    def _probe(self, member: Member) -> None:
        try:
            member.client.check_health()
            self._revive(member)
        except (TransientError, RefusedRequestError, OSError) as error:
            with self._changed:
                member.error = str(error)
                member.probe_at = time.monotonic() + member.pause
                member.pause = min(2 * member.pause, _LONGEST_PAUSE)
        finally:
            member.probing = False
