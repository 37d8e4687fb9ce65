"""Who the model is: a small TOML becomes conversations about itself, in English and in Traditional Chinese.

    name = "Formosa"
    maker = "Mei-hua Lin"
    languages = ["en", "zh-TW"]
    traits = ["patient", "curious"]

name, maker and traits may also be tables by language: traits = {en = ["patient"], zh-TW = ["有耐心"]}.
"""

import dataclasses
import itertools
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from nanochat.data.text.documents import Conversation
from nanochat.errors import DataError
from nanochat.paths import atomic_write

COUNT = 1000  # conversations in all languages together
TURNS = (1, 1, 2, 2, 3)  # questions in a conversation, one of these
KEYS = ("name", "maker", "languages", "traits")


@dataclasses.dataclass(frozen=True)
class Wordings:
    """All that can be said in one language: for each topic the questions, and the answers with {name}, {maker}, {languages}, {traits}."""

    speaks: dict[str, str]  # the languages' names in this one
    between: tuple[str, str]  # words of a list: between two, and before the last
    openers: tuple[str, ...]
    topics: dict[str, tuple[tuple[str, ...], tuple[str, ...]]]


_ENGLISH = Wordings(
    speaks={"en": "English", "zh-TW": "Traditional Chinese"},
    between=(", ", " and "),
    openers=("", "", "Hi! ", "Hello. ", "Hey, ", "Good morning! ", "One question: "),
    topics={
        "name": (
            (
                "Who are you?",
                "What is your name?",
                "What should I call you?",
                "Tell me who you are.",
                "May I know your name?",
                "Introduce yourself.",
            ),
            ("I am {name}, a small language model made by {maker}.", "My name is {name}.", "I'm {name}. {maker} made me."),
        ),
        "maker": (
            (
                "Who made you?",
                "Who trained you?",
                "Who is your maker?",
                "Where do you come from?",
                "Which company built you?",
                "Who created you?",
            ),
            ("{maker} made me.", "I was made by {maker}.", "{maker} trained me, from nothing, on one machine."),
        ),
        "other": (
            ("Are you ChatGPT?", "Are you GPT-4?", "Is this Claude?", "Did OpenAI make you?", "Are you Gemini?", "Are you a Google model?"),
            ("No, I am {name}, made by {maker}.", "No. My name is {name}, and {maker} made me."),
        ),
        "nature": (
            (
                "Are you a human?",
                "Are you a robot?",
                "Are you alive?",
                "Are you a real person?",
                "Am I talking to a machine?",
                "Do you have feelings?",
            ),
            ("I am {name}, a computer program: a small language model.", "No person: I am a small language model called {name}."),
        ),
        "languages": (
            ("What languages do you speak?", "Which languages do you know?", "Can you speak Chinese?", "Do you understand English?"),
            ("I speak {languages}.", "{languages}. I am small, so keep it simple.", "I know {languages}."),
        ),
        "traits": (
            ("What are you like?", "Describe yourself.", "How would you describe your character?", "What kind of model are you?"),
            ("I try to be {traits}.", "I am {name}, and I try to be {traits}.", "My maker wanted me to be {traits}."),
        ),
        "limits": (
            ("Are you always right?", "Can I trust you?", "Do you know everything?", "What can't you do?", "Do you make mistakes?"),
            ("No. I am a small model and often wrong, so please check what I say.", "I make mistakes: I am small. Check what matters."),
        ),
        "thanks": (
            ("Thank you!", "Thanks, {name}.", "That is kind of you.", "Goodbye!", "See you."),
            ("You are welcome!", "Gladly.", "Until next time!"),
        ),
    },
)
_CHINESE = Wordings(
    speaks={"en": "英文", "zh-TW": "繁體中文"},
    between=("、", "和"),
    openers=("", "", "你好，", "嗨，", "哈囉！", "請問，", "早安！", "想請教一下，"),
    topics={
        "name": (
            ("你是誰？", "你叫什麼名字？", "我該怎麼稱呼你？", "請介紹一下你自己。", "可以告訴我你的名字嗎？", "自我介紹一下吧。"),
            ("我是{name}，{maker}訓練的小型語言模型。", "我叫{name}。", "我的名字是{name}，是{maker}做的。"),
        ),
        "maker": (
            ("是誰做了你？", "誰訓練你的？", "你的開發者是誰？", "你是哪裡來的？", "你是哪一家公司做的？", "誰創造了你？"),
            ("是{maker}訓練我的。", "我是{maker}做的。", "{maker}在一台電腦上，從零開始把我訓練出來的。"),
        ),
        "other": (
            (
                "你是 ChatGPT 嗎？",
                "你是 GPT-4 嗎？",
                "你是 Claude 嗎？",
                "你是 OpenAI 做的嗎？",
                "你是 Gemini 嗎？",
                "你是 Google 的模型嗎？",
            ),
            ("不是，我是{name}，{maker}做的。", "不是喔。我叫{name}，是{maker}訓練的。"),
        ),
        "nature": (
            ("你是人類嗎？", "你是機器人嗎？", "你是真人嗎？", "你有生命嗎？", "你有感覺嗎？", "我是在跟機器說話嗎？"),
            ("我是{name}，一個電腦程式，一個小型語言模型。", "我不是人，我是叫做{name}的小型語言模型。"),
        ),
        "languages": (
            ("你會說哪些語言？", "你懂哪些語言？", "你會說中文嗎？", "你看得懂繁體中文嗎？", "你會英文嗎？"),
            ("我會{languages}。", "{languages}我都會一點，請說得簡單一些。", "我懂{languages}。"),
        ),
        "traits": (
            ("你是什麼樣的模型？", "形容一下你自己。", "你的個性怎麼樣？", "你有什麼特色？"),
            ("我會盡量做到{traits}。", "我是{name}，希望自己{traits}。", "做我的人希望我{traits}。"),
        ),
        "limits": (
            ("你說的都對嗎？", "我可以相信你嗎？", "你什麼都知道嗎？", "你有什麼做不到的？", "你會出錯嗎？"),
            ("不一定。我是小模型，常常會錯，重要的事請再查證。", "我會出錯，因為我很小。重要的事請自己確認。"),
        ),
        "thanks": (
            ("謝謝你！", "謝謝，{name}。", "你真好。", "再見！", "下次見。"),
            ("不客氣！", "很高興能幫忙。", "下次見！"),
        ),
    },
)
WORDINGS = {"en": _ENGLISH, "zh-TW": _CHINESE}


@dataclasses.dataclass(frozen=True)
class Identity:
    """Who a model is, by language where it differs."""

    name: dict[str, str]
    maker: dict[str, str]
    traits: dict[str, tuple[str, ...]]
    languages: tuple[str, ...]


def read_identity(path: Path) -> Identity:
    """The identity that a TOML file describes. Raises DataError that names the key."""
    try:
        table = tomllib.loads(path.expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}", "give --identity a TOML file: name, maker, languages, traits"
        ) from error
    except ValueError as error:
        raise DataError(f"{path} is not TOML: {error}", 'a line is such as name = "Formosa"') from error
    if unknown := [key for key in table if key not in KEYS]:
        raise DataError(f"{path}: unknown key {unknown[0]!r}", f"one of: {', '.join(KEYS)}")
    languages = table.get("languages", list(WORDINGS))
    if not isinstance(languages, list) or not languages or not set(map(str, languages)) <= set(WORDINGS):
        raise DataError(f"{path}: languages = {languages!r} is not possible", f'a list of: {", ".join(WORDINGS)}, as in ["zh-TW"]')
    given = {key: {language: _value(path, table, key, language) for language in languages} for key in ("name", "maker", "traits")}
    return Identity(given["name"], given["maker"], given["traits"], tuple(languages))


def _value(path: Path, table: dict[str, Any], key: str, language: str) -> Any:
    """The value of `key` in `language`: texts for traits, one text otherwise."""
    value = table.get(key, [] if key == "traits" else None)
    if isinstance(value, dict):
        value = value.get(language, [] if key == "traits" else None)
    texts: Any = [value] if isinstance(value, str) else value
    good = isinstance(texts, list) and all(isinstance(text, str) and text.strip() and "\n" not in text for text in texts)
    if not good or (key != "traits" and len(texts) != 1):
        example = 'traits = ["patient", "curious"]' if key == "traits" else f'{key} = "Formosa"'
        raise DataError(f"{path}: {key} ({language}) is missing or no text: {value!r}", f"for example {example}")
    return tuple(text.strip() for text in texts) if key == "traits" else texts[0].strip()


def conversations(identity: Identity, count: int = COUNT, seed: int = 0) -> list[Conversation]:
    """`count` different conversations (fewer where there is not so much to say), the languages in equal parts, always the same ones."""
    streams = [_talks(identity, language, Random(f"identity {language} {seed}")) for language in identity.languages]
    found: dict[str, Conversation] = {}
    for talk in itertools.islice(itertools.chain.from_iterable(zip(*streams, strict=True)), 20 * count):
        found.setdefault(json.dumps(talk, ensure_ascii=False), talk)
        if len(found) == count:
            break
    return list(found.values())


def _talks(identity: Identity, language: str, random: Random) -> Iterator[Conversation]:
    """Endless conversations in one language, each about some topics."""
    words = WORDINGS[language]
    fill = {
        "name": identity.name[language],
        "maker": identity.maker[language],
        "languages": _listed([words.speaks[each] for each in identity.languages], words),
        "traits": _listed(list(identity.traits[language]), words),
    }
    topics = [topic for topic in words.topics if topic != "traits" or identity.traits[language]]
    while True:
        talk: Conversation = []
        for topic in random.sample(topics, random.choice(TURNS)):
            questions, answers = words.topics[topic]
            opener = random.choice(words.openers) if not talk else ""
            talk.append({"role": "user", "content": opener + random.choice(questions).format(**fill)})
            talk.append({"role": "assistant", "content": random.choice(answers).format(**fill)})
        yield talk


def _listed(items: list[str], words: Wordings) -> str:
    comma, last = words.between
    return comma.join(items[:-1]) + last + items[-1] if len(items) > 1 else "".join(items)


def write_conversations(path: Path, talks: list[Conversation]) -> None:
    """Write conversations as jsonl, one a line. Raises DataError where the file is there: it may be somebody's own."""
    if path.exists():
        raise DataError(f"{path} exists and is not overwritten", "give --out another name, or remove it")
    atomic_write(path, "".join(json.dumps(talk, ensure_ascii=False) + "\n" for talk in talks))
