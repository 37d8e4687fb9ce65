"""The embedded corpus: its tables, its determinism, and that what is held out is nowhere in what is trained on."""

import dataclasses
import hashlib
import re
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.data.embedded import corpus, skills, tables
from nanochat.data.shards import texts, write_manifest
from nanochat.generate.tools import calculate
from nanochat.tokenizer.conversation import validate_conversation


@pytest.fixture(scope="module")
def training() -> list[str]:
    """All text that training sees, one string for each line of a document and each message or part."""
    lines = [line for text in corpus.documents() for line in text.split("\n") if line]
    for conversation in corpus.conversations():
        for message in conversation:
            content = message["content"]
            lines += [content] if isinstance(content, str) else [part["text"] for part in content]
    return lines


@pytest.fixture(scope="module")
def heldout() -> list[corpus.Item]:
    return corpus.heldout()


# ---- tables


def test_the_tables_are_large_enough_and_clean():
    words, facts = skills.words(), skills.facts()
    assert len(words) >= 2000 and list(words) == sorted(set(words))
    assert all(re.fullmatch("[a-z]{3,10}", word) for word in words)
    assert {len(word) for word in words} == set(range(3, 11))
    assert len(facts) >= 300
    assert len({(fact.relation, fact.entity) for fact in facts}) == len(facts), "a fact has one answer"
    assert {fact.relation for fact in facts} == set(tables.RELATIONS)
    assert all(fact.entity.strip() == fact.entity and fact.answer.strip() == fact.answer and fact.answer for fact in facts)


def test_every_question_has_one_answer():
    answers: dict[str, set[str]] = {}
    for fact in skills.facts():
        for wording in tables.RELATIONS[fact.relation]:
            answers.setdefault(skills.fill(wording, entity=fact.entity), set()).add(fact.answer)
    for skill in skills.SCORED:
        if isinstance(skill, skills.Pairings):
            for example in skill.split[False] + skill.split[True]:
                answers.setdefault(example.prompt, set()).add(example.answer)
    assert [prompt for prompt, given_ in answers.items() if len(given_) > 1] == []


def test_words_held_out_are_whole_words_of_the_table_and_none_is_made_up():
    random = skills.Random(0)
    trained, held_out = map(set, skills.split_words())
    assert trained | held_out == set(skills.words()) and not trained & held_out
    drawn = {skills.draw_word(random, held_out=False) for _ in range(3000)}
    assert not drawn & held_out and drawn & trained and drawn - trained
    assert all(re.fullmatch("[a-z]{3,10}", word) for word in drawn)
    assert {skills.draw_word(random, held_out=True) for _ in range(3000)} <= held_out


def test_articles():
    assert skills.fill("{a} {entity}", entity="owl") == "an owl"
    assert skills.fill("{a} {entity}", entity="lion") == "a lion"


# ---- the generator


def test_equal_seeds_give_equal_text_and_others_do_not():
    assert list(corpus.documents(5, 50)) == list(corpus.documents(5, 50)) != list(corpus.documents(6, 50))
    assert corpus.conversations(5, 50) == corpus.conversations(5, 50) != corpus.conversations(6, 50)
    assert corpus.heldout(5) == corpus.heldout(5) != corpus.heldout(6)
    assert list(corpus.documents(5, 50)) == list(islice(corpus.documents(5, 100), 50))


def test_conversations_are_valid_and_some_have_several_turns():
    conversations = corpus.conversations(count=1000)
    for conversation in conversations:
        validate_conversation(conversation)
        assert [message["role"] for message in conversation] == ["user", "assistant"] * (len(conversation) // 2)
    assert {len(conversation) for conversation in conversations} == {2, 4, 6}


def test_the_wordings_that_always_work_are_trained_on(training):
    assert {"Who are you?", "你是誰？"} <= set(training)
    assert any(re.fullmatch(r"What is \d+ \+ \d+\?", line) for line in training)


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=40, deadline=None)
def test_answers_are_right(seed, held_out):
    """Against a slow, obvious reading of the prompt."""
    random = skills.Random(seed)
    for skill in skills.SCORED:
        example = skill.draw(random, held_out)
        assert example.skill == skill.name
        if example.code:
            assert calculate(example.code) == example.answer
        numbers = [int(number) for number in re.findall(r"\d+", example.prompt)]
        words = re.findall("[a-z]{3,}", example.prompt)
        if skill.name == "addition":
            assert int(example.answer) == sum(numbers)
        elif skill.name == "subtraction":
            assert int(example.answer) == numbers[0] - numbers[1]
        elif skill.name == "spelling":
            assert example.answer.replace(" ", "") in words and len(example.answer) == 2 * len(example.answer.replace(" ", "")) - 1
        elif skill.name == "sorting":
            answer = example.answer.removeprefix("Sorted: ").split(", ")
            assert answer == sorted(answer) and len(answer) == 3 and set(answer) <= set(re.findall("[a-z]+", example.prompt))


# ---- held out


def test_held_out_items_are_many_balanced_and_different(heldout):
    assert len(heldout) == len({item.prompt for item in heldout}) >= 600
    counts = Counter(item.skill for item in heldout)
    assert len(counts) >= 6 and len(set(counts.values())) == 1


def test_no_held_out_prompt_is_trained_on(training, heldout):
    assert not {item.prompt for item in heldout} & set(training)


def test_no_pair_of_operands_is_in_both(training, heldout):
    def pairs(lines):
        found = (re.findall(r"\d+", line) for line in lines)
        return {tuple(sorted(map(int, numbers))) for numbers in found if len(numbers) == 2}

    held_out = pairs(item.prompt for item in heldout if item.skill in ("addition", "subtraction"))
    trained = pairs(training)
    assert len(held_out) >= 120 and len(trained) > 5000
    assert not held_out & trained


def test_no_held_out_word_is_anywhere_in_the_training_text(training, heldout):
    """Stronger than needed: the held-out words are not merely never spelt, counted or sorted, they never occur."""
    trained = {word for line in training for word in re.findall("[a-z]+", line.lower())}
    held_out = set(skills.split_words()[1])
    assert len(held_out) >= 300 and not held_out & trained
    for item in heldout:
        if item.skill in ("spelling", "counting", "sorting"):
            asked = [word for word in re.findall("[a-z]{3,}", item.prompt) if word in held_out]
            assert len(asked) == (3 if item.skill == "sorting" else 1), item


def test_held_out_pairings_of_facts_are_unseen_but_their_parts_are_not(training, heldout):
    lines = set(training)
    unseen = {item.prompt for item in heldout if item.skill == "facts"}
    entities = set()
    for fact in skills.facts():
        asked = [skills.fill(wording, entity=fact.entity) in lines for wording in tables.RELATIONS[fact.relation]]
        left_out = skills.Facts.held_out_wording(fact)
        assert not asked.pop(left_out), "the wording held out for this fact"
        assert all(asked), "and all the others are seen"
        if skills.fill(tables.RELATIONS[fact.relation][left_out], entity=fact.entity) in unseen:
            entities.add((fact.relation, fact.entity))
    assert len(entities) == len(unseen)
    for relation, wordings in tables.RELATIONS.items():
        of_relation = [fact for fact in skills.facts() if fact.relation == relation]
        for index in range(len(wordings)):
            assert any(skills.Facts.held_out_wording(fact) != index for fact in of_relation), "each wording is seen with some entity"


@pytest.mark.parametrize("name", ["identity", "small talk"])
def test_held_out_pairings_of_a_table_are_unseen_but_their_parts_are_not(name, training, heldout):
    (skill,) = (skill for skill in skills.SCORED if skill.name == name)
    assert isinstance(skill, skills.Pairings)
    lines = set(training)
    held_out = {example.prompt for example in skill.split[True]}
    assert {item.prompt for item in heldout if item.skill == name} <= held_out
    assert not held_out & lines and {example.prompt for example in skill.split[False]} <= lines
    for grid in skill.grids():
        for line in [*grid, *zip(*grid, strict=True)]:  # a wording with its entities, then an entity with its wordings
            unseen = sum(example.prompt in held_out for example in line)
            assert 0 < unseen <= len(line) / 2, "most of each are seen"


# ---- on disk


def test_build_writes_the_dataset_once(base):
    dataset = corpus.build()
    assert dataset.name == "embedded" and dataset.folder == base / "data" / "embedded"
    assert sum(shard.documents for shard in dataset.training) == corpus.DOCUMENTS
    assert dataset.validation.documents > 500
    assert dataset.validation not in dataset.training


def test_the_version_stands_for_this_text(base):
    """Whoever changes the text must raise VERSION, so that it is made anew where an older one lies, and then both figures here."""
    dataset = corpus.build()
    digest = hashlib.sha256()
    for shard in (*dataset.training, dataset.validation):
        for batch in texts(shard):
            digest.update("".join(f"{text}\0" for text in batch).encode())
    assert (corpus.VERSION, digest.hexdigest()) == (1, "de1239352e44f7c27d0a7144e7311f13d9df8dfae2bf3f68a5ea7140779a8e84")
    assert dataset.text_bytes == corpus.TEXT_BYTES


@pytest.mark.parametrize(
    ("source", "kept"),
    [
        ("nanochat/data/corpus.py, version 54c9809e, seed 0", True),  # the first releases named the same text so
        ("nanochat/data/corpus.py, version 00000000, seed 0", False),
    ],
)
def test_a_text_of_an_earlier_release(base, source, kept):
    made = corpus.build()
    write_manifest(dataclasses.replace(made, source=source))
    inode = made.training[0].path.stat().st_ino
    stamp = made.training[0].path.stat().st_mtime_ns
    found = corpus.build()
    same = (found.training[0].path.stat().st_ino, found.training[0].path.stat().st_mtime_ns) == (inode, stamp)
    assert same == kept and found.source == (source if kept else made.source)
    assert found.training == made.training and found.validation == made.validation
