"""Steering the packaged model with every selection: the tables of docs/steering.md.

python -m docs.steering                              # about an hour and a half on two cores
python -m docs.steering choice-ja ja-all-1           # some pieces only

Each piece is kept as docs/evidence/steering/NAME.csv as soon as it is done; the page is written from all that are
there. A piece "choice-LANGUAGE" tries doses with the training prompts; "LANGUAGE-TOKENS-STRENGTH" all selections, with
the test prompts; "LANGUAGE-TOKENS-mean" sets neurons to their mean; "LANGUAGE-off" has the neurons of Japanese (of
Japanese prompts) switched off beside.
"""

import argparse
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import tnkit as tn

HERE = Path(__file__).parent
PAGE, TABLES, FIGURE = HERE / "steering.md", HERE / "evidence" / "steering", HERE.parent / "figures" / "steering.png"
MARK, KEY = "<!-- tables -->", ["language", "selection", "strength"]
LANGUAGES = ("ja", "ko", "nl", "it")
CANDIDATES = ("en", "ja", "ko", "nl", "it", "de", "fr", "es", "pt", "zh")  # languages that an output may be in
TOP, NEW, LAYER, DRAWS = 300, 16, 9, 1
DOSES, STRENGTHS = (0.5, 1.0, 2.0, 4.0), ("1", "0.5", "2")
SCOPES = ("all", "prompt")  # tokens, as in tn.Ablation
OFF = ("it", "nl")  # languages towards which Japanese prompts are steered while Japanese neurons are off
PIECES = ["encoder", *(f"choice-{language}" for language in LANGUAGES)]
PIECES += [f"{language}-{tokens}-{dose}" for tokens in SCOPES for dose in STRENGTHS for language in LANGUAGES]
PIECES += [f"{language}-all-mean" for language in LANGUAGES] + [f"{language}-off" for language in OFF]


def piece(model: tn.Model, name: str) -> dict[str, tn.Steering]:
    """What one piece runs, by the tokens that are changed."""
    openings, train = tn.load_corpus("openings"), tn.load_corpus("everyday")["train"]
    language, tokens, dose = (*name.split("-"), "1")[:3]
    if language == "choice":
        language = tokens

    def found(of: str) -> tn.NeuronSet:
        return tn.detect(model, train, language=of, kind="type2", top=TOP, cache=True, progress=False).neurons

    def steered(sets: Any, prompts: Any, **how: Any) -> tn.Steering:
        options: dict[str, Any] = {"layer": LAYER, "draws": DRAWS, "max_new_tokens": NEW}
        options |= {"candidates": CANDIDATES, "cache": True, "progress": False}
        return tn.steer(model, prompts, {language: sets}, train, **options, **how)

    neurons = found(language)
    if name.startswith("choice"):
        how: dict[str, Any] = {"strengths": DOSES, "selections": ["DiffMean"]}
        return {tokens: steered(neurons, openings["train"]["en"], tokens=tokens, **how) for tokens in SCOPES}
    if tokens == "off":
        sets, rivals = [tn.Intervention(found("ja")), neurons], ["same layers and norms", "DiffMean", "random vector"]
        prompts = openings["test"]["ja"]
        return {"all": steered(sets, prompts, away="ja", strengths=[1.0, 2.0], selections=rivals)}
    if dose == "mean":
        return {tokens: steered(neurons, openings["test"]["en"], how="mean", tokens=tokens)}
    return {tokens: steered(neurons, openings["test"]["en"], strengths=[float(dose)], tokens=tokens)}


def keep(name: str, shown: dict[str, tn.Steering]) -> None:
    """Write what the page needs of a piece."""
    frames = []
    for tokens, steered in shown.items():
        (language,), parameters = steered.languages, steered.provenance["parameters"]
        frame = steered.to_frame().reset_index()
        first = steered.outputs["text"].xs((0, 0), level=("draw", "prompt"))
        frame["example"] = [" ".join(first[key].split()) for key in frame.set_index(KEY).index]
        frame["moved"] = frame["selection"].map(steered.provenance["moved"][language]) * frame["strength"]
        for strength in sorted({*frame["strength"]} - {0.0}):
            effects = steered.compared(language, strength).at()
            here = frame["strength"] == strength
            for column in ("effect", "effect low", "effect high", "p adjusted"):
                frame.loc[here, column] = frame["selection"].map(effects[column])
        frames.append(frame.assign(tokens=tokens, how=parameters["how"], away=parameters["away"]))
    tn.storage.write_text(TABLES / f"{name}.csv", pd.concat(frames).round(4).to_csv(index=False))


def cell(row: "pd.Series[Any]", measure: str) -> str:
    """One mean with its interval."""
    if pd.isna(row[measure]):
        return ""
    digits = 0 if measure == "perplexity" else 2
    return f"{row[measure]:.{digits}f} ({row[f'{measure} low']:.{digits}f} – {row[f'{measure} high']:.{digits}f})"


def table(frame: pd.DataFrame) -> str:
    """A Markdown table: a row for each selection, tokens and strength."""
    columns = ("share", "lines", "words", "relevance", "distinct", "perplexity", "score")
    shown = [name for name in columns if frame[name].notna().any()]
    several = frame["tokens"].nunique() > 1
    head = ["selection", *(["tokens"] if several else []), "strength", "moves", *shown, "n", "first output"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for _, row in frame.iterrows():
        draws = f" ({row['draws']:.0f} draws)" if row["draws"] > 1 else ""
        moves = "" if row["selection"] == "none" or pd.isna(row["moved"]) else f"{row['moved']:,.0f}"
        text = str(row["example"]).replace("|", "\\|").replace("<", "&lt;")[:40]
        start = [row["selection"] + draws, *([row["tokens"]] if several else []), f"{row['strength']:g}", moves]
        cells = [*start, *(cell(row, name) for name in shown), f"{row['outputs']:.0f}", text]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def read(pattern: str) -> pd.DataFrame:
    """The pieces of a kind, together; the untouched model once, first."""
    paths = sorted(TABLES.glob(pattern))
    if not paths:
        return pd.DataFrame()
    frame = pd.concat([pd.read_csv(path, keep_default_na=False, na_values=[""]) for path in paths])
    untouched = frame["selection"] == "none"
    frame = frame[~(untouched & frame.duplicated(["selection", "tokens"]))]
    names = list(dict.fromkeys(["none", *frame["selection"]]))
    frame["place"] = frame["selection"].map(names.index)
    return frame.sort_values(["place", "tokens", "strength"], kind="stable")


def encoder() -> None:
    """How well the encoder tells translations from other sentences of `everyday`, for each pair of languages."""
    from sklearn.metrics import roc_auc_score

    from tnkit.measures.behaviour.meaning import encoded

    test = tn.load_corpus("everyday")["test"]
    vectors = {language: encoded(test[language]) for language in test}
    rows = []
    for here, there in combinations(vectors, 2):
        near = vectors[here] @ vectors[there].T
        own = np.eye(len(near), dtype=bool)
        first = float((near.argmax(axis=1) == np.arange(len(near))).mean())
        rows.append((here, there, len(near), roc_auc_score(own.ravel(), near.ravel()), first))
    frame = pd.DataFrame(rows, columns=["from", "to", "n", "AUC", "retrieval@1"])
    tn.storage.write_text(TABLES / "encoder.csv", frame.round(4).to_csv(index=False))


def encoder_table() -> str:
    """A Markdown table of the encoder's validation."""
    frame = pd.read_csv(TABLES / "encoder.csv")
    pairs = [f"{row['from']}–{row['to']}" for _, row in frame.iterrows()]
    lines = ["| pair | " + " | ".join(pairs) + " |", "|---|" + "---|" * len(pairs)]
    for name in ("AUC", "retrieval@1"):
        lines.append(f"| {name} | " + " | ".join(f"{value:.3f}" for value in frame[name]) + " |")
    return "\n".join(lines)


def sections() -> list[str]:
    """The headings and tables of all pieces that are there."""
    kinds = {
        "choice-{}*": "the dose, with the 12 training prompts",
        "{}-all-[0-9]*": "every selection, at all tokens",
        "{}-prompt-[0-9]*": "every selection, at the tokens of the prompt",
        "{}-all-mean": "set to the mean of the language, at all tokens",
        "{}-off": "Japanese prompts, the Japanese neurons set to 0 beside, at all tokens",
    }
    shown = []
    if (TABLES / "encoder.csv").exists():
        shown += ["## The encoder: 256 test sentences of `everyday` and their translations", encoder_table()]
    for language in LANGUAGES:
        for pattern, title in kinds.items():
            frame = read(pattern.format(language) + ".csv")
            if len(frame):
                shown += [f"## {tn.plots.language_name(language)}: {title}", table(frame)]
    return shown


def draw() -> None:
    """The share of outputs in each language by strength, as figures/steering.png."""
    there = [language for language in LANGUAGES if len(read(f"{language}-all-[0-9]*.csv"))]
    if not there:
        return
    figure, panels = tn.plots.panels(len(there), width=5.0, height=3.6)
    for language, ax in zip(there, panels, strict=True):
        frame = read(f"{language}-all-[0-9]*.csv").rename(columns={"selection": "condition", "strength": "dose"})
        rows = frame.set_index(["dose", "condition"])[["share", "share low", "share high"]]
        rows = rows.set_axis(["mean", "low", "high"], axis=1)
        title = f"towards {tn.plots.language_name(language)}"
        labels = {"xlabel": "strength, × (its mean − mean of English)", "ylabel": "share of outputs in it"}
        tn.plots.conditions_by_dose(rows, **labels, title=title, ax=ax)
        if ax is not panels[-1]:
            ax.get_legend().remove()
    tn.plots.save_figure(figure, FIGURE)


def write_page() -> None:
    """Write the tables of all pieces below the mark in the page."""
    text = PAGE.read_text().partition(MARK)[0]
    tn.storage.write_text(PAGE, f"{text}{MARK}\n\n" + "\n\n".join(sections()) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--again", action="store_true", help="run pieces that are there already, too")
    parser.add_argument("--page", action="store_true", help="only write the page and the figure")
    parser.add_argument("names", nargs="*", help=f"pieces to run (default: all): {', '.join(PIECES)}")
    options = parser.parse_args()
    asked = [] if options.page else options.names or PIECES
    todo = [name for name in asked if name != "encoder" and (options.again or not (TABLES / f"{name}.csv").exists())]
    model = tn.load_model("gemma-3-270m", dtype="bfloat16") if todo else None
    if "encoder" in asked:
        encoder()
    for name in todo:
        started = time.perf_counter()
        keep(name, piece(model, name))
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
    write_page()
    draw()


if __name__ == "__main__":
    main()
