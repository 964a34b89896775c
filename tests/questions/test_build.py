"""Quotas, references, wording, balance and determinism of generated questions."""

import dataclasses
import json
import re
from collections import Counter

import numpy as np
import pytest

from spatialllm_jax.data.formats import group_questions
from spatialllm_jax.data.storage import question_from_dict, question_to_dict
from spatialllm_jax.errors import UserError
from spatialllm_jax.questions import wording
from spatialllm_jax.questions.balance import BALANCED, Balancer, answer_key
from spatialllm_jax.questions.build import FAMILIES, generate_questions, question_rng
from spatialllm_jax.questions.config import QuestionConfig, question_config
from spatialllm_jax.questions.labels import family_of, renumber, subject_of
from spatialllm_jax.questions.recheck import recheck
from spatialllm_jax.questions.types import GENERAL_TYPES, PROBING_TYPES, SPATIAL_TYPES, VIEW_TYPES
from spatialllm_jax.scene.types import Box3D

CATEGORIES = ("car", "dog", "bed", "chair", "school bus", "bus", "person", "sofa")
COLOURS = ("red", "brown", "white", "blue", "green", "black")
ALL = (*SPATIAL_TYPES, *PROBING_TYPES, *VIEW_TYPES, *GENERAL_TYPES)
MIXED = {"which": 1.0, "choice": 1.0, "yes_no": 2.0}


def config(types=ALL, quota=3, **kwargs):
    return QuestionConfig("t", dict.fromkeys(types, quota), categories=CATEGORIES, colours=COLOURS, **kwargs)


def ask(scene, settings, seed=0):
    return generate_questions(scene, settings, question_rng(seed, 0))


def test_every_type_has_a_family_and_wording():
    assert set(FAMILIES) == set(wording.FULL) == set(wording.SHORT) == set(ALL)
    assert set(wording.FULL_CLAIMS) == set(wording.SHORT_CLAIMS) == {*SPATIAL_TYPES, *VIEW_TYPES, "left_right"}


def test_numbers_of_wordings():
    for kind, table in wording.FULL.items():
        assert len(table) >= (10 if kind in SPATIAL_TYPES else 6 if kind in PROBING_TYPES else 5), kind
        assert len({question for question, _ in table}) == len(table)
    assert all(len(table) >= 5 for table in wording.FULL_CLAIMS.values())


@pytest.mark.parametrize("register", ["full", "short"])
@pytest.mark.parametrize("region", ["mark", "text", "name"])
def test_records_are_complete(random_scene, register, region):
    seen = set()
    for seed in range(12):
        scene = random_scene(seed)
        questions = ask(scene, config(register=register, region_style=region), seed)
        assert len({q.id for q in questions}) == len(questions)
        counts = Counter(q.type for q in questions)
        assert max(counts.values()) <= 6 and all(counts[k] <= 3 for k in SPATIAL_TYPES)
        for q in questions:
            seen.add(q.type)
            assert q.image == scene.image.id and q.source == "handmade" and q.region_style == region
            assert q.text and q.answer and "{" not in q.text + q.answer
            for r in q.regions:
                assert 0 <= r.bbox[0] < r.bbox[2] <= 1 and 0 <= r.bbox[1] < r.bbox[3] <= 1
            if q.options:
                assert len(set(q.options)) == len(q.options) and q.options[q.answer_index] == q.answer
            if q.type in SPATIAL_TYPES:
                assert q.group == SPATIAL_TYPES[q.type] and q.quantities and q.margin > 0
                assert len(q.options) == (4 if q.type in ("facing_camera", "on_which_side") else 2)
                for r in q.regions:
                    assert (f"Region [{r.label}]" if register == "full" and region == "mark" else r.phrase) in q.text
    assert seen == set(ALL)


def test_the_paper_s_wording(random_scene):
    settings = dataclasses.replace(config(("closer_to_camera",)), paraphrases=1)
    question = ask(random_scene(0), settings)[0]
    a, b = (f"the {r.phrase} in Region [{r.label}]" for r in question.regions)
    assert question.text == (
        "Consider the real-world 3D locations and orientations of the objects. "
        f"Which object is closer to the viewer, {a} or {b}?"
    )
    assert question.answer in {f"T{x[1:]} is closer to the viewer." for x in (a, b)}


def test_more_of_the_paper_s_wording(random_scene):
    asked = {}
    for seed in range(10):
        for q in ask(random_scene(seed), config(SPATIAL_TYPES, paraphrases=1), seed):
            a, b = (f"the {r.phrase} in Region [{r.label}]" for r in [*q.regions, *q.regions][:2])
            asked[q.type] = (q.text.replace(a, "<a>").replace(b, "<b>"), {
                o.replace(a, "<a>").replace(b, "<b>").replace(a.capitalize()[:1] + a[1:], "<A>")
                .replace("T" + b[1:], "<B>") for o in q.options})
    lead = "Consider the real-world 3D"
    assert asked["same_direction"] == (
        f"{lead} orientations of the objects. Are <a> and <b> facing the same (or similar) directions, or very "
        "different directions?", {"They are facing the same direction.", "They are facing different directions."})
    assert asked["on_which_side"] == (
        f"{lead} locations and orientations of the objects. From the perspective of <a>, in which direction is <b>?",
        {f"<B> is in the {side} direction of <a>." for side in ("front", "left", "back", "right")})


def test_short_answers_are_bare(random_scene):
    settings = config(SPATIAL_TYPES, register="short", region_style="name")
    for q in ask(random_scene(2), settings):
        allowed = {"front", "left", "back", "right", "same", "different", *(r.phrase for r in q.regions)}
        assert q.answer in allowed and set(q.options) <= allowed


def test_names_are_unique_in_the_image(random_scene):
    """Two cars: "the car" names neither, "the red car" does; with a hidden car around, nothing does."""
    scene = random_scene(3, repeat=True)
    settings = config(SPATIAL_TYPES, region_style="name", register="short")
    categories = Counter(o.category for o in scene.objects)
    assert max(categories.values()) > 1
    phrases = {r.phrase for q in ask(scene, settings) for r in q.regions}
    assert phrases
    for o in scene.objects:
        if categories[o.category] > 1:
            assert o.category not in phrases
    hidden = dataclasses.replace(scene, hidden=tuple(categories))
    assert ask(hidden, settings) == []
    assert ask(dataclasses.replace(scene, hidden=("*",)), settings) == []
    assert ask(hidden, config(SPATIAL_TYPES)) != []  # marks need no names


def test_presence_and_count_respect_hidden_things(random_scene):
    scene = random_scene(4)
    absent = next(c for c in CATEGORIES if c not in {o.category for o in scene.objects})
    hidden = dataclasses.replace(scene, hidden=(absent,))
    settings = config(("presence", "count"), quota=20)
    questions = ask(hidden, settings)
    assert not any(f" {absent} " in f"{q.text} " for q in questions if q.type == "presence")
    assert not any("objects" in q.text for q in questions)
    assert ask(dataclasses.replace(scene, hidden=("*",)), settings) == []


def test_unclear_objects_are_not_asked_about(random_scene):
    scene = random_scene(5)
    poor = dataclasses.replace(scene, objects=tuple(dataclasses.replace(o, visibility=0.1) for o in scene.objects))
    assert ask(poor, config(SPATIAL_TYPES)) == []
    cut = dataclasses.replace(scene, objects=tuple(dataclasses.replace(o, truncation=0.5) for o in scene.objects))
    assert ask(cut, config(SPATIAL_TYPES)) == []
    assert ask(dataclasses.replace(scene, objects=()), config()) == []


def test_no_metres_without_metric_scenes(random_scene):
    scene = dataclasses.replace(random_scene(6), metric=False)
    kinds = {q.type for q in ask(scene, config())}
    assert not kinds & {"depth", "distance", "location"} and "closer_to_camera" in kinds


def test_general_questions_hold_no_3d(random_scene):
    """The same questions come out when every 3D box is replaced by nonsense."""
    scene = random_scene(7)
    rng = np.random.default_rng(0)
    nonsense = tuple(
        dataclasses.replace(o, box=Box3D(rng.normal(size=3) * 9, rng.uniform(1, 9, 3), np.eye(3)))
        for o in scene.objects
    )
    settings = config(GENERAL_TYPES, quota=5)
    assert ask(scene, settings) == ask(dataclasses.replace(scene, objects=nonsense), settings)


def test_determinism_and_streams(random_scene):
    scene = random_scene(8)
    assert ask(scene, config(), 1) == ask(scene, config(), 1) != ask(scene, config(), 2)
    first, second = (generate_questions(scene, config(), question_rng(0, 0, k)) for k in (0, 1))
    assert first != second


def test_letters_are_listed_and_spread(random_scene):
    settings = config(("facing_camera", "where", "what"), forms={"choice": 1.0})
    letters = Counter()
    balancer = Balancer(slack=4)
    for seed in range(60):
        for q in balancer.filter(ask(random_scene(seed), settings, seed)):
            lines = [line for line in q.text.split("\n") if line[1:3] == ". "]
            assert [line[0] for line in lines] == list(q.options) and 2 <= len(lines) <= 6
            if q.type == "facing_camera":
                letters[q.answer] += 1
    assert set(letters) == set("ABCD") and max(letters.values()) <= 1.05 * min(letters.values()) + 5


def test_labels_per_image(random_scene):
    scene = random_scene(9)
    boxes = {}
    for q in ask(scene, config(SPATIAL_TYPES, region_labels="image")):
        for r in q.regions:
            assert boxes.setdefault(r.label, r.bbox) == r.bbox
    assert len(boxes) > 2


def test_labels_count_in_order_of_mention(random_scene):
    numbers = Counter()
    for seed in range(20):
        for q in ask(random_scene(seed), config((*SPATIAL_TYPES, *VIEW_TYPES), forms=MIXED), seed):
            mentioned = list(dict.fromkeys(int(k) for k in re.findall(r"Region \[(\d+)\]", q.text.split("\n")[0])))
            assert mentioned == list(range(len(q.regions))), q
            numbers[tuple(r.label for r in q.regions)] += 1
    assert numbers["1", "0"] > 10  # "is b farther than a?" mentions the second object first


def test_a_conversation_shares_one_marked_picture(random_scene):
    """Labels count from 0 over the whole family, also after balance took questions out of it."""
    settings = config((*SPATIAL_TYPES, "what", "colour"), region_labels="conversation", forms=MIXED, quota=2)
    gaps = 0
    for seed in range(30):
        questions = ask(random_scene(seed), settings, seed)
        for kept in (questions, questions[3::2]):
            found = renumber(kept, {"t"})
            gaps += found != tuple(kept)
            boxes, mentioned = {}, []
            for q in found:
                assert recheck(q, random_scene(seed)) is None
                mentioned = list(dict.fromkeys([*mentioned, *re.findall(r"\[(\d+)\]", q.text)]))
                for r in q.regions:
                    assert boxes.setdefault(r.label, r.bbox) == r.bbox and f"[{r.label}]" in q.text
            assert mentioned == [str(k) for k in range(len(mentioned))]
            assert len(set(boxes.values())) == len(boxes)
            groups = [group for group in group_questions(found) if group[0]]
            assert len(groups) == 1 and [m.label for m in groups[0][0]] == mentioned
            assert renumber(kept, {"other"}) == tuple(kept)
        assert renumber(questions, {"t"}) == tuple(questions)
    assert gaps > 15


def test_a_family_asks_once_about_a_thing(random_scene):
    for seed in range(20):
        questions = ask(random_scene(seed), config(quota=9, forms=MIXED, region_labels="conversation"), seed)
        subjects = [s for q in questions if (s := subject_of(q)) is not None]
        assert len(set(subjects)) == len(subjects) and {family_of(q) for q in questions} == {"t"}


def test_forms_in_proportion(random_scene):
    counts = Counter()
    fallen_back = set()
    for seed in range(60):
        for q in ask(random_scene(seed), config(forms={"which": 1, "choice": 0, "yes_no": 3}), seed):
            if q.type in wording.CLAIMED:
                counts[q.form] += 1
            else:
                assert q.form == "which" and not q.claim
                fallen_back.add(q.type)
    assert set(counts) == {"which", "yes_no"} and 0.7 < counts["yes_no"] / counts.total() < 0.8
    assert fallen_back == set(ALL) - set(wording.CLAIMED)


def test_one_form_draws_nothing(random_scene):
    scene = random_scene(2)
    for forms in ({"which": 1.0}, {"which": 0.2, "choice": 0}):
        rng = question_rng(0, 0)
        state = str(rng.bit_generator.state)
        assert config(forms=forms).draw_form(rng) == "which" and str(rng.bit_generator.state) == state
        assert ask(scene, config(forms=forms)) == ask(scene, config())


def test_form_and_claim_are_stored(random_scene):
    for q in ask(random_scene(3), config(forms=MIXED)):
        data = json.loads(json.dumps(question_to_dict(q)))
        back = question_from_dict(data, q.image)
        assert (back.form, back.claim, back.options) == (q.form, q.claim, q.options)
        assert ("form" in data) == (q.form != "which") and ("claim" in data) == (q.form == "yes_no")


def test_claims_tell_nothing_about_their_truth(random_scene):
    """Of a hundred pictures: "yes" is right half of the time, over a type and for every answer claimed."""
    balancer = Balancer(slack=3, category_slack=100)
    said = {}
    kinds = wording.CLAIMED
    for seed in range(120):
        for q in ask(random_scene(seed), config(kinds, quota=6, forms={"yes_no": 1.0}), seed):
            if balancer.keep(q):
                for key in ((q.type, ""), (q.type, q.claim)):
                    said.setdefault(key, Counter())[q.options.index(q.answer)] += 1
    assert {kind for kind, _ in said} == set(kinds) and len(said) > len(kinds) * 2
    for key, counts in said.items():
        assert len(counts) == 2 and max(counts.values()) <= 1.05 * min(counts.values()) + 4, key


def test_lopsided_claims_are_evened_out(random_scene):
    """Where nearly every claim is true, as many "yes" as "no" are kept."""
    balancer = Balancer(slack=2, category_slack=100)
    kept = Counter()
    for seed in range(60):
        for q in ask(random_scene(seed), config(("higher",), forms={"yes_no": 1.0}), seed):
            said = q.options.index(q.answer)
            if (said == 0 or seed % 6 == 0) and balancer.keep(q):
                kept[said] += 1
    assert kept[1] > 5 and kept[0] <= 1.05 * kept[1] + 3


def test_what_unknown_verticals_and_scales_rule_out(random_scene):
    scene = random_scene(6)
    leaning = dataclasses.replace(scene, upright=False, camera=dataclasses.replace(scene.camera, gravity=None))
    assert not {"elevation", "theta", "view_above_below"} & {q.type for q in ask(leaning, config(quota=9))}
    assert {"elevation", "theta"} <= {q.type for q in ask(scene, config(quota=9))}
    apart = dataclasses.replace(scene, shared_scale=False)
    assert not set(VIEW_TYPES) & {q.type for q in ask(apart, config(quota=9))}


def test_regions_of_general_questions_carry_their_own_number(random_scene):
    """With labels per image, "the object in Region [2]" is region 2."""
    labels = set()
    for q in ask(random_scene(1), config(("what", "colour"), quota=9, region_labels="image")):
        if "Region" in q.text:
            assert f"Region [{q.regions[0].label}]" in q.text
            labels.add(q.regions[0].label)
    assert len(labels) > 2


def test_balance(random_scene):
    balancer = Balancer(slack=3)
    settings = config(tuple(BALANCED), quota=6)
    counts: dict[str, Counter] = {kind: Counter() for kind in BALANCED}
    before = 0
    for seed in range(150):
        for q in ask(random_scene(seed), settings, seed):
            before += 1
            if balancer.keep(q):
                counts[q.type][answer_key(q)] += 1
    total = sum(sum(c.values()) for c in counts.values())
    assert total > 0.6 * before
    for kind, answers in BALANCED.items():
        assert set(counts[kind]) == set(answers)
        assert max(counts[kind].values()) <= 1.05 * min(counts[kind].values()) + 4


def test_probing_precision():
    assert wording.metres(0.456) == "46 centimeters"
    assert wording.metres(0.997) == "1.0 meters"
    assert wording.metres(9.97) == "10 meters"
    assert wording.metres(3.14159) == "3.1 meters"
    assert wording.metres(41.6) == "42 meters"
    assert wording.metres(3.3, 0.5) == "3.5 m"
    assert wording.metres(0.56, like=69.0) == "1 meter" and wording.metres(0.56, like=3.0) == "0.6 meters"


def test_a_location_is_as_precise_as_its_largest_coordinate(random_scene):
    scene = random_scene(0)
    placed = tuple(dataclasses.replace(o, box=dataclasses.replace(o.box, center=np.array(center)))
                   for o, center in zip(scene.objects, [(0.53, 0.06, 69.0), (-0.53, -0.26, 4.0)], strict=False))
    asked = ask(dataclasses.replace(scene, objects=placed), config(("location",), region_style="name", paraphrases=1))
    assert {q.answer.split(" is ")[1] for q in asked} == {
        "1 meter to the right and 69 meters ahead.",
        "0.5 meters to the left, 0.3 meters up and 4.0 meters ahead.",
    }


@pytest.mark.parametrize(
    ("noun", "expected"),
    [("red car", "red cars"), ("bus", "buses"), ("person", "people"), ("box", "boxes"), ("sofa", "sofas"),
     ("city", "cities"), ("boy", "boys"), ("bench", "benches")],
)  # fmt: skip
def test_plural(noun, expected):
    assert wording.plural(noun) == expected


def test_articles_and_lists():
    assert wording.article("orange car") == "an orange car"
    assert wording.listing(["a", "b", "c"]) == "a, b and c" and wording.listing([]) == ""


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"types": {"nonsense": 1}}, "nonsense"),
        ({"types": {}, "region_style": "circle"}, "circle"),
        ({"types": {}, "colour": "red"}, "colour"),
        ({"types": {}, "margins": {"gap": 1}}, "gap"),
        ({"types": {}, "view_margins": {"width": 1}}, "width"),
        ({"types": {}, "forms": {"letter": 1}}, "letter"),
        ({"types": {}, "forms": {"which": -1}}, "-1"),
        ({"types": {}, "forms": {"which": 0}}, "no weight"),
        ({"types": {}, "forms": {}}, "no weight"),
        ({"types": {}, "answer_style": "letter"}, "answer_style"),
    ],
)
def test_bad_settings_are_named(settings, word):
    with pytest.raises(UserError, match=word):
        question_config("t", settings)
