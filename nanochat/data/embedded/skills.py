"""The skills of the embedded corpus. Each draws examples, either for training or held out, and never one as the other.

What is held out depends on the example's operands or pairing alone (mostly by a hash), not on a seed:

- facts: each fact is never asked in one of its relation's wordings
- identity: a third of the pairings of opener and question; small talk: a third of those of wording and name
- addition, subtraction: some pairs of operands, whichever way round and whatever the operation
- spelling, counting, sorting: some words; a held-out example is made of those alone
"""

import functools
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Protocol

from nanochat.data.embedded import tables

HERE = Path(__file__).parent
LETTERS = "abcdefghijklmnopqrstuvwxyz"
BARE_LETTERS = 0.25  # part of the sorting examples of the training set that sort letters
MADE_UP = 0.6  # part of the training words that are made up
RUDE = re.compile("fuck|shit|cunt|bitch|nigg|fag|slut|whore|dick|rapis|nazi|tits|piss")  # what no made-up word may hold


@dataclass(frozen=True)
class Fact:
    """One line of facts.tsv: (capital, France) -> Paris."""

    relation: str
    entity: str
    answer: str


@dataclass(frozen=True)
class Example:
    """One question and its answer. `code` is what the calculator is asked on the way, `answer` what the user reads."""

    skill: str
    prompt: str
    answer: str
    code: str = ""

    def document(self) -> str:
        """The example as plain text, for pretraining: a line each for the question, the calculator's two and the answer.

        Lines, because a token at the start of a line is the one at the start of a chat message: there is no space before it.
        """
        return "\n".join((self.prompt, self.code, self.answer, self.answer) if self.code else (self.prompt, self.answer))

    def turns(self) -> list[dict[str, Any]]:
        """The example as a user's message and the assistant's reply, for fine-tuning."""
        reply: str | list[dict[str, str]] = self.answer
        if self.code:
            reply = [
                {"type": "python", "text": self.code},
                {"type": "python_output", "text": self.answer},
                {"type": "text", "text": self.answer},
            ]
        return [{"role": "user", "content": self.prompt}, {"role": "assistant", "content": reply}]


class Skill(Protocol):
    """A source of examples. `draw(random, held_out)` gives one of the training set, or one that is not in it."""

    name: str

    def draw(self, random: Random, held_out: bool = False) -> Example: ...


def chance(*key: object) -> float:
    """A fixed number in [0, 1) for `key`, the same on every machine."""
    digest = hashlib.blake2b("\t".join(map(str, key)).encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48


@functools.cache
def facts() -> tuple[Fact, ...]:
    """The declared table, in the order of facts.tsv."""
    lines = (HERE / "facts.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return tuple(Fact(*line.split("\t")) for line in lines)


@functools.cache
def words() -> tuple[str, ...]:
    """The words to spell, count and sort: lower case, 3-10 letters, in the order of words.txt."""
    return tuple((HERE / "words.txt").read_text(encoding="utf-8").split())


@functools.cache
def other_words() -> frozenset[str]:
    """The words that the rest of the corpus uses: wordings, stories and facts, in lower case."""
    other_text = repr([value for key, value in vars(tables).items() if key.isupper()]) + repr(facts())
    return frozenset(re.findall("[a-z]+", other_text.lower()))


@functools.cache
def split_words() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(words to train on, words held out).

    A word that other text of the corpus uses is never held out: it may be one token there, and nothing but
    its own spelling would teach the model which letters that token has.
    """
    held_out = [word for word in words() if word not in other_words() and chance("word", word) < 0.2]
    return tuple(word for word in words() if word not in set(held_out)), tuple(held_out)


@functools.cache
def pieces() -> tuple[tuple[str, ...], tuple[str, ...], frozenset[str]]:
    """(beginnings, endings, words that must not be made up) for made-up words. Rare pieces count as much as common ones."""
    trained, unseen = split_words()
    known = sorted({*trained, *other_words()})
    beginnings = {word[:length] for word in known for length in range(2, 6)}
    endings = {word[-length:] for word in known for length in range(2, 6)}
    return tuple(sorted(beginnings)), tuple(sorted(endings)), frozenset(unseen)


def draw_word(random: Random, held_out: bool) -> str:
    """A word to work on. In training some are made up of the beginning of one word and the end of another.

    Made-up words cannot be known by heart, so that the model learns to read the letters, which the held-out words need.
    """
    trained, unseen = split_words()
    if held_out:
        return random.choice(unseen)
    if random.random() < MADE_UP:
        beginnings, endings, forbidden = pieces()
        word = random.choice(beginnings) + random.choice(endings)
        if 6 <= len(word) <= 10 and word not in forbidden and not RUDE.search(word):
            return word
    return random.choice(trained)


def draw_words(random: Random, held_out: bool, letters: bool = True) -> list[str]:
    """Three words with different first letters; in training sometimes bare letters, which teach the alphabet for fewer tokens."""
    if letters and not held_out and random.random() < BARE_LETTERS:
        return random.sample(LETTERS, 3)
    while True:
        chosen = [draw_word(random, held_out) for _ in range(3)]
        if len({word[0] for word in chosen}) == 3:
            return chosen


def fill(wording: str, **values: str) -> str:
    """`wording` with its braces filled; {a} is the indefinite article of {entity}."""
    article = "an" if values.get("entity", "")[:1] in "aeiou" else "a"
    return wording.format(**({"a": article} | values))


class Facts:
    """The declared facts. Every fact has exactly one wording that is held out."""

    name = "facts"

    @staticmethod
    def held_out_wording(fact: Fact) -> int:
        """Index into RELATIONS[fact.relation] of the wording in which this fact is never trained on."""
        return int(chance("fact", fact.relation, fact.entity) * len(tables.RELATIONS[fact.relation]))

    def draw(self, random: Random, held_out: bool = False) -> Example:
        fact = random.choice(facts())
        wordings, unseen = tables.RELATIONS[fact.relation], self.held_out_wording(fact)
        wording = wordings[unseen] if held_out else random.choice(wordings[:unseen] + wordings[unseen + 1 :])
        return Example(self.name, fill(wording, entity=fact.entity), fact.answer)


class Pairings:
    """Examples made of a wording and an entity, of which every third pairing is held out. Base of the next two.

    Going diagonally through the grid holds out a third of each wording's pairings and a third of each entity's.
    """

    name: str

    def grids(self) -> Iterator[list[list[Example]]]:
        """Grids of examples, one row for each wording, one column for each entity."""
        raise NotImplementedError

    def always(self) -> Iterator[Example]:
        """Examples outside those grids, which are always trained on."""
        raise NotImplementedError

    @functools.cached_property
    def split(self) -> tuple[list[Example], list[Example]]:
        """(training, held out)"""
        sides: tuple[list[Example], list[Example]] = (list(self.always()), [])
        for grid in self.grids():
            for i, row in enumerate(grid):
                for j, example in enumerate(row):
                    sides[(i + j) % 3 == 0].append(example)
        return sides

    def draw(self, random: Random, held_out: bool = False) -> Example:
        return random.choice(self.split[held_out])


class Identity(Pairings):
    """Who the model is, in English and in Traditional Chinese: a question after an opener, or alone."""

    name = "identity"
    languages = ((tables.ENGLISH_OPENERS, tables.ENGLISH_IDENTITY), (tables.CHINESE_OPENERS, tables.CHINESE_IDENTITY))

    def grids(self) -> Iterator[list[list[Example]]]:
        for openers, questions in self.languages:
            yield [
                [Example(self.name, opener + question, answer) for opener in openers] for asked, answer in questions for question in asked
            ]

    def always(self) -> Iterator[Example]:
        for _, questions in self.languages:
            for asked, answer in questions:
                for question in asked:
                    yield Example(self.name, question, answer)


class SmallTalk(Pairings):
    """Greetings and thanks, most of them with a name that the answer repeats."""

    name = "small talk"

    def grids(self) -> Iterator[list[list[Example]]]:
        yield [
            [Example(self.name, wording.format(name=name), reply.format(name=name)) for name in tables.NAMES]
            for wording, reply in tables.SMALL_TALK
        ]

    def always(self) -> Iterator[Example]:
        for wording, reply in tables.COURTESIES:
            yield Example(self.name, wording, reply)


class Arithmetic:
    """Addition or subtraction of 1-4 digits. The model writes the expression, the calculator the result."""

    def __init__(self, name: str, operator: str, wordings: tuple[str, ...]):
        self.name, self.operator, self.wordings = name, operator, wordings

    @staticmethod
    def is_held_out(a: int, b: int) -> bool:
        """Whether the pair is held out: the same for a+b, b+a, a-b and b-a."""
        return chance("operands", min(a, b), max(a, b)) < 0.1

    def draw(self, random: Random, held_out: bool = False) -> Example:
        while True:
            a, b = (random.randrange(10 ** random.randint(1, 4)) for _ in "ab")
            if self.is_held_out(a, b) == held_out:
                break
        result = a + b if self.operator == "+" else a - b
        wording = random.choice(self.wordings)
        return Example(self.name, wording.format(a=a, b=b), str(result), f"{a}{self.operator}{b}")


class Spelling:
    """The letters of a word, with spaces between them."""

    name = "spelling"

    def draw(self, random: Random, held_out: bool = False) -> Example:
        return self.ask(random, draw_word(random, held_out))

    def ask(self, random: Random, word: str) -> Example:
        """An example about `word`."""
        return Example(self.name, random.choice(tables.SPELLING).format(word=word), " ".join(word))


class Counting:
    """How often a letter occurs in a word, by the calculator's count."""

    name = "counting"

    def draw(self, random: Random, held_out: bool = False) -> Example:
        return self.ask(random, draw_word(random, held_out))

    def ask(self, random: Random, word: str) -> Example:
        """An example about `word`."""
        letter = random.choice(word) if random.random() < 0.8 else random.choice(LETTERS)
        prompt = random.choice(tables.COUNTING).format(letter=letter, word=word)
        return Example(self.name, prompt, str(word.count(letter)), f"'{word}'.count('{letter}')")


class Sorting:
    """Three words with different first letters, put in alphabetical order."""

    name = "sorting"

    def draw(self, random: Random, held_out: bool = False) -> Example:
        return self.ask(random, draw_words(random, held_out))

    def ask(self, random: Random, chosen: list[str]) -> Example:
        """An example about these three words."""
        prompt = random.choice(tables.SORTING).format(words=", ".join(chosen))
        return Example(self.name, prompt, "Sorted: " + ", ".join(sorted(chosen)))


class Stories:
    """Small stories from a grammar. Any of them is as good as another, so none is held out or scored."""

    name = "stories"

    def draw(self, random: Random, held_out: bool = False) -> Example:
        assert not held_out, "stories have no right answer"
        values = {
            "hero": random.choice(tables.HEROES),
            "name": random.choice(tables.NAMES),
            "place": random.choice(tables.PLACES),
            "thing": random.choice(tables.THINGS),
        }
        values["quality"], values["quality2"] = random.sample(tables.QUALITIES, 2)
        story = " ".join(random.choice(part) for part in tables.STORY)
        return Example(self.name, random.choice(tables.STORY_REQUESTS).format(**values), story.format(**values))


SPELLING, COUNTING, SORTING = Spelling(), Counting(), Sorting()
SCORED: tuple[Skill, ...] = (
    Facts(),
    Identity(),
    SmallTalk(),
    Arithmetic("addition", "+", tables.ADDITION),
    Arithmetic("subtraction", "-", tables.SUBTRACTION),
    SPELLING,
    COUNTING,
    SORTING,
)
STORIES = Stories()


def worksheet(random: Random) -> list[Example]:
    """Three words sorted, some of them spelt and letters of them counted.

    Where a word comes again it can be foreseen, so that what is left to learn is how to read it.
    """
    chosen = draw_words(random, held_out=False, letters=False)
    sheet = [SPELLING.ask(random, word) for word in chosen[: random.choice((1, 2, 3))]]
    if random.random() < 0.4:
        sheet.append(COUNTING.ask(random, random.choice(chosen)))
    sheet.append(SORTING.ask(random, random.sample(chosen, 3)))
    random.shuffle(sheet)
    return sheet
