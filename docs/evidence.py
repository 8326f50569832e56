"""Every selection of neurons at every value, with the packaged model: the tables of docs/evidence.md.

python -m docs.evidence                              # or make evidence; about half an hour on two cores
python -m docs.evidence --tatoeba FOLDER ja-type1    # with Tatoeba's en_ja.tsv and en_it.tsv, some studies only

Each study is kept as docs/evidence/NAME.csv as soon as it is done; the page is written from all that are there.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import pandas as pd

import tnkit as tn

HERE = Path(__file__).parent
PAGE, TABLES, FIGURE = HERE / "evidence.md", HERE / "evidence", HERE.parent / "figures" / "evidence.png"
MARK, KINDS = "<!-- tables -->", {"type1": "Type-1", "type2": "Type-2"}
STUDIES = [f"{language}-{kind}" for kind in ("type1", "type2") for language in ("ja", "ko", "nl", "it")]
ENDINGS = {"bare": "", "newline": "\n"}  # in place of the final mark of every sentence
STUDIES += [f"{language}-type1-{ending}" for language in ("ja", "it") for ending in ENDINGS]
OF_TATOEBA = ("ja-type1-tatoeba", "it-type1-tatoeba")
TITLES = {"bare": "`everyday` without final marks", "newline": "`everyday` with a newline as the ending"}
TITLES |= {"tatoeba": "Tatoeba", "": "`everyday`"}
OF_TYPE2 = ("uniform", "same layers and norms", "random direction", "towards en", "towards the difference")
OF_TYPE2 += ("largest norm", "centred score", "in no other set", "LAPE")
SENTENCES = 512  # of Tatoeba, half of them for training


def study(model: tn.Model, name: str, tatoeba: Path | None) -> tn.Evidence:
    """One language and type on one corpus."""
    language, kind, *other = name.split("-")
    few: dict[str, Any] = {}
    if kind == "type2":  # whole sentences run, not their last tokens alone
        few = {"draws": 2, "read": 24, "selections": [*OF_TYPE2, "ja set" if language != "ja" else "ko set"]}
    if not name.endswith("tatoeba"):
        few |= {"suffix": ENDINGS[other[0]]} if other else {}
        return tn.evidence(model, tn.load_corpus("everyday"), language=language, kind=kind, **few)
    assert tatoeba is not None
    corpus = tn.load_corpus(tatoeba / f"en_{language}.tsv", ["en", language], test=0.5, limit=SENTENCES)
    return tn.evidence(model, corpus, language=language, kind=kind, **few)


def keep(name: str, shown: tn.Evidence) -> None:
    """Write what the page needs of a study."""
    frame = shown.to_frame().reset_index()
    shared = shown.balance.at()[["shared", "displacement"]]
    frame = frame.merge(shared, how="left", left_on="condition", right_index=True).assign(
        layer=shown.layer, measure=shown.measure
    )
    tn.storage.write_text(TABLES / f"{name}.csv", frame.round(5).to_csv(index=False))
    if name == "ja-type1":
        tn.plots.save_figure(shown.plot(("zero", "own mean")).figure, FIGURE)


def table(frame: pd.DataFrame, read: str) -> str:
    """A Markdown table: a row for each selection, a column for each value, means with their 95 % intervals."""
    rows = frame[frame["read"] == read]
    values = [value for value in dict.fromkeys(rows["value"]) if (rows["value"] == value).sum() > 2]
    lines = ["| selection | shared | moves | " + " | ".join(values) + " | p sets at zero |"]
    lines.append("|---|" + "---|" * (len(values) + 3))
    cells = rows.set_index(["condition", "value"])
    for condition in dict.fromkeys(rows["condition"]):
        row = cells.loc[condition]
        about = row.iloc[0]
        known = [f"{about['shared']:.0f}", f"{about['displacement']:,.0f}"] if condition != "none" else ["", ""]
        shown = [f"{row.loc[value, 'mean']:.2f} ({row.loc[value, 'low']:.2f} – {row.loc[value, 'high']:.2f})"
                 if value in row.index else "" for value in values]  # fmt: skip
        p = row.loc["zero", "p sets"]
        name = condition + (f" ({about['seeds']:.0f} draws)" if about["seeds"] > 1 else "")
        lines.append(f"| {name} | " + " | ".join([*known, *shown, "" if pd.isna(p) else f"{p:.2f}"]) + " |")
    return "\n".join(lines)


def doses(frame: pd.DataFrame, read: str) -> str:
    """A Markdown table of the set alone at every other value."""
    rows = frame[(frame["read"] == read) & (frame["condition"] == "the set")]
    cells = [f"{row['mean']:.2f} ({row['low']:.2f} – {row['high']:.2f})" for _, row in rows.iterrows()]
    head = "| the set | " + " | ".join(rows["value"]) + " |"
    return "\n".join([head, "|---|" + "---|" * len(rows), "| mean | " + " | ".join(cells) + " |"])


def write_page() -> None:
    """Write the tables of all studies below the mark in the page."""
    sections = []
    for path in sorted(TABLES.glob("*.csv")):
        language, kind, *other = path.stem.split("-")
        title = f"## {tn.plots.language_name(language)} {KINDS[kind]}, {TITLES[''.join(other)]}"
        frame = pd.read_csv(path, keep_default_na=False, na_values=[""])
        for read in dict.fromkeys(frame["read"]):
            measure, layer = frame["measure"][0], f", layer {frame['layer'][0]}" if kind == "type1" else ""
            heading = f"{title}: {measure} in {tn.plots.language_name(read)}{layer}"
            sections += [heading, table(frame, read), doses(frame, read)]
    text = PAGE.read_text().partition(MARK)[0]
    tn.storage.write_text(PAGE, f"{text}{MARK}\n\n" + "\n\n".join(sections) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--tatoeba", type=Path, help="a folder with en_ja.tsv and en_it.tsv")
    parser.add_argument("names", nargs="*", help=f"studies to run (default: all): {', '.join((*STUDIES, *OF_TATOEBA))}")
    options = parser.parse_args()
    names = options.names or [*STUDIES, *(OF_TATOEBA if options.tatoeba else ())]
    model = tn.load_model("gemma-3-270m")
    for name in names:
        started = time.perf_counter()
        keep(name, study(model, name, options.tatoeba))
        write_page()
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
