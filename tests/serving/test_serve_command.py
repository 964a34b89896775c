"""Mistakes of whoever starts a server or talks in the terminal: one sentence that names the culprit."""

import sys

import pytest

from launch import bench_serve, chat, serve
from spatialllm_jax import serving
from spatialllm_jax.errors import UserError
from spatialllm_jax.serving import run
from tests.serving.running import png


@pytest.mark.parametrize(("command", "arguments", "said"), [
    (serve, ["--model", "missing/model", "--port", "0"], "missing/model"),
    (serve, ["--model", "m", "--queue", "-1"], "--queue -1 must not be negative"),
    (serve, ["--model", "m", "--max-body", "0"], "--max-body 0 must be positive"),
    (serve, ["--model", "m", "--host", "203.0.113.7", "--port", "0"], "--host 203.0.113.7 --port 0: cannot listen"),
    (chat, ["--model", "m", "--image", "missing.png"], "--image missing.png cannot be read"),
    (chat, ["--model", "missing/model"], "missing/model"),
    (chat, ["--model", "m", "--temperature", "-1"], "--temperature -1 must not be negative"),
    (chat, ["--model", "m", "--top-p", "2"], "--top-p 2 must be from 0 to 1"),
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
