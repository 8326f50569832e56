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
# # Which neurons carry a language into the shared space, and which carry it back?
#
# A multilingual language model reads every language in a region of its own: in the first layers, the hidden states of
# Japanese sentences lie near each other and far from those of English ones. In the middle layers, sentences that mean
# the same lie near each other whatever their language. In the last layers the languages part again, because the model
# has to write one of them.
#
# Tezuka & Inoue (*The Transfer Neurons Hypothesis*, EMNLP 2025,
# [aclanthology.org/2025.emnlp-main.1618](https://aclanthology.org/2025.emnlp-main.1618)) ask which parts of the model
# do the carrying, and answer: a small number of neurons in its MLPs. **Type-1** transfer neurons, in the early layers,
# move a language's hidden states towards the space that languages share. **Type-2** transfer neurons, in the late
# layers, move them back into the language's own.
#
# This notebook finds both, one step at a time, and shows each step:
#
# sentences → **capture** (what the model does with them) → **centroids** (where the spaces are) → **scores** (how far
# each neuron moves a sentence towards one) → **neurons** (the highest scores).

# %%
import sys

if "google.colab" in sys.modules:
    # %pip install -q "tnkit[demo,measures] @ git+https://github.com/tnkit/tnkit"
    print("tnkit is installed")

# %% tags=["parameters"]
model_id = "gemma-3-270m"  # packaged with the kit; or a Hub id, or a folder
corpus_id = "everyday"  # packaged with the kit; or a file with one column a language
language = "ja"  # whose transfer neurons
hub = "en"  # the language that stands for the shared space together with it
top = 300  # how many neurons of each type
sentences = 256  # how many of the training split
figures = "../figures"

# %%
from IPython.display import Markdown

import tnkit as tn

tn.plots.use_style()
save = tn.plots.figure_saver(
    f"{figures}/01", model=model_id, corpus=corpus_id, language=language, top=top, sentences=sentences
)
model = tn.load_model(model_id)
name = tn.plots.language_name(language)
model

# %% [markdown]
# A *neuron* is one input coordinate of the MLP's last linear map, the "down projection". Its **activation** is the
# value of that coordinate at one token. Its **value vector** is the matching column of the map: what the neuron writes.
# At every token a neuron adds *activation × value vector* to the **residual stream**, the running sum that the layers
# of a transformer read from and add to. (Some models, Gemma among them, normalise the MLP's output before they add it.
# tnkit takes account of that, and checks when it loads a model that the neurons' contributions add up to what the layer
# does.)
#
# ## 1. Which sentences does the model read?
#
# The same sentences in two languages. They are needed in pairs for one purpose only: the shared space is estimated from
# both. They come in two splits; neurons are found in the training split, so that later notebooks can test them on
# sentences that played no part in the finding.

# %%
corpus = tn.load_corpus(corpus_id, [hub, language])
train = {code: texts[:sentences] for code, texts in corpus["train"].items()}
corpus.to_frame().drop(columns="split").head()

# %% [markdown]
# ## 2. What does the model do with them?
#
# One pass over the sentences keeps a few vectors of each layer: the residual stream in the *middle* of the layer, to
# which the MLP adds (**mid**), the residual stream *after* it (**post**), and the activations of all neurons. They are
# kept at one token, the last, because it is the only one that has seen the whole sentence. Everything below is
# arithmetic on these vectors; the model is not asked again. With `cache=True` they are kept on disk as well, so that
# this notebook runs in seconds the second time (`tnkit cache` shows what is kept, and clears it).

# %%
captured = {code: tn.capture(model, texts, cache=True) for code, texts in train.items()}
save("norms", captured[language].plot(), title=f"{name}: how long the vectors are")

# %%
norms = captured[language].to_frame()["post norm"]
Markdown(
    f"After the first layer the residual stream has a mean length of {norms.iloc[0]:,.0f}, after the last one of "
    f"{norms.iloc[-1]:,.0f}. A neuron must be judged beside the stream that it adds to, layer by layer: the same "
    "contribution turns a short vector further than a long one. That is why scores are changes of an *angle*."
)

# %% [markdown]
# ## 3. Where are the spaces?
#
# The **language centroid** is the mean of *post* over a language's sentences, layer by layer. The **shared centroid**
# is the mean of the language centroids of the hub and of the language in question. Type-1 neurons are those that move
# sentences towards the shared centroid, Type-2 neurons those that move them towards the language's own.

# %%
own = tn.estimate_centroids([captured[language]])
shared = tn.estimate_centroids([captured[hub], captured[language]])
shared

# %% [markdown]
# What do these points look like among the sentences? Below, every point is a sentence, in the plane of the two
# directions in which all sentences vary most (principal components, found for each layer by itself). Diamonds are the
# language centroids, the star is the shared one. (Clumps within a language, in the first layer above all, are sentences
# that end in the same token: so early, the last token is most of what its state knows.)

# %%
shown = [0, model.n_layers // 2, model.n_layers - 1]
save("centroids", tn.geometry.pca(captured, layers=shown).plot(centroids=True))

# %%
apart = tn.geometry.centroid_distances(captured).by_layer(hub)[language]
Markdown(
    f"The cosine distance between the two language centroids is {apart[shown[0]]:.3f} after layer {shown[0]}, "
    f"{apart[shown[1]]:.3f} after layer {shown[1]} and {apart[shown[2]]:.3f} after layer {shown[2]}. It is smallest "
    f"after layer {apart.idxmin()} ({apart.min():.3f}). The next notebook looks at this more closely."
)

# %% [markdown]
# ## 4. How far does each neuron move a sentence?
#
# Let **m** be *mid* of a sentence, **c** what a neuron adds to it, and **C** the centroid. The neuron's **score** is
# the change of the cosine, averaged over sentences:
#
# $$\text{score} = \text{mean}_n \, [ \cos(\mathbf{m}_n + \mathbf{c}_n, \mathbf{C}) - \cos(\mathbf{m}_n, \mathbf{C}) ]$$
#
# Positive means: the sentence comes nearer to the centroid by what this neuron adds. Every neuron of the layers in
# question is scored, here the early ones (in the paper 20 of 32, and as large a part of any other depth) against the
# shared centroid.

# %%
towards_shared = tn.score_neurons(model, captured[language], shared, layers=model.early_layers)
type1 = towards_shared.top(top)
save("type1-scores", towards_shared.plot(chosen=type1), title=f"{name}: scores towards the shared centroid")

# %%
values = towards_shared.values[towards_shared.layers]
Markdown(
    f"Of {values.numel():,} neurons, {(values > 0).double().mean():.0%} have a score above zero. The best moves the "
    f"cosine by {type1.scores[0]:+.4f}, the last of the {len(type1)} chosen by {type1.scores[-1]:+.5f}; half of all "
    f"neurons move it by less than {values.abs().median():.0e}. Counts stand on a logarithmic axis: what is chosen "
    "is the far tail."
)

# %% [markdown]
# ## 5. Is that exact?
#
# Written out, the definition asks for **m** + **c** of every neuron and every sentence: thousands of vectors a layer,
# each as wide as the model. tnkit never makes them, and yet it does not approximate. All that a cosine needs is a dot
# product and a length, and those of a sum follow from those of its parts. With *a* the activation and **v** the value
# vector,
#
# $$(\mathbf{m} + a\mathbf{v}) \cdot \mathbf{C} = \mathbf{m} \cdot \mathbf{C} + a\,\mathbf{v} \cdot \mathbf{C}$$
#
# $$|\mathbf{m} + a\mathbf{v}|^2 = |\mathbf{m}|^2 + 2a\,\mathbf{m} \cdot \mathbf{v} + a^2 |\mathbf{v}|^2$$
#
# so all neurons of a layer cost one matrix product, that of all **m** with all **v**. Let us not believe it, and take
# the best neuron and the definition, in double precision.

# %%
import torch

layer, neuron = type1[0]
place = captured[language].layers.index(layer)
mid, centroid = captured[language].mid[place].double(), shared.at(layer).double()
activation = captured[language].activations[place, :, neuron] * captured[language].scale[place]
vector = model.value_vectors(layer)[neuron].double() * model.output_gain(layer).double()

# %%
moved = mid + activation.double()[:, None] * vector.detach()
before = torch.cosine_similarity(mid, centroid[None], dim=1)
after = torch.cosine_similarity(moved, centroid[None], dim=1)
by_definition, closed_form = float((after - before).mean()), float(towards_shared.values[layer, neuron])

# %%
print(f"layer {layer}, neuron {neuron}, {len(mid)} sentences")
print(f"definition   {by_definition:.12f}")
print(f"closed form  {closed_form:.12f}")
print(f"difference   {abs(by_definition - closed_form):.0e}")

# %% [markdown]
# The difference that is left is rounding: the closed form takes its products in single precision and its sums in
# double. And what does this one neuron do to single sentences?

# %%
labels = {"xlabel": "cosine with the shared centroid, before", "ylabel": "after the neuron's contribution"}
save("one-neuron", tn.plots.paired(before, after, **labels), title=f"layer {layer}, neuron {neuron}")

# %% [markdown]
# Points that fall into groups mean that the neuron tells sentences apart by something. It need not be their language;
# the token in which they end is the first thing to suspect, and [04_specificity](04_specificity.ipynb) looks at that.
#
# ## 6. Which neurons carry the language back?
#
# The same question in the late layers, against the language's own centroid.

# %%
towards_own = tn.score_neurons(model, captured[language], own, layers=model.late_layers)
type2 = towards_own.top(top)
save("type2-scores", towards_own.plot(chosen=type2, colour="#D55E00"), title=f"{name}: scores towards its own centroid")

# %% [markdown]
# ## 7. Where do they sit?

# %%
kinds = {"type1": type1, "type2": type2}
axes = tn.plots.neurons_by_layer(kinds, n_layers=model.n_layers)
axes.set_title(f"{name} transfer neurons of {model.name}")
save("neurons-by-layer", axes)

# %%
type1.to_frame().head()

# %% [markdown]
# The same neurons in the explorer: sort and filter the table, choose a row to see the neuron at every token of the
# sentences in which it is strongest, and tick rows to switch those off. (On a page that cannot run it, its picture.)

# %%
pair = tn.load_corpus(corpus_id, [hub, language])
explorer = tn.explore(model, pair, view="neurons", language=language, hub=hub, sentences=sentences)
save("explorer", explorer.figure())
explorer

# %% [markdown]
# ## 8. Once more, in one call
#
# `tn.detect_all` does all of this, for every language that it is given, and runs each sentence once. Each result knows
# its model, sentences and parameters, and can be saved (`found[language, "type1"].neurons.save("type1.json")`).
# A warning here says that the scores hardly tell their target from others: section 9 looks at that.

# %%
found = tn.detect_all(model, train, [language], hub=hub, top=top, cache=True)
same = (type1, type2) == (found[language, "type1"].neurons, found[language, "type2"].neurons)
Markdown("These are the same neurons as above." if same else "These are **not** the same neurons as above.")

# %% [markdown]
# ## 9. Does the score know its target?
#
# Two things to look at before a set is believed. By layer, how much of the target's squared length lies in a single
# coordinate, and its cosine with the centroid that it should be told from; where either is near 1, nearly the same
# neurons are chosen towards either. And how many neurons two halves of the sentences agree on.

# %%
found[language, "type1"].target().round(3)

# %%
Markdown(
    f"Type-1: halves of the sentences agree on {found[language, 'type1'].stability()}. Type-2: on "
    f"{found[language, 'type2'].stability()}. Stable they are; what they are about is another question, which "
    "[06_evidence](06_evidence.ipynb) asks."
)

# %% [markdown]
# ## What was found, and what it does not show

# %%
layers = {kind: one.neurons.to_frame().index.get_level_values("layer") for (_, kind), one in found.items()}
most = {kind: ones.value_counts() for kind, ones in layers.items()}
Markdown(
    f"In {model.name}, on {len(train[language])} sentences, the {top} Type-1 neurons of {name} are "
    f"{top / values.numel():.1%} of the early layers' neurons; the fullest is layer {most['type1'].index[0]} with "
    f"{most['type1'].iloc[0]} of them. Of the {top} Type-2 neurons, layer {most['type2'].index[0]} has most, "
    f"{most['type2'].iloc[0]}. The score of the best Type-1 neuron equals its definition to "
    f"{abs(by_definition - closed_form):.0e}."
)

# %% [markdown]
# A score says how far one neuron's contribution, taken alone, turns a sentence towards a centroid. It does **not** show
#
# - that the model *needs* the neuron: other neurons could do the same, or undo it. Switching neurons off answers that,
#   in [03_ablation](03_ablation.ipynb).
# - that the neuron is *about* the language: a neuron that moves every sentence, of whatever language, towards the
#   shared centroid scores as high. That is the question of [04_specificity](04_specificity.ipynb).
# - that there is a natural number of transfer neurons: how many are taken is a choice, here and in the paper (which
#   takes 1,000 of larger models).
# - anything about other models, other sentences, or tokens other than the last.
#
# To turn these knobs by hand, open [00_explore](00_explore.ipynb).
