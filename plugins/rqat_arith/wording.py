"""The words of the arithmetic stories: names, things, and one sentence per operation.

Everything a story can say is listed here, so that the tokenizer can give every word a token of its own.
In a template `{who}` is the name, `{what}` the plural of the thing, `{n}` the operand. Sentences are kept to about
seven tokens: a twelve-step story and its solution must fit in 256.
"""

from __future__ import annotations

NAMES = (
    "Ada", "Ben", "Chloe", "Dev", "Elena", "Femi", "Grace", "Hugo", "Ines", "Jonas", "Kira", "Liam", "Mia", "Noor",
    "Omar", "Petra", "Quinn", "Rosa", "Sami", "Tara", "Uma", "Victor", "Wendy", "Yusuf",
)  # fmt: skip

THINGS = (
    "apples", "beads", "books", "buttons", "cards", "coins", "cookies", "crayons", "figs", "keys", "lemons", "marbles",
    "nuts", "pears", "pencils", "plums", "seeds", "shells", "stamps", "stickers", "stones", "tiles", "tokens", "toys",
)  # fmt: skip

OPENINGS = (
    "{who} has {n} {what}.",
    "At first {who} owns {n} {what}.",
    "{who} starts with {n} {what}.",
    "In the box of {who} are {n} {what}.",
)

STEPS = {
    "+": (
        "{who} finds {n} more.",
        "A friend gives {who} {n}.",
        "{who} buys {n} {what}.",
        "Then {n} are added.",
        "{who} wins {n} {what}.",
        "Next {n} more arrive.",
    ),
    "-": (
        "{who} loses {n}.",
        "A friend takes {n}.",
        "{who} sells {n} {what}.",
        "Then {n} are removed.",
        "{who} gives away {n}.",
        "Next {n} {what} break.",
    ),
    "*": (
        "The pile grows {n} times.",
        "Multiply this by {n}.",
        "Each one becomes {n}.",
        "{who} gets {n} times as many.",
    ),
    "/": (
        "One part of {n} is kept.",
        "Divide this by {n}.",
        "The pile shrinks {n} times.",
        "Split by {n}, one share stays.",
    ),
}

# Said instead of a sentence of STEPS, now and then: the operand has to be inferred from the word.
NAMED_STEPS = {
    ("*", 2): "The pile doubles.",
    ("*", 3): "The pile triples.",
    ("/", 2): "Half are lost.",
    ("/", 3): "One third is kept.",
}

QUESTIONS = (
    "How many {what} does {who} have now?",
    "How many {what} are there at the end?",
    "Find the final number of {what}.",
)


def sentences() -> tuple[str, ...]:
    """Every template there is, in a fixed order."""
    steps = tuple(template for group in STEPS.values() for template in group)
    return OPENINGS + steps + tuple(NAMED_STEPS.values()) + QUESTIONS
