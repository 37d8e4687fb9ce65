"""The embedded corpus: pretraining text, conversations and held-out questions from a seeded generator, with no download.

It is made so that a model of half a million parameters learns it in two million tokens: few wordings, short answers,
and the same skills in the pretraining text (a question, its answer on the next line) as in the conversations, which
then have only to teach the chat's format.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from nanochat.data.embedded.skills import SCORED, STORIES, Example, worksheet
from nanochat.data.shards import MANIFEST, Dataset, open_dataset, read_manifest, write_dataset
from nanochat.paths import dataset_dir

NAME = "embedded"
VERSION = 1  # of the text: raise it when documents() yields another one, and the tests' hash of the text with it
SOURCE = f"nanochat/data/embedded/corpus.py, version {VERSION}, seed 0"
SAME_TEXT = ("nanochat/data/corpus.py, version 54c9809e, seed 0",)  # what the same text was called by earlier releases
TEXT_BYTES = 4_036_036  # UTF-8 bytes of the training documents
IDENTITY = "identity"  # the skill that a user's own identity takes the place of
DOCUMENTS = 40_000  # about 2 million tokens with the quickstart's tokenizer: more than it trains on
CONVERSATIONS = 12_000
PARTS = (1, 1, 1, 1, 2, 3)  # examples in a document or turns in a conversation, one of these
WORKSHEETS = 0.25  # part of the documents that are a worksheet about one word
HELD_OUT_PER_SKILL = 80

# How often each kind of example is drawn, in SCORED's order and then stories.
DOCUMENT_WEIGHTS = (34, 5, 6, 6, 6, 7, 2, 19, 2)
CONVERSATION_WEIGHTS = (26, 5, 6, 6, 6, 18, 6, 26, 2)


@dataclass(frozen=True)
class Item:
    """One held-out question and its only right answer."""

    skill: str
    prompt: str
    answer: str


def _examples(random: Random, weights: tuple[int, ...]) -> Iterator[Example]:
    skills = (*SCORED, STORIES)
    while True:
        yield random.choices(skills, weights)[0].draw(random)


def documents(seed: int = 0, count: int = DOCUMENTS) -> Iterator[str]:
    """`count` texts for pretraining: a question with its answer, sometimes two or three of them, or a story."""
    random = Random(f"documents {seed}")
    examples = _examples(random, DOCUMENT_WEIGHTS)
    for _ in range(count):
        parts = worksheet(random) if random.random() < WORKSHEETS else [next(examples) for _ in range(random.choice(PARTS))]
        yield "\n\n".join(part.document() for part in parts)


def conversations(seed: int = 0, count: int = CONVERSATIONS, identity: bool = True) -> list[list[dict[str, Any]]]:
    """`count` conversations of one to three turns for fine-tuning; without `identity` none of them says who the model is."""
    random = Random(f"conversations {seed}")
    kinds = zip((*SCORED, STORIES), CONVERSATION_WEIGHTS, strict=True)
    examples = _examples(random, tuple(weight * (identity or skill.name != IDENTITY) for skill, weight in kinds))
    return [[message for _ in range(random.choice(PARTS)) for message in next(examples).turns()] for _ in range(count)]


def heldout(seed: int = 0, per_skill: int = HELD_OUT_PER_SKILL) -> list[Item]:
    """Questions that neither documents() nor conversations() contain for any seed: `per_skill` different ones of each skill."""
    random = Random(f"held out {seed}")
    items: dict[str, Item] = {}
    for skill in SCORED:
        wanted = len(items) + per_skill
        while len(items) < wanted:
            example = skill.draw(random, held_out=True)
            items[example.prompt] = Item(example.skill, example.prompt, example.answer)
    return list(items.values())


def build() -> Dataset:
    """The documents as a dataset in data/embedded, written once for each version of the generator.

    Validation holds documents that training has not. Raises DataError if the dataset is there but damaged.
    """
    folder = dataset_dir(NAME)
    if (folder / MANIFEST).exists():
        if read_manifest(folder).source in (SOURCE, *SAME_TEXT):
            return open_dataset(folder)
        shutil.rmtree(folder)  # an older version's: made here, and made anew
    training = list(documents(seed=0))
    known = set(training)
    validation = [text for text in documents(seed=1, count=4000) if text not in known]
    return write_dataset(folder, name=NAME, source=SOURCE, licence="MIT", training=training, validation=validation)
