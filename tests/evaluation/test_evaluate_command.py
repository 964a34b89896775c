"""`launch.evaluate` and `launch.report` as commands: killed and resumed, scored again, wrong input, side by side."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import cli, evaluate, report
from spatialllm_jax.data import images
from spatialllm_jax.data.storage import open_split
from spatialllm_jax.errors import UserError
from spatialllm_jax.evaluation import benchmarks, runs
from spatialllm_jax.evaluation.benchmarks import Source, items_of
from spatialllm_jax.inference.engine import Engine, load_engine
from spatialllm_jax.models import store
from tests.conftest import random_params
from tests.evaluation import plain_spatial_vqa as spatial_vqa
from tests.evaluation.fake_endpoint import serving, text_of
from tests.evaluation.test_benchmark_files import DSR, png, write_3dsrbench, write_spatialrgpt, write_tsv
from tests.evaluation.test_report import Page
from tests.inference.test_inference_engine import CONFIG, SETTINGS

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def questions(folder, count, name="q.tsv", **odd):
    """A TSV of `count` questions on half as many pictures; `odd` replaces the cells of question 1."""
    import base64

    rows = [{"index": k, "image": base64.b64encode(png(k // 2)).decode(), "question": f"Which {k}?", "A": "cat",
             "B": "dog", "answer": "AB"[k % 2], "category": f"t{k % 3}", "l2-category": "all",
             **(odd if k == 1 else {})} for k in range(count)]
    return write_tsv(folder / name, rows)


def flags(fake, data, out, *more):
    return ["--benchmark", "tsv", "--data", str(data), "--endpoint", fake.url, "--endpoint-model", "m",
            "--out", str(out), "--quiet", *more]


def answer(text, _):
    """Right about three of four, and sometimes in words that no rule reads."""
    number = int(text.split("?")[0].split()[-1])
    return "no idea" if number % 7 == 3 else "AB"[(number % 2) ^ (number % 4 == 0)]


def test_killed_and_resumed_the_report_is_the_same(tmp_path):
    data = questions(tmp_path, 60)
    with serving(answer) as fake:
        whole = evaluate.main(flags(fake, data, tmp_path / "whole", "--endpoint-price", "2,10"))
        assert len(fake.requests) == 60
        fake.requests.clear()
        fake.delay = 0.05
        command = [sys.executable, "-m", "launch.evaluate", *flags(fake, data, tmp_path / "torn"),
                   "--endpoint-workers", "1", "--endpoint-price", "2,10"]
        lines = tmp_path / "torn" / "predictions.jsonl"
        for least in (8, 20):       # killed twice
            process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            limit = time.monotonic() + 60
            while not (lines.exists() and lines.read_bytes().count(b"\n") >= least):
                assert time.monotonic() < limit and process.poll() is None
                time.sleep(0.01)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        assert 20 <= lines.read_bytes().count(b"\n") < 60 and not (tmp_path / "torn" / "scores.json").exists()
        lines.write_bytes(lines.read_bytes() + b'{"id": "59", "im')       # as if killed while writing
        fake.delay = 0.0
        known = {json.loads(line)["id"] for line in lines.read_text().splitlines()[:-1]}
        fake.requests.clear()
        evaluate.main(flags(fake, data, tmp_path / "torn", "--endpoint-price", "2,10"))
        asked = {text_of(body).split("?")[0].split()[-1] for _, _, body in fake.requests}
    assert asked == {str(k) for k in range(60)} - known         # nothing was asked twice
    torn, straight = ((tmp_path / name / "scores.json").read_text() for name in ("torn", "whole"))
    assert torn == straight and json.loads(torn) == json.loads(json.dumps(whole))
    assert whole["usage"] == {"input_tokens": 600, "output_tokens": 120, "dollars": 0.0024}
    assert whole["scores"]["overall"]["n"] == 60 and whole["scores"]["overall"]["parse_failures"] == 9
    right = sum(answer(f"Which {k}?", 0) == "AB"[k % 2] for k in range(60))
    assert whole["scores"]["overall"]["acc"] == right / 60


def test_scored_again_without_model_or_pictures(tmp_path, capsys):
    data = questions(tmp_path, 12)
    with serving(answer) as fake:
        first = evaluate.main(flags(fake, data, tmp_path / "run", "--blind"))
    data.unlink()
    capsys.readouterr()
    again = evaluate.main(["--rescore", "--out", str(tmp_path / "run")])
    assert json.loads(json.dumps(again)) == json.loads(json.dumps(first)) and "overall" in capsys.readouterr().out
    # A rule that has learned to read more changes the score, and nothing is asked.
    lines = (tmp_path / "run" / "predictions.jsonl").read_text().replace('"no idea"', '"the dog"')
    (tmp_path / "run" / "predictions.jsonl").write_text(lines)
    better = evaluate.main(["--rescore", "--out", str(tmp_path / "run")])
    assert better["scores"]["overall"]["parse_failures"] == 0 and first["scores"]["overall"]["parse_failures"] == 2
    assert better["blind"] == first["blind"]


def test_other_settings_do_not_mix(tmp_path, capsys):
    data = questions(tmp_path, 4)
    with serving(answer) as fake:
        evaluate.main(flags(fake, data, tmp_path / "run"))
        evaluate.main([*flags(fake, data, tmp_path / "run"), "--max-new-tokens", "7"])
        assert len(fake.requests) == 8 and "moved to" in capsys.readouterr().out
        evaluate.main([*flags(fake, data, tmp_path / "run"), "--endpoint-set", "temperature=null"])
        assert "temperature" not in fake.requests[-1][2] and "moved to" in capsys.readouterr().out
        with pytest.raises(UserError, match="NAME=JSON"):
            evaluate.main([*flags(fake, data, tmp_path / "run"), "--endpoint-set", "temperature=cold"])
        assert len((tmp_path / "run" / "earlier-1" / "predictions.jsonl").read_text().splitlines()) == 4


def test_circular_evaluation_of_any_benchmark(tmp_path):
    data = questions(tmp_path, 6)
    with serving(lambda *_: "A") as fake:       # always the first: half right, never from both sides
        found = evaluate.main(flags(fake, data, tmp_path / "run", "--circular"))
    assert found["scores"]["overall"]["acc"] == 0.5 and found["scores"]["overall"]["n"] == 12
    assert found["scores"]["variants"]["circular"]["overall"]["acc"] == 0
    assert found["scores"]["bias"] == {"options": {"A": [12, 6], "B": [0, 6]}, "n": 12, "distance": 0.5}


def test_regions_reach_an_endpoint_drawn_on_the_picture(tmp_path):
    write_spatialrgpt(tmp_path)
    with serving(lambda *_: "Yes") as fake:
        found = evaluate.main(["--benchmark", "spatialrgpt", "--data", str(tmp_path), "--endpoint", fake.url,
                               "--endpoint-model", "m", "--endpoint-format", "anthropic", "--out",
                               str(tmp_path / "run"), "--quiet"])
        body = fake.requests[0][2]
    assert body["messages"][0]["content"][0]["source"]["media_type"] == "image/jpeg"      # drawn on, so encoded anew
    assert found["scores"]["headline"]["qualitative"] == 1 / 3 and found["scores"]["overall"]["parse_failures"] == 5


def test_a_judge_is_counted_apart(tmp_path, capsys):
    data = questions(tmp_path, 12)
    with serving(answer) as fake:
        plain = evaluate.main(flags(fake, data, tmp_path / "run"))
    with serving(lambda *_: "B") as fake:
        judged = evaluate.main(["--rescore", "--out", str(tmp_path / "run"), "--judge", fake.url, "--judge-model", "j"])
        asked = len(fake.requests)
        evaluate.main(["--rescore", "--out", str(tmp_path / "run"), "--judge", fake.url, "--judge-model", "j"])
        assert len(fake.requests) == asked == 2
    assert judged["scores"] == json.loads(json.dumps(plain["scores"]))
    counts = {"asked": 2, "read": 2, "right": 1, "nonsense": 0, "failed": 0}
    assert judged["judge"] == {"judge": "j", **counts, "by_rule": {"choice": counts},
                               "overall": pytest.approx(plain["scores"]["overall"]["acc"] + 1 / 12)}
    assert "read by the judge j: 2 of 2 unread answers, 1 right; with them" in capsys.readouterr().out


def test_a_judge_reads_what_spatialrgpt_bench_was_answered(tmp_path, capsys):
    """Three claims and choices, three lengths and a direction, all answered in words that no rule reads."""
    said = {"How far": "two or so metres", "How wide": "around half a foot", "How tall": "tall",
            "where will": "at your eleven", "Which": "the other", "Is Region": "perhaps"}
    verdicts = {"How far": '{"number": 2, "unit": "metres"}', "How wide": '{"number": 0.5, "unit": "foot"}',
                "How tall": '{"number": 1, "unit": "metre"}', "where will": '{"hour": 11}'}

    def looked_up(texts):
        return lambda text, _: next((words for key, words in texts.items() if key in text), "NONE")

    out = str(tmp_path / "run")
    with serving(looked_up(said)) as fake:
        evaluate.main(["--benchmark", "spatialrgpt", "--data", str(write_spatialrgpt(tmp_path)), "--endpoint", fake.url,
                       "--endpoint-model", "m", "--out", out, "--quiet"])
    with serving(looked_up(verdicts)) as fake:
        found = evaluate.main(["--rescore", "--out", out, "--judge", fake.url, "--judge-model", "j"])
    # Half a foot is not within a quarter of 10 inches; nobody said that Region [1] is a metre tall.
    assert found["judge"]["by_rule"] == {
        "choice": {"asked": 1, "read": 0, "right": 0, "nonsense": 0, "failed": 0},
        "claim": {"asked": 2, "read": 0, "right": 0, "nonsense": 0, "failed": 0},
        "clock": {"asked": 1, "read": 1, "right": 1, "nonsense": 0, "failed": 0},
        "metres": {"asked": 3, "read": 2, "right": 1, "nonsense": 1, "failed": 0}}
    assert found["scores"]["overall"]["acc"] == 0 and found["judge"]["overall"] == 2 / 7
    assert ("read by the judge j: 3 of 7 unread answers (choice 0 of 1, claim 0 of 2, clock 1 of 1, metres 2 of 3), 2 "
            "right, 1 nonsense; with them 28.6%") in capsys.readouterr().out


def test_a_model_folder_scores_as_it_did_before_there_were_other_benchmarks(tiny_dataset, tiny_tokenizer, tmp_path,
                                                                            monkeypatch):
    folder = tmp_path / "tune" / "model"
    store.save_model(folder, CONFIG, random_params(CONFIG))
    (folder / "chat.json").write_text(json.dumps(dataclasses.asdict(SETTINGS)))
    tiny_tokenizer.save(folder)
    argv = ["--model", str(folder), "--data", tiny_dataset, "--batch-size", "4", "--row-length", "96", "--quiet"]
    decoded, decode = [], images.decode
    monkeypatch.setattr(images, "decode", lambda *args: decoded.append(args) or decode(*args))
    found = evaluate.main([*argv, "--blind"])
    items = list(items_of(benchmarks.get("spatial_vqa"), Source(Path(tiny_dataset))))
    assert len(decoded) == len({(item.image_id, item.marks) for item in items}) > len({item.image_id for item in items})
    engine, records = load_engine(folder, batch_size=4), open_split(tiny_dataset, "test")
    asked = spatial_vqa.select([records[k] for k in range(len(records))])
    for name, file in runs.FILES.items():
        before = spatial_vqa.predict(engine, asked, blind=name == "blind", row_length=96)
        for key, value in spatial_vqa.score(before).items():
            for cell, numbers in (value.items() if isinstance(value, dict) else [("", value)]):
                now = found[name][key][cell] if cell else found[name][key]
                assert now == numbers if not isinstance(numbers, dict) else numbers.items() <= now.items()
        lines = [json.loads(line) for line in (tmp_path / "tune" / "evaluation" / file).read_text().splitlines()]
        for line, prediction in zip(lines, before, strict=True):
            old = prediction.as_dict()
            assert line.pop("scores") == pytest.approx(old.pop("scores"), abs=3e-5) and old.items() <= line.items()
    monkeypatch.setattr(Engine, "score", None)      # a second run asks nothing
    assert evaluate.main([*argv, "--blind"]) == found
    assert evaluate.main(["--rescore", "--out", str(tmp_path / "tune" / "evaluation")])["scores"] == json.loads(
        json.dumps(found["scores"]))


def stopped(monkeypatch, capsys, argv, module=evaluate):
    """(exit code, last line of the errors) of a command."""
    monkeypatch.setattr(sys, "argv", ["command", *argv])
    with pytest.raises(SystemExit) as found:
        cli.run(module.main)
    errors = capsys.readouterr().err.strip().splitlines()
    return found.value.code, errors[-1] if errors else ""


TSV = ["--benchmark", "tsv", "--data", "{tsv}"]
MISTAKES = {
    "no data": ([], "--data is missing"), "no model": (["--data", "{tsv}"], "one of --model"),
    "two models": (["--data", "{tsv}", "--model", "m", "--endpoint", "http://x"], "one of --model"),
    "unknown benchmark": (["--benchmark", "mmlu", "--data", "{tsv}"], "choose from spatial_vqa"),
    "no name": ([*TSV, "--endpoint", "http://x", "--out", "{out}"], "--endpoint-model"),
    "no out": ([*TSV, "--endpoint", "http://x", "--endpoint-model", "m"], "needs --out"),
    "likelihoods": ([*TSV, "--endpoint", "http://x", "--endpoint-model", "m", "--answer", "score", "--out", "{out}"],
                    "likelihoods"),
    "free answers": (["--benchmark", "spatial457", "--data", "{s457}", "--model", "m", "--answer", "score"],
                     "free answers"),
    "another benchmark's file": (["--benchmark", "3dsrbench", "--data", "{tsv}", "--model", "m"], "no column 'qid'"),
    "a price": ([*TSV, "--endpoint", "http://x", "--endpoint-model", "m", "--out", "{out}",
                 "--endpoint-price", "cheap"], "--endpoint-price cheap"),
    "a judge without a name": (["--rescore", "--out", "{run}", "--judge", "http://x"], "--judge-model"),
    "nothing to rescore": (["--rescore", "--out", "{out}"], "has no run.json"),
    "rescore what": (["--rescore"], "needs --out"),
    "negative": (["--data", "{tsv}", "--model", "m", "--max-skipped", "-1"], "--max-skipped -1"),
    "no time": ([*TSV, "--endpoint", "http://x", "--endpoint-timeout", "0"], "--endpoint-timeout 0"),
    "no such model": ([*TSV, "--model", "missing/m", "--features", "f"], "missing/m"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_one_sentence_and_exit_code_two(case, tmp_path, monkeypatch, capsys):
    argv, said = MISTAKES[case]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"benchmark": "tsv"}')
    (tmp_path / "run" / "predictions.jsonl").write_text("")
    s457 = write_tsv(tmp_path / "Spatial457.tsv", [{"index": 0, "image": "aGk=", "question": "What?", "answer": "Red",
                                                    "category": "L1_single"}])
    places = {"tsv": str(questions(tmp_path, 2)), "out": str(tmp_path / "out"), "run": str(tmp_path / "run"),
              "s457": str(s457)}
    code, error = stopped(monkeypatch, capsys, [part.format(**places) for part in argv])
    assert code == 2 and error.startswith("error: ") and said in error
    assert not (tmp_path / "out").exists()


def test_unfit_rows_stop_the_run_at_the_limit_and_are_in_the_report(tmp_path, monkeypatch, capsys):
    data = questions(tmp_path, 8, image="bm90IGEgcGljdHVyZQ==")      # base64, but no picture
    with serving(answer) as fake:
        code, error = stopped(monkeypatch, capsys, flags(fake, data, tmp_path / "run", "--max-skipped", "0"))
        assert code == 2 and "question 1" in error and "more than --max-skipped 0" in error
        assert len((tmp_path / "run" / "predictions.jsonl").read_text().splitlines()) == 1       # question 0 is kept
        found = evaluate.main(flags(fake, data, tmp_path / "run", "--max-skipped", "1"))
        assert len(fake.requests) == 8 - 1
    assert found["scores"]["skipped"]["n"] == 1 and "question 1" in found["scores"]["skipped"]["rows"][0]
    assert found["scores"]["overall"]["n"] == 7 and "1 skipped, e.g. question 1" in capsys.readouterr().out
    with serving(answer) as fake:       # from here on nothing is at the other end
        pass
    argv = flags(fake, questions(tmp_path, 3, "r.tsv"), tmp_path / "down", "--endpoint-attempts", "1",
                 "--max-skipped", "1")
    code, error = stopped(monkeypatch, capsys, argv)
    assert code == 2 and "no connection" in error and "3 unanswered questions" in error


def test_runs_side_by_side_and_compared(tmp_path, monkeypatch, capsys):
    data = write_3dsrbench(tmp_path)
    right = {k: letter for k, (*_, letter, _) in enumerate(DSR)}
    common = ["--benchmark", "3dsrbench", "--data", str(data), "--endpoint-model", "m", "--quiet",
              "--endpoint-workers", "1"]
    with serving(lambda _, number: right[number - 1]) as fake:
        evaluate.main([*common, "--endpoint", fake.url, "--out", str(tmp_path / "good")])
    with serving(lambda _, number: "A") as fake:
        evaluate.main([*common, "--endpoint", fake.url, "--out", str(tmp_path / "dull")])
    found = report.main(["--compare", str(tmp_path / "dull"), str(tmp_path / "good")])
    wrong = sum(letter != "A" for letter in right.values())
    cell = found["overall"]
    assert (cell["n"], cell["only_a"], cell["only_b"]) == (6, 0, wrong) and cell["difference"] == wrong / 6
    assert cell["p"] == 2 * 0.5 ** wrong and cell["low"] <= wrong / 6 <= cell["high"]
    assert set(found["by_type"]) == {"location_next_to", "height_higher"}
    assert "only B" in capsys.readouterr().out
    vqa = {"benchmark": "spatial_vqa", "title": "SpatialVQA", "scores": json.loads(
        (tmp_path / "good" / "scores.json").read_text())["scores"]}
    vqa["scores"]["by_group"] = {name: vqa["scores"]["overall"] for name in ("distance", "orientation", "relation")}
    vqa["blind"] = vqa["scores"]
    (tmp_path / "vqa").mkdir()
    (tmp_path / "vqa" / "scores.json").write_text(json.dumps(vqa))
    paths = report.main([f"GPT-4o={tmp_path / 'vqa'}", f"align_in166k={tmp_path / 'vqa'}", f"good={tmp_path / 'good'}",
                         f"dull={tmp_path / 'dull'}", "--out", str(tmp_path / "all")])
    text = Path(paths["md"]).read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    gpt = next(line for line in rows if line.startswith("| GPT-4o |"))
    assert "✓" in gpt and "100.0 [" in gpt and gpt.endswith("| 54.0 | 59.4 | 52.4 | 50.8 |")
    assert next(line for line in rows if line.startswith("| SpatialLLM |")).startswith("| SpatialLLM |  |  |")
    assert next(line for line in rows if line.startswith("| align_in166k |")).endswith("| 62.7 | 86.3 | 52.9 | 51.0 |")
    assert any(line.startswith("| GPT-4o, pictures blanked |") for line in rows) and "3DSRBench: all scores" in text
    assert "| flip + circular (all variants right) | 100.0 [" in text
    page = Page(Path(paths["html"]).read_text())        # every tag closed, nothing from outside
    assert sum(tag == "table" for tag, _ in page.tags) == 3
    cells = list(csv.DictReader(Path(paths["csv"]).read_text().splitlines()))
    assert {"run": "dull", "benchmark": "3dsrbench", "pass": "scores", "breakdown": "variants", "name": "flip_circular"
            }.items() <= next(c for c in cells if c["run"] == "dull" and c["name"] == "flip_circular").items()
    assert float(next(c for c in cells if c["run"] == "good" and c["breakdown"] == "overall")["acc"]) == 1.0
    with pytest.raises(UserError, match="no scored question in common"):
        lines = (tmp_path / "good" / "predictions.jsonl").read_text().replace("AAAA", "CCCC").replace("BBBB", "DDDD")
        (tmp_path / "vqa" / "predictions.jsonl").write_text(lines)
        report.main(["--compare", str(tmp_path / "dull"), str(tmp_path / "vqa")])
    for argv, why in ((["--compare", str(tmp_path / "none"), str(tmp_path / "good")], "cannot be read"),
                      ([], "name a folder"), ([f"x={tmp_path / 'none'}"], "no readable scores.json")):
        code, error = stopped(monkeypatch, capsys, argv, report)
        assert code == 2 and why in error
