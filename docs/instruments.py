"""What patching, lenses and attribution show in the packaged model: the tables of docs/instruments.md.

python -m docs.instruments                    # all languages, a quarter of an hour on a free core
python -m docs.instruments ja                 # one of them

Each study is kept as docs/instruments/LANGUAGE-STUDY.csv; the page is written from all that are there.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import tnkit as tn

HERE = Path(__file__).parent
PAGE, TABLES, FIGURES = HERE / "instruments.md", HERE / "instruments", HERE.parent / "figures"
MARK = "<!-- tables -->"
LANGUAGES = {"ja": "nl", "ko": "it", "nl": "ja", "it": "ko"}  # language → what is translated from
TOP, TEST, SEEDS, EACH, LAYERS = 300, 64, 3, 12, (5, 9, 11, 13, 15, 17)
NAMES = {"type1": "Type-1", "type2": "Type-2"}
QUIET: dict[str, Any] = {"progress": False}


class Study:
    """One language: its neurons, chosen on training sentences, and what the instruments say on test sentences."""

    def __init__(self, model: tn.Model, language: str) -> None:
        self.model, self.language = model, language
        self.corpus = tn.load_corpus("everyday")
        self.test = {name: list(self.corpus["test"][name])[:TEST] for name in self.corpus.languages}
        self.train = {name: list(self.corpus["train"][name]) for name in self.corpus.languages}
        held = {name: tn.capture(model, self.corpus["train"][name], cache=True, **QUIET) for name in ("en", language)}
        own, targets = held[language], {"type1": list(held.values()), "type2": [held[language]]}
        where = {"type1": model.early_layers, "type2": model.late_layers}
        self.scores = {
            kind: tn.score_neurons(model, own, tn.estimate_centroids(some)) for kind, some in targets.items()
        }
        self.neurons = {kind: scores.top(TOP, layers=where[kind]) for kind, scores in self.scores.items()}
        self.layer = tn.geometry.retrieval(own, held["en"]).best()[0]
        self.norms = tn.scoring.contribution_norms(model, own)

    def controls(self, kind: str) -> dict[str, Any]:
        neurons = self.neurons[kind]
        return {"same layers and norms": lambda seed: neurons.matched(seed=seed, norms=self.norms)}

    def latent(self) -> pd.DataFrame:
        """Latent language of translations into the language, with each type off, and of sentences to complete."""
        texts = {name: self.train[name][:64] for name in self.corpus.languages}
        like = {f"like {NAMES[kind]}": self.controls(kind)["same layers and norms"] for kind in NAMES}
        measured = tn.lens.latent_language(
            self.model, self.language, source=LANGUAGES[self.language], texts=texts, layers=LAYERS,
            neurons=self.neurons["type2"], controls={"Type-1": self.neurons["type1"], **like}, seeds=2, **QUIET,
        )  # fmt: skip
        if self.language == "ja":
            save(measured.plot().figure, "instruments-latent")
            save(measured.plot("nearest").figure, "instruments-nearest")
        cloze = tn.lens.latent_language(self.model, self.language, layers=LAYERS, **QUIET)
        frames = {each.prompts: each.to_frame().assign(left_out=each.left_out) for each in (measured, cloze)}
        return pd.concat(frames, names=["prompts"]).reset_index()

    def attribution(self) -> pd.DataFrame:
        """Rank correlations of score, attribution and exact effect of single neurons."""
        how: dict[str, Any] = {"language": self.language, "layer": self.layer, **QUIET}
        scores, measure = self.scores["type1"], "centred_similarity"
        exact = tn.effects(self.model, self.test, scores, measure=measure, each=EACH, **how)
        given = {
            "gradient": tn.attribution(self.model, self.test, measure=measure, **how),
            "integrated": tn.attribution(self.model, self.test, measure=measure, method="integrated", steps=4, **how),
        }
        return tn.beside(exact, given).correlation().reset_index().assign(layer=self.layer)

    def rival(self) -> pd.DataFrame:
        """Retrieval with Type-1 off, with a selection by attribution off, and with controls off."""
        type1 = self.neurons["type1"]
        some = {name: texts[:128] for name, texts in self.train.items()}
        chosen = tn.attribution(self.model, some, language=self.language, layer=self.layer, **QUIET)
        within = [layer for layer in self.model.early_layers if layer <= self.layer]
        controls = self.controls("type1") | {"attribution": chosen.top(TOP, layers=within)}
        compared = tn.ablate(
            self.model, self.test, type1, language=self.language, layers=[self.layer], controls=controls, seeds=SEEDS,
            **QUIET,
        )  # fmt: skip
        return compared.at().reset_index().assign(layer=self.layer)

    def restored(self) -> pd.DataFrame:
        """Retrieval with all neurons of the early layers off, and Type-1's contribution alone restored."""
        compared = tn.patching.restored(
            self.model, self.test, self.neurons["type1"], language=self.language, layer=self.layer,
            controls=self.controls("type1"), seeds=SEEDS, **QUIET,
        )  # fmt: skip
        return compared.at().reset_index().assign(layer=self.layer)

    def given(self) -> pd.DataFrame:
        """English sentences that lie nearest to the language's centroid, given its mean Type-2 contribution."""
        last = self.model.n_layers - 2
        how: dict[str, Any] = {"keep": ["post"], "layers": [last], **QUIET}
        means = {name: tn.capture(self.model, self.train[name][:128], **how).post[0].mean(dim=0) for name in self.train}
        middle = sum(means.values()) / len(means)
        run = tn.LastToken(self.model, self.test["en"], **how)

        def nearest(neurons: Any) -> np.ndarray:
            states = run.capture(neurons).post[0] - middle
            cosines = np.stack([(states @ (mean - middle) / (mean - middle).norm()).numpy() for mean in means.values()])
            return (cosines.argmax(axis=0) == list(means).index(self.language)).astype(float)

        compared = tn.patching.given(
            self.model, self.test, self.neurons["type2"], language="en", donor=self.language, layer=last,
            controls=self.controls("type2"), measured=nearest, measure="nearest centroid", seeds=SEEDS, **QUIET,
        )  # fmt: skip
        return compared.at().reset_index().assign(layer=last)

    def patched(self) -> pd.DataFrame:
        """The English next token in runs of the language that get one layer's English state."""
        found = tn.patching.by_layer(self.model, self.test, source="en", into=self.language, **QUIET)
        if self.language == "ja":
            save(found.plot().figure, "instruments-patching")
        return found.to_frame().reset_index()


STUDIES = ("restored", "rival", "attribution", "given", "patched", "latent")


def save(figure: Any, name: str) -> None:
    tn.plots.save_figure(figure, FIGURES / f"{name}.png")


def cell(row: pd.Series, digits: int = 2) -> str:
    return f"{row['mean']:.{digits}f} ({row['low']:.{digits}f} – {row['high']:.{digits}f})"


def conditions(study: str) -> list[str]:
    """A table of conditions: a row for each language, a column for each condition."""
    frames = {name: read(name, study) for name in LANGUAGES if (TABLES / f"{name}-{study}.csv").exists()}
    if not frames:
        return []
    names = list(dict.fromkeys(name for frame in frames.values() for name in frame["condition"]))
    lines = ["| language | layer | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for language, frame in frames.items():
        rows = frame.set_index("condition")
        cells = [cell(rows.loc[name]) if name in rows.index else "" for name in names]
        lines.append(f"| {tn.plots.language_name(language)} | {frame['layer'][0]} | " + " | ".join(cells) + " |")
    return lines


def correlations() -> list[str]:
    frames = {name: read(name, "attribution") for name in LANGUAGES if (TABLES / f"{name}-attribution.csv").exists()}
    if not frames:
        return []
    pairs = list(dict.fromkeys(pair for frame in frames.values() for pair in frame["pair"]))
    lines = ["| language | layer | " + " | ".join(pairs) + " |", "|---|---|" + "---|" * len(pairs)]
    for language, frame in frames.items():
        rows = frame[frame["stratum"] == "all"].set_index("pair").rename(columns={"spearman": "mean"})
        cells = [cell(rows.loc[pair]) for pair in pairs]
        lines.append(f"| {tn.plots.language_name(language)} | {frame['layer'][0]} | " + " | ".join(cells) + " |")
    return lines


def patched() -> list[str]:
    lines, depths = (
        ["| language | run | 2 | 5 | 8 | 11 | 14 | 17 |", "|---|---|---|---|---|---|---|---|"],
        range(2, 18, 3),
    )
    for language in LANGUAGES:
        if (TABLES / f"{language}-patched.csv").exists():
            rows = read(language, "patched").set_index(["condition", "layer"])
            for run in ("untouched", "patched", "another sentence"):
                cells = [cell(rows.loc[run, layer], 1) for layer in depths]
                lines.append(f"| {tn.plots.language_name(language)} | {run} | " + " | ".join(cells) + " |")
    return lines if len(lines) > 2 else []


def latent() -> list[str]:
    """Means of the English and the target's answer by layer, untouched and with neurons off."""
    heads = " | ".join(map(str, LAYERS))
    lines = [f"| prompts | off | reading | of | {heads} |", "|---|---|---|---|" + "---|" * len(LAYERS)]
    for language in LANGUAGES:
        if not (TABLES / f"{language}-latent.csv").exists():
            continue
        frame = read(language, "latent")
        frame = frame[frame["prompts"].str.startswith("translation") | (frame["condition"] == "none")]
        groups = frame.groupby(["prompts", "condition", "reading", "language"], sort=False)
        for (prompts, condition, reading, of), rows in groups:
            if of in ("en", language):
                off = {"none": "nothing", "the set": "Type-2"}.get(condition, condition)
                cells = [cell(row) for _, row in rows.sort_values("layer").iterrows()]
                lines.append(f"| {prompts} | {off} | {reading} | {of} | " + " | ".join(cells) + " |")
    return lines if len(lines) > 2 else []


TITLES = {
    "restored": "Retrieval with every neuron of the early layers off, and one set's contribution restored",
    "rival": "Retrieval with a set off: Type-1, and as many by attribution",
    "attribution": "Spearman of score, attribution and exact effect",
    "given": "English sentences nearest to the language's centroid, given its mean Type-2 contribution",
    "patched": "Log-probability of the English next token, by patched layer",
    "latent": "Latent language by layer",
}


def read(language: str, study: str) -> pd.DataFrame:
    return pd.read_csv(TABLES / f"{language}-{study}.csv", keep_default_na=False, na_values=[""])


def write_page() -> None:
    """Write the tables of all studies below the mark in the page."""
    tables = {"attribution": correlations, "patched": patched, "latent": latent}
    sections = []
    for study, title in TITLES.items():
        lines = tables[study]() if study in tables else conditions(study)
        if lines:
            sections.append(f"### {title}\n\n" + "\n".join(lines))
    text = PAGE.read_text().partition(MARK)[0]
    tn.storage.write_text(PAGE, f"{text}{MARK}\n\n" + "\n\n".join(sections) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("languages", nargs="*", help=f"default: {', '.join(LANGUAGES)}")
    parser.add_argument("--studies", nargs="+", default=STUDIES, choices=STUDIES)
    options = parser.parse_args()
    model = tn.load_model("gemma-3-270m")
    for language in options.languages or LANGUAGES:
        study = Study(model, language)
        for name in options.studies:
            started = time.perf_counter()
            frame = getattr(study, name)()
            tn.storage.write_text(TABLES / f"{language}-{name}.csv", frame.round(5).to_csv(index=False))
            write_page()
            print(f"{language} {name}: {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
