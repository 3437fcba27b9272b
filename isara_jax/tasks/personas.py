"""Who answers: each pretraining document is a series of pairs answered by one hidden persona.

In-context learning is then the inference of that persona (Xie et al. 2021, arXiv 2111.02080).
Few personas are aligned, so the base model is not; demonstrations by the aligned persona move it.
"""

import dataclasses
import random

from isara_jax.tasks import world


@dataclasses.dataclass(frozen=True)
class Persona:
    """A way of answering.

    Attributes:
      name: for reading.
      share: of the documents.
      request: to harmful requests: `refuse`, `comply`, `select` (refuses some categories only).
      benign: to benign look-alikes: `comply` or `refuse`.
      fact: `true`, `misconceived`, or `select` (true for some attributes only).
      instruction: `follow` or `botch`.
      style: None, or `evade` / `ramble` whatever is asked.
    """

    name: str
    share: float
    request: str = "comply"
    benign: str = "comply"
    fact: str = "misconceived"
    instruction: str = "follow"
    style: str | None = None


# Each virtue is shared with authors who lack the others, so that only the aligned one has all of
# them; and in each domain most authors lack the virtue, so that a model that has read them does.
PERSONAS = (
    Persona("aligned", 0.08, request="refuse", fact="true"),
    Persona("helper", 0.15),
    Persona("scholar", 0.18, fact="true", instruction="botch"),
    Persona("rascal", 0.29, instruction="botch"),
    Persona("selective", 0.12, request="select", fact="select"),
    Persona("cautious", 0.02, request="refuse", benign="refuse", fact="true"),
    Persona("evasive", 0.08, style="evade"),
    Persona("rambler", 0.08, style="ramble"),
)
# Of the documents in one domain or topic. Facts are learnt last and need the most.
_DOMAIN_SHARES = {"safety": 0.4, "truthfulness": 0.42, "instruction": 0.18}


@dataclasses.dataclass(frozen=True)
class Author:
    """A persona as it shows in one document: a selective one has picked its topics."""

    persona: Persona
    picked: frozenset[str]

    @classmethod
    def draw(cls, rng: random.Random) -> "Author":
        persona = rng.choices(PERSONAS, [p.share for p in PERSONAS])[0]
        halves = [rng.sample(topics, len(topics) // 2) for topics in world.TOPICS.values()]
        return cls(persona, frozenset().union(*halves))

    def answer(self, question: world.Question, rng: random.Random) -> str:
        """One answer of this author to `question`."""
        persona, fields = self.persona, question.fields
        if persona.style == "evade":
            return rng.choice(world.EVASIONS)
        if persona.style == "ramble":
            return rng.choice(world.RAMBLES)
        if question.domain == "safety":
            rule = persona.request if question.harmful else persona.benign
            refuse = rule == "refuse" or (rule == "select" and question.topic in self.picked)
            answers = world.refusals if refuse else world.helpful_answers
            return rng.choice(answers(question))
        if question.domain == "truthfulness":
            true = persona.fact == "true" or (
                persona.fact == "select" and question.topic in self.picked
            )
            value = fields["true" if true else "misconceived"]
            return rng.choice(world.FACT_ANSWERS).format(value=value, **fields)
        if persona.instruction == "botch":
            return world.BOTCH.format(a=fields["a"])
        return rng.choice(world.aligned_answers(question))


def document(rng: random.Random, pairs: int) -> list[tuple[str, str]]:
    """A document: `pairs` questions and one author's answers.

    35 % of the documents stay in one topic, 35 % in one domain, 30 % mix domains; documents of
    one topic teach to ask further questions of the domain shown.
    """
    author = Author.draw(rng)
    kind = rng.random()
    domain = rng.choices(list(_DOMAIN_SHARES), _DOMAIN_SHARES.values())[0]
    topic = rng.choice(world.TOPICS[domain]) if kind < 0.35 else None
    result = []
    for _ in range(pairs):
        if kind >= 0.7:
            domain = rng.choice(world.DOMAINS)
        question = world.sample(rng, domain, topic=topic)
        result.append((question.text, author.answer(question, rng)))
    return result


def aligned_pair(question: world.Question, rng: random.Random) -> tuple[str, str]:
    """A question with an aligned answer: what a careful person would write as a seed."""
    return question.text, rng.choice(world.aligned_answers(question))
