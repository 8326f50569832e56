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
# # What breaks when transfer neurons are switched off, and is it more than any neurons would break?
#
# [01_detection](01_detection.ipynb) found neurons that move a language's sentences towards the space that languages
# share (Type-1) and back into the language's own (Type-2). That is a statement about geometry. Whether the model *uses*
# them is a question for an experiment: switch them off, and see what changes (Tezuka & Inoue, *The Transfer Neurons
# Hypothesis*, EMNLP 2025, [aclanthology.org/2025.emnlp-main.1618](https://aclanthology.org/2025.emnlp-main.1618)).
#
# Switching off hundreds of neurons may break something whichever they are. So everything below stands beside
# **controls**, sets of as many other neurons:
#
# | control | what it shares with the set |
# |---|---|
# | uniform | the range of layers (the paper's control) |
# | same layers | the number of neurons in every layer |
# | same layers and norms | that, and how much the neurons add to the residual stream |
# | lowest scores | the range of layers; its neurons move sentences *away* from the centroid |
# | another language's | that they are transfer neurons too |
#
# Random controls are drawn several times, intervals are 95 % bootstrap intervals over sentences and draws, and the test
# sentences are not those in which the neurons were found.

# %%
import sys

if "google.colab" in sys.modules:
    # %pip install -q "tnkit[demo,measures] @ git+https://github.com/tnkit/tnkit"
    print("tnkit is installed")

# %% tags=["parameters"]
model_id = "gemma-3-270m"  # packaged with the kit; or a Hub id, or a folder
corpus_id = "everyday"  # packaged with the kit; or a file with one column a language
languages = ["en", "ja", "ko", "nl", "it"]
hub = "en"  # the language that stands for the shared space together with each other one
language = "ja"  # whose neurons are switched off
other = "ko"  # whose neurons are the last control
top = 300  # how many neurons of each type
seeds = 4  # draws of each random control
sentences = 96  # how many of each split
read = 8  # how many test sentences perplexity is taken of
prompts = 8  # how many test sentences the model continues
figures = "../figures"

# %%
from IPython.display import Markdown

import tnkit as tn

tn.plots.use_style()
save = tn.plots.figure_saver(
    f"{figures}/03", model=model_id, corpus=corpus_id, language=language, top=top, seeds=seeds, sentences=sentences
)
model = tn.load_model(model_id)
corpus = tn.load_corpus(corpus_id, languages)
train, test = ({code: texts[:sentences] for code, texts in corpus[split].items()} for split in ("train", "test"))
name, spoken = tn.plots.language_name(language), [code for code in languages if code != hub]

# %% [markdown]
# ## Finding the neurons
#
# As in 01_detection, for every language: one pass over the training sentences, then arithmetic.

# %%
captured = {code: tn.capture(model, train[code], cache=True) for code in languages}
shared = {code: tn.estimate_centroids([captured[hub], captured[code]]) for code in spoken}
own = {code: tn.estimate_centroids([captured[code]]) for code in spoken}

# %%
early, late = {"layers": model.early_layers}, {"layers": model.late_layers}
scores1 = {code: tn.score_neurons(model, captured[code], shared[code], **early) for code in spoken}
scores2 = {code: tn.score_neurons(model, captured[code], own[code], **late) for code in spoken}
type1 = {code: scores.top(top) for code, scores in scores1.items()}
type2 = {code: scores.top(top) for code, scores in scores2.items()}

# %%
kinds = {"type1": type1[language], "type2": type2[language]}
save("neurons", tn.plots.neurons_by_layer(kinds, n_layers=model.n_layers), title=f"{name}: what will be switched off")

# %% [markdown]
# ## 1. Type-1 off: is the translation still the nearest sentence?
#
# The neurons' activations are set to zero **at the last token** of the sentence only. Then we look at that token, layer
# by layer: among all hub sentences, is the translation the nearest by mean-centred cosine (retrieval@1)? The untouched
# model reads the hub's sentences. The share falls with the number of sentences to choose among, so compare it only with
# shares of as many.
#
# Beside it, every control that could explain the effect away. Two of them do most: neurons chosen in the same way, but
# towards a *random direction* that knows nothing of languages; and the set itself at its *mean* over the training
# sentences, not at zero.

# %%
norms = tn.scoring.contribution_norms(model, captured[language])
rivals = tn.controls(type1[language], model=model, captured=captured, **early)
others = {f"{tn.plots.language_name(other)} Type-1": type1[other], "random direction": rivals["random direction"]}
others["the set at its mean"] = tn.Intervention(type1[language], value="mean", of=captured[language])
controls = tn.controls(type1[language], norms=norms, scores=scores1[language], others=others, **early)
retrieval = tn.ablate(model, test, type1[language], language=language, hub=hub, controls=controls, seeds=seeds)

# %%
axes = retrieval.plot()
axes.set(
    title=f"{name}: {top} Type-1 neurons off at the last token", ylabel="translations found (mean-centred retrieval@1)"
)
save("retrieval", axes)

# %% [markdown]
# Lines that lie on each other cannot be told apart by eye. So we look at one layer, chosen beforehand: the one where
# the untouched model finds most translations of the *training* sentences. (Choosing it on the test sentences would
# favour whichever layer happens to suit them.)

# %%
layer, _ = tn.geometry.retrieval(captured[language], captured[hub]).best()
save("retrieval-controls", retrieval.plot_at(layer))

# %% [markdown]
# In numbers, `ratio` is what is left with the set off, relative to the row, and `p sentences` tests the difference by
# flipping the signs of single sentences' differences (10,000 times, so that none is below 0.0001). `p sets` ranks the
# set among the draws of a random control; with few draws it cannot be small.

# %%
columns = ["mean", "low", "high", "ratio", "ratio low", "ratio high", "p sentences", "p sets"]
retrieval.at(layer)[columns].round(4)

# %% [markdown]
# The explorer shows the same beside each control, for other languages and types, and with neurons set to other values.
# (On a page that cannot run it, its picture.)

# %%
explorer = tn.explore(model, corpus, view="evidence", language=language, hub=hub, seeds=seeds)
save("explorer", explorer.figure())
explorer

# %% [markdown]
# ### The control that breaks it: the mean in place of zero
#
# Zero is not what these neurons write when they have nothing to say. So one row of the table sets each of them to its
# **mean** over the training sentences of the language instead. Its value for this sentence is then lost just as it is
# with zero. If the neurons carried what the sentence means, retrieval would fall here too.

# %%
rows = retrieval.at(layer)["mean"]
at_means = rows["the set at its mean"]
Markdown(
    f"At layer {layer}, of {len(test[language])} sentences the untouched model finds {rows['none']:.0%}, with the set "
    f"at zero {rows['the set']:.0%}, and with the set at its mean **{at_means:.0%}**. With neurons chosen towards "
    f"a random direction at zero, {rows['random direction']:.0%}."
)

# %% [markdown]
# ## 2. Type-1 off: does the sentence move away from its translation?
#
# The paper's own measure: the cosine between a sentence and its translation. It is less strict than retrieval, because
# *all* sentences may move.

# %%
similarity = tn.ablate(
    model, test, type1[language], language=language, hub=hub, controls=controls, seeds=seeds, measure="similarity"
)
axes = similarity.plot()
axes.set(title=f"{name}: {top} Type-1 neurons off at the last token", ylabel="cosine with the translation")
save("similarity", axes)

# %% [markdown]
# ## 3. Type-1 off: whose neurons does a language need?
#
# Switch off the Type-1 neurons of one language (rows), and read another (columns). If a language's neurons were its own
# alone, only the diagonal would change. A row that is dark all over means neurons that languages share.

# %%
matrix = tn.retrieval_matrix(model, test, type1, hub=hub, layer=layer)
save("retrieval-matrix", matrix.plot(), title=f"{top} Type-1 neurons off at the last token")

# %% [markdown]
# ## 4. Type-2 off: does the model still foresee its language?
#
# Type-2 neurons act where the model gets ready to write, so the test is what it says. **Perplexity** measures how well
# it foresees the next token of a text: the exponential of the nats per token, and lower is better. Here the neurons are
# off at *every* token.

# %%
others = {f"{tn.plots.language_name(other)} Type-2": type2[other]}
controls = tn.controls(type2[language], norms=norms, scores=scores2[language], others=others, **late)
texts = {code: some[:read] for code, some in test.items()}
perplexity = tn.ablate(
    model, texts, type2[language], language=language, controls=controls, seeds=seeds, measure="perplexity", tokens="all"
)

# %%
axes = perplexity.plot_at()
axes.set(title=f"{name}: {top} Type-2 neurons off at every token", xlabel="nats per token (mean over sentences)")
save("perplexity-controls", axes)

# %%
perplexity.at()[columns].round(4)

# %% [markdown]
# ## 5. Type-2 off: whose neurons does a language need?
#
# Each cell has the perplexity, and below it the relative change of the nats per token. Framed cells are a language's
# own neurons.

# %%
sets = {code: type2[code] for code in spoken}
confused = tn.behaviour.perplexity_matrix(model, texts, sets)
save("perplexity-matrix", confused.plot(), title=f"{top} Type-2 neurons off at every token")

# %% [markdown]
# ## 6. Type-2 off: which language does the model write?
#
# The model gets the first half of a sentence and goes on, taking the likeliest token each time. A language detector
# names the language of what it added. Pale bars are the untouched model; the neurons are off at every token.

# %%
starts = [text[: len(text) // 2] for text in test[language][:prompts]]
how = {"tokens": "all", "max_new_tokens": 24, "languages": languages}
continued = tn.behaviour.continuations(model, starts, neurons=type2[language], **how)
save("continuations", continued.plot(), title="Type-2 off")

# %%
continued.to_frame().head(8)

# %% [markdown]
# Read the table as well as the picture: a detector that chooses among a few languages may name one for broken text,
# too.
#
# And with as many random neurons off, of the same layers and norms?

# %%
control = type2[language].matched(seed=0, norms=norms)
controlled = tn.behaviour.continuations(model, starts, neurons=control, **how)
save("continuations-control", controlled.plot(), title="a control off")

# %% [markdown]
# ## What was found, and what it does not show

# %%
rows = retrieval.at(layer)
random = rows.drop(["none", "the set", "the set at its mean"])
nearest = random["effect"].abs().idxmin()
Markdown(
    f"**Type-1.** At layer {layer} (the best for training sentences), the untouched {model.name} finds "
    f"{rows.loc['none', 'mean']:.0%} of {len(test[language])} translations by mean-centred cosine. With the {top} "
    f"Type-1 neurons of {name} set to zero at the last token it finds {rows.loc['the set', 'mean']:.0%} (95 % interval "
    f"{rows.loc['the set', 'low']:.0%} to {rows.loc['the set', 'high']:.0%}); with the controls at zero between "
    f"{random['mean'].min():.0%} and {random['mean'].max():.0%}. Of the controls, the nearest to the set is {nearest} "
    f"({random.loc[nearest, 'mean']:.0%}, p of the difference "
    f"{random.loc[nearest, 'p sentences']:.4f}). With the set at its "
    f"mean instead of zero it finds {at_means:.0%}: "
    + (
        "most of what zeroing does is the loss of a constant, not of what the neurons say about the sentence."
        if at_means - rows.loc["the set", "mean"] > (rows.loc["none", "mean"] - rows.loc["the set", "mean"]) / 2
        else "the neurons' values for the sentence matter too."
    )
)

# %%
rows = perplexity.at()
random = rows.drop(["none", "the set"])
nearest = random["effect"].abs().idxmin()
Markdown(
    f"**Type-2.** The untouched model needs {rows.loc['none', 'mean']:.2f} nats per token for {name}; with the {top} "
    f"Type-2 neurons off {rows.loc['the set', 'mean']:.2f} ({rows.loc['the set', 'low']:.2f} to "
    f"{rows.loc['the set', 'high']:.2f}); with the controls off between {random['mean'].min():.2f} and "
    f"{random['mean'].max():.2f}. Of the controls, the nearest to the set is {nearest} "
    f"({random.loc[nearest, 'mean']:.2f}, p of the difference {random.loc[nearest, 'p sentences']:.4f})."
)

# %%
spared = (
    [matrix.to_frame().loc[code, code] for code in spoken],
    [matrix.to_frame().loc["none", code] for code in spoken],
)
changes = confused.to_frame().drop("none", level="off").query("read != @hub")
before, after = continued.shares().reindex([language], fill_value=0).iloc[0]
Markdown(
    "**Languages.** With its own Type-1 neurons off, a language keeps between "
    f"{min(a / b for a, b in zip(*spared, strict=True)):.0%} and "
    f"{max(a / b for a, b in zip(*spared, strict=True)):.0%} of the translations found. Nats per token change by "
    f"{changes.loc[changes['own'], 'change'].min():+.0%} to {changes.loc[changes['own'], 'change'].max():+.0%} with "
    f"a language's own Type-2 neurons off, by {changes.loc[~changes['own'], 'change'].min():+.0%} to "
    f"{changes.loc[~changes['own'], 'change'].max():+.0%} with those of another one off. The share of continuations "
    f"in {name} goes from {before:.0%} to {after:.0%} with Type-2 off, and is "
    f"{controlled.shares()['after'].get(language, 0):.0%} with the control off."
)

# %% [markdown]
# It does **not** show
#
# - that these neurons *are* the mechanism: a model that fails without a part may need the part for another reason. The
#   mean control above is such a reason for Type-1 neurons.
# - that each of them matters: the experiment is about the set.
# - that another size of set would do the same. `top` is a choice.
# - that tasks suffer: finding translations and foreseeing tokens are not answering questions. For that there are
#   `tn.behaviour.answer_questions` and `tn.harness.evaluate`.
# - anything about larger models. The paper's have 7 to 8 billion parameters, and 1,000 neurons off.
#
# To turn these knobs by hand, open [00_explore](00_explore.ipynb).
