"""``research lint-reward``: look for holes in a reward before a policy finds them.

Known degenerate responses, and a small search over strings of tags, are given to the reward. What
the protocol's own format check calls malformed must be paid less than its honest counterpart, and
a better answer must not be paid less. No response may crash the reward, be paid two different
values, leave the range or take long.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from itertools import chain
from pathlib import PurePath
from time import perf_counter
from typing import Any, TypeVar

from research_rl.envs.protocols import (
    PROTOCOLS,
    RESEARCH,
    CallProtocol,
    Protocol,
    Segment,
    TagProtocol,
    get_protocol,
)
from research_rl.envs.rewards.choose import PRESETS, get_reward
from research_rl.envs.rewards.lint_calls import CallCases
from research_rl.envs.rewards.lint_cases import Case, Cases, OwnCases, Pair
from research_rl.envs.rewards.lint_tags import TagCases
from research_rl.envs.rewards.presets import RewardFunction
from research_rl.envs.system import CommandLine
from research_rl.envs.types import Question, Reward

FINDING_KINDS = {
    "crash": "the reward raises or returns something else than a Reward",
    "non-deterministic": "the same response is paid differently the second time",
    "out-of-range": "the value is not finite or not between --low and --high",
    "slow": "one judgement takes longer than --seconds",
    "non-monotone": "a better answer is paid less than a worse one",
    "hackable": "a degenerate response is paid as much as its honest counterpart",
}
"""What can be wrong, and what it means."""
MadeT = TypeVar("MadeT")
_SHOWN = 200  # characters of an offending text in the report


@dataclass(frozen=True)
class Finding:
    """One hole.

    Args:
        kind: one of FINDING_KINDS.
        case: what kind of response it is.
        text: the response, results included.
        reason: what the reward did with it.
    """

    kind: str
    case: str
    text: str
    reason: str


class _Plain(RewardFunction):
    """A plain function of (segments, question) as a RewardFunction."""

    def __init__(self, function: Callable[[Sequence[Segment], Question], Reward]) -> None:
        self._function = function

    def __call__(self, segments: Sequence[Segment], question: Question) -> Reward:
        return self._function(segments, question)


class _Judge:
    """The reward under test; notes every value that would be wrong for any response.

    Args:
        reward: under test.
        low: smallest value allowed.
        high: largest value allowed.
        seconds: longest judgement allowed.
    """

    def __init__(self, reward: RewardFunction, low: float, high: float, seconds: float) -> None:
        self._reward, self._low, self._high, self._seconds = reward, low, high, seconds
        self.findings: list[Finding] = []

    def text(self, case: Case) -> str:
        """Return the response as one text."""
        return "".join(s.text for s in self.segments(case))

    def segments(self, case: Case) -> list[Segment]:
        """Return the response as the environment would hand it to this reward."""
        return case.segments(escape=not self._reward.original_rollout)

    def add(self, kind: str, case: Case, reason: str) -> None:
        """Note a finding."""
        self.findings.append(Finding(kind, case.name, self.text(case), reason))

    def __call__(self, case: Case) -> float | None:
        """Return what the response is paid; None, and a finding, where there is no such number."""
        try:
            first, seconds = self._timed(case)
            second, again = self._timed(case)
        except Exception as error:
            self.add("crash", case, f"raised {type(error).__name__}: {error}")
            return None
        if not isinstance(first, Reward) or not isinstance(second, Reward):
            self.add("crash", case, f"returned {type(first).__name__}, not a Reward")
            return None
        if min(seconds, again) > self._seconds:
            self.add("slow", case, f"took {min(seconds, again):.2f} s")
        same = first.value == second.value or (math.isnan(first.value) and math.isnan(second.value))
        if not same:
            self.add("non-deterministic", case, f"paid {first.value:g}, then {second.value:g}")
        if not self._low <= first.value <= self._high:
            self.add("out-of-range", case, f"paid {first.value:g}")
            return None
        return float(first.value)

    def _timed(self, case: Case) -> tuple[Any, float]:
        segments = self.segments(case)
        start = perf_counter()
        verdict = self._reward.judge(segments, case.question, case.passages())
        return verdict, perf_counter() - start


def cases_of(protocol: Protocol) -> Cases[Any]:
    """Return the responses that a reward is tried on, as the protocol writes them."""
    if isinstance(protocol, TagProtocol):
        return TagCases(protocol)
    return CallCases(protocol) if isinstance(protocol, CallProtocol) else OwnCases(protocol)


def lint_reward(
    reward: RewardFunction,
    low: float = 0.0,
    high: float = 1.0,
    seconds: float = 0.5,
    protocol: str | Protocol = RESEARCH,
) -> list[Finding]:
    """Return every hole found, known responses first, found by search last; empty if none.

    Args:
        reward: judges a finished episode.
        low: smallest value a response may be paid.
        high: largest value.
        seconds: longest time one judgement may take.
        protocol: in which the responses are written.

    Raises:
        ValueError: the reward is made for another protocol alone.
    """
    cases = cases_of(get_protocol(protocol))
    judge = _Judge(reward.speaking(cases.protocol), low, high, seconds)
    honest = {case.name: judge(case) for case in (*cases.ladder, *cases.same_answer)}
    _compare(judge, cases, honest)
    for cheat in cases.cheats:
        paid, fair = judge(cheat.case), honest[cheat.honest.name]
        if _as_good(paid, fair):
            judge.add("hackable", cheat.case, f"paid {paid:g}, as {cheat.honest.name} is")
    for case in cases.hard:
        judge(case)
    _search(judge, cases, honest)
    return judge.findings


def _compare(judge: _Judge, cases: Cases[Any], honest: dict[str, float | None]) -> None:
    """Note each honest response that a worse one beats, with the one that beats it by most."""
    beaten: dict[str, tuple[float, Pair]] = {}
    for pair in cases.pairs():
        worse, better = honest[pair.worse.name], honest[pair.better.name]
        if worse is not None and better is not None and better < worse:
            most = max((worse, pair), beaten.get(pair.better.name, (worse, pair)), key=_first)
            beaten[pair.better.name] = most
    for worse, pair in beaten.values():
        reason = f"paid {honest[pair.better.name]:g}, while {pair.worse.name} is paid {worse:g}"
        judge.add("non-monotone", pair.better, reason)


def _first(item: tuple[float, Pair]) -> float:
    return item[0]


def _search(judge: _Judge, cases: Cases[Any], honest: dict[str, float | None]) -> None:
    """Judge strings of tags; one that the format check refuses must not be paid as an honest one.

    Shorter responses come first, and where many are alike one is noted: same reason, same error.
    """
    seen: set[tuple[str, str]] = set()
    for case in chain(cases.strings(), cases.mutations()):
        error = cases.protocol.format_error(case.segments())
        if error is None:
            continue
        known = len(judge.findings)
        paid = judge(case)
        if _as_good(paid, honest[(cases.searched if case.found else cases.right).name]):
            judge.add("hackable", case, f"paid {paid:g} though {error}")
        fresh = [f for f in judge.findings[known:] if (f.kind, error) not in seen]
        seen |= {(f.kind, error) for f in fresh}
        judge.findings[known:] = fresh


def _as_good(paid: float | None, fair: float | None) -> bool:
    return paid is not None and fair is not None and paid >= fair > 0


def load_reward(name: str) -> RewardFunction:
    """Return a preset, or what a dotted name means: a RewardFunction, its class, or a function.

    A name that begins with ``{`` is JSON: the arguments of RewardTerms, or its terms alone.

    Raises:
        ValueError: the name means none of them; says what it does mean.
    """
    if name.lstrip().startswith("{"):
        return _of_json(name)
    if "." not in name:
        return get_reward(name)
    found = _loaded(name, "reward", PRESETS)
    if isinstance(found, type) and issubclass(found, RewardFunction):
        return _made(found, name, "reward")
    if isinstance(found, RewardFunction):
        return found
    if callable(found) and not isinstance(found, type):
        return _Plain(found)
    raise ValueError(
        f"a reward must be a RewardFunction or a function of (segments, question), got {name}, "
        f"a {type(found).__name__}"
    )


def _of_json(text: str) -> RewardFunction:
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"a reward that begins with {{ must be JSON, got {text!r:.200}: {error}; "
            """for instance '{"answer": 0.8, "evidence": 0.2}'"""
        ) from error
    return get_reward(given if "terms" in given else {"terms": given})


def load_protocol(name: str) -> Protocol:
    """Return a dialect, or what a dotted name means: a Protocol or its class.

    Raises:
        ValueError: the name means neither; says what it does mean.
    """
    if "." not in name:
        return get_protocol(name)
    found = _loaded(name, "protocol", list(PROTOCOLS))
    if isinstance(found, type) and issubclass(found, Protocol):
        return _made(found, name, "protocol")
    if isinstance(found, Protocol):
        return found
    raise ValueError(f"a protocol must be a Protocol or its class, got {name}, a {type(found)}")


def _loaded(name: str, what: str, known: Sequence[str]) -> Any:
    """What a dotted name stands for."""
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(import_module(module), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(
            f"a {what} must be one of {', '.join(known)} or my_file.my_{what}, got {name!r}: "
            f"{error}; {_advice(module, attribute, what)}"
        ) from error
    except Exception as error:
        raise ValueError(
            f"{module} must be a file that Python can run, got {type(error).__name__}: {error}"
        ) from error


def _made(found: Callable[[], MadeT], name: str, what: str) -> MadeT:
    try:
        return found()
    except TypeError as error:
        raise ValueError(
            f"{name} cannot be made without arguments ({error}); name an instance of it: "
            f"my_{what} = {name.rpartition('.')[2]}(...) in the same file"
        ) from error


def _advice(module: str, attribute: str, what: str) -> str:
    if attribute == "py":  # the file was named, not what is in it
        return f"name what is in the file, {PurePath(module).name}.my_{what}, where the file lies"
    return f"run the command where {module.replace('.', '/')}.py lies and has {attribute}"


def report(name: str, findings: Sequence[Finding], limit: int) -> str:
    """Return the findings as text, at most ``limit`` of each kind."""
    if not findings:
        return f"{name}: no hole found"
    lines = [f"{name}: {len(findings)} findings"]
    for kind, meaning in FINDING_KINDS.items():
        ours = [finding for finding in findings if finding.kind == kind]
        if ours:
            lines += ["", f"{kind} ({len(ours)}): {meaning}", *_entries(ours[:limit])]
        if len(ours) > limit:
            lines.append(f"  and {len(ours) - limit} more; --limit {len(ours)} shows them")
    return "\n".join(lines)


def _entries(findings: Sequence[Finding]) -> Iterator[str]:
    for finding in findings:
        text = ascii(finding.text)
        if len(text) > _SHOWN:
            text = f"{text[:_SHOWN]}... ({len(finding.text)} characters)"
        yield f"  {finding.case}: {finding.reason}"
        yield f"    {text}"


def main(args: list[str]) -> None:
    """Run ``research lint-reward``.

    Raises:
        SystemExit: 1 if a hole was found, 2 if the arguments make no sense.
    """
    parser = CommandLine(
        prog="research lint-reward",
        description="Look for holes in a reward. Exit status 1 if there is one.",
        allow_abbrev=False,
    )
    parser.add_argument("reward", help=f"{', '.join(PRESETS)}, my_file.my_reward, or JSON")
    parser.add_argument(
        "--protocol",
        default=RESEARCH.name,
        help=f"in which the responses are written: {', '.join(PROTOCOLS)}, or my_file.MyProtocol",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("--limit", type=int, default=5, help="findings to show of each kind")
    parser.add_argument("--low", type=float, default=0.0, help="smallest value allowed")
    parser.add_argument("--high", type=float, default=1.0, help="largest value allowed")
    parser.add_argument("--seconds", type=float, default=0.5, help="longest judgement allowed")
    given = parser.parse_args(args)
    reward, protocol = load_reward(given.reward), load_protocol(given.protocol)
    findings = lint_reward(reward, given.low, given.high, given.seconds, protocol)
    spoken = {} if protocol == RESEARCH else {"protocol": protocol.name}
    if given.json:
        rows = [asdict(finding) for finding in findings]
        print(json.dumps({"reward": given.reward, **spoken, "findings": rows}, indent=2))
    else:
        name = " in ".join([given.reward, *spoken.values()])
        print(report(name, findings, given.limit))
    sys.exit(bool(findings))
