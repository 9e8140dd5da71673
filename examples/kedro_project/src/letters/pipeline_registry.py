"""The project's only pipeline."""

from kedro.pipeline import Pipeline, node


def words(text: str) -> list[str]:
    return text.split()


def count(words: list[str]) -> int:
    return len(words)


def longest(words: list[str]) -> str:
    return max(words, key=len)


def register_pipelines() -> dict[str, Pipeline]:
    return {
        "__default__": Pipeline(
            [
                node(words, "params:text", "words", name="words"),
                node(count, "words", "count", name="count"),
                node(longest, "words", "longest", name="longest"),
            ]
        )
    }
