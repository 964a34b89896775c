"""Mistakes of whoever starts a server or talks in the terminal: one sentence that names the culprit."""

import sys

import pytest

from launch import ask, bench_serve, chat, serve
from spatialllm_jax import serving
from spatialllm_jax.errors import UserError
from spatialllm_jax.serving import run
from tests.serving.running import png


@pytest.mark.parametrize(("command", "arguments", "said"), [
    (serve, ["--model", "missing/model", "--port", "0"], "missing/model"),
    (serve, ["--model", "m", "--queue", "-1"], "--queue -1 must not be negative"),
    *((serve, ["--model", "m", "--max-body", size], f"--max-body {size} must be a positive number of MiB")
      for size in ("0", "nan", "inf")),
    (serve, ["--model", "m", "--max-body", "1e-9"], "--max-body 0 must be positive"),
    (serve, ["--model", "m", "--request-timeout", "nan"], "--request-timeout nan must be positive"),
    *((serve, ["--model", "m", "--port", port], f"--port {port} must be from 0 to 65535") for port in ("99999", "-1")),
    (serve, ["--model", "m", "--host", "a..b", "--port", "0"], r"--host a\.\.b --port 0: .*no name of a host"),
    (serve, ["--model", "m", "--port", "0", "--max-new-tokens", "0"], "--max-new-tokens 0 must be at least 1"),
    (serve, ["--model", "m", "--port", "0", "--concurrent", "3", "--per-picture", "2"], "multiple of --per-picture 2"),
    (serve, ["--model", "m", "--host", "203.0.113.7", "--port", "0"], "--host 203.0.113.7 --port 0: cannot listen"),
    (chat, ["--model", "m", "--image", "missing.png"], "--image missing.png cannot be read"),
    (chat, ["--model", "missing/model"], "missing/model"),
    *((command, ["--model", "m", "--temperature", heat, *more], f"--temperature {heat} must be a number, and not nega")
      for heat in ("-1", "nan", "inf") for command, more in ((chat, []), (ask, ["What?", "--image", "m"]))),
    *((command, ["--model", "m", "--max-new-tokens", "0", *more], "--max-new-tokens 0 must be at least 1")
      for command, more in ((chat, []), (ask, ["What?", "--image", "m"]))),
    *((chat, ["--model", "m", "--top-p", share], f"--top-p {share} must be from 0 to 1") for share in ("2", "nan")),
])
def test_mistakes(command, arguments, said):
    with pytest.raises(UserError, match=said):
        command.main(arguments)


def test_a_taken_port_is_told_before_the_model_is_read():
    with run.bind("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(UserError, match="Address already in use"):
            serve.main(["--model", "missing/model", "--port", str(taken.getsockname()[1])])


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.delattr(serving, "run")
    monkeypatch.delitem(sys.modules, "spatialllm_jax.serving.run")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UserError, match=r'serving needs uvicorn; run: pip install -e "\.\[serve\]"'):
        serve.main(["--model", "m"])


def test_names_of_models():
    assert serve._name("runs/align_in166k-tiny/tune/model") == "tune" and serve._name("/models/llava-7b/") == "llava-7b"


def test_commands_of_the_terminal(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    talk = chat._command(f"/image {tmp_path / 'a.png'}", chat.Talk(turns=(("a", "b"),)))
    assert talk == chat.Talk(png())
    talk = chat._command("/region 0,0,0.5,1", talk)
    talk = chat._command("/region 0.5,0,1,1", talk)
    assert [(region.label, region.bbox) for region in talk.regions] == [("0", (0, 0, 0.5, 1)), ("1", (0.5, 0, 1, 1))]
    assert chat._command("/clear", talk) == chat.Talk(png()) and chat._command("/quit", talk) is None
    for line, said in (("/region 0,0,1,1", "give one with /image"), ("/picture x", "/picture is no command"),
                       ("/image", "/image  cannot be read")):
        with pytest.raises(UserError, match=said):
            chat._command(line, chat.Talk())
    with pytest.raises(UserError, match="/region 0,0 is not X1,Y1,X2,Y2"):
        chat._command("/region 0,0", talk)


@pytest.mark.slow
def test_the_benchmark_at_its_smallest():
    found = bench_serve.bench(["--preset", "nano", "--requests", "6", "--concurrent", "3", "--new", "4", "--first", "2",
                               "--repeats", "1"])
    for ratio, over, under in (("first_token_ratio", "first_token_ms", "bare_prefill_ms"),
                               ("throughput_ratio", "served_answers_per_second", "offline_answers_per_second")):
        assert found[ratio] > 0 and found[over] > 0 and found[under] > 0


def test_benchmark_mistakes():
    with pytest.raises(UserError, match="--new 0 must be at least 1"):
        bench_serve.bench(["--new", "0"])
    with pytest.raises(UserError, match="'huge' does not exist"):
        bench_serve.bench(["--preset", "huge"])
