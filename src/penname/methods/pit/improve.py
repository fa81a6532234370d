"""PIT when it writes: round by round a better text, as long as the gap reward says so (arXiv 2310.00898).

    improver = open_improver("runs/pit")
    [improved] = improver.improve([Case("Thank the choir.", draft, about)], ImproveConfig())

y_{k+1} ~ π(· | x, y_k). The paper leaves open when to stop, and more rounds do not always help: here a round
writes several new texts, and the best is taken only where its gap reward over the current one is above a
threshold; else the rounds end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from penname.errors import BadInputError, TrainedError
from penname.lm import LanguageModel, ModelConfig, load_model
from penname.lm.base import Generation, Sampling
from penname.methods.pit.form import Case, Form
from penname.methods.pit.rounds import Improved, Running, run_rounds, text_limit, written_text
from penname.records import Round, digest
from penname.tasks import PromptTexts
from penname.train.folder import open_trained

CANDIDATES = 4


@dataclass(frozen=True)
class ImproveConfig:
    """How texts are improved.

    Raises:
        BadInputError: a setting has a value that it cannot have.
    """

    rounds: int = 3  # at most
    threshold: float = 0.0  # gap reward that a new text must be above; -inf: every round is taken, to compare
    candidates: int | None = None  # new texts of each round; None: 4, and 1 at the temperature 0
    temperature: float = 0.5  # arXiv 2310.00898, section 4: 0.4 to 0.6 works best
    top_p: float = 0.95  # ours
    max_tokens: int | None = None  # of a new text; None: twice the current one's, in steps of 64
    one_line: bool = False  # only the first line of a new text counts

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name in ("rounds", "candidates", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadInputError(f"{name}: {value}; at least 1")
        if math.isnan(self.threshold):
            raise BadInputError("threshold: it is not a number")
        if not 0 <= self.temperature < math.inf or not 0 < self.top_p <= 1:
            raise BadInputError(
                f"temperature {self.temperature} and top_p {self.top_p}: the first is 0 or more, the second "
                "above 0 and at most 1"
            )
        if (self.candidates or 1) > 1 and self.temperature == 0:
            raise BadInputError("candidates at the temperature 0 would be all the same: give one above 0")

    @property
    def texts(self) -> int:
        """New texts of each round, of which the gap reward picks the best."""
        return self.candidates or (CANDIDATES if self.temperature > 0 else 1)


class Gaps(Protocol):
    """A gap reward, as `penname.methods.pit.gap.open_gap` gives it."""

    @property
    def fingerprint(self) -> str:
        """Changes with everything that decides a gap."""
        ...

    def gaps(self, cases: Sequence[Case], texts: Sequence[str]) -> list[float]:
        """By how much each text is better than its case's draft: r(x, y, y_ref)."""
        ...

    def fits(self, case: Case, text: str) -> bool:
        """Whether it can read the text after the case."""
        ...

    def probability(self, gap: float) -> float:
        """That a text with this gap is the better one."""
        ...


class Improver:
    """A model that improves texts, and the gap reward that says when to stop.

    Args:
        model: the policy π.
        gap: the gap reward r, or the folder of one, which is opened when it is first needed: it is heavy.
        form: how texts are put to both.
        path: the run's folder.
    """

    def __init__(self, model: LanguageModel, gap: Gaps | Path, form: Form, path: Path) -> None:
        self.model = model
        self.form = form
        self.path = path
        self._gap = gap

    @cached_property
    def gap(self) -> Gaps:
        """The gap reward.

        Raises:
            TrainedError: it cannot be used.
        """
        if not isinstance(self._gap, Path):
            return self._gap
        from penname.methods.pit.gap import open_gap

        return open_gap(self._gap)

    @property
    def fingerprint(self) -> str:
        """Changes with the weights of policy or gap reward, and with the prompt texts."""
        return digest([self.model.fingerprint, self.gap.fingerprint, self.form.texts.fingerprint])

    def improve(
        self, cases: Sequence[Case], config: ImproveConfig = ImproveConfig(), seed: int = 0
    ) -> list[Improved]:
        """What comes of each case's draft, in order; the same with each seed.

        A text stays as it stands when the next one gains nothing, is blank, is cut at its limit, or came
        before, and when it has no room in the context of the policy or of the gap reward.
        """
        return run_rounds(cases, config.rounds, lambda running: self._round(running, config, seed))

    def _round(self, running: Sequence[Running], config: ImproveConfig, seed: int) -> None:
        """y_{k+1} ~ π(· | x, y_k) for all texts, each taken where it is better."""
        tried = [
            (one, text)
            for one, options in self._written(running, config, seed)
            for text in self._usable(one, options, config)
        ]
        gains = self.gap.gaps([one.case for one, _ in tried], [text for _, text in tried]) if tried else []
        best: dict[Running, tuple[float, str]] = {}
        for (one, text), gain in zip(tried, gains, strict=True):
            if one not in best or gain > best[one][0]:
                best[one] = (gain, text)
        for one, (gain, text) in best.items():
            taken = gain > config.threshold
            made = Round(text=text, taken=taken, gain=gain, probability=self.gap.probability(gain))
            if taken:
                one.take(made)
            else:
                why = f"round {one.number} gained {gain:.3f}, and more than {config.threshold:g} is asked"
                one.stop(why, made)

    def _written(
        self, running: Sequence[Running], config: ImproveConfig, seed: int
    ) -> list[tuple[Running, list[Generation]]]:
        """New texts for each; those of one limit are written together. What has no room is stopped."""
        by_limit: dict[int, list[Running]] = {}
        for one in running:
            limit = text_limit(self.model, self.form.prompt(one.case), one.case.draft, config.max_tokens)
            if limit and self.gap.fits(one.case, one.case.draft):
                by_limit.setdefault(limit, []).append(one)
            else:
                reader = "gap reward" if limit else "model"
                one.stop(f"the text is too long to be improved: it does not fit into the {reader}'s context")
        found: list[tuple[Running, list[Generation]]] = []
        for limit, some in by_limit.items():
            sampling = Sampling(limit, config.temperature, config.top_p, tuple(self.form.stop), seed)
            prompts = [self.form.prompt(one.case) for one in some]
            found += zip(some, self.model.generate(prompts, config.texts, sampling), strict=True)
        return found

    def _usable(self, one: Running, options: Sequence[Generation], config: ImproveConfig) -> list[str]:
        """The texts that may be taken, each once; where there is none, the rounds end."""
        usable: dict[str, None] = {}
        refused: dict[str, str] = {}
        for option in options:
            text, cut = written_text(option, one_line=config.one_line)
            why = one.refusal(text, cut=cut)
            if not why and not self.gap.fits(one.case, text):
                why = f"the text of round {one.number} does not fit into the gap reward's context"
            if why:
                refused.setdefault(text, why)
            else:
                usable[text] = None
        if not usable:
            text, why = next(iter(refused.items()))
            one.stop(why, Round(text=text, taken=False))
        return list(usable)


def open_improver(folder: Path | str, device: str | None = None) -> Improver:
    """The run in `folder`, of `penname train pit` or of its last stage alone, ready to improve texts.

    Nothing of policy or gap reward is loaded yet.

    Args:
        device: that the policy runs on; a GPU if there is one, where None.

    Raises:
        TrainedError: no such run, or it is cut short, or of another method.
        BadInputError: the prompt texts that PENNAME_PROMPTS names cannot be read.
    """
    trained = open_trained(folder, "pit", "pit-rl")
    for part in ("model", "gap"):
        if not (trained.path / part).is_dir():
            raise TrainedError(f"{trained.path} is cut short: its {part}/ is gone")
    config = ModelConfig(str(trained.path / "model"), shape=trained.settings.get("shape"), device=device)
    model = load_model(config)
    return Improver(model, trained.path / "gap", Form(model.shape, PromptTexts.load()), trained.path)


@dataclass(frozen=True)
class Improving:
    """What is done to a draft when it is written."""

    improver: Improver
    config: ImproveConfig
    about: str = ""  # text about the authors; profiles that the draft was written from come before it

    @property
    def key(self) -> list[object]:
        """What of it decides the text: part of every cache key."""
        return [self.improver.fingerprint, repr(self.config), self.about]
