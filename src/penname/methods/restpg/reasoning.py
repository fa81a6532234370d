"""What a model is to say of a writer before it writes: z = LLM(x, y, P) (arXiv 2501.04167, section 3.2).

    reasoner = Reasoner(model, PromptTexts.load())
    for batch in reasoner.batches(materials): ...

A model sees the request, the real text and what was retrieved, and says what of the history matters. The two
shapes of model differ in what they are asked:

- a chat model summarises preferences, interests, background knowledge and style in bullets;
- a base-like model names the keywords of the real text, and those are kept that the prompt bears out; what is
  retrieved gives the background, and style is measured. Asked for a style it would invent one.

What is said must not hold the real text: later there is none to copy from. So the share of its word n-grams
that only the real text can have given is counted, and too much of it leaves the example out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from penname.lm.base import LanguageModel, Sampling
from penname.methods.restpg.examples import Material
from penname.records import Message, Prompt, digest
from penname.tasks import PromptTexts, Task, quote_tags
from penname.tasks import task as find_task
from penname.tasks.facts import FUNCTION_WORDS, describe_manner, habits, measure, words
from penname.tasks.keywords import BULLET, keywords_prompt, parse_keywords, stem
from penname.tasks.prompts import fill, quote_labels, quoted_material, shorten

WINDOW = 32  # examples that are asked together: what a kill can lose

_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"  # written without spaces: each sign counts
_WORD = re.compile(rf"[{_CJK}]|(?:(?![{_CJK}])\w)+")


@dataclass(frozen=True)
class ReasoningConfig:
    """How reasoning is made and checked. All are ours: the paper names none."""

    max_tokens: int = 80  # of one reasoning, as its model counts them
    n: int = 4  # words of the n-grams that are compared
    most: float = 0.1  # share of n-grams that only the real text can have given, at most
    temperature: float = 0.7  # of a chat model; keywords are named greedily
    answer_tokens: int = 200  # that a chat model may write: bullets that end past `max_tokens` are dropped
    keyword_tokens: int = 32  # that the real text's keywords may have
    keyword_text: int = 600  # characters of the real text that keywords are asked of
    gold_text: int = 4_000  # characters of the real text that a chat model sees
    keywords: int = 6  # in a composed reasoning at most
    titles: int = 3  # of documents, likewise
    title_text: int = 80  # characters of each at most


@dataclass(frozen=True)
class Reasoned:
    """What was said of a writer; where `why` is not "", it is not to be learnt, for that reason."""

    text: str  # bullets, one a line
    overlap: float = 0.0  # see `overlap`
    why: str = ""  # the reason stands before the colon, its figures after it


@dataclass(frozen=True)
class Reasoner:
    """Makes reasoning with one model, and checks it."""

    model: LanguageModel
    texts: PromptTexts
    config: ReasoningConfig = ReasoningConfig()
    seed: int = 0

    @property
    def fingerprint(self) -> str:
        """Changes when another reasoning could come of the same material."""
        return digest([self.model.fingerprint, self.texts.fingerprint, repr(self.config), self.seed])

    def batches(self, materials: Sequence[Material]) -> Iterator[list[tuple[Material, Reasoned]]]:
        """Each material with its reasoning, in order, `WINDOW` of them at a time.

        Which materials share a batch changes nothing: what was done before a kill need not be done again.
        """
        for start in range(0, len(materials), WINDOW):
            window = materials[start : start + WINDOW]
            asked = [self._question(material) for material in window]
            prompts = list(dict.fromkeys(prompt for prompt in asked if prompt is not None))
            answers = self.model.generate(prompts, 1, self._sampling) if prompts else []
            said = {prompt: some[0].text for prompt, some in zip(prompts, answers, strict=True)}
            yield [
                (material, self._reasoned(material, None if prompt is None else said[prompt]))
                for material, prompt in zip(window, asked, strict=True)
            ]

    @property
    def _chat(self) -> bool:
        return self.model.shape == "chat"

    @property
    def _sampling(self) -> Sampling:
        if self._chat:
            most, temperature = self.config.answer_tokens, self.config.temperature
            return Sampling(max_tokens=most, temperature=temperature, seed=self.seed)
        most = self.config.keyword_tokens
        return Sampling(max_tokens=most, temperature=0.0, top_p=1.0, stop=("\n",), seed=self.seed)

    def _question(self, material: Material) -> Prompt | None:
        """What the model is asked; None where that makes no sense or does not fit."""
        if not material.example.gold.strip() or not (material.hits or material.profiles):
            return None
        room = self.model.context - self._sampling.max_tokens
        if not self._chat:
            prompt = keywords_prompt(self.texts, material.example.gold, self.config.keyword_text)
            return prompt if self.model.count(prompt) <= room else None
        hits = list(material.hits)
        while self.model.count(asked := self._chat_prompt(material, len(hits))) > room:
            if not hits or (len(hits) == 1 and not material.profiles):
                return None  # not without anything of the history
            hits.pop()  # the least relevant before the others
        return asked

    def _chat_prompt(self, material: Material, documents: int) -> Prompt:
        request = material.example.request
        task = find_task(request.task)
        hits = material.hits[:documents]
        blocks = quoted_material(task, request, material.profiles, hits, self.texts)
        question = fill(
            self.texts.chat["reason"],
            material="\n\n".join(blocks),
            instruction=task.instruction,
            input=quote_tags(request.input),
            gold=quote_tags(shorten(material.example.gold, self.config.gold_text)),
            words=str(self.config.max_tokens // 2),  # most languages take fewer than two tokens a word
        )
        system = Message(role="system", content=fill(self.texts.chat["reason_system"]))
        return (system, Message(role="user", content=question))

    def _reasoned(self, material: Material, answer: str | None) -> Reasoned:
        """What the answer holds, checked; `answer` None: nothing was asked."""
        gold = material.example.gold
        if not gold.strip():
            return Reasoned("", why="empty real text")
        if not (material.hits or material.profiles):
            return Reasoned("", why="nothing of the history to reason over")
        if answer is None:
            return Reasoned("", why="too long for the model's context")
        task = find_task(material.example.request.task)
        lines = _bullets(answer) if self._chat else self._composed(task, material, answer)
        text = quote_labels("\n".join(self._within(lines)), task.labels)
        if not text:
            most = self.config.max_tokens
            return Reasoned("", why=f"too long: more than {most} tokens" if lines else "no bullets")
        known = [_flat(material.example.prompt), material.example.request.input]
        copied = overlap(text, gold, known, self.config.n)
        why = ""
        if copied > self.config.most:
            why = f"copies the real text: overlap {copied:.2f}, at most {self.config.most:g}"
        elif _holds(text, gold) and not any(_holds(each, gold) for each in known):
            why = "holds the whole real text"
        return Reasoned(text, copied, why)

    def _within(self, lines: Sequence[str]) -> list[str]:
        """The first of `lines` that together have `max_tokens` at most."""
        kept: list[str] = []
        for line in lines:
            if self.model.count("\n".join([*kept, line])) > self.config.max_tokens:
                break
            kept.append(line)
        return kept

    def _composed(self, task: Task, material: Material, answer: str) -> list[str]:
        """Bullets of the keywords in `answer` and of what can be counted; the least certain ones give way."""
        seen = {stem(word) for word in words(_flat(material.example.prompt))}
        keywords = [
            word
            for word in parse_keywords(answer, material.example.gold)
            if all(stem(each) in seen for each in words(word) if each not in FUNCTION_WORDS)
        ][: self.config.keywords]
        titles = self._titles(material)
        while True:
            lines = _lines(keywords, titles, _manner(task, material))
            if len(self._within(lines)) == len(lines) or not (keywords or titles):
                return lines
            (titles or keywords).pop()

    def _titles(self, material: Material) -> list[str]:
        """Titles of the documents that share most content words with the real text, the nearest first."""
        wanted = _content(material.example.gold)
        near = [
            (len(wanted & _content(f"{one.title} {one.text}")), one.title)
            for one in (hit.document for hit in material.hits)
            if one.title.strip()
        ]
        near.sort(key=lambda pair: -pair[0])  # of equals the better hit first
        titles = (
            shorten(" ".join(title.split()), self.config.title_text) for shared, title in near if shared
        )
        return list(dict.fromkeys(titles))[: self.config.titles]


def overlap(text: str, gold: str, known: Sequence[str], n: int = 4) -> float:
    """Share of the word n-grams of `text` that stand in `gold` and in none of the `known` texts; 0 to 1.

    0: nothing can have come from `gold` alone; 1: all of it did. Words are compared without case and
    punctuation, signs of Chinese, Japanese and Korean one by one. Where `text` or `gold` has fewer than `n`
    words, n is as many as the shorter has.
    """
    mine, real = _terms(text), _terms(gold)
    n = min(n, len(mine), len(real))
    if not n:
        return 0.0
    given = set(_ngrams(real, n)).difference(*(_ngrams(_terms(each), n) for each in known))
    grams = _ngrams(mine, n)
    return sum(gram in given for gram in grams) / len(grams)


def summary(reasoned: Sequence[Reasoned]) -> dict[str, int | float]:
    """How many there are, how many are kept and are left out by reason, and the mean overlap of both.

    Keys: examples, kept, "left out: …", overlap (of all that could be read), overlap_kept.
    """
    read = [one.overlap for one in reasoned if one.text]
    kept = [one.overlap for one in reasoned if not one.why]
    reasons = Counter(f"left out: {one.why.partition(':')[0]}" for one in reasoned if one.why)
    return {
        "examples": len(reasoned),
        "kept": len(kept),
        **dict(sorted(reasons.items())),
        "overlap": sum(read) / len(read) if read else 0.0,
        "overlap_kept": sum(kept) / len(kept) if kept else 0.0,
    }


def _bullets(answer: str) -> list[str]:
    """The bulleted or numbered lines of what a chat model wrote, alike; the rest is talk around them."""
    lines = _THOUGHT.sub("", answer).splitlines()
    bullets = (" ".join(BULLET.sub("", line).split()) for line in lines if BULLET.match(line))
    return [f"- {bullet}" for bullet in dict.fromkeys(bullets) if bullet]


def _lines(keywords: Sequence[str], titles: Sequence[str], manner: str) -> list[str]:
    said = {"Interests": ", ".join(keywords), "Background": "; ".join(titles), "Style": manner}
    return [f"- {label}: {value}" for label, value in said.items() if value]


def _manner(task: Task, material: Material) -> str:
    """How the documents are written, in words, from counting; "" where they show no output."""
    # What several wrote together stands in each one's history, and is one text: no habit of thrice.
    documents = {(hit.document.title, hit.document.text): hit.document for hit in material.hits}
    shown = map(task.example, documents.values())
    written = [example[1] for example in shown if example]
    facts = measure(written)
    if not facts.words:
        return ""
    low, high = _round(facts.words_low), _round(facts.words_high)
    length = f"{low} to {high} words" if low < high else f"about {high} words"
    sentence = f"sentences of about {_round(facts.sentence_words)}" if facts.words > 2 * 10 else ""
    opening, _ = habits(written)
    opens = f"often opens with “{opening}”" if opening else ""
    return ", ".join(filter(None, [length, sentence, describe_manner(facts), opens]))


def _round(number: float) -> int:
    """A number of words as a person would say it: exactly up to ten, then by fives, then by tens."""
    step = 1 if number <= 10 else 5 if number <= 40 else 10
    return max(1, step * round(number / step))


def _content(text: str) -> set[str]:
    return {stem(word) for word in words(text) if word not in FUNCTION_WORDS}


def _terms(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _ngrams(terms: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(terms[at : at + n]) for at in range(len(terms) - n + 1)]


def _holds(text: str, gold: str) -> bool:
    """Whether the words of `gold` stand in `text` one after the other."""
    inner = _terms(gold)
    return bool(inner) and tuple(inner) in _ngrams(_terms(text), len(inner))


def _flat(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(message.content for message in prompt)
