"""Steering the packaged model with every selection: the tables of docs/steering.md.

python -m docs.steering                              # about an hour on two cores
python -m docs.steering choice-ja best-ja            # some pieces only

Each piece is kept as docs/evidence/steering/NAME.csv as soon as it is done; the page is written from all that are
there. A piece "choice-LANGUAGE" tries every selection at every dose, with the training prompts; "best-LANGUAGE" each
selection at the tokens and the dose that were best for it there, with the test prompts; "mean-LANGUAGE" sets neurons to
their mean; "off-LANGUAGE" has the neurons of Japanese (of Japanese prompts) switched off beside.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
SET = "the set"
ORDER = ("none", SET, "DiffMean", "LAPE", "average precision", "lowest scores", "same layers and norms")
ORDER += ("random direction", "random vector")
CANDIDATES = ("en", "ja", "ko", "nl", "it", "de", "fr", "es", "pt", "zh")  # languages that an output may be in
TOP, NEW, LAYER, DRAWS = 300, 16, 9, 1
DOSES = (0.5, 1.0, 2.0, 4.0)
SCOPES = ("all", "prompt")  # tokens, as in tn.Ablation
OFF = ("it", "nl")  # languages towards which Japanese prompts are steered while Japanese neurons are off
PIECES = ["encoder", *(f"{kind}-{language}" for language in LANGUAGES for kind in ("choice", "best"))]
PIECES += [f"mean-{language}" for language in LANGUAGES] + [f"off-{language}" for language in OFF]


def piece(model: tn.Model, name: str) -> pd.DataFrame:
    """What the page needs of one piece: a row for each selection, tokens and strength."""
    openings, train = tn.load_corpus("openings"), tn.load_corpus("everyday")["train"]
    kind, language = name.split("-")

    def found(of: str) -> tn.NeuronSet:
        return tn.detect(model, train, language=of, kind="type2", top=TOP, cache=True, progress=False).neurons

    def steered(sets: Any, prompts: Any, **how: Any) -> tn.Steering:
        options: dict[str, Any] = {"layer": LAYER, "draws": DRAWS, "max_new_tokens": NEW}
        options |= {"candidates": CANDIDATES, "cache": True, "progress": False}
        return tn.steer(model, prompts, {language: sets}, train, **options, **how)

    neurons = found(language)
    if kind == "choice":
        how: dict[str, Any] = {"strengths": DOSES}
        return pd.concat(rows(steered(neurons, openings["train"]["en"], tokens=tokens, **how)) for tokens in SCOPES)
    if kind == "off":
        theirs = tn.own({"ja": found("ja"), language: neurons}, "ja")  # a neuron cannot be both off and on
        sets, rivals = [tn.Intervention(theirs), neurons], ["same layers and norms", "DiffMean", "random vector"]
        return rows(steered(sets, openings["test"]["ja"], away="ja", strengths=[1.0, 2.0], selections=rivals))
    if kind == "mean":
        return rows(steered(neurons, openings["test"]["en"], how="mean"))
    runs, lengths, doses = [], {}, chosen(language)
    for pair in doses.drop_duplicates().itertuples(index=False):
        names = doses.index[(doses == list(pair)).all(axis=1)].tolist()
        how = {
            "tokens": pair.tokens,
            "strengths": [pair.strength],
            "selections": [name for name in names if name != SET],
        }
        run = steered(neurons, openings["test"]["en"], **how)
        runs.append((run, [*names, *(["none"] if not runs else [])]))
        lengths |= moved(run)
    return rows(together(runs), doses=doses, lengths=lengths)


def chosen(language: str) -> pd.DataFrame:
    """The tokens and the strength that gave each selection its best score with the training prompts."""
    frame = read(f"choice-{language}")
    frame = frame[frame["selection"] != "none"].sort_values("score", ascending=False, kind="stable")
    return frame.drop_duplicates("selection").set_index("selection")[["tokens", "strength"]]


def together(runs: Sequence[tuple[tn.Steering, list[str]]]) -> tn.Steering:
    """Some selections of each of several runs, as if they had one strength."""
    parts = []
    for run, names in runs:
        outputs = run.outputs.reset_index()
        parts.append(outputs[outputs["selection"].isin(names)])
    outputs = pd.concat(parts)
    outputs["strength"] = (outputs["selection"] != "none").astype(float)
    first = runs[0][0]
    return replace(first, outputs=outputs.set_index(first.outputs.index.names))


def moved(steered: tn.Steering) -> dict[str, float]:
    """How far each selection moves the residual stream at strength 1."""
    (language,) = steered.languages
    return dict(steered.provenance["moved"][language])


def rows(
    steered: tn.Steering, *, doses: pd.DataFrame | None = None, lengths: Mapping[str, float] | None = None
) -> pd.DataFrame:
    """Means, intervals and what is compared, for one language; `doses` are each selection's tokens and strength."""
    (language,), parameters = steered.languages, steered.provenance["parameters"]
    frame = steered.to_frame().reset_index()
    first = steered.outputs["text"].xs((0, 0), level=("draw", "prompt"))
    frame["example"] = [" ".join(first[key].split()) for key in frame.set_index(KEY).index]
    for strength in sorted({*frame["strength"]} - {0.0}):
        effects = steered.compared(language, strength).at()
        here = frame["strength"] == strength
        for column in ("effect", "effect low", "effect high", "p adjusted"):
            frame.loc[here, column] = frame["selection"].map(effects[column])
    frame["tokens"] = parameters["tokens"]
    for column in ("tokens", "strength") if doses is not None else ():
        frame[column] = frame["selection"].map(doses[column]).fillna(frame[column])
    frame["moved"] = frame["selection"].map(lengths or moved(steered)) * frame["strength"]
    return frame.assign(how=parameters["how"], away=parameters["away"])


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


def read(name: str) -> pd.DataFrame:
    """A piece, selection by selection; empty where it has not been run."""
    path = TABLES / f"{name}.csv"
    if not path.exists():
        return pd.DataFrame()
    frame = pd.read_csv(path, keep_default_na=False, na_values=[""])
    frame = frame[~((frame["selection"] == "none") & frame.duplicated(["selection"]))]
    frame["place"] = frame["selection"].map(ORDER.index)
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
        "best": "each selection at its best dose, with the 28 test prompts",
        "choice": "every dose, with the 12 training prompts, which choose it",
        "mean": "set to the mean of the language, at all tokens",
        "off": "Japanese prompts, the Japanese neurons set to 0 beside, at all tokens",
    }
    shown = []
    if (TABLES / "encoder.csv").exists():
        shown += ["## The encoder: 256 test sentences of `everyday` and their translations", encoder_table()]
    for language in LANGUAGES:
        for kind, title in kinds.items():
            frame = read(f"{kind}-{language}")
            if len(frame):
                shown += [f"## {tn.plots.language_name(language)}: {title}", table(frame)]
    return shown


def draw() -> None:
    """The share of outputs in each language by selection, each at its best dose, as figures/steering.png."""
    there = [language for language in LANGUAGES if len(read(f"best-{language}"))]
    if not there:
        return
    figure, panels = tn.plots.panels(len(there), width=5.0, height=3.6)
    for language, ax in zip(there, panels, strict=True):
        frame = read(f"best-{language}").set_index("selection")[["share", "share low", "share high", "draws"]]
        title = f"towards {tn.plots.language_name(language)}"
        tn.plots.conditions(
            frame.set_axis(["mean", "low", "high", "seeds"], axis=1),
            xlabel="share of outputs in it",
            title=title,
            ax=ax,
        )
        ax.set_xlim(-0.03, 1.03)
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
        tn.storage.write_text(TABLES / f"{name}.csv", piece(model, name).round(4).to_csv(index=False))
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
    write_page()
    draw()


if __name__ == "__main__":
    main()
