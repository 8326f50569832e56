"""How often each p-value is below .05, and each interval misses, where nothing is there; fills docs/statistics.md.

python -m docs.calibration        # minutes on one core
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

import tnkit as tn
from tnkit.statistics import flips, holm, largest_rank_test, rank_test, sign_flip_test

PAGE = Path(__file__).parent / "statistics.md"
SIMULATIONS, CHUNK = 2000, 250
SENTENCES, DRAWS = (8, 64, 256), (10, 100, 1000)
BETWEEN, NOISE, HARD = (
    0.3,
    0.5,
    0.5,
)  # spread of sets, of one set's sentence, and how hard a hit is; sentences spread by 1


def _normal(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return random.standard_normal(shape)


def _heavy(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return random.standard_t(3, shape)


# name → how sets and sentences vary, how far sets differ, and whether values are 0 or 1.
NULLS: dict[str, tuple[Callable[[np.random.Generator, tuple[int, ...]], np.ndarray], float, bool]] = {
    "sets do not differ": (_normal, 0.0, False),
    "sets differ": (_normal, BETWEEN, False),
    "sets differ, heavy tails": (_heavy, BETWEEN, False),
    "sets differ, 0 or 1": (_normal, BETWEEN, True),
}


def simulated(
    name: str, random: np.random.Generator, *, sentences: int, count: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Values of one set after another of the same kind, each (simulation, sentence), and each set's expected mean."""
    spread, between, is_hit = NULLS[name]
    common = spread(random, (count, sentences))
    while True:
        of_set = between * spread(random, (count, 1))
        values = common + of_set + NOISE * spread(random, (count, sentences))
        if is_hit:
            yield (values > HARD).astype(float), _hit_rate(of_set[:, 0], 1 + NOISE**2)
        else:
            yield values, of_set[:, 0]


def _hit_rate(mean: np.ndarray | float, variance: float) -> np.ndarray:
    return stats.norm.cdf((mean - HARD) / np.sqrt(variance))


def one_set_among_draws(
    name: str, random: np.random.Generator, *, sentences: int, draws: int, count: int
) -> pd.DataFrame:
    """A random set against draws of its own kind: the statistics of each simulation, and whether intervals miss."""
    sets = simulated(name, random, sentences=sentences, count=count)
    ablated, expected = next(sets)
    total, means = np.zeros_like(ablated), []
    for _ in range(draws):
        values, _ = next(sets)
        total, means = total + values, [*means, values.mean(axis=1)]
    layers = tuple(range(count))  # each simulation stands in the place of a layer
    table = tn.SetTest(name, layers, ablated, ablated, total / draws, np.array(means)).to_frame()
    p = sign_flip_test(ablated - total / draws, flips(sentences, random))
    if NULLS[name][2]:
        expected = expected - _hit_rate(0.0, 1 + NOISE**2 + BETWEEN**2)
    misses = (expected < table["effect low"]) | (expected > table["effect high"])
    return table.assign(**{"p sentences": p, "misses": misses})


def table_of_sets(simulations: int = SIMULATIONS, chunk: int = CHUNK) -> pd.DataFrame:
    """One row per null, number of sentences and number of draws: how often each statistic finds something."""
    rows = []
    for name in NULLS:
        for sentences in SENTENCES:
            for draws in DRAWS:
                random = np.random.default_rng([*NULLS].index(name) * 10_000 + sentences * 10 + len(str(draws)))
                parts = [
                    one_set_among_draws(name, random, sentences=sentences, draws=draws, count=chunk)
                    for _ in range(simulations // chunk)
                ]
                found = pd.concat(parts)
                row = {"null": name, "sentences": sentences, "draws": draws}
                row |= {f"`{p}` ≤ .05": shown(found[p] <= 0.05) for p in ("p sets", "p sentences")}
                rows.append(row | {"interval misses": shown(found["misses"])})
                print(*rows[-1].values(), flush=True)
    return pd.DataFrame(rows)


def table_of_families(simulations: int = SIMULATIONS) -> pd.DataFrame:
    """How often anything is found over 6 correlated layers and 2 controls: raw, at the best layer, and corrected."""
    random, layers, sentences, draws = np.random.default_rng(1), 6, 64, 99
    signs = flips(sentences, random)
    names = (
        "`p sentences`, the smallest of 6 layers × 2 controls, not corrected",
        "`p adjusted` of a comparison: Holm over 6 layers × 2 controls",
        "`p sets`, the smallest of 6 layers, not corrected",
        "`p adjusted` of a set test: largest distance over 6 layers",
    )
    found: dict[str, list[bool]] = {name: [] for name in names}
    for _ in range(simulations):
        shared, own = random.normal(0, 1, (3, 1, sentences)), random.normal(0, 1, (3, layers, sentences))
        the_set, *controls = shared + own  # layers correlate by .5
        p = np.concatenate([sign_flip_test(the_set - control, signs) for control in controls])
        sets = random.normal(0, 1, (1 + draws, 1)) + random.normal(0, 1, (1 + draws, layers))
        raw = rank_test(sets[0], sets[1:])
        smallest = (p.min(), holm(p).min(), raw.min(), largest_rank_test(sets[0], sets[1:]).min())
        for name, value in zip(names, smallest, strict=True):
            found[name].append(bool(value <= 0.05))
    return pd.DataFrame(
        [{"what is looked at": name, "anything ≤ .05": shown(values)} for name, values in found.items()]
    )


def shown(found: "pd.Series[bool] | list[bool]") -> str:
    """The share of simulations in which something was found, with its 95 % binomial interval (Wilson)."""
    count, simulations = int(np.sum(found)), len(found)
    low, high = stats.binomtest(count, simulations).proportion_ci(method="wilson")
    return f"{count / simulations:.3f} ({low:.3f}–{high:.3f})"


def same_kind(values: np.ndarray, draws: int) -> pd.DataFrame:
    """An A/A test of real measurements: random sets, each against others that were drawn as it was.

    Args:
        values: (set, sentence), what was measured with each of many random sets of one kind switched off.
        draws: against how many others each set is tested; no set is used twice.

    Returns:
        `effect`, `p sentences` and `p sets` of each test; `shown(table["p sets"] <= 0.05)` is the share below .05.
    """
    signs = flips(values.shape[1], np.random.default_rng(0))
    rows = []
    for first in range(0, len(values) - draws, draws + 1):
        ablated, others = values[first], values[first + 1 : first + 1 + draws]
        difference = (ablated - others.mean(axis=0))[None]
        p_sets = rank_test(ablated.mean(keepdims=True), others.mean(axis=1, keepdims=True))
        rows.append((difference.mean(), *sign_flip_test(difference, signs), *p_sets))
    return pd.DataFrame(rows, columns=["effect", "p sentences", "p sets"])


def markdown(table: pd.DataFrame) -> str:
    """A table for the page."""
    lines = [table.columns, ["---"] * len(table.columns), *table.to_numpy()]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def write(tables: dict[str, pd.DataFrame], page: Path = PAGE) -> None:
    """Put each table between its two marks in the page."""
    text = page.read_text()
    for name, table in tables.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{markdown(table)}\n{end}{rest.split(end)[1]}"
    page.write_text(text)


if __name__ == "__main__":
    write({"families": table_of_families(), "sets": table_of_sets()})
