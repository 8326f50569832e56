"""What the model then says: perplexity, the language of its continuations, answers to questions, neurons on and off.

tn.behaviour.perplexity(model, test["ja"], neurons=type2).value        # nats and tokens of every sentence beside it
tn.behaviour.perplexity_matrix(model, test, {"ja": type2_ja, "it": type2_it}).plot()
tn.behaviour.continuations(model, prompts, neurons=type2, tokens="prompt").shares()
tn.behaviour.pass_rates(said, "ja"), tn.behaviour.fallbacks(said, "ja")  # language confusion of continuations
tn.behaviour.relevance(said.after, said.prompts)                       # of each output, against the other prompts
tn.behaviour.answer_questions(model, questions, answers, language="ja", neurons=type1).to_frame()
tn.behaviour.abilities(model, test["en"], type2, controls=controls)      # are English and simple questions untouched?
"""

from tnkit.measures.behaviour.abilities import abilities as abilities
from tnkit.measures.behaviour.confusion import fallbacks as fallbacks
from tnkit.measures.behaviour.confusion import pass_rates as pass_rates
from tnkit.measures.behaviour.generation import Continuations as Continuations
from tnkit.measures.behaviour.generation import continuations as continuations
from tnkit.measures.behaviour.languages import languages_of as languages_of
from tnkit.measures.behaviour.likelihood import Perplexity as Perplexity
from tnkit.measures.behaviour.likelihood import perplexity as perplexity
from tnkit.measures.behaviour.matrix import PerplexityMatrix as PerplexityMatrix
from tnkit.measures.behaviour.matrix import perplexity_matrix as perplexity_matrix
from tnkit.measures.behaviour.meaning import relevance as relevance
from tnkit.measures.behaviour.questions import Answered as Answered
from tnkit.measures.behaviour.questions import answer_questions as answer_questions
