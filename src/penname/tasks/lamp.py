"""The tasks of LaMP (arXiv 2304.11406) and LongLaMP (arXiv 2407.11016), with their layouts and queries.

What an item looks like, what stands between the items and the request, and which part of an input is the
query are the benchmarks' own, as their published code has them. Two things differ. LaMP-1 puts the titles of
the history inside the question; here they stand before it, as in the other tasks. And a line with the
answer's label follows the request: it tells a causal model where its answer begins, as the start of the
decoder does for the encoder-decoder models that the benchmarks were made with.
"""

from __future__ import annotations

from penname.tasks.base import Task

MOVIE_TAGS = (
    "sci-fi",
    "based on a book",
    "comedy",
    "action",
    "twist ending",
    "dystopia",
    "dark comedy",
    "classic",
    "psychology",
    "fantasy",
    "romance",
    "thought-provoking",
    "social commentary",
    "violence",
    "true story",
)
_CLASSES = ("accuracy", "macro_f1")
_ROUGE = ("rouge1", "rougeL")
_LONG = ("rouge1", "rougeL", "meteor")
_PATTERNS = ". Following the given patterns "
_CANDIDATES = r'[^"]*"[^"]*"[^"]*"([^"]*)"[^"]*"([^"]*)"'  # the second and third of what stands in quotes


def _answer(what: str) -> str:
    """Our instruction to a chat model: the request that follows says the rest."""
    return (
        f"Do what the request asks, as the person described above would. Answer with {what} and nothing else."
    )


LAMP = (
    Task(
        "LaMP-1",
        "which of two papers an author cites",
        _answer("[1] or [2]"),
        "Request",
        "Reference",
        example_input=(),
        example_output="title",
        max_tokens=16,
        one_line=True,
        bare_examples=True,
        metrics=_CLASSES,
        choices=("[1]", "[2]"),
        item='"$title"',
        lead=" are titles of papers by the author. ",
        query_pattern=_CANDIDATES,
    ),
    Task(
        "LaMP-2",
        "the tag a person gives a movie",
        _answer("one of the tags"),
        "Request",
        "Tag",
        example_input="text",
        example_output="tag",
        max_tokens=16,
        one_line=True,
        metrics=_CLASSES,
        choices=MOVIE_TAGS,
        item='the tag for the movie: "$text" is "$tag"',
        lead=". ",
        query_pattern=r".*?description:(.*)",
    ),
    Task(
        "LaMP-3",
        "the score, 1 to 5, a person gives with a review",
        _answer("1, 2, 3, 4 or 5"),
        "Request",
        "Score",
        example_input="text",
        example_output="score",
        max_tokens=16,
        one_line=True,
        metrics=("mae", "rmse"),
        choices=("1", "2", "3", "4", "5"),
        item='$score is the score for "$text"',
        lead=". ",
        query_pattern=r".*?review:(.*)",
    ),
    Task(
        "LaMP-4",
        "a headline from a news article",
        _answer("the headline"),
        "Request",
        "Headline",
        example_input="text",
        example_output="title",
        max_tokens=32,
        one_line=True,
        metrics=_ROUGE,
        item='"$title" is the title for "$text"',
        lead=". ",
        query_pattern=r".*?article:(.*)",
    ),
    Task(
        "LaMP-5",
        "a paper's title from its abstract",
        _answer("the title"),
        "Request",
        "Title",
        example_input="text",
        example_output="title",
        max_tokens=48,
        one_line=True,
        metrics=_ROUGE,
        item='"$title" is a title for "$text"',
        lead=_PATTERNS,
        query_pattern=r".*?paper:(.*)",
    ),
    Task(
        "LaMP-6",
        "an e-mail's subject from its text",
        _answer("the subject"),
        "Request",
        "Subject",
        example_input="text",
        example_output="title",
        max_tokens=32,
        one_line=True,
        metrics=_ROUGE,
        item='"$title" is the title for "$text"',
        lead=". ",
        query_pattern=r".*?:(.*)",
    ),
    Task(
        "LaMP-7",
        "a tweet in a person's own words",
        _answer("the tweet"),
        "Request",
        "Tweet",
        example_input=(),
        max_tokens=64,
        one_line=True,
        bare_examples=True,
        metrics=_ROUGE,
        item='"$text"',
        lead=" are written by a person. Following the given patterns ",
        query_pattern=r".*?:(.*)",
    ),
)

LONGLAMP = (
    Task(
        "LongLaMP-email",
        "the whole of an e-mail from its subject and beginning",
        _answer("the e-mail"),
        "Request",
        "E-mail",
        max_tokens=512,
        metrics=_LONG,
        item='"$title" is the title for "$text"',
        lead=". ",
        query_pattern=r".*?:(.*)",
    ),
    Task(
        "LongLaMP-abstract",
        "an abstract from its title and some items",
        _answer("the abstract"),
        "Request",
        "Abstract",
        max_tokens=512,
        metrics=_LONG,
        item='"$text" is the abstract for the title "$title"',
        lead=". Use the above abstracts as context to understand the style and language of the user and, ",
        query_pattern=r".*?items:(.*)",
    ),
    Task(
        "LongLaMP-review",
        "a product review from a rating, a description and a summary",
        _answer("the review"),
        "Request",
        "Review",
        example_input=("overall", "description", "title"),
        max_tokens=512,
        metrics=_LONG,
        item=(
            '"$overall" is a rating for the product with description "$description". '
            '"$title" is summary for "$text"'
        ),
        lead=_PATTERNS,
    ),
    Task(
        "LongLaMP-topic",
        "a post from its summary",
        _answer("the post"),
        "Request",
        "Post",
        max_tokens=512,
        metrics=_LONG,
        item='"$title" is a summary for "$text"',
        lead=". Following the given patterns, ",
    ),
)
