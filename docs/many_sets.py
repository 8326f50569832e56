"""The Type-1 set of Japanese among 1,000 random sets of each kind, and random sets among their own kind.

python -m docs.many_sets                              # about an hour on one core
python -m docs.many_sets --draws 100 "same layers"    # fewer sets, and one kind

Fills tables of docs/evidence.md and docs/statistics.md. The means of all sets are kept in docs/evidence/sets.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import tnkit as tn
from docs import calibration

HERE = Path(__file__).parent
TABLES, FIGURE = HERE / "evidence" / "sets", HERE.parent / "figures" / "evidence-sets.png"
KINDS = ("random direction", "same layers and norms")
LAYERS, LAYER, LANGUAGE = (11, 15), 15, "ja"  # at 15 most translations of training sentences are found
CONTROLS, MORE = 10, 39  # of each set in the test of sets among their own kind
MEASURE = "mean-centred retrieval@1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--draws", type=int, default=1000, help="random sets of each kind")
    parser.add_argument("kinds", nargs="*", default=KINDS, help="names of random controls, as tn.controls has them")
    options = parser.parse_args()
    model, corpus = tn.load_model("gemma-3-270m"), tn.load_corpus("everyday")
    train, test = corpus["train"], corpus["test"]
    captured = {name: tn.capture(model, train[name], keep=("mid", "post", "activations", "scale")) for name in train}
    target = tn.estimate_centroids([captured["en"], captured[LANGUAGE]])
    scores = tn.score_neurons(model, captured[LANGUAGE], target, layers=model.early_layers)
    neurons = scores.top(300)
    about: dict[str, Any] = {"model": model, "captured": captured, "language": LANGUAGE}
    controls = tn.controls(neurons, layers=scores.layers, scores=scores, **about)
    prefix = tn.LastToken(model, test[LANGUAGE], keep=["post"], layers=LAYERS)
    english = tn.capture(model, test["en"], keep=["post"], layers=LAYERS)
    for kind in options.kinds:
        hits: list[np.ndarray] = []  # with nothing off, the set, and each draw: (layer, sentence)

        def measure(off: tn.NeuronSet, hits: list[np.ndarray] = hits) -> np.ndarray:
            hits.append(np.asarray(tn.geometry.hits(prefix.capture(off), english)))
            return hits[-1]

        tested = tn.set_test(measure, neurons, controls[kind], draws=options.draws, name=MEASURE, layers=LAYERS)
        keep(kind, tested, np.array(hits[2:])[:, LAYERS.index(LAYER)])
        if kind == KINDS[0]:
            tn.plots.save_figure(tested.plot(LAYER).figure, FIGURE)


def keep(kind: str, tested: tn.SetTest, values: np.ndarray) -> None:
    """Write the draws of a kind, and its rows of both pages.

    Args:
        kind: which.
        tested: the set among the draws.
        values: (draw, sentence), at `LAYER`.
    """
    draws = pd.DataFrame(tested.draws, columns=[f"layer {layer}" for layer in LAYERS])
    tn.storage.write_text(TABLES / f"{kind.replace(' ', '-')}.csv", draws.round(6).to_csv(index=False))
    as_low = (tested.draws <= tested.ablated.mean(axis=1)).sum(axis=0)
    among = rows_of_sets(tested.to_frame().reset_index().assign(kind=kind, draws=len(draws), below=as_low))
    own = {"random sets": kind, "tests": len(values) // (CONTROLS + 1)}
    for p in ("p sentences", "p sets"):
        own[f"`{p}` ≤ .05"] = calibration.shown(calibration.same_kind(values, draws=CONTROLS)[p] <= 0.05)
    more = calibration.same_kind(values, draws=MORE)
    own[f"`p sets` ≤ .05, {MORE} controls"] = calibration.shown(more["p sets"] <= 0.05)
    for name, rows, page in (("many sets", among, "evidence.md"), ("own kind", pd.DataFrame([own]), "statistics.md")):
        path = TABLES / f"{name.replace(' ', '_')}_table.csv"
        if path.exists():
            before = pd.read_csv(path, dtype=str)
            rows = pd.concat([before[before["random sets"] != kind], rows])
        tn.storage.write_text(path, rows.to_csv(index=False))
        calibration.write({name: rows}, HERE / page)


def rows_of_sets(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the page."""
    rows = []
    for row in table.to_dict("records"):
        rows.append(
            {
                "random sets": row["kind"],
                "draws": row["draws"],
                "layer": row["layer"],
                "untouched": f"{row['untouched']:.2f}",
                "the set": f"{row['set']:.2f}",
                "random, mean": f"{row['control']:.2f}",
                "95 % of them": f"{row['control low']:.2f} – {row['control high']:.2f}",
                "as low as the set": row["below"],
                "p sets": f"{row['p sets']:.4f}",
                "p adjusted": f"{row['p adjusted']:.4f}",
            }
        )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main()
