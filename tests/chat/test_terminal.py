"""The terminal chat: what goes to stdout and what to stderr, history, commands, interruptions."""

import contextlib
import io
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.chat import terminal
from nanochat.errors import DataError, UsageError
from nanochat.generate.engine import Emitted, Engine
from nanochat.model.build import build_model
from nanochat.model.scaling import GPTConfig
from nanochat.tokenizer.tokenizer import Tokenizer

pytestmark = pytest.mark.long

TOKENIZER = Tokenizer([bytes([b]) for b in range(256)])
END = TOKENIZER.special("<|assistant_end|>")


class Fake(Engine):
    """Answers with the given texts in turn (an exception among them is raised there) and keeps the prompts, decoded."""

    def __init__(self, *answers: Any, context: int = 200):
        self.tokenizer, self.context = TOKENIZER, context
        self.answers, self.prompts, self.options = list(answers), list[str](), dict[str, Any]()

    def generate(self, prompts: Any, **options: Any) -> Iterator[list[Emitted]]:
        [prompt] = prompts
        self.prompts.append(TOKENIZER.decode(prompt))
        self.options = options
        return self.speak(self.answers.pop(0))

    def speak(self, answer: Any) -> Iterator[list[Emitted]]:
        for piece in answer if isinstance(answer, list) else [answer]:
            if isinstance(piece, type):
                raise piece
            ids = TOKENIZER.encode(piece) if isinstance(piece, str) else piece
            yield from ([Emitted(0, token, False)] for token in ids)
        yield [Emitted(0, END, False)]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch):
    """Feed these lines to stdin, as a pipe does."""

    def feed(text: str) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO(text))

    return feed


def test_a_prompt_prints_the_answer_alone(capsys: pytest.CaptureFixture[str]) -> None:
    engine = Fake("你好, I am here.")
    terminal.chat(engine, TOKENIZER, prompt="Who are you?", temperature=0, top_k=7, max_tokens=5, seed=3)
    out, err = capsys.readouterr()
    assert (out, err) == ("你好, I am here.\n", "")
    assert engine.prompts == ["<|bos|><|user_start|>Who are you?<|user_end|><|assistant_start|>"]
    assert engine.options == {"max_tokens": 5, "temperature": 0, "top_k": 7, "top_p": 1.0, "seed": 3}


def test_one_trailing_newline_and_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.chat(Fake("a\x1b[2Jb\r\x07\tc\n"), TOKENIZER, prompt="x")
    assert capsys.readouterr().out == "a[2Jb\tc\n"
    terminal.chat(Fake([[0xE4, 0xBD]]), TOKENIZER, prompt="a\udcffb\ud800")
    assert capsys.readouterr().out == "\ufffd\n"


def test_a_prompt_that_is_too_long(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="at most"):
        terminal.chat(Fake("x", context=50), TOKENIZER, prompt="y" * 100)
    assert capsys.readouterr().out == ""


def test_a_conversation_from_a_pipe(capsys: pytest.CaptureFixture[str], typed) -> None:
    call = [
        "It is ",
        [TOKENIZER.special("<|python_start|>"), *b"1+1", TOKENIZER.special("<|python_end|>")],
        [TOKENIZER.special("<|output_start|>"), *b"2", TOKENIZER.special("<|output_end|>")],
        "2.",
    ]
    engine = Fake(call, "two", "three")
    typed("1 + 1?\n\n second \n/clear\n/help\nthird")
    terminal.chat(engine, TOKENIZER)
    out, err = capsys.readouterr()
    assert out == "It is 2.\ntwo\nthree\n"
    assert "forgotten" in err
    assert err.count("/quit") == 2 and "/set NAME VALUE" in err
    first = "<|bos|><|user_start|>1 + 1?<|user_end|><|assistant_start|>"
    assert engine.prompts == [
        first,
        first + "It is <|python_start|>1+1<|python_end|><|output_start|>2<|output_end|>2.<|assistant_end|>"
        "<|user_start|>second<|user_end|><|assistant_start|>",
        "<|bos|><|user_start|>third<|user_end|><|assistant_start|>",
    ]


def test_quit(capsys: pytest.CaptureFixture[str], typed) -> None:
    typed("/quit\nnever read\n")
    terminal.chat(Fake(), TOKENIZER)
    assert capsys.readouterr().out == ""


def test_ctrl_c_ends_the_answer_alone(capsys: pytest.CaptureFixture[str], typed) -> None:
    engine = Fake(["half an ans", KeyboardInterrupt], [KeyboardInterrupt], "whole")
    typed("one\ntwo\nthree\n")
    terminal.chat(engine, TOKENIZER)
    out, err = capsys.readouterr()
    assert out == "half an ans\n\nwhole\n"
    assert err.count("(interrupted)") == 2
    assert "<|assistant_start|>half an ans<|assistant_end|><|user_start|>three" in engine.prompts[-1]
    assert "two" not in engine.prompts[-1]
    with pytest.raises(KeyboardInterrupt):
        terminal.chat(Fake([KeyboardInterrupt]), TOKENIZER, prompt="x")


def test_a_long_conversation_loses_its_oldest_turns(capsys: pytest.CaptureFixture[str], typed) -> None:
    engine = Fake("A" * 20, "B" * 20, "C" * 20, "D", context=120)
    typed("first\nsecond\nthird\nfourth\n" + "y" * 150 + "\n")
    terminal.chat(engine, TOKENIZER, max_tokens=40)
    out, err = capsys.readouterr()
    assert out.splitlines() == ["A" * 20, "B" * 20, "C" * 20, "D"]
    assert err.count("its oldest turn is forgotten") == 1
    assert ["first" in prompt for prompt in engine.prompts] == [True, True, True, False]
    assert "second" in engine.prompts[3]
    assert "error: the message has 154 tokens; at most 80 fit" in err  # and the program goes on
    assert "hint: " in err


def test_a_base_model_completes(capsys: pytest.CaptureFixture[str], typed) -> None:
    engine = Fake(" time", " more", "!", context=20)
    terminal.chat(engine, TOKENIZER, prompt="Once upon a", chat_model=False, max_tokens=5)
    out, err = capsys.readouterr()
    assert out == " time\n"
    assert "not been taught to chat" in err
    typed("once\n0123456789abcdefghij\n")
    terminal.chat(engine, TOKENIZER, chat_model=False, max_tokens=5)
    out, err = capsys.readouterr()
    assert out == " more\n!\n"
    assert "only its last 14" in err
    assert engine.prompts == ["<|bos|>Once upon a", "<|bos|>once", "<|bos|>6789abcdefghij"]


class Keyboard(io.StringIO):
    """A terminal: what is typed at each invitation; an exception stands for Ctrl-C or Ctrl-D."""

    def isatty(self) -> bool:
        return True


def test_typing_at_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    typed = iter(["hello ", KeyboardInterrupt, EOFError])
    invitations = []

    def ask(invitation: str) -> str:
        invitations.append(invitation)
        what = next(typed)
        if isinstance(what, type):
            raise what
        return what

    monkeypatch.setattr("sys.stdin", Keyboard())
    monkeypatch.setattr("builtins.input", ask)
    engine = Fake("hi")
    terminal.chat(engine, TOKENIZER)
    out, err = capsys.readouterr()
    assert out == "hi\n"
    assert invitations == ["> "] * 3
    assert "Ctrl-D leaves)" in err


def test_with_a_real_model(capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    model = build_model(GPTConfig(2, 32, 1, 1, 32, TOKENIZER.vocab_size, 64))
    answers = []
    for _ in range(2):
        terminal.chat(Engine(model, TOKENIZER), TOKENIZER, prompt="hi", seed=1, max_tokens=20)
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]
    assert answers[0].endswith("\n")
    with pytest.raises(UsageError):
        terminal.chat(Engine(model, TOKENIZER), TOKENIZER, prompt="hi", temperature=-1)


# ---- commands, lines, history ---------------------------------------------------------------------------------------


def test_an_unknown_command_is_an_error_and_not_a_message(capsys: pytest.CaptureFixture[str], typed) -> None:
    engine = Fake("hi")
    typed("/modle\n/\n/set colour red\n/set temperature warm\n/set max_tokens 0\n/set temperature -1\nhello\n")
    terminal.chat(engine, TOKENIZER)
    out, err = capsys.readouterr()
    assert out == "hi\n" and len(engine.prompts) == 1 and engine.options["temperature"] == 0.8
    assert "error: unknown command /modle" in err and "did you mean /model?" in err
    assert err.count("error: ") == 6 and err.count("hint: ") == 6


def test_set_and_stats(capsys: pytest.CaptureFixture[str], typed) -> None:
    engine = Fake("one", "two")
    typed("/stats\n/set\n/set temperature 0\n/set top_k 0\n/set max_tokens 9\n/set seed 4\nhello\n/stats\n")
    terminal.chat(engine, TOKENIZER)
    err = capsys.readouterr().err
    assert engine.options == {"max_tokens": 9, "temperature": 0.0, "top_k": None, "top_p": 1.0, "seed": 4}
    assert "there is no answer yet" in err and "temperature 0.8, top_k 50, top_p 1.0, seed random, max_tokens 512" in err
    assert "last answer: 4 tokens in " in err and "ended by itself" in err and " of 200 tokens used by the conversation" in err


def test_another_model_takes_over(capsys: pytest.CaptureFixture[str], typed) -> None:
    first, second = Fake("one"), Fake("two", context=100)
    asked: list[str] = []

    def open_model(name: str) -> terminal.Speaker:
        asked.append(name)
        if name == "gone":
            raise DataError("there is no run 'gone'", "runs: other")
        return terminal.Speaker(second, TOKENIZER, True, f"run {name}")

    typed("hello\n/model\n/model gone\n/model other:sft:3\nand you?\n/model\n")
    terminal.chat(first, TOKENIZER, name="run mine", open_model=open_model)
    out, err = capsys.readouterr()
    assert out == "one\ntwo\n" and asked == ["gone", "other:sft:3"]
    assert "hello" in second.prompts[0] and "one" in second.prompts[0]  # the conversation goes on
    assert "model: run mine, context length 200 tokens" in err and "error: there is no run 'gone'" in err
    assert "model: run other:sft:3, context length 100 tokens" in err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one\\\ntwo\\\nthree\n", "one\ntwo\nthree"),
        ('"""\none\n\n  two\n"""\n', "one\n\n  two"),
        ('"""one\ntwo"""\n', "one\ntwo"),
        ('"""all"""\n', "all"),
        ('"""\nno end', "no end"),
        ("one\\", "one"),
    ],
)
def test_messages_of_several_lines(capsys: pytest.CaptureFixture[str], typed, text: str, expected: str) -> None:
    engine = Fake("yes")
    typed(text)
    terminal.chat(engine, TOKENIZER)
    assert engine.prompts == [f"<|bos|><|user_start|>{expected}<|user_end|><|assistant_start|>"]


def test_the_history_stays_for_its_owner_alone(tmp_path: Path) -> None:
    """At a real terminal, in two sessions: the arrow key brings back what was typed in the first one."""
    script = "import sys; from nanochat.chat.typing import Typist; t = Typist(); print(repr(t.read())); t.close()"
    shown = []
    for keys in ("remember me\n", "\x1b[A\n"):
        leader, follower = pty.openpty()
        where = os.environ | {"NANOCHAT_BASE_DIR": str(tmp_path), "TERM": "xterm"}
        process = subprocess.Popen([sys.executable, "-c", script], stdin=follower, stdout=follower, stderr=follower, env=where)
        os.close(follower)
        text = b""
        while b"> " not in text:
            text += os.read(leader, 1000)
        os.write(leader, keys.encode())
        with contextlib.suppress(OSError):
            while part := os.read(leader, 1000):
                text += part
        assert process.wait(60) == 0
        os.close(leader)
        shown.append(text.decode())
    assert all("'remember me'" in one for one in shown), shown
    assert (tmp_path / "chat_history").stat().st_mode & 0o077 == 0
    assert [path.name for path in tmp_path.iterdir()] == ["chat_history"]


def test_the_calculator_is_visible_at_a_terminal(capsys: pytest.CaptureFixture[str], typed, monkeypatch: pytest.MonkeyPatch) -> None:
    call = [
        "It is ",
        [TOKENIZER.special("<|python_start|>"), *b"1+1", TOKENIZER.special("<|python_end|>")],
        [TOKENIZER.special("<|output_start|>"), *b"2", TOKENIZER.special("<|output_end|>")],
        "2.",
    ]
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    typed("1 + 1?\n")
    terminal.chat(Fake(call), TOKENIZER)
    assert capsys.readouterr().out == "It is \x1b[2m[1+1 = 2] \x1b[0m2.\n"
    terminal.chat(Fake(call), TOKENIZER, prompt="1 + 1?")
    assert capsys.readouterr().out == "It is 2.\n"
