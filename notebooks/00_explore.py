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
# Four explorers let you see it: move a control, and the picture answers. Run the notebook from top to bottom; each cell
# works without the others once the model is loaded. Captures are kept on disk, so that a second run opens at once.
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
figures = "../figures"  # where "Save picture" writes to
results = "../detections"  # where "Save results" writes to

# %%
import tnkit as tn

model = tn.load_model(model_id)
corpus = tn.load_corpus(corpus_id, languages)
options = {"languages": languages, "hub": languages[0], "sentences": sentences, "folder": figures}
save = tn.plots.figure_saver(
    f"{figures}/00", model=model_id, corpus=corpus_id, languages=languages, sentences=sentences
)
model

# %% [markdown]
# ## 1. Where do the languages lie?
#
# Each point is a test sentence: its hidden state at the last token, in the plane of the two directions in which the
# sentences of all languages differ most at that layer. Let the **layer** play from first to last and watch the
# languages' clouds come together and part again. Hover a point to read it; click it to see where its translations are.
# Then switch the **Type-1** neurons off and play it again, and compare with a **control**: as many random neurons of
# the same layers and sizes.
#
# Below: how alike the languages' centroids are at this layer (colours run from the layer's lowest cosine to 1), and the
# mean of that over all pairs of languages, by layer.

# %%
spaces = tn.explore_spaces(model, corpus, **options)
save("spaces", spaces.figure())
spaces

# %% [markdown]
# ## 2. Which neurons are they?
#
# The table holds the neurons of highest score: those whose contribution brings the hidden states of a language's
# training sentences nearest to the target. Sort it by a column's head. η² is the share of a neuron's variance that lies
# between languages: near 1, the neuron tells languages apart; near 0, it answers to something else. Below the picture
# stand the sentences in which the chosen neuron is strongest, and the vocabulary that its value vector raises and
# lowers.

# %%
neurons = tn.explore_neurons(model, corpus, **options)
save("neurons", neurons.figure())
neurons

# %% [markdown]
# ## 3. What happens when they are switched off?
#
# A set of neurons is set to zero while the test sentences of one language are read. Three measures say how near each
# sentence is to its translation then: the cosine of both; whether the translation is the nearest of all sentences
# (retrieval); and how many of their ten nearest neighbours they share. Grey is the untouched model, orange the set,
# blue the **control**. A claim about transfer neurons stands where orange falls and blue does not. Write the beginning
# of a sentence into the prompt to see how the model goes on, before and after.

# %%
ablation = tn.explore_ablation(model, corpus, **options)
save("ablation", ablation.figure())
ablation

# %% [markdown]
# ## 4. Find your own
#
# The same detection as a form: another model, other languages, the Euclidean distance, other layers, a larger set.
# Results appear as each language is finished. `detection.result` hands them on, as in the last cell.

# %%
detection = tn.explore_detection(model, corpus, hub=languages[0], results=results, folder=figures)
save("detection", detection.figure())
detection

# %%
found = detection.result
{key: one.neurons for key, one in found.items()}

# %% [markdown]
# ## What you can take from this, and what not
#
# Look for what the paper claims, on a model small enough for a laptop: languages that are apart in early layers,
# together in middle ones and apart at the end; and Type-1 neurons whose absence keeps a language out of the shared
# space where as many other neurons change little. The numbers stand below the pictures. They do **not** show that it is
# so in larger models, in other languages or for longer texts; two components are a small part of the variance; and
# looking at many settings finds some that please. For a number that you would publish, choose the setting first, then
# measure it with all controls and more seeds, as in `03_ablation`.
#
# Next: `01_detection` takes detection apart, `02_latent_spaces` measures the spaces, `03_ablation` the ablations,
# `04_specificity` asks what the neurons answer to, `05_your_model` brings your own model and sentences, and
# `06_evidence` asks what survives.
