"""The loop by hand-made models: what is written, what is skipped, and what a second run does."""

import json

import numpy as np
import pytest

from spatialllm_jax.data import images
from spatialllm_jax.errors import UserError
from spatialllm_jax.evaluation import judge, predictions
from spatialllm_jax.evaluation.answering import Plan, answer_all
from spatialllm_jax.evaluation.endpoints import Reply
from spatialllm_jax.evaluation.items import Item, Skipped
from spatialllm_jax.evaluation.tally import tally
from spatialllm_jax.questions.types import Region
from tests.evaluation.test_benchmark_files import png


def item(k, **changes):
    values = {"id": f"q{k:02d}", "image_id": f"i{k // 2}", "image": png(k // 2), "question": f"Which {k}?",
              "rule": "choice", "answer": k % 2, "options": ("cat", "dog"), "layout": "llava", "type": f"t{k % 3}"}
    return Item(**{**values, **changes})


class Model:
    """Says "A" to everything, and remembers what it was asked, batch by batch."""

    def __init__(self, said="A"):
        self.said, self.batches = said, []

    def generate(self, prompts, *, max_new_tokens=0):
        self.batches.append(list(prompts))
        return [self.said(prompt) if callable(self.said) else self.said for prompt in prompts]

    def score(self, prompts, *, row_length=0):
        self.batches.append(list(prompts))
        return [np.array([-2.0, -1.0]) for _ in prompts]

    @property
    def asked(self):
        return [prompt.question.split("?")[0] for batch in self.batches for prompt in batch]


def lines_of(file):
    return [json.loads(text) for text in file.read_text().splitlines()]


def test_answers_are_written_batch_by_batch_and_pictures_stay_together(tmp_path):
    model = Model()
    outcome = answer_all([item(k) for k in range(9)], model, tmp_path / "p.jsonl", Plan("generate", chunk=3))
    assert [len(batch) for batch in model.batches] == [4, 4, 1]       # two questions per picture, never torn apart
    assert [line["id"] for line in outcome.lines] == [line["id"] for line in lines_of(tmp_path / "p.jsonl")]
    line = outcome.lines[1]
    prompt = "Which 1?\nA. cat\nB. dog\nAnswer with the option's letter from the given choices directly."
    assert line == {"id": "q01", "image": "i0", "type": "t1", "group": "all", "rule": "choice", "raw": "A",
                    "scores": [], "prompt": prompt, "options": ["cat", "dog"], "answer": 1, "choice": 0, "right": False}


def test_scoring_and_blanking(tmp_path):
    marks = (Region("0", (0, 0, 1, 1), ""),)
    model = Model()
    asked = [item(0, marks=marks), item(1, layout="plain")]
    outcome = answer_all(asked, model, tmp_path / "p.jsonl", Plan("score"))
    assert [prompt.options for prompt in model.batches[0]] == [("A", "B"), ("cat", "dog")]
    assert model.batches[0][0].marks == marks and model.batches[0][0].image == png(0)
    assert outcome.lines[0]["choice"] == 1 and outcome.lines[0]["raw"] == "dog" and outcome.lines[1]["right"]
    blind = Model()
    answer_all(asked, blind, tmp_path / "b.jsonl", Plan("score", blind=True))
    assert all(prompt.image is None and prompt.marks == () for prompt in blind.batches[0])


class Seeing(Model):
    """Makes pictures into arrays, and is given them back."""

    features = None

    def __init__(self):
        super().__init__()
        self.made, self.given = [], []

    def pixels(self, prompt):
        self.made.append((images.decode(prompt.image, prompt.image_id)[0, 0].tolist(), prompt.marks))
        return np.array([len(self.made)])

    def generate(self, prompts, *, max_new_tokens=0, pixels=None):
        self.given.append(pixels)
        return super().generate(prompts)


def test_a_picture_is_made_into_an_array_once(tmp_path):
    """Also where a batch ends between finding out and asking; broken ones are skipped as ever."""
    marks = (Region("0", (0, 0, 1, 1), ""),)
    asked = [*(item(k) for k in range(5)), item(5, image=png(2)[:60], image_id="cut"), item(6), item(7, marks=marks)]
    model = Seeing()
    outcome = answer_all(asked, model, tmp_path / "p.jsonl", Plan("generate", chunk=2))
    plain = answer_all(asked, Model(), tmp_path / "q.jsonl", Plan("generate", chunk=2))
    assert outcome.lines == plain.lines and outcome.skipped == plain.skipped and "image of it" in str(outcome.skipped)
    assert [pixel for pixel, _ in model.made] == [images.decode(png(k))[0, 0].tolist() for k in range(4)]
    assert model.given == [{("i0", ()): [1]}, {("i1", ()): [2]}, {("i2", ()): [3], ("i3", ()): [4]}]
    stored = Seeing()
    stored.features = {}
    answer_all(asked, stored, tmp_path / "r.jsonl", Plan("generate", chunk=2))
    assert stored.made == [] and stored.given == [None] * 3


def test_questions_about_several_pictures(tmp_path):
    """All pictures are checked, made into arrays once, and blanked together."""
    def more(*names):
        return tuple((f"i{k}", png(k)) for k in names)

    asked = [item(0, more=more(1, 2)), item(2, more=more(0)), item(4, more=(("cut", png(2)[:60]),)),
             item(6, question="Is <image 2> like <image 1>?", more=more(0))]
    model = Seeing()
    outcome = answer_all(asked, model, tmp_path / "p.jsonl", Plan("generate"))
    assert [str(entry).partition(":")[0] for entry in outcome.skipped] == ["question q04"]
    prompts = model.batches[0]
    assert [prompt.pictures for prompt in prompts] == [
        (("i0", ()), ("i1", ()), ("i2", ())), (("i1", ()), ("i0", ())), (("i0", ()), ("i3", ()))]
    assert [one.image for one in prompts[2].each] == [png(0), png(3)]
    assert prompts[2].question.startswith("Is <image> like <image>?\n") and prompts[0].places == 4
    assert model.given == [{(f"i{k}", ()): [k + 1] for k in range(4)}]
    blind = Model()
    answer_all(asked, blind, tmp_path / "b.jsonl", Plan("generate", blind=True))
    assert [prompt.pictures for prompt in blind.batches[0]] == [(("", ()),) * n for n in (3, 2, 2, 2)]


def test_a_second_run_asks_only_what_is_missing(tmp_path):
    file, items = tmp_path / "p.jsonl", [item(k) for k in range(9)]
    whole = answer_all(items, Model(), tmp_path / "whole.jsonl", Plan("generate", chunk=3))
    answer_all(items[:5], Model(), file, Plan("generate", chunk=2))
    with file.open("a") as out:
        out.write('{"id": "q05", "ima')      # a kill in the middle of a line
    model = Model()
    outcome = answer_all(items, model, file, Plan("generate", chunk=4))
    assert model.asked == [f"Which {k}" for k in (5, 6, 7, 8)]
    assert outcome.lines == whole.lines and len(lines_of(file)) == 9
    assert tally(outcome.lines) == tally(whole.lines) == tally(reversed(whole.lines))
    idle = Model()
    assert answer_all(items, idle, file, Plan("generate")).lines == whole.lines and idle.batches == []
    with pytest.raises(UserError, match="another question under the id 'q03'"):
        answer_all([item(3, question="Who?")], idle, file, Plan("generate"))


def test_unfit_rows_are_skipped_up_to_a_limit_and_nothing_is_lost(tmp_path):
    file = tmp_path / "p.jsonl"
    items = [item(0), Skipped("x.tsv line 3", "column 'question' is empty"), item(1), item(2, image=b"no picture"),
             item(3, image=png(1)[:60], image_id="cut"), item(1), item(4)]
    outcome = answer_all(items, Model(), file, Plan("generate", max_skipped=4))
    assert [line["id"] for line in outcome.lines] == ["q00", "q01", "q04"]
    assert [str(entry).partition(":")[0] for entry in outcome.skipped] == [
        "x.tsv line 3", "question q02", "question q03", "question q01"]
    assert "is no picture" not in str(outcome.skipped[1]) and "cannot be decoded" in outcome.skipped[1].why
    assert "used before" in outcome.skipped[3].why
    file.unlink()
    with pytest.raises(UserError, match=r"3 skipped rows, more than --max-skipped 2.*p\.jsonl"):
        answer_all(items, Model(), file, Plan("generate", max_skipped=2))
    assert [line["id"] for line in lines_of(file)] == ["q00", "q01"]       # what came before is there
    again = Model()
    assert answer_all(items, again, file, Plan("generate", max_skipped=4)).lines == outcome.lines
    assert again.asked == ["Which 4"]
    with pytest.raises(UserError, match="no question can be asked: it is empty"):
        answer_all([], Model(), tmp_path / "e.jsonl", Plan("generate"))


def test_failed_prompts_are_counted_and_asked_again(tmp_path):
    file, items = tmp_path / "p.jsonl", [item(k) for k in range(6)]
    late, fine = Reply(failure="timeout"), Reply("A", tokens=(5, 1))
    flaky = Model(lambda prompt: late if "Which 3" in prompt.question else fine)
    outcome = answer_all(items, flaky, file, Plan("generate", chunk=2))
    assert [str(entry) for entry in outcome.failed] == ["question q03: timeout"] and len(outcome.lines) == 5
    assert outcome.lines[0]["usage"] == [5, 1]
    good = Model()
    assert len(answer_all(items, good, file, Plan("generate")).lines) == 6 and good.asked == ["Which 3"]
    file.unlink()
    broken = Model(lambda prompt: Reply("A") if "Which 0" in prompt.question else Reply(failure="timeout"))
    with pytest.raises(UserError, match="3 unanswered questions, more than --max-skipped 2"):
        answer_all(items, broken, file, Plan("generate", chunk=4, max_skipped=2))
    assert [line["id"] for line in lines_of(file)] == ["q00"]
    refused = Model(lambda prompt: Reply("A") if "Which 1" in prompt.question else Reply(failure="no key", fatal=True))
    with pytest.raises(UserError, match="no key"):
        answer_all(items, refused, file, Plan("generate"))
    assert [line["id"] for line in lines_of(file)] == ["q00", "q01"]


def test_answers_of_another_run_are_set_aside(tmp_path):
    settings = {"model": "m", "answer": "score", "sizes": (1, 2)}
    assert predictions.set_aside(tmp_path, settings) is None
    (tmp_path / "predictions.jsonl").write_text("old\n")
    assert predictions.set_aside(tmp_path, settings) is None and (tmp_path / "predictions.jsonl").exists()
    moved = predictions.set_aside(tmp_path, {**settings, "model": "n"})
    assert moved == tmp_path / "earlier-1" and (moved / "predictions.jsonl").read_text() == "old\n"
    assert not (tmp_path / "predictions.jsonl").exists()
    assert json.loads((moved / "run.json").read_text())["model"] == "m"


def test_the_judge_reads_only_what_no_rule_could(tmp_path):
    texts = ["A", "the feline", "the canine", "hm", "both", "a horse"]
    asked = [item(k) for k in range(6)]
    lines = [predictions.line_of(question, text) for question, text in zip(asked, texts, strict=True)]
    verdicts = {"the feline": "A", "the canine": "B.", "hm": "NONE", "both": "A, or perhaps B", "a horse": "C"}
    reader = Model(lambda prompt: next(said for key, said in verdicts.items() if f"Answer: {key}\n" in prompt.question))
    found = judge.judged(lines, reader, "judge-x", tmp_path / "judge.jsonl")
    # Right: q00 by rule. The feline is wrong (q01 wants the dog), the canine wrong (q02 wants the cat).
    counts = {"asked": 5, "read": 2, "right": 0, "nonsense": 2, "failed": 0}
    assert found == {"judge": "judge-x", **counts, "overall": 1 / 6, "by_rule": {"choice": counts}}
    assert "right" not in reader.batches[0][0].question and reader.batches[0][0].image == b""
    idle = Model()
    assert judge.judged(lines, idle, "judge-x", tmp_path / "judge.jsonl") == found and idle.batches == []
    swapped = [{**line, "answer": 1 - line["answer"]} for line in lines]
    assert judge.judged(swapped, idle, "judge-x", tmp_path / "judge.jsonl")["right"] == 2 and idle.batches == []
    down = Model(Reply(failure="timeout"))
    assert judge.judged(lines, down, "other", tmp_path / "judge.jsonl")["failed"] == 5
    with pytest.raises(UserError, match="the judge: no key"):
        judge.judged(lines, Model(Reply(failure="no key", fatal=True)), "third", tmp_path / "judge.jsonl")


def test_the_judge_reads_lengths_and_hours_and_is_not_believed_blindly(tmp_path):
    """Right: within a quarter of 2 m, within an hour of 12. What it says must be JSON, and stand in the answer."""
    asked = {"two and a half metres": '{"number": 2.5, "unit": "metres"}', "two, no: three metres": "NONE",
             "one and a half feet": '```json\n{"number": 1.5, "unit": "feet"}\n```',
             "about 2": '{"number": 2, "unit": "m"}',
             "some metres": '{"number": 2, "unit": "metres"}', "a metre": "It says one metre.",
             "half a metre": '{"number": "half", "unit": "metres"}', "a foot": '{"number": true, "unit": "feet"}'}
    hours = {"at about one": '{"hour": 1}', "straight on": '{"hour": 12}', "at two or so": '{"hour": 2}',
             "at three sharp": '{"hour": 3, "why": "it is"}', "four-ish": '{"hour": 4.0}', "five-ish": "5"}
    items = [*(item(k, rule="metres", answer=2.0, options=(), layout="plain") for k in range(len(asked))),
             *(item(10 + k, rule="clock", answer=12, options=(), layout="plain") for k in range(len(hours)))]
    verdicts = {**asked, **hours}
    lines = [predictions.line_of(question, text) for question, text in zip(items, verdicts, strict=True)]
    assert not any(line["right"] for line in lines) and {line["parsed"] for line in lines} == {None}
    reader = Model(lambda prompt: next(said for key, said in verdicts.items() if f"Answer: {key}\n" in prompt.question))
    found = judge.judged(lines, reader, "j", tmp_path / "judge.jsonl")
    assert found["by_rule"] == {"metres": {"asked": 8, "read": 2, "right": 1, "nonsense": 5, "failed": 0},
                                "clock": {"asked": 6, "read": 2, "right": 1, "nonsense": 4, "failed": 0}}
    assert found["read"] == 4 and found["right"] == 2 and found["nonsense"] == 9 and found["overall"] == 2 / 14
    assert not any("2.0" in prompt.question for batch in reader.batches for prompt in batch)
    idle = Model()
    assert judge.judged(lines, idle, "j", tmp_path / "judge.jsonl") == found and idle.batches == []
