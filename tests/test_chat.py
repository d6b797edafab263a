# SPDX-License-Identifier: Apache-2.0
"""Chat: templates as transformers renders them, turns that compute only what is new; both commands."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bcq.cli import main
from bcq.errors import InputError, UsageError
from bcq.generation.conversation import Conversation
from bcq.generation.model import Model, load
from bcq.generation.template import PlainForm, Template, open_template

SYSTEM = {"role": "system", "content": "S"}
ASK = {"role": "user", "content": "Q é"}
ANSWER = {"role": "assistant", "content": "A"}
CHATML = (
    "{%- for message in messages -%}\n"
    "    {{- '<|im_start|>' + message.role + '\\n' + message.content | trim + '<|im_end|>\\n' -}}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}\n"
)
SPECIAL = (
    "{{ bos_token }}{% for m in messages %}{% generation %}[{{ m['content'] }}]{% endgeneration %}"
    "{{ eos_token }}{% endfor %}"
)
STRICT = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}ok"
TOOLS = (
    "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{% for m in messages %}"
    "{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% break %}{% endfor %}"
)
TEMPLATES = {"chatml": CHATML, "special": SPECIAL, "strict": STRICT, "tools": TOOLS}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.fixture(scope="module")
def model(demo_export: Path) -> Model:
    return load(demo_export)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("answer", [True, False])
def test_templates_render_as_transformers_renders_them(name: str, answer: bool) -> None:
    reference = pytest.importorskip("transformers.utils.chat_template_utils", reason="needs transformers")
    messages = [ASK, ANSWER, ASK]
    expected, _ = reference.render_jinja_template(
        [messages], chat_template=TEMPLATES[name], add_generation_prompt=answer, **TOKENS
    )
    assert Template(TEMPLATES[name], Path("t"), TOKENS).render(messages, answer) == expected[0]


def test_a_template_that_refuses_or_is_wrong_says_why() -> None:
    with pytest.raises(InputError, match="refuses these messages: no system here"):
        Template(STRICT, Path("t"), {}).render([SYSTEM, ASK])
    with pytest.raises(InputError, match="t: the chat template is wrong"):
        Template("{% if %}", Path("t"), {})


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('id') }}",
        "{{ messages.append(1) }}",
        "{% include '/etc/passwd' %}",
        "{{ range(1000000000) | list }}",
    ],
)
def test_a_template_of_a_stranger_reaches_nothing_outside(source: str) -> None:
    with pytest.raises(InputError, match="refuses these messages"):
        Template(source, Path("t"), {}).render([ASK])


def test_the_template_is_found_where_transformers_keeps_it(tmp_path: Path) -> None:
    assert isinstance(open_template(tmp_path), PlainForm)
    config: dict[str, Any] = {"bos_token": {"content": "<b>"}, "chat_template": "config{{ bos_token }}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert open_template(tmp_path).render([]) == "config<b>"
    config["chat_template"] = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert open_template(tmp_path).render([]) == "yes"
    (tmp_path / "chat_template.jinja").write_text("file", encoding="utf-8")
    assert open_template(tmp_path).render([]) == "file"
    (tmp_path / "other").write_text("other", encoding="utf-8")
    assert open_template(tmp_path, tmp_path / "other").render([]) == "other"
    with pytest.raises(InputError, match="absent cannot be read"):
        open_template(tmp_path, tmp_path / "absent")


def test_a_turn_computes_only_what_is_new_and_answers_as_the_whole_conversation_would(model: Model) -> None:
    template = Template(CHATML, Path("t"), {})
    talk = Conversation(model, template, "Be short.")
    texts = []
    for line in ("The people of the", "And then"):
        messages = [*talk.messages, {"role": "user", "content": line}]
        tokens = model.tokenizer.encode(template.render(messages), add_special_tokens=False).ids
        texts.append(model.decode(model.generate(tokens, 8)))
        assert "".join(talk.say(line, 8)) == texts[-1].lstrip()
    assert [message["role"] for message in talk.messages] == ["system", *["user", "assistant"] * 2]
    assert talk.computed < len(tokens)  # the first turn was in the cache
    talk.clear()
    assert "".join(talk.say("The people of the", 8)) == texts[0].lstrip()


def test_an_answer_that_is_left_off_is_kept_as_far_as_it_was_told(model: Model) -> None:
    talk = Conversation(model, PlainForm())
    pieces = talk.say("The people", 20)
    told = next(pieces) + next(pieces)
    pieces.close()
    assert talk.messages[-1] == {"role": "assistant", "content": told}
    assert talk.reason is None
    assert "".join(talk.say("and", 4))


def test_a_conversation_that_is_too_long_is_refused_and_stays_as_it_was(model: Model) -> None:
    talk = Conversation(model, PlainForm())
    with pytest.raises(UsageError, match=r"the conversation has \d+ tokens, the model 256 positions"):
        talk.say("word " * 300)
    assert talk.messages == []
    assert "".join(talk.say("The"))
    assert talk.reason in ("length", "stop")


def chat(demo_export: Path, text: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bcq.cli", "chat", str(demo_export), *words]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=120)


def test_each_line_of_a_pipe_is_answered_and_a_missing_template_is_said(demo_export: Path) -> None:
    done = chat(demo_export, "The people\n\n/clear\nAnd\n/exit\nnever\n", "-n", "4", "--json")
    assert done.returncode == 0, done.stderr
    assert [message["role"] for message in json.loads(done.stdout)["messages"]] == ["user", "assistant"]
    assert "no chat template" in done.stderr
    done = chat(demo_export, "The people\n" + "word " * 300 + "\nAnd\n", "-n", "4", "--quiet")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) >= 2
    assert "256 positions. Begin a new one: /clear." in done.stderr


def test_an_interrupt_stops_the_answer_and_not_the_program(demo_export: Path) -> None:
    command = [sys.executable, "-m", "bcq.cli", "chat", str(demo_export), "--quiet"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, bufsize=0, **pipes) as talk:
        assert talk.stdin
        assert talk.stdout
        assert talk.stderr
        talk.stdin.write(b"The people of the\n")
        assert os.read(talk.stdout.fileno(), 1)
        talk.send_signal(signal.SIGINT)
        _, said = talk.communicate(b"And\n/exit\n", timeout=120)
        assert talk.returncode == 0
    assert b"[stopped]" in said or b"/exit" in said  # a quick answer had ended when the signal came


def test_chat_imports_neither_torch_nor_transformers_nor_onnx(demo_export: Path) -> None:
    program = (
        "import sys; from bcq.cli import main;"
        f"main(['chat', {str(demo_export)!r}, '-n', '1', '--quiet']);"
        "print(sorted({'torch', 'transformers', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input="a\n", capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_run_continues_each_line_of_a_file_and_of_standard_input(
    demo_export: Path, model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    lines = ["The people", "We must have a new way", "In"]
    (tmp_path / "lines.txt").write_text("\n\n".join(lines), encoding="utf-8")
    words = ["run", str(demo_export), "-n", "5"]
    assert main([*words, "--prompts", str(tmp_path / "lines.txt"), "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)["answers"]
    expected = [{"prompt": line, "continuation": model.generate(line, 5)} for line in lines]
    assert answers == expected
    monkeypatch.setattr("sys.stdin", io.StringIO(lines[0]))
    assert main([*words, "--prompt", "-"]) == 0
    assert capsys.readouterr().out.rstrip("\n") == (lines[0] + model.generate(lines[0], 5)).rstrip("\n")


def test_run_tells_counts_and_why_an_answer_ended(
    demo_export: Path, model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = model.generate("The people", 8)
    assert main(["run", str(demo_export), "-p", "The people", "-n", "8", "--stop", whole[3:5], "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["reason"], told["prompt_tokens"]) == ("stop", len(model.encode("The people")))
    assert told["continuation"] == whole[: whole.index(whole[3:5])]
    assert told["new_tokens"] <= 8


def test_run_refuses_a_file_without_a_line(
    demo_export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").write_text("\n", encoding="utf-8")
    assert main(["run", str(demo_export), "--prompts", str(tmp_path / "empty")]) == 2
    assert "the file has no line" in capsys.readouterr().err
    assert main(["run", str(demo_export), "--prompts", str(tmp_path / "absent")]) == 3
