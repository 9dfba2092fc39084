"""Recall before and after words of every script: English question sets, and eleven languages.

"former" cuts runs of letters and digits in lower case, as indexes of the first rule still do; "now"
is `research_rl.envs.retrieval.encoders.words`. The first table asks the questions of HotpotQA,
2WikiMultihopQA and MuSiQue of all their paragraphs: recall@5 of the supporting ones must not fall.
The second asks for capitals in eleven languages, half of the questions decomposed (NFD) and in
capital letters, half as they are; "found" is the share whose passage comes first, "nothing" the
share that finds no passage at all.

    python benchmarks/words.py --data FOLDER
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from research_rl.envs.questions import read_questions
from research_rl.envs.retrieval import BM25Retriever, BM25SketchEncoder, DenseRetriever
from research_rl.envs.retrieval.search import fit_bm25
from research_rl.envs.types import Passage, Retriever

SETS = ("hotpotqa", "2wikimultihopqa", "musique")
SKETCH_ROOM = 0.1  # points: another vocabulary falls into other cells of the sketch
RULES: tuple[tuple[Literal[1, 2], str], ...] = ((1, "former"), (2, "now"))
# a sentence about a capital, one about its country, a question; then the names
LANGUAGES: dict[str, tuple[str, str, str, str]] = {
    "German": (
        "{1} ist die Hauptstadt von {0}.",
        "In {0} leben viele Menschen am Fluß.",
        "Wie heißt die Hauptstadt von {0}?",
        "Österreich=Wien, Ägypten=Kairo, Dänemark=Kopenhagen, "
        "Südkorea=Seoul, Rumänien=Bukarest, Äthiopien=Addis Abeba",
    ),
    "Turkish": (
        "{0} ülkesinin başkenti {1} şehridir.",
        "{0} ülkesinde birçok insan yaşar.",
        "{0} ülkesinin başkenti neresidir?",
        "İtalya=Roma, İspanya=Madrid, Mısır=Kahire, İran=Tahran, Şili=Santiago, Güney Kore=Seul",
    ),
    "Vietnamese": (
        "{1} là thủ đô của {0}.",
        "Nhiều người sống ở {0}.",
        "Thủ đô của {0} là gì?",
        "Nhật Bản=Tô-ky-ô, Trung Quốc=Bắc Kinh, Thái Lan=Băng Cốc, "
        "Ấn Độ=Niu Đê-li, Ai Cập=Cai-rô, Hàn Quốc=Xê-un",
    ),
    "Russian": (
        "Столица государства {0} — город {1}.",
        "В государстве {0} живёт много людей.",
        "Какая столица у государства {0}?",
        "Китай=Пекин, Япония=Токио, Йемен=Сана, Индия=Дели, Египет=Каир, Норвегия=Осло",
    ),
    "Greek": (
        "Πρωτεύουσα της χώρας {0} είναι η πόλη {1}.",
        "Στη χώρα {0} ζουν πολλοί άνθρωποι.",
        "Ποια είναι η πρωτεύουσα της χώρας {0};",
        "Ιταλία=Ρώμη, Γαλλία=Παρίσι, Ιαπωνία=Τόκιο, Κίνα=Πεκίνο, Αίγυπτος=Κάιρο, Ινδία=Δελχί",
    ),
    "Arabic": (
        "عاصمة {0} هي مدينة {1}.",
        "يعيش كثير من الناس في {0}.",
        "ما هي عاصمة {0}؟",
        "اليابان=طوكيو, الصين=بكين, مصر=القاهرة, الهند=نيودلهي, النرويج=أوسلو, إيطاليا=روما",
    ),
    "Hindi": (
        "{0} की राजधानी {1} है।",
        "{0} में बहुत लोग रहते हैं।",
        "{0} की राजधानी क्या है?",
        "जापान=टोक्यो, चीन=बीजिंग, मिस्र=काहिरा, भारत=नई दिल्ली, नॉर्वे=ओस्लो, इटली=रोम",
    ),
    "Thai": (
        "เมืองหลวงของ{0}คือ{1}",
        "ผู้คนมากมายอาศัยอยู่ใน{0}",
        "{0}มีเมืองหลวงชื่ออะไร",
        "ญี่ปุ่น=โตเกียว, จีน=ปักกิ่ง, อียิปต์=ไคโร, อินเดีย=นิวเดลี, นอร์เวย์=ออสโล, อิตาลี=โรม",
    ),
    "Japanese": (
        "{0}の首都は{1}である。",
        "{0}には多くの人が住んでいる。",
        "{0}の首都はどこですか",
        "日本=東京, 中国=北京, エジプト=カイロ, "
        "インド=ニューデリー, ノルウェー=オスロ, イタリア=ローマ",
    ),
    "Chinese": (
        "{0}的首都是{1}。",
        "许多人住在{0}。",
        "{0}的首都在哪里",
        "日本=东京, 中国=北京, 埃及=开罗, 印度=新德里, 挪威=奥斯陆, 意大利=罗马",
    ),
    "Korean": (
        "{0}의 수도는 {1}이다.",
        "{0}에는 많은 사람이 산다.",
        "{0}의 수도는 어디인가",
        "일본=도쿄, 중국=베이징, 이집트=카이로, 인도=뉴델리, 노르웨이=오슬로, 이탈리아=로마",
    ),
}


def bm25(passages: Sequence[Passage], rule: Literal[1, 2]) -> Retriever:
    """Return BM25 over words of a rule."""
    model = fit_bm25((p.contents for p in passages), rule=rule)
    return BM25Retriever(model, passages, rule=rule)


def sketch(passages: Sequence[Passage], rule: Literal[1, 2]) -> Retriever:
    """Return the offline encoder over words of a rule."""
    encoder = BM25SketchEncoder()
    encoder.rule = rule
    return DenseRetriever.from_passages(passages, encoder)


WAYS = {"BM25": bm25, "offline encoder": sketch}


def english(data: Path) -> list[list[str]]:
    """Return recall@5 in percent, a line for each retriever and rule."""
    ids: dict[str, str] = {}
    merged: dict[tuple[str, str], str] = {}
    for name in SETS:
        with (data / f"{name}_corpus.jsonl").open(encoding="utf-8") as file:
            for row in map(json.loads, file):
                merged[name, str(row["id"])] = ids.setdefault(
                    row["contents"], f"{name}/{row['id']}"
                )
    passages = [Passage(identity, contents) for contents, identity in ids.items()]
    asked = [(n, q) for n in SETS for q in read_questions(data / f"{n}_questions.jsonl")]
    lines = []
    for way, make in WAYS.items():
        for rule, label in RULES:
            found = make(passages, rule).search([q.text for _, q in asked], 5)
            recalls: dict[str, list[float]] = {name: [] for name in SETS}
            for (name, question), row in zip(asked, found, strict=True):
                gold = {merged[name, str(i)] for i in question.metadata.get("gold_ids", ())}
                if gold:
                    recalls[name].append(len(gold & {p.id for p in row}) / len(gold))
            shares = [statistics.mean(recalls[name]) for name in SETS]
            shares.append(statistics.mean(value for values in recalls.values() for value in values))
            lines.append([f"{way}, {label}", *(f"{100 * share:.2f}" for share in shares)])
            sys.stderr.write(f"{lines[-1]}\n")
    return lines


def languages() -> list[list[str]]:
    """Return found and nothing, in percent of the questions, a line for each language."""
    lines = []
    for name, (fact, other, question, named) in LANGUAGES.items():
        countries = [pair.split("=") for pair in named.split(", ")]
        texts = [(f"{i}", fact.format(*names)) for i, names in enumerate(countries)]
        texts += [(f"x{i}", other.format(*names)) for i, names in enumerate(countries)]
        passages = [Passage(identity, unicodedata.normalize("NFC", t)) for identity, t in texts]
        queries = [question.format(*names) for names in countries]
        queries = [unicodedata.normalize("NFC", query) for query in queries]
        queries += [unicodedata.normalize("NFD", query.upper()) for query in queries]
        wanted = [str(i) for i in range(len(countries))] * 2
        line = [name]
        for make in WAYS.values():
            for rule, _ in RULES:
                found = make(passages, rule).search(queries, 5)
                first = [row[0].id if row else "" for row in found]
                right = statistics.mean(a == b for a, b in zip(first, wanted, strict=True))
                nothing = statistics.mean(not row for row in found)
                line.append(f"{100 * right:.0f} ({100 * nothing:.0f})")
        lines.append(line)
    return lines


def table(lines: Sequence[Sequence[str]]) -> str:
    """Return lines as a Markdown table."""
    drawn = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in drawn)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=default, help="folder of FlashRAG files")
    args = parser.parse_args()
    if (args.data / "hotpotqa_corpus.jsonl").is_file():
        lines = english(args.data)
        head = ["recall@5, %", "HotpotQA", "2Wiki", "MuSiQue", "all"]
        print(table([head, *lines]), end="\n\n")
        for row, room in ((0, 0.0), (2, SKETCH_ROOM)):
            former, now = float(lines[row][-1]), float(lines[row + 1][-1])
            if now < former - room:
                raise SystemExit(f"English fell: {former} to {now}")
    else:
        sys.stdout.write(f"skipped the first table: no hotpotqa_corpus.jsonl in {args.data}\n\n")
    heads = [f"{way}, {label}: found (nothing), %" for way in WAYS for _, label in RULES]
    print(table([["language", *heads], *languages()]))


if __name__ == "__main__":
    main()
