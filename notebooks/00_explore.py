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
# # Where do a model's languages meet, and what happens when the neurons that carry them there are switched off?
#
# A multilingual language model reads each language in a space of its own, brings what was said into a space that its
# languages share, and goes back to a language's own space to write. Tezuka & Inoue (*The Transfer Neurons Hypothesis*,
# EMNLP 2025, [aclanthology.org/2025.emnlp-main.1618](https://aclanthology.org/2025.emnlp-main.1618)) trace the way to
# a small number of neurons in the model's MLPs: **Type-1** transfer neurons, in the early layers, move the hidden
# states of a language towards the shared space; **Type-2** neurons, in the late layers, move them back.
#
# One explorer lets you see it: choose a layer, a language or a set of neurons, and every view answers. Run the notebook
# from top to bottom. Captures are kept on disk, so that a second run opens at once.
#
# Where you see pictures without controls, as on GitHub, run the notebook: `make lab` opens it.

# %%
import sys

if "google.colab" in sys.modules:
    # %pip install -q "tnkit[demo,measures] @ git+https://github.com/tnkit/tnkit"
    sys.modules["google.colab"].output.enable_custom_widget_manager()

# %% tags=["parameters"]
model_id = "gemma-3-270m"  # packaged with the kit; or a Hub id, or a folder
corpus_id = "everyday"  # packaged with the kit; or a file with one column a language
languages = ["en", "ja", "ko", "nl", "it"]  # the first is the hub, which stands for the shared space
sentences = 256  # how many of each split, at most
figures = "../figures"  # where the figures of this notebook are written
results = "../detections"  # where "Save results" writes to

# %%
import tnkit as tn

model = tn.load_model(model_id)
corpus = tn.load_corpus(corpus_id, languages)
options = {"languages": languages, "hub": languages[0], "sentences": sentences, "results": results}
save = tn.plots.figure_saver(
    f"{figures}/00", model=model_id, corpus=corpus_id, languages=languages, sentences=sentences
)
model

# %% [markdown]
# ## 1. Where do the languages lie?
#
# In the **map**, each point is a test sentence: its hidden state at the last token. The plane of a layer is fitted to
# the untouched states and kept. Press **play**, or drag along the ribbon of layers, and watch the languages' clouds
# come together and part again. Hover a point to read the sentence beside its translations. Then show the states with
# the set **off**, and with a **control** off: as many random neurons of the same layers and sizes. The ribbon says for
# how many sentences the nearest one is the translation, mean-centred and raw.

# %%
explorer = tn.explore(model, corpus, **options)
save("map", explorer.figure())
explorer

# %% [markdown]
# ## 2. Which neurons are they?
#
# The **neurons** view lists the neurons of highest score: those whose contribution brings the hidden states of a
# language's training sentences nearest to the target. Sort it by a column's head. η² is the share of a neuron's
# variance that lies between languages: near 1, the neuron tells languages apart; near 0, it answers to something else.
# Choose a row to see the neuron at every token of its strongest sentences, and what its value vector raises and lowers;
# or write a text of your own. Ticked neurons can be switched off by themselves.
#
# As a figure, which each view has:

# %%
figure = tn.explore_neurons(model, corpus, **options).figure()
save("neurons", figure)
figure

# %% [markdown]
# ## 3. What happens when they are switched off?
#
# The **evidence** view sets a set of neurons to zero, or to another value, while the test sentences of one language are
# read. It says how near each sentence is to its translation then, and for Type-2 how well the model predicts the
# language: untouched, with the set off, and with each **control** off. A claim about transfer neurons holds where the
# set falls and the controls do not. Below, write the beginning of a sentence to see how the model continues it; or take
# one language away and add another.

# %%
figure = tn.explore_ablation(model, corpus, **options).figure()
save("evidence", figure)
figure

# %% [markdown]
# ## 4. Find your own
#
# The **detection** view is a form: other languages, another hub, centred scores, the Euclidean distance, other layers,
# a larger set, another model. Every view then shows what was found. `explorer.result` hands it on, and "Save results"
# writes it.

# %%
found = explorer.result
{key: one.neurons for key, one in found.items()}

# %% [markdown]
# ## What you can take from this, and what not
#
# Look for what the paper claims, on a model small enough for a laptop: languages that are apart in early layers,
# together in middle ones and apart at the end; and Type-1 neurons whose absence keeps a language out of the shared
# space where as many other neurons change little. The pictures do **not** show that it is so in larger models, in other
# languages or for longer texts; two components are a small part of the variance; and looking at many settings finds
# some that please. For a number that you would publish, choose the setting first, then measure it with all controls and
# more seeds, as in `03_ablation`.
#
# Next: `01_detection` takes detection apart, `02_latent_spaces` measures the spaces, `03_ablation` the ablations,
# `04_specificity` asks what the neurons answer to, `05_your_model` brings your own model and sentences, and
# `06_evidence` asks what survives.
