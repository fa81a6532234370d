"""Users' soft prompts on a real vLLM: does it write what is written here, and what do they cost there?

    penname merge RUN --dtype float32
    vllm serve RUN/merged --served-model-name mine --enable-prompt-embeds --dtype float32
    python benchmarks/vllm_soft.py http://127.0.0.1:8000/v1#mine RUN
        [--prompts 6] [--users NAME …] [--turns 5] [--dtype float32] [--scores]

RUN is a run of `penname train p-dpo`; without `--users` one on the preferences of `benchmarks/conflict.py`,
whose users are `user-0` to `user-9`. Asked at once are all prompts of all users and of somebody unknown, each
greedily, whole and streamed; the same is written here, one after the other. In float32 the texts are the same
but where two tokens are equally likely to the last digits; in bfloat16 rounding parts them earlier. Then the
time to a text of one token, and tokens a second of several users at once, each with the soft prompts and
without, in turn. `--scores` compares log-probabilities of texts instead, as plain text and as a chat, by the
merged model there and here.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from penname.evaluate.demo import load_sample
from penname.lm import ModelConfig, load_model
from penname.lm.base import Generation, Sampling, Shape
from penname.methods.prlhf.method import Personal, open_personal
from penname.records import Message, Prompt
from penname.store import Store
from penname.train.folder import open_trained
from penname.train.merge import FOLDER
from serve import pairs, row

TOKENS = 48
SOFT = "soft"


def titles(n: int) -> list[str]:
    """What the built-in sample's writers wrote about."""
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "store.db") as store:
        load_sample(store)
        found = [document.title for user in store.users() for document in store.user(user.id).documents()]
    return [title for title in found if title][:n]


def compare(here: Personal, there: Personal, prompts: Sequence[str], users: Sequence[str]) -> int:
    """Print how many texts are the same; returns how many are not."""
    sampling = Sampling(max_tokens=TOKENS, temperature=0)
    asked = [(prompt, user) for prompt in prompts for user in users]
    texts, soft = [prompt for prompt, _ in asked], [here.prefix(user) for _, user in asked]
    found = there.model.generate(texts, 1, sampling, soft)
    wanted = [
        here.model.generate([text], 1, sampling, [one])[0] for text, one in zip(texts, soft, strict=True)
    ]
    with ThreadPoolExecutor(len(users)) as pool:
        pieces = list(
            pool.map(lambda text, one: "".join(there.model.stream(text, sampling, one)), texts, soft)
        )
    same = sum(_same(one, other) for [one], [other] in zip(found, wanted, strict=True))
    alike = sum(one.text == piece for [one], piece in zip(found, pieces, strict=True))
    distinct = len({one.text for [one] in found})
    print(f"texts of {TOKENS} tokens as they are written here: {same} of {len(asked)}; {distinct} distinct")
    print(f"streamed as whole: {alike} of {len(asked)}")
    for (prompt, user), [one], [other] in zip(asked, found, wanted, strict=True):
        if not _same(one, other):
            print(f"  {user}, {prompt!r}\n    there {one.text[:150]!r}\n    here  {other.text[:150]!r}")
    return 2 * len(asked) - same - alike


def _same(one: Generation, other: Generation) -> bool:
    return (one.text, one.prompt_tokens, one.finish) == (other.text, other.prompt_tokens, other.finish)


def cost(there: Personal, prompts: Sequence[str], users: Sequence[str], turns: int) -> None:
    """Print time and throughput with soft prompts and without."""
    with ThreadPoolExecutor(len(users)) as pool:

        def one(arm: str, prompt: str, user: str, tokens: int) -> int:
            prefix = there.prefix(user) if arm == SOFT else None
            [[text]] = there.model.generate([prompt], 1, Sampling(max_tokens=tokens, temperature=0), [prefix])
            return text.tokens

        def first(arm: str, text: str) -> float:
            began = time.perf_counter()
            one(arm, text, users[0], 1)
            return time.perf_counter() - began

        def together(arm: str, text: str) -> float:
            began = time.perf_counter()
            tokens: int = sum(pool.map(lambda user: one(arm, text, user, TOKENS), users))
            return tokens / (time.perf_counter() - began)

        print(f"{'':34}{SOFT:>10}{'none':>10} {'':9}{'ratio (range)'}")
        warm, *texts = (f"{prompts[turn % len(prompts)]}, part {turn}" for turn in range(4 * turns + 1))
        pairs(first, SOFT, [warm])
        print(row("first token", "ms", pairs(first, SOFT, texts), 1000, slower=True))
        pairs(together, SOFT, [warm])
        found = pairs(together, SOFT, texts[:turns])
        print(row(f"{len(users)} users at once", "tokens/s", found, 1, slower=False))


def scores(args: argparse.Namespace) -> int:
    """Print by how much log-probabilities differ; returns 1 where it is more than rounding."""
    worst, found, merged = 0.0, titles(args.prompts), str(args.run / FOLDER)
    shapes: tuple[Shape, ...] = ("completion", "chat")
    for shape in shapes:
        here = load_model(ModelConfig(merged, dtype=args.dtype, device="cpu", shape=shape))
        there = load_model(ModelConfig(args.url, shape=shape))
        prompts: list[Prompt] = list(found)
        if shape == "chat":
            prompts = [(Message(role="user", content=title),) for title in found]
        ends = [f" {title}" for title in reversed(found)]
        pairs = zip(there.score(prompts, ends), here.score(prompts, ends), strict=True)
        differ = max(abs(one.total - other.total) / other.tokens for one, other in pairs)
        print(f"log-probabilities as {shape}: {differ:.1e} nats a token apart at most")
        worst = max(worst, differ)
    return int(worst > (1e-3 if args.dtype == "float32" else 0.1))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url", help="of the server, and behind # its name for the merged model")
    parser.add_argument("run", type=Path)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--users", nargs="+", default=[f"user-{number}" for number in range(8)])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--scores", action="store_true")
    args = parser.parse_args()
    if args.scores:
        return scores(args)
    base = open_trained(args.run).model
    here = open_personal(args.run, ModelConfig(base, dtype=args.dtype, device="cpu"))
    there = open_personal(args.run, ModelConfig(args.url, embeddings=base, dtype=args.dtype))
    if strange := [user for user in args.users if not here.knows(user)]:
        raise SystemExit(f"{args.run} knows no {', '.join(strange)}: name its users with --users")
    prompts = titles(args.prompts)
    wrong = compare(here, there, prompts, [*args.users, "somebody unknown"])
    cost(there, prompts, args.users, args.turns)
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
