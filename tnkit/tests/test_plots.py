"""Figures draw what the results say."""

import pytest
import torch
from PIL import Image

import tnkit as tn
from tnkit import plots, style


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
    assert plots.neurons_by_layer({"type1": a, "type2": b}).patches[0].get_width() == pytest.approx(0.4)
    apart = plots.neurons_by_layer({"type1": a, "type2": tn.NeuronSet(((1, 2),), (2, 4))})
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
    import pandas as pd

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
    with plots.style():
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
    style._warn_of_cjk.cache_clear()
    for title in ("English", "日本語", "한국어"):
        ax = tn.NeuronSet(((0, 1),), (2, 4)).plot()
        ax.set_title(title)
        plots.save_figure(ax.figure, tmp_path / "f.png")
    assert caplog.text.count("fonts-noto-cjk") == 1


def test_a_figure_says_what_it_is_about(tmp_path):
    figure = tn.NeuronSet(((0, 1),), (2, 4)).plot().figure
    plots.save_figure(figure, tmp_path / "f.png", about="layer 3")
    with Image.open(tmp_path / "f.png") as image:
        assert image.text["Description"] == "layer 3"
