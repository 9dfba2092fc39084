"""The checks of `research questions make`, proven on a world whose truth is known.

The made-up world is written as pages of markdown, one a person, and read back: folder, corpus,
index, questions. Beside the true chains stand planted bad ones, each of which must be thrown out:
single hops, leaks, shortcuts, repeated facts, contradicted facts, facts that stand nowhere. With
--data, questions that people wrote are put through the same checks.

    python benchmarks/question_checks.py
    python benchmarks/question_checks.py --data FOLDER      # musique, 2wikimultihopqa, hotpotqa
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from research_rl.envs.documents import build_documents
from research_rl.envs.questions import read_questions
from research_rl.envs.retrieval import build_index, load_retriever
from research_rl.envs.retrieval.index import open_corpus_of
from research_rl.envs.synthetic import RELATIONS, SyntheticWorld, query_of, write_pages
from research_rl.trainers.make_questions import (
    Draft,
    Facts,
    GivenQuestions,
    Hop,
    IndexChecks,
    Limits,
    RuleProposer,
    Texts,
    form_of,
)

SETS = ("musique", "2wikimultihopqa", "hotpotqa")
FORMS = ("The {r} of {s} is {o}.", "{s}'s {r} is {o}.", "{o} is the {r} of {s}.")
BY_FORM = "g (form)"
CHECKS = {
    "a passage is not found by its own query": "a (found by its query)",
    "one search with the question brings the answer": "b (not by one search)",
    "the answer can be found without one of its passages": "c (all passages needed)",
    "another passage or sentence supports another answer": "d (no rival)",
}
"""Reason -> check."""


@dataclass
class Planted:
    """Bad questions and what makes them bad.

    Args:
        pages: file -> text that stands in the folder beside the people.
        gone: people without a page.
        drafts: kind -> bad drafts, with the check that should refuse them.
        stated: (relation, person) -> files that state it beside the person's own page.
        contradicted: facts of which a page says something else.
        shortcuts: (first person, both relations) of which a page states the end.
    """

    pages: dict[str, str] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    chains: dict[str, list[tuple[str, str, str]]] = field(default_factory=dict)
    stated: set[tuple[str, str]] = field(default_factory=set)
    contradicted: set[tuple[str, str]] = field(default_factory=set)
    shortcuts: set[tuple[str, str, str]] = field(default_factory=set)


def chains_of(world: SyntheticWorld, rng: random.Random) -> Iterator[tuple[str, str, str]]:
    """Yield (person, inner relation, outer relation) of chains that come back to nobody."""
    while True:
        person = rng.choice(world.people[rng.choice(("train", "val", "test"))])
        inner, outer = rng.sample(RELATIONS, 2)
        middle = world.facts[inner, person]
        if world.facts[outer, middle] not in (person, middle):
            yield person, inner, outer


def plant(world: SyntheticWorld, each: int, seed: int) -> Planted:
    """Choose chains for every kind of bad question, and write the pages that make them bad."""
    rng = random.Random(f"planted {seed}")
    chains, used = chains_of(world, rng), set[str]()
    planted = Planted()
    kinds = ("single hop", "leaked", "bridge named", "shortcut", "repeated fact", "ambiguous")
    for kind in (*kinds, "unanswerable"):
        held = planted.chains.setdefault(kind, [])
        while len(held) < each:
            person, inner, outer = next(chains)
            middle = world.facts[inner, person]
            end = world.facts[outer, middle]
            if used & {person, middle, end}:
                continue  # nothing planted makes another planted question bad
            used |= {person, middle}
            held.append((person, inner, outer))
            place, form = f"notes/{kind.replace(' ', '-')}-{len(held)}.md", rng.choice(FORMS)
            if kind == "shortcut":
                nested = f"{inner} of {person}"
                text = FORMS[0].format(r=outer, s=f"the {nested}", o=end)
                planted.shortcuts.add((person, inner, outer))
            elif kind == "repeated fact":
                text = form.format(r=outer, s=middle, o=end)
                planted.stated.add((outer, middle))
            elif kind == "ambiguous":
                others = [name for name in world.names if name not in (person, middle, end)]
                text = form.format(r=outer, s=middle, o=rng.choice(others))
                planted.contradicted.add((outer, middle))
            else:
                if kind == "unanswerable":
                    planted.gone.add(middle)
                continue
            planted.pages[place] = f"# Note {len(planted.pages) + 1}\n\n{text}\n"
    return planted


def drafts_of(kind: str, planted: Planted, world: SyntheticWorld, texts: Texts) -> list[Draft]:
    """Return the bad drafts of a kind, with the evidence that a proposer would claim."""
    own = {texts.title(place): place for place in range(len(texts))}
    found = []
    for person, inner, outer in planted.chains[kind]:
        middle = world.facts[inner, person]
        end = world.facts[outer, middle]
        text = f"Who is the {outer} of the {inner} of {person}?"
        if kind == "single hop":
            text = f"Who is the {outer} of {middle}?"
        elif kind == "leaked":
            text = f"Who is the {outer} of the {inner} of {person}, {end} or another?"
        elif kind == "bridge named":
            text = f"Who is the {outer} of {middle}, the {inner} of {person}?"
        place = own.get(middle, own[person])  # of somebody without a page another one is claimed
        first = Hop(query_of(inner, person), middle, own[person], person)
        found.append(Draft(text, (end,), (first, Hop(query_of(outer, middle), end, place, middle))))
    return found


def reasons_of(drafts: Sequence[Draft], texts: Texts, checks: IndexChecks) -> list[str]:
    """Return why each draft is thrown out, "" where it is kept."""
    formed = [form_of(draft, texts, checks.limits) for draft in drafts]
    asked = [draft for draft, reason in zip(drafts, formed, strict=True) if not reason]
    by_index = iter(checks.reasons(asked))
    return [reason or next(by_index) for reason in formed]


def truth_of(draft: Draft, world: SyntheticWorld) -> tuple[str, str, str] | None:
    """Return the chain that a draft of the rules asks for, None where the world has no such one."""
    read = []
    for hop in draft.hops:
        relation = hop.query.removeprefix("the ").partition(" of ")[0]
        if world.facts.get((relation, hop.subject)) != hop.answer:
            return None
        read.append(relation)
    return draft.hops[0].subject, read[0], read[1]


def is_bad(
    check: str, draft: Draft, chain: tuple[str, str, str], planted: Planted, found: set[str]
) -> bool:
    """Whether a true chain that a check has thrown out deserves it.

    Args:
        check: that did.
        draft: the question.
        chain: what it asks for.
        planted: what else the folder states.
        found: titles of what one search with the question finds.
    """
    person, inner, outer = chain
    facts = {(inner, person), (outer, draft.hops[1].subject)}
    if check.startswith("b"):
        notes = any(title.startswith("Note ") for title in found)
        return draft.hops[1].subject in found or chain in planted.shortcuts or notes
    if check.startswith("c"):
        return bool(facts & planted.stated) or chain in planted.shortcuts
    return bool(facts & planted.contradicted) if check.startswith("d") else True


def world_part(people: int, each: int, limit: int, seed: int, folder: Path) -> None:
    """Print how the checks do on the world."""
    world = SyntheticWorld(people, seed)
    planted = plant(world, each, seed)
    write_pages(world, folder / "pages", planted.pages)
    for person in planted.gone:
        for page in (folder / "pages").rglob(f"{person.lower()}.md"):
            page.unlink()
    report = build_documents(folder / "pages", folder / "corpus.jsonl")
    index = build_index(folder / "corpus.jsonl", folder / "index", kind="bm25")
    texts = Texts(open_corpus_of(index))
    facts, retriever = Facts(texts), load_retriever(str(index))
    checks = IndexChecks(texts, retriever, Limits(), facts.objects)
    read = {(f.relation, f.subject): f.object for f in facts.all if f.relation}
    written = {k: o for k, o in world.facts.items() if k[1] not in planted.gone}
    true = sum(read.get(key) == other for key, other in written.items())
    stated = {(f.relation, f.subject, f.object) for f in facts.all if f.relation}
    kept_true = sum(world.facts.get(one[:2]) == one[2] for one in stated)
    print(f"{sum(report.files.values())} files, {len(texts)} passages, {len(stated)} facts read")
    print(f"facts of the world that are read: {true} of {len(written)}")
    print(f"facts read that are true: {kept_true} of {len(stated)} (the others are planted)")
    _planted_table(planted, world, texts, checks)
    _true_table(RuleProposer(facts, (2,), seed), limit, world, planted, texts, checks)


def _planted_table(
    planted: Planted, world: SyntheticWorld, texts: Texts, checks: IndexChecks
) -> None:
    print("\n| planted | questions | thrown out | by |\n|---|---|---|---|")
    for kind in planted.chains:
        drafts = drafts_of(kind, planted, world, texts)
        reasons = reasons_of(drafts, texts, checks)
        by = Counter(reason for reason in reasons if reason)
        told = ", ".join(f"{reason} ({count})" for reason, count in by.most_common())
        print(f"| {kind} | {len(drafts)} | {sum(by.values())} | {told} |")


def _true_table(
    rules: RuleProposer,
    limit: int,
    world: SyntheticWorld,
    planted: Planted,
    texts: Texts,
    checks: IndexChecks,
) -> None:
    drafts = [
        draft
        for draft in rules.drafts(dict.fromkeys(texts.documents, "train"))
        if isinstance(draft, Draft)
    ]
    drafts = drafts[:limit]
    reasons = reasons_of(drafts, texts, checks)
    spoiled = planted.contradicted | planted.stated
    outcome: Counter[str] = Counter()
    right: dict[str, int] = defaultdict(int)
    thrown: Counter[str] = Counter()
    for draft, reason in zip(drafts, reasons, strict=True):
        chain = truth_of(draft, world)
        facts = {(chain[1], chain[0]), (chain[2], draft.hops[1].subject)} if chain else set()
        sound = chain is not None and not facts & spoiled and chain not in planted.shortcuts
        outcome[f"{'sound' if sound else 'spoiled'} {'kept' if not reason else 'out'}"] += 1
        if reason:
            check = CHECKS.get(reason, BY_FORM)
            thrown[check] += 1
            found = checks.retriever.search([draft.text], checks.limits.top_k)[0]
            titles = {texts.title(texts.places[p.id]) for p in found}
            right[check] += chain is None or is_bad(check, draft, chain, planted, titles)
    kept = outcome["sound kept"] + outcome["spoiled kept"]
    print(f"\nproposed by the rules: {len(drafts)} chains, kept {kept}")
    print(f"of those kept, sound: {outcome['sound kept']} of {kept}")
    sound = outcome["sound kept"] + outcome["sound out"]
    print(f"of {sound} sound ones, kept: {outcome['sound kept']}")
    spoiled_all = outcome["spoiled kept"] + outcome["spoiled out"]
    print(f"of {spoiled_all} spoiled ones, thrown out: {outcome['spoiled out']}")
    print("\n| check | threw out | rightly |\n|---|---|---|")
    for check, count in sorted(thrown.items()):
        print(f"| {check} | {count} | {right[check]} ({right[check] / count:.0%}) |")


def human_part(data: Path, folder: Path) -> None:
    """Print how many questions that people wrote pass the same checks."""
    sets = [name for name in SETS if (data / f"{name}_questions.jsonl").is_file()]
    if not sets:
        sys.stdout.write(f"skipped: no musique_questions.jsonl in {data}\n")
        return
    every: dict[str, Counter[str]] = {}
    for name in sets:
        index = build_index(data / f"{name}_corpus.jsonl", folder / name, kind="bm25")
        texts = Texts(open_corpus_of(index))
        proposer = GivenQuestions(read_questions(data / f"{name}_questions.jsonl"), texts)
        drafts = [one for one in proposer.drafts({}) if isinstance(one, Draft)]
        facts = Facts(texts)
        checks = IndexChecks(texts, load_retriever(str(index)), Limits(), facts.objects)
        every[name] = Counter(reason or "kept" for reason in reasons_of(drafts, texts, checks))
    rows = sorted({r for one in every.values() for r in one}, key=lambda r: (r != "kept", r))
    print("\n| | " + " | ".join(sets) + " |\n|---|" + "---|" * len(sets))
    print("| questions | " + " | ".join(str(every[name].total()) for name in sets) + " |")
    for row in rows:
        print(f"| {row} | " + " | ".join(str(every[name][row]) for name in sets) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--people", type=int, default=600, help="of the world (default: 600)")
    parser.add_argument("--each", type=int, default=25, help="planted of each kind (default: 25)")
    parser.add_argument("--limit", type=int, default=3000, help="chains looked at (default: 3000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="folder of FlashRAG files: human questions, too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        world_part(args.people, args.each, args.limit, args.seed, Path(work))
        if args.data is not None:
            human_part(args.data, Path(work))


if __name__ == "__main__":
    main()
