"""Figures draw what the results say."""

import ast
import json
import re
import warnings
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.text import Text
from PIL import Image

import tnkit as tn
from tnkit import plots
from tnkit.plots import style


def test_languages_keep_distinct_colours():
    assert len({plots.language_colour(code) for code in ("en", "ja", "ko", "nl", "it")}) == 5
    assert plots.language_colour("sw") == plots.language_colour("sw")


def test_the_distribution_counts_every_neuron_and_the_chosen_tail():
    scores = tn.NeuronScores(torch.linspace(-1, 2, 600).reshape(2, 300).double(), "cosine")
    chosen = scores.top(25)
    heights = [bar.get_height() for bar in scores.plot(chosen=chosen).patches]
    assert sum(heights[:80]) == 600
    assert sum(heights[80:]) == 25


def test_equal_scores_can_be_drawn():
    assert tn.NeuronScores(torch.zeros(1, 4).double(), "cosine").plot().patches


def test_sets_that_share_a_layer_stand_side_by_side():
    a, b = tn.NeuronSet(((0, 1),), (2, 4)), tn.NeuronSet(((0, 2),), (2, 4))
    assert plots.neurons_by_layer({"type1": a, "type2": b}, n_layers=2).patches[0].get_width() == pytest.approx(0.4)
    apart = plots.neurons_by_layer({"type1": a, "type2": [(1, 2)]}, n_layers=2)
    assert apart.patches[0].get_width() == pytest.approx(0.8)
    assert [text.get_text() for text in apart.get_legend().get_texts()] == ["Type-1 (1)", "Type-2 (1)"]


def test_a_figure_is_saved_in_the_format_of_its_ending(tmp_path):
    for ending, start in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
        figure = tn.NeuronSet(((0, 1),), (2, 4)).plot().figure
        assert plots.save_figure(figure, tmp_path / f"f.{ending}").read_bytes().startswith(start)


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_the_same_figure_gives_the_same_bytes_and_stays_open_where_asked(tmp_path, ending):
    import matplotlib.pyplot as plt

    figures = [tn.NeuronSet(((0, 1),), (2, 4)).plot().figure for _ in range(2)]
    first = plots.save_figure(figures[0], tmp_path / f"a.{ending}", close=False).read_bytes()
    assert plt.fignum_exists(figures[0].number)
    assert plots.save_figure(figures[1], tmp_path / f"b.{ending}").read_bytes() == first
    assert not plt.fignum_exists(figures[1].number)


def test_lines_of_languages_have_their_names_and_colours():
    spoken = plots.lines_by_layer(pd.DataFrame({"ja": [1, 2], "it": [2, 1]}), ylabel="share", chance=0.25)
    assert [line.get_color() for line in spoken.lines[:2]] == [plots.language_colour("ja"), plots.language_colour("it")]
    assert [text.get_text() for text in spoken.get_legend().get_texts()] == ["Japanese", "Italian", "chance (0.25)"]
    other = plots.lines_by_layer(pd.DataFrame({"ja": [1, 2], "random": [2, 1]}), ylabel="share")
    assert [text.get_text() for text in other.get_legend().get_texts()] == ["ja", "random"]


def test_paired_values_are_counted_on_both_sides_of_no_change():
    ax = plots.paired([0.1, 0.2, 0.3], [0.2, 0.3, 0.3], xlabel="before", ylabel="after")
    assert [text.get_text() for text in ax.get_legend().get_texts()][1:] == ["greater after: 2", "smaller or equal: 1"]
    assert ax.lines[0].get_xydata().tolist() == [[0.1, 0.1], [0.3, 0.3]]


def test_interactive_mode_that_a_backend_turns_on_stays_on():
    """As the first figure of a notebook does; without it the second would not be shown."""
    import matplotlib.pyplot as plt

    was_on = plt.isinteractive()
    with style.style():
        plt.ion()
    assert plt.isinteractive()
    plt.interactive(was_on)


def test_the_style_can_be_kept():
    import matplotlib as mpl

    with mpl.rc_context():
        plots.use_style()
        ax = tn.NeuronSet(((0, 1),), (2, 4)).plot()
        ax.set_title("mine")
        assert ax.get_title(loc="left") == "mine"
    assert mpl.rcParams["axes.titlelocation"] == "center"


def test_the_style_does_not_leak():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    tn.NeuronSet(((0, 1),), (2, 4)).plot()
    assert dict(mpl.rcParams) == before


def test_a_missing_font_is_named_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(style, "_fonts", lambda: ["DejaVu Sans"])
    style._warn_of_script.cache_clear()
    for title in ("English", "Ελληνικά → “русский”", "日本語", "한국어", "हिन्दी", "हिन्दी, ไทย", "العربية"):
        ax = tn.NeuronSet(((0, 1),), (2, 4)).plot()
        ax.set_title(title)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # matplotlib's own, of each glyph
            plots.save_figure(ax.figure, tmp_path / "f.png")
    for font in ("fonts-noto-cjk", "Noto Sans Devanagari", "Noto Sans Thai"):
        assert caplog.text.count(f"install {font}" if "Sans" in font else font) == 1
    assert caplog.text.count("no font with") == 3  # DejaVu Sans draws Greek, Cyrillic and Arabic


def test_a_font_that_was_installed_after_matplotlib_listed_fonts_is_used(monkeypatch):
    from matplotlib import font_manager

    names = {"NotoSansThai": "Noto Sans Thai", "NotoSansDevanagari": "Noto Sans Devanagari"}
    stems = {Path(path).stem.partition("-")[0] for path in font_manager.findSystemFonts()}
    expected = {name for stem, name in names.items() if stem in stems}
    if not expected:
        pytest.skip("none of these fonts is installed")
    older = [font for font in font_manager.fontManager.ttflist if font.name.startswith("DejaVu")]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", older)
    style._installed.cache_clear()
    try:
        assert expected <= {*style._fonts()}
        letters = {"Noto Sans Thai": "ท", "Noto Sans Devanagari": "ह"}
        assert {ord(letters[name]) for name in expected} <= style._drawn(tuple(style._fonts()))
    finally:
        style._installed.cache_clear()


def test_a_figure_says_what_it_is_about(tmp_path):
    figure = tn.NeuronSet(((0, 1),), (2, 4)).plot().figure
    plots.save_figure(figure, tmp_path / "f.png", about="layer 3")
    with Image.open(tmp_path / "f.png") as image:
        assert image.text["Description"] == "layer 3"


def test_saved_figures_keep_their_parameters_and_stay_open(tmp_path):
    import matplotlib.pyplot as plt

    save = plots.figure_saver(tmp_path / "01", model="/home/ann/llama", top=300)
    ax = tn.NeuronSet(((0, 1),), (2, 4)).plot()
    assert save("neurons", ax, title="all") is None
    assert ax.get_title(loc="left") == "all"
    assert plt.fignum_exists(ax.figure.number)
    with Image.open(tmp_path / "01-neurons.png") as image:
        about = json.loads(image.text["Description"])
    assert about["parameters"] == {"model": "llama", "top": 300}
    assert about["versions"]["tnkit"] == tn.__version__


def test_a_neuron_of_no_layer_is_refused():
    with pytest.raises(tn.TnkitError, match=r"layer 5, which a model of 4 layers does not have.*n_layers"):
        plots.neurons_by_layer({"ja": [(5, 0)]}, n_layers=4)


HOSTILE = [
    "$\\frac{$", "$$", "$x$", r"a\$b", r"\frac{", "{}%s%(a)d", "nul\0", "esc\x1b[31m", "two\nlines", "x" * 5000,
    "_hidden", "\u202eright to left\u202c", "العربية", "😀", "<b>&amp;--></b>",
]  # fmt: skip
FIGURES = ("panels", "spaces", "distance_maps", "distance_maps, apart", "signed_maps")  # the others draw on axes
NAMELESS = ("losses", "question_scores")  # no name is drawn
STYLE = {
    "figure_saver",
    "language_colour",
    "language_label",
    "language_name",
    "literal",
    "save_figure",
    "titled",
    "use_style",
}


def figures(name):
    """Every public plot, with a name of someone else's wherever one is taken."""
    sets = {name: tn.NeuronSet(((0, 1),), (2, 4)), "b": tn.NeuronSet(((1, 2),), (2, 4))}
    scores = tn.NeuronScores(torch.linspace(-1, 2, 600).reshape(2, 300).double(), "cosine")
    values, square, random = np.array([0.1, 0.4, 0.2]), np.array([[0.2, 0.5], [0.5, 0.3]]), np.random.default_rng(0)
    points = {name: random.normal(size=(1, 5, 2)), "b": random.normal(size=(1, 5, 2))}
    plane = {language: states[0] for language, states in points.items()}
    index = pd.MultiIndex.from_product([[0, 1], ["none", name]], names=["layer", "condition"])
    by_layer = pd.DataFrame(0.5, index=index, columns=["mean", "low", "high", "seeds"])
    both = pd.MultiIndex.from_product([["none", name], ["en", name]], names=["off", "read"])
    off = pd.DataFrame({"perplexity": 3.0, "change": [0.0, 0.0, 0.1, 0.2], "own": False}, index=both)
    jaccard, shared = np.array([[np.nan, 0.1], [0.1, np.nan]]), np.ones((2, 2), dtype=int)
    chosen, scored = scores.top(3).scores, scores.values.numpy()
    labels = {"xlabel": name, "ylabel": name}
    shares = pd.DataFrame({"before": [0.5], "after": [1.0]}, index=[name])
    cells = pd.DataFrame(square, index=[name, "b"], columns=["c", name])
    pair, spoken = [name, "b"], by_layer.rename_axis(["layer", "language"])
    return {
        "lines_by_layer": lambda ax: plots.lines_by_layer(pd.DataFrame({name: [1, 2]}), ylabel=name, log=True, ax=ax),
        "languages_by_layer": lambda ax: plots.languages_by_layer(
            spoken,
            beside=spoken,
            dashed=name,
            ylabel=name,
            title=name,
            ax=ax,
        ),
        "neurons_by_layer": lambda ax: plots.neurons_by_layer(sets, n_layers=2, title=name, ax=ax),
        "score_distribution": lambda ax: plots.score_distribution(
            scored, distance="cosine", chosen=chosen, title=name, ax=ax
        ),
        "question_scores": lambda ax: plots.question_scores(values, values > 0.3, language=name, ax=ax),
        "panels": lambda _: plots.panels(2, width=4.0, height=3.0, title=name)[0],
        "space": lambda ax: plots.space(plane, explained=(0.5, 0.5), title=name, ax=ax),
        "spaces": lambda _: plots.spaces(points, explained=np.full((1, 2), 0.5), titles=[name]),
        "paired": lambda ax: plots.paired([0.1, 0.4], [0.4, 0.1], **labels, ax=ax),
        "activations_by_language": lambda ax: plots.activations_by_language({name: values}, title=name, ax=ax),
        "exceedance": lambda ax: plots.exceedance({name: values}, xlabel=name, ax=ax),
        "language_neurons": lambda ax: plots.language_neurons(sets, n_layers=2, ax=ax),
        "conditions_by_layer": lambda ax: plots.conditions_by_layer(by_layer, ylabel=name, ax=ax),
        "conditions_by_layer, one": lambda ax: plots.conditions_by_layer(by_layer.loc[[0]], ylabel=name, ax=ax),
        "conditions": lambda ax: plots.conditions(by_layer.loc[0], xlabel=name, title=name, ax=ax),
        "conditions_by_value": lambda ax: plots.conditions_by_value({name: by_layer.loc[0]}, xlabel=name, ax=ax),
        "random_sets": lambda ax: plots.random_sets(values, value=0.1, untouched=0.2, p=0.5, xlabel=name, ax=ax),
        "losses": lambda ax: plots.losses(values, whole=0.3, ax=ax),
        "language_shares": lambda ax: plots.language_shares(shares, ax=ax),
        "before_and_after": lambda ax: plots.before_and_after({name: (0.1, 0.2)}, ylabel=name, ax=ax),
        "distance_map": lambda ax: plots.distance_map(square, pair, label=name, title=name, ax=ax),
        "distance_maps": lambda _: plots.distance_maps({name: square}, pair, label=name, shared=True),
        "distance_maps, apart": lambda _: plots.distance_maps({name: square}, pair, label=name, shared=False),
        "overlap_matrix": lambda ax: plots.overlap_matrix(jaccard, shared, pair, ax=ax),
        "matrix": lambda ax: plots.matrix(cells, **labels, value=name, ax=ax),
        "signed_maps": lambda _: plots.signed_maps({name: cells - 0.3, "b": cells}, **labels, value=name),
        "perplexities": lambda ax: plots.perplexities(off, ax=ax),
        "conditions_by_dose": lambda ax: plots.conditions_by_dose(
            by_layer, xlabel=name, ylabel=name, title=name, ax=ax
        ),
        "strata": lambda ax: plots.strata({name: np.ones((2, 2))}, xlabel=name, ylabel=name, title=name, ax=ax),
    }


def texts(figure):
    """The texts of a figure as they are drawn; what stands between dollar signs would be drawn as mathematics."""
    written = [text.get_text() for text in figure.findobj(Text)]
    plain = [text for text in written if "mathdefault" not in text]  # matplotlib's own numbers on log axes
    assert not any(mpl.cbook.is_math_text(text) for text in plain)
    return [text.replace(r"\$", "$").strip() for text in plain]


def test_every_public_plot_is_tried_with_hostile_names():
    assert {name.partition(",")[0] for name in figures("x")} == set(plots.__all__) - STYLE


def test_plots_import_no_result():
    folder = Path(plots.__file__).parent
    trees = [ast.parse(path.read_text()) for path in folder.glob("*.py")]
    modules = {node.module for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    own = {module for module in modules if module and module.startswith("tnkit")}
    assert own <= {"tnkit", "tnkit.errors"} | {f"tnkit.plots.{path.stem}" for path in folder.glob("*.py")}


@pytest.mark.parametrize("plot", figures("x"))
def test_names_are_drawn_as_they_are_and_never_as_mathematics(plot):
    import matplotlib.pyplot as plt

    for number, name in enumerate(HOSTILE):
        axes = plt.subplots()[1] if number % 2 else None  # the caller's own are as safe as tnkit's
        drawn = figures(name)[plot](axes)
        figure = drawn if plot in FIGURES else drawn.figure
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # glyphs that no font has
            figure.draw_without_rendering()
        begin = re.sub("[\0\x1b\u202e]", lambda one: ascii(one[0])[1:-1], name[:9])
        assert plot in NAMELESS or any(begin in text for text in texts(figure)), (name, texts(figure))
        assert max(map(len, texts(figure))) < 120
        plt.close("all")


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
@pytest.mark.parametrize("name", [*HOSTILE, "\ud800"])
def test_a_figure_with_any_name_and_description_is_saved_whole(tmp_path, ending, name):
    figure = plots.neurons_by_layer({name: [(0, 1)]}, n_layers=2, title=name).figure
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        path = plots.save_figure(figure, tmp_path / f"f.{ending}", about=f"about {name}")
    if ending == "svg":
        assert any(text.startswith("about ") for text in ElementTree.parse(path).getroot().itertext())
    elif ending == "png":
        with Image.open(path) as image:
            assert image.text["Description"].startswith(f"about {name[0]}") or not name[0].isprintable()


MANY = "en de nl sv da it es fr pt ro ru uk bg pl cs ar fa he hi bn ta te th vi id ja zh ko fi hu tr el".split()


def families(languages, seed=0):
    """Distances in which a language is near to the three others of its group of four, in a random order."""
    order = np.random.default_rng(seed).permutation(len(languages))
    group = order // 4
    noise = np.random.default_rng(1).random((len(order), len(order)))
    return 1.0 - 0.9 * (group[:, None] == group) + 0.01 * (noise + noise.T), group


def many_maps():
    distances, _ = families(MANY)
    frame = pd.DataFrame(1 - distances, index=MANY, columns=MANY)
    untouched = pd.concat([frame.iloc[:1].rename({"en": "none"}), frame])
    both = pd.MultiIndex.from_product([["none", *MANY], MANY], names=["off", "read"])
    rows = pd.DataFrame({"perplexity": 3.0, "change": 0.1, "own": False}, index=both)
    jaccard = np.where(np.eye(len(MANY)), np.nan, 1 - distances)
    return {
        "distance_map": lambda: plots.distance_map(distances, MANY, label="distance", cluster=True),
        "overlap_matrix": lambda: plots.overlap_matrix(jaccard, np.ones((32, 32), int), MANY, cluster=True),
        "matrix": lambda: plots.matrix(untouched, xlabel="read", ylabel="off", value="share", cluster=True),
        "perplexities": lambda: plots.perplexities(rows),
    }


def test_the_colour_bar_of_a_signed_map_ends_with_its_values():
    """On a scale around 0, but no half of the bar is without a cell."""
    cells = pd.DataFrame([[0.5, -0.1], [0.0, 0.25]], list("ab"), list("cd"))
    labels = {"xlabel": "", "ylabel": "", "value": ""}
    for shown, ends in ((cells, (-0.1, 0.5)), (cells.clip(0), (0.0, 0.5)), (-cells.clip(0), (-0.5, 0.0))):
        figure = plots.signed_maps({"one": shown}, **labels)
        assert figure.axes[-1].get_ylim() == ends and figure.axes[0].collections[0].get_clim() == (-0.5, 0.5)
    unbounded = plots.signed_maps({"one": cells.replace(0.5, np.inf)}, **labels)
    assert unbounded.axes[-1].get_ylim() == (-0.1, 0.25)
    index = pd.MultiIndex.from_product([["none", "ja"], ["en", "ja"]], names=["off", "read"])
    rows = pd.DataFrame({"perplexity": 9.0, "change": [0.0, 0.0, -0.25, 0.5], "own": False}, index)
    ax = plots.perplexities(rows)
    assert ax.collections[0].colorbar.ax.get_ylim() == (-0.25, 0.5) and ax.collections[0].get_clim() == (-0.5, 0.5)


@pytest.mark.parametrize("name", many_maps())
def test_matrices_of_32_languages_can_be_read(name):
    """No name touches the next, no cell holds a number, and the figure still fits a page."""
    ax = many_maps()[name]()
    figure = ax.figure
    figure.draw_without_rendering()
    width, height = figure.get_size_inches()
    assert max(width, height) < 16 and not ax.texts
    for labels, side in ((ax.get_xticklabels(), "x"), (ax.get_yticklabels(), "y")):
        assert len(labels) in (32, 33)
        boxes = [label.get_window_extent() for label in labels]
        spans = sorted((getattr(box, f"{side}0"), getattr(box, f"{side}1")) for box in boxes)
        assert all(before[1] <= after[0] + 1 for before, after in pairwise(spans))


@pytest.mark.parametrize("panels", [1, 3])
def test_a_plane_of_32_languages_has_a_look_for_each_and_a_legend_in_the_figure(panels):
    codes = [*MANY[:-3], "sw", "mr", "am"]  # some that no colour is reserved for
    assert len({*plots.looks.language_looks(codes).values()}) == 32
    generator = np.random.default_rng(0)
    points = {code: generator.normal(size=(panels, 5, 2)) for code in codes}
    figure = plots.spaces(points, explained=np.full((panels, 2), 0.3), titles=[f"layer {n}" for n in range(panels)])
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box, whole = legend.get_window_extent(), figure.bbox
    assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0
    assert figure.axes[0].get_window_extent().height > 0.35 * whole.height
    drawn = [
        (tuple(dots.get_facecolor()[0]), dots.get_paths()[0].vertices.tobytes()) for dots in figure.axes[0].collections
    ]
    assert len({*drawn}) == 32


def test_clusters_put_languages_of_a_group_side_by_side():
    distances, group = families(MANY)
    drawn = plots.distance_map(distances, MANY, label="distance", cluster=True)
    named = {plots.language_label(code): group[place] for place, code in enumerate(MANY)}
    order = [named[label.get_text()] for label in drawn.get_yticklabels()]
    assert sum(before != after for before, after in pairwise(order)) == 7  # eight groups of four
    shown = drawn.collections[0].get_array().reshape(32, 32)
    places = [list(named).index(label.get_text()) for label in drawn.get_yticklabels()]
    assert np.array_equal(shown, distances[np.ix_(places, places)])
