"""What is said of a user's text is true of it."""

import hashlib
import json
from pathlib import Path

import pytest

from nanochat.data.text.documents import import_texts
from nanochat.data.text.summary import Summary, conversations_line, script_of, suits, wanted
from nanochat.model.scaling import BEST_RATIO, MAXIMUM_EPOCHS, GPTConfig, count_parameters


def of(*texts: str) -> Summary:
    found = Summary()
    for text in texts:
        found.add(text, len(text.encode()), int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))
    return found


@pytest.mark.parametrize(
    ("character", "script"),
    [
        *(("a", "Latin"), ("É", "Latin"), ("字", "Han"), ("𠀀", "Han"), ("ㄅ", "Bopomofo"), ("ひ", "Kana"), ("한", "Hangul")),
        *(("д", "Cyrillic"), ("ש", "Hebrew"), ("ض", "Arabic"), ("ไ", "Thai"), ("λ", "Greek")),
        *((" ", ""), ("1", ""), ("，", ""), ("😀", ""), ("\n", "")),
    ],
)
def test_scripts(character: str, script: str) -> None:
    assert script_of(character) == script


def test_the_lines() -> None:
    first = of("這是一個國家的歷史，從開始說起。", "Plain English text here, so it is.").lines()[0]
    assert "2 documents" in first and "Latin" in first and "Han (traditional)" in first and "0 duplicates" in first
    assert "Han (simplified)" in of("这是一个国家的历史，从开始说起。").lines()[0]
    again = of(*["one and the same"] * 5, "another").lines()
    assert "4 duplicates" in again[0] and "67% of the documents are duplicates" in again[1]
    assert "no letters" in of("123 456").lines()[0]


def test_near_duplicates_are_counted_on_a_sample() -> None:
    def story(number: int) -> str:
        return " ".join(f"w{(number * 7919 + place * place * (number + 3)) % 100_003}" for place in range(120))

    apart = of(*(story(number) for number in range(200)))
    assert apart.near.documents == 200 and apart.near.found == 0 and not any("nearly" in line for line in apart.lines())
    alike = [f"{story(number)} {ending}" for number in range(100) for ending in ("the end", "and so on")]
    twice = of(*alike, *alike)
    assert twice.duplicates == 200 and 95 <= twice.near.found <= 100
    assert any("50% of 200 documents looked at are nearly the same" in line for line in twice.lines())


def test_tokens_are_about_right() -> None:
    assert of("word " * 1000).tokens == pytest.approx(5000 / 3.3, rel=0.01)
    assert of("字" * 1000).tokens == pytest.approx(1000, rel=0.01)


def test_the_depth_that_a_text_suits() -> None:
    assert suits(1000) == 0 and suits(10**7) >= 2 and suits(10**10) > 12
    for depth in (2, 6, 12):
        matrices = count_parameters(GPTConfig(depth, 64 * depth, depth // 2 or 1, depth // 2 or 1, 128, 512, 256))["matrices"]
        assert wanted(depth) == pytest.approx(BEST_RATIO * matrices, rel=0.01)
        assert suits(int(wanted(depth) / MAXIMUM_EPOCHS) + 1) == depth


def test_it_is_said_before_anything_else(base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Sentence number {i} of a text.\n\n" for i in range(1000)))
    import_texts(text)
    said = capfd.readouterr().err
    assert "about 9" in said and "Latin 100%" in said and "warning: this is little text" in said
    assert said.index("text: ") < said.index("kept for validation")


def test_conversations() -> None:
    talk = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    line = conversations_line([talk, talk, talk[1:]])
    assert "3, 2.7 messages each" in line and "2 with a system message, 1 duplicates" in line
    assert json.dumps(talk)  # nothing was changed
