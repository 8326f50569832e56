"""Write the packaged corpus `tatoeba` from pairs of Tatoeba: what is kept, and which split it is in.

python -m tnkit.tests.text.tatoeba FOLDER    # with en_ja.tsv and en_it.tsv, a header and a pair in each line

A row is an English sentence with its first translation into each language, or an empty cell. A sentence stands in one
row only, whatever its marks and capitals. Rows with near-duplicates in any language are in the same split.
"""

import csv
import sys
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse.csgraph import connected_components
from sklearn.feature_extraction.text import CountVectorizer

import tnkit
from tnkit.tests.text.test_everyday import plain
from tnkit.text import rows

LANGUAGES = ("en", "ja", "it")
NEAR = 0.6  # Dice coefficient of their character n-grams, from which on two sentences are near-duplicates
N_GRAM = {"en": 3, "ja": 2, "it": 3}
FILE = Path(tnkit.__file__).parent / "text" / "data" / "tatoeba.tsv"
Pairs = Mapping[str, Iterable[tuple[str, str]]]  # by language: English sentences and their translations


def build(pairs: Pairs) -> pd.DataFrame:
    """The rows of the corpus: a column `split` and one for each language.

    >>> build({"ja": [("Hi!", "やあ！"), ("Hi!", "どうも！")], "it": [("Hi!", "Ciao!"), ("Bye!", "Ciao.")]})
       split   en   ja     it
    0  train  Hi!  やあ！  Ciao!
    """
    translations: dict[str, dict[str, str]] = {}
    for language in LANGUAGES[1:]:
        seen: set[str] = set()
        for cells in pairs.get(language, ()):
            english, translation = (unicodedata.normalize("NFC", cell.strip()) for cell in cells)
            words, key = plain(translation), plain(english) + "\0"  # no translation holds NUL
            if words and key != "\0" and not {words, key} & seen:
                seen |= {words, key}
                translations.setdefault(english, {})[language] = translation
    filled = [dict.fromkeys(LANGUAGES, "") | {"en": english} | cells for english, cells in translations.items()]
    table = pd.DataFrame(filled, columns=[*LANGUAGES])
    table = table[~table["en"].map(plain).duplicated()].reset_index(drop=True)
    table.insert(0, "split", _splits(table))
    return table


def _splits(table: pd.DataFrame) -> list[str]:
    """Groups of near-duplicates, the largest first, each to the split in which their languages are rarer."""
    near = sum((similarity(table[language], n) >= NEAR).astype(int) for language, n in N_GRAM.items())
    groups = connected_components(near)[1]
    has_both = (table["ja"] != "") & (table["it"] != "")
    held = pd.DataFrame({"ja": table["ja"] != "", "it": table["it"] != "", "both": has_both}).groupby(groups).sum()
    hashes = pd.Series(rows.row_hashes(table)).groupby(groups).min()
    order = sorted(held.index, key=lambda group: (-held.loc[group].sum(), hashes[group]))
    surplus, splits = np.zeros(3, int), {}  # of the training split over the test split
    for group in order:
        counts = held.loc[group].to_numpy()
        is_train = np.abs(surplus + counts).sum() <= np.abs(surplus - counts).sum()
        surplus += counts if is_train else -counts
        splits[group] = "train" if is_train else "test"
    return [splits[group] for group in groups]


def similarity(texts: Iterable[str], n: int) -> np.ndarray:
    """Dice coefficients of the sets of character n-grams of sentences (sentence, sentence), 0 for empty ones."""
    counter = CountVectorizer(analyzer="char", ngram_range=(n, n), binary=True, dtype=np.int32)
    held = counter.fit_transform([f" {plain(text)} " if text else "" for text in texts] + ["any"])[:-1]
    sizes = np.asarray(held.sum(axis=1)).ravel()
    return 2 * (held @ held.T).toarray() / np.maximum(sizes[:, None] + sizes, 1)


def read(path: Path) -> list[tuple[str, str]]:
    """The pairs of a file, without its header; quotes in cells are doubled."""
    with path.open(encoding="utf-8", newline="") as file:
        return [(english, translation) for english, translation in csv.reader(file, delimiter="\t")][1:]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    corpus = build({language: read(folder / f"en_{language}.tsv") for language in LANGUAGES[1:]})
    FILE.write_text(corpus.to_csv(sep="\t", index=False, quoting=csv.QUOTE_NONE, quotechar=None), encoding="utf-8")
    print(corpus.groupby("split")[[*LANGUAGES]].agg(lambda cells: (cells != "").sum()))
