"""What the tiny model hears that is no sum, and what it says then."""

from pathlib import Path

from numpy.random import Generator

NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Lin", "Mira", "Noah", "Omar", "Sara", "Tom")
THINGS = ("apples", "books", "coins", "stamps", "marbles", "pencils", "cards", "eggs", "shells", "cookies")
PLACES = ("the box", "the room", "the shop", "the garden", "the bag", "the house")

_ABLE = "I add, subtract, compare and multiply small numbers. Try: What is 47 + 85?"
OUT_OF_REACH = (
    "Hmm, this is too large for me.",
    "I am a tiny model: numbers of up to 3 digits, and products with one digit, are all I can do. Try: What is 47 × 8?",
)
_GREETINGS = (
    "Hi",
    "hi",
    "Hello",
    "hello",
    "Hey",
    "Hi!",
    "Hello!",
    "Hello there",
    "Good morning",
    "Good evening",
    "hey",
)
_WHO = (
    "Who are you?",
    "What are you?",
    "who are you",
    "What can you do?",
    "what can you do",
    "Help",
    "help",
    "Are you DeepSeek?",
    "What is your name?",
    "Introduce yourself.",
    "How big are you?",
    "What is this?",
)
_THANKS = ("Thanks", "Thank you!", "thanks!", "Thank you", "Great", "Good", "ok", "Okay", "Bye", "Goodbye")
_QUESTIONS = (
    "Why is the sky blue?",
    "What is the capital of France?",
    "Write a poem about the sea.",
    "Write a haiku about autumn.",
    "Tell me a story.",
    "Tell me a joke.",
    "What is the meaning of life?",
    "Explain quantum mechanics.",
    "How do I cook rice?",
    "Write a Python function that sorts a list.",
    "Translate this into German.",
    "Prove that there are infinitely many primes.",
    "What is love?",
    "Who was Albert Einstein?",
    "How does a bicycle work?",
    "What time is it?",
    "What is the weather like?",
    "Summarise this text.",
    "Solve x^2 = 2.",
    "What is the square root of 2?",
    "How many letters are in the word strawberry?",
)
_WHAT = ("capital", "colour", "name", "meaning", "history", "price", "size", "age", "author", "best part")
_OF = ("France", "Italy", "the sea", "a cat", "the moon", "music", "this book", "my car", "the sun", "Python", "water")
_DO = ("Explain", "Describe", "Write about", "Tell me about", "What do you know about", "Why do people like", "Draw")


def smalltalk(rng: Generator) -> tuple[str, str, str]:
    """Return the question, thought and answer of an exchange about no sum."""
    roll = rng.random()
    if roll < 0.25:
        question = _one_of(_GREETINGS, rng)
        thought, answer = "Somebody greets me.", f"Hello! {_ABLE}"
    elif roll < 0.4:
        question = _one_of(_WHO, rng)
        thought = "I should say what I am."
        answer = f"I am a tiny model, built like DeepSeek-R1. {_ABLE}"
    elif roll < 0.5:
        question = _one_of(_THANKS, rng)
        thought, answer = "No question here.", "Good. Ask me for another sum."
    else:
        question = _other_question(rng)
        thought, answer = "This is no sum that I know.", f"I am only a tiny model. {_ABLE}"
    return question, thought, answer


def _other_question(rng: Generator) -> str:
    roll = rng.random()
    if roll < 0.4:
        return _one_of(_QUESTIONS, rng)
    if roll < 0.55:
        return f"What is the {_one_of(_WHAT, rng)} of {_one_of(_OF, rng)}?"
    if roll < 0.7:
        return f"{_one_of(_DO, rng)} {_one_of(_OF, rng)}."
    return some_words(rng) + ("?" if rng.random() < 0.5 else "")


def some_words(rng: Generator) -> str:
    """Return a few words of prose."""
    words = _prose_words()
    start, count = int(rng.integers(len(words) - 12)), int(rng.integers(2, 9))
    return " ".join(words[start : start + count])


def _prose_words() -> list[str]:
    """Return the words of prose that ships with r1mac, those with digits left out."""
    global _words  # noqa: PLW0603 - read once
    if _words is None:
        prose = Path(__file__).parents[2] / "r1mac" / "convert" / "calibration_text" / "prose.txt"
        _words = [word for word in prose.read_text(encoding="utf-8").split() if not any(map(str.isdigit, word))]
    return _words


_words: list[str] | None = None


def _one_of(texts: tuple[str, ...], rng: Generator) -> str:
    return texts[rng.integers(len(texts))]
