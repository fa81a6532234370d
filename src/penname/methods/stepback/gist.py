"""The gist of a history: map over its parts, then reduce (arXiv 2406.14275, section 3.1: P_u = Gist(H_u)).

Every document counts: a history that exceeds the model's context is gisted part by part, and the gists are
gisted. The two shapes of model differ in what a part is and in how parts are merged:

- a chat model describes chunks of documents in seven labelled lines, and merges the descriptions itself;
- a base-like model names the keywords of one document after the other, kept where the document bears them
  out, and the merge is a count over the documents. It is not asked for a style, which it would invent.

Each part's answer is kept under a hash of its content, so new documents cost only their own parts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from penname.lm.base import LanguageModel
from penname.methods.stepback.config import StepBackConfig
from penname.methods.stepback.parse import Gist, parse_gist
from penname.records import Document, Message, Prompt, digest, prompt_values
from penname.tasks import PromptTexts, quote_tags
from penname.tasks.facts import words
from penname.tasks.keywords import keywords_prompt, parse_keywords
from penname.tasks.prompts import fill


@dataclass(frozen=True)
class Part:
    """One question to the model about some documents, and the key under which its answer is kept."""

    prompt: Prompt
    key: str


@dataclass(frozen=True)
class Gister:
    """Asks one model for gists, with one set of texts and settings."""

    model: LanguageModel
    texts: PromptTexts
    config: StepBackConfig

    @property
    def answer_tokens(self) -> int:
        """Tokens of one answer at most."""
        chat = self.model.shape == "chat"
        return self.config.gist_tokens if chat else self.config.keyword_tokens

    @property
    def chunk_tokens(self) -> int:
        """Tokens of documents, or notes, in one question: half of what a small context leaves, at most."""
        return max(1, min(self.config.chunk_tokens, (self.model.context - self.answer_tokens) // 2))

    @property
    def stop(self) -> tuple[str, ...]:
        """Where an answer ends."""
        return () if self.model.shape == "chat" else ("\n",)

    @property
    def fingerprint(self) -> str:
        """Changes when another gist could come of the same documents."""
        return digest([self.model.fingerprint, self.texts.fingerprint, repr(self.config)])

    def parts(self, documents: Sequence[Document]) -> list[Part]:
        """The questions whose answers cover all of `documents`, oldest first."""
        if self.model.shape == "completion":
            return [self._part(self._keywords_prompt(document)) for document in documents]
        return [self._part(self._chunk_prompt(chunk)) for chunk in self._chunks(documents)]

    def merge(self, notes: Sequence[str]) -> list[Part]:
        """The questions that make fewer notes of `notes`: a group of them each (chat models only).

        A group holds at least two notes, so that merging always ends.
        """
        groups: list[list[str]] = [[]]
        used = 0
        for note in notes:
            size = self.model.count(note)
            if len(groups[-1]) >= 2 and used + size > self.chunk_tokens:
                groups.append([])
                used = 0
            groups[-1].append(note)
            used += size
        if len(groups) > 1 and len(groups[-1]) == 1:
            groups[-2].extend(groups.pop())
        return [self._part(self._reduce_prompt(group)) for group in groups]

    def read(self, answers: Sequence[str], documents: Sequence[Document]) -> Gist | None:
        """The gist that the last answers hold; None where a chat model's answer cannot be read."""
        if self.model.shape == "chat":
            gist = parse_gist(answers[0])
            return gist and _limited(gist, self.config)
        named = [
            parse_keywords(answer, f"{document.title}\n{document.text}")
            for answer, document in zip(answers, documents, strict=True)
        ]
        return _counted(named, documents, self.config)

    def _part(self, prompt: Prompt) -> Part:
        return Part(prompt, digest([self.fingerprint, prompt_values(prompt)]))

    def _keywords_prompt(self, document: Document) -> Prompt:
        shown = f"{document.title}. {document.text}"
        return keywords_prompt(self.texts, shown, self.config.keyword_text)

    def _chunk_prompt(self, chunk: Sequence[str]) -> Prompt:
        documents = "\n\n".join(chunk)
        return self._ask(fill(self.texts.chat["gist"], documents=documents))

    def _reduce_prompt(self, notes: Sequence[str]) -> Prompt:
        quoted = "\n\n".join(f"<notes>\n{quote_tags(note)}\n</notes>" for note in notes)
        return self._ask(fill(self.texts.chat["reduce"], notes=quoted))

    def _ask(self, question: str) -> Prompt:
        system = Message(role="system", content=fill(self.texts.chat["gist_system"]))
        return (system, Message(role="user", content=question))

    def _chunks(self, documents: Sequence[Document]) -> list[list[str]]:
        """Documents in chunks of at most `chunk_tokens`; a longer one is cut into pieces that all count."""
        chunks: list[list[str]] = [[]]
        used = 0
        for document in documents:
            for piece in self._pieces(document):
                size = self.model.count(piece)
                if chunks[-1] and used + size > self.chunk_tokens:
                    chunks.append([])
                    used = 0
                chunks[-1].append(piece)
                used += size
        return chunks

    def _pieces(self, document: Document) -> list[str]:
        def quoted(text: str) -> str:
            title = f"Title: {quote_tags(document.title)}\n" if document.title else ""
            return f"<document>\n{title}{quote_tags(text)}\n</document>"

        whole = quoted(document.text)
        size = self.model.count(whole)
        if size <= self.chunk_tokens:
            return [whole]
        # Cut between words; a piece gets nine tenths of its share, as tokens are not spread evenly.
        tokens = document.text.split(" ")
        per_piece = max(1, int(len(tokens) * 0.9 * self.chunk_tokens / size))
        return [quoted(" ".join(tokens[i : i + per_piece])) for i in range(0, len(tokens), per_piece)]


def _limited(gist: Gist, config: StepBackConfig) -> Gist:
    """`gist` with its lists cut to what a profile holds."""
    return Gist(
        topics=gist.topics[: config.topics],
        keywords=gist.keywords[: config.keywords],
        background=gist.background,
        tone=gist.tone,
        length=gist.length,
        structure=gist.structure,
        favoured=gist.favoured[: config.favoured],
    )


def _counted(named: Sequence[tuple[str, ...]], documents: Sequence[Document], config: StepBackConfig) -> Gist:
    """Keywords of single documents as a gist: those borne out by most documents first, newer before older.

    Terms of several words make the topics, single words the keywords.
    """
    vocabularies = [set(words(f"{document.title} {document.text}")) for document in documents]
    spread: Counter[str] = Counter()
    for terms in reversed(named):
        for term in terms:
            if term.lower() not in spread:
                spread[term.lower()] = sum(set(words(term)) <= vocabulary for vocabulary in vocabularies)
    ranked = [term for term, _ in spread.most_common()]
    kind: dict[Literal["topic", "keyword"], list[str]] = {"topic": [], "keyword": []}
    for term in ranked:
        kind["topic" if len(term.split()) > 1 else "keyword"].append(term)
    return Gist(
        topics=tuple(kind["topic"][: config.topics]), keywords=tuple(kind["keyword"][: config.keywords])
    )
