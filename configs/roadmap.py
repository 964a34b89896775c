"""The ten rows of the paper's Table 2, at full size and at `tiny`.

    python -m launch.train --config=configs/roadmap.py:align_in166k
    python -m launch.train --config=configs/roadmap.py:align_in166k --config.size=tiny

A row says which encoders and language model, what stage 0 does, and which data stages 1 and 2 see. All else
is LLaVA-v1.5's recipe at full size, and a laptop's at `tiny`. Sizes differ, code paths do not.
"""

from ml_collections import ConfigDict

from spatialllm_jax.errors import UserError

#            model         tiny model       stage 0        + stage 1        + stage 2
ROWS = {
    "llava15": ("llava15", "tiny_clip", "", "", ""),
    "clip_mae": ("clip_mae", "tiny_clip_mae", "", "", ""),
    "clip_dinov2": ("clip_dinov2", "tiny_vicuna", "", "", ""),
    "llama3": ("spatialllm_8b", "tiny", "", "", ""),
    "ft1m": ("spatialllm_8b", "tiny", "", "", "3di_ft1m"),
    "align_ft1m": ("spatialllm_8b", "tiny", "", "3di_ft1m", "3di_ft1m"),
    "align_oi1m": ("spatialllm_8b", "tiny", "", "3di_pb_oi1m", "3di_ft1m"),
    "align_in166k": ("spatialllm_8b", "tiny", "", "3di_pb_in166k", "3di_ft1m"),
    "stage0_contrastive": ("spatialllm_8b", "tiny", "contrastive", "3di_pb_in166k", "3di_ft1m"),
    "stage0_next_token": ("spatialllm_8b", "tiny", "next_token", "3di_pb_in166k", "3di_ft1m"),
}
# Not a row of the paper: the small CLIP that the tiny rows start from, where OpenAI's is too large.
CLIP = "clip"
CLIP_LINEARS = "vision/clip/.*(query|key|value|out|up|down)$"
# At full size the model computes in bfloat16 and casts frozen kernels wherever it uses them: held so, they take half
# the memory and change nothing. What trains, now or in a later stage, is float32 from the files.
FROZEN = {"frozen_dtype": "bfloat16"}

CAPTIONS = {"caption": 1.0}
PROBING = {"depth": 1.0, "distance": 0.7, "azimuth": 1.5, "elevation": 0.3}
SPATIAL = {"closer_to_camera": 1.0, "closer_to_object": 1.0, "facing_camera": 1.0, "facing_object": 1.0,
           "same_direction": 1.0, "higher": 1.0, "on_which_side": 1.0}
# What visual tokens are told to show at `tiny`: what 2D boxes carry, and what 3D boxes add.
FLAT_WORDS = ("category", "colour")
SOLID_WORDS = ("category", "colour", "azimuth", "distance")
# The tiny model is asked mostly what binds a name to a place or a property. Probing goes on through stage 2, as a
# model this small forgets quickly.
TINY_GENERAL = {"where": 1.0, "colour": 1.0, "presence": 1.0, "left_right": 0.3, "what": 0.3, "count": 0.15,
                "caption": 0.15}
TINY_PROBING = {"azimuth": 1.5, "depth": 1.0}
# What the two probing sets know best: human angles of objects, or estimated depths and distances of scenes.
TINY_PROBING_OF = {"3di_pb_in166k": TINY_PROBING, "3di_pb_oi1m": {"depth": 1.5, "distance": 1.0, "azimuth": 0.5}}
TINY_FT = {**SPATIAL, "closer_to_camera": 1.5, "facing_camera": 2.0, "higher": 1.5, "same_direction": 1.5,
           "azimuth": 1.0, "depth": 1.0}
# Samples per pass. The paper speaks of 166K and 1M pairs, and of 1M conversations (its supplement: of 1M questions).
COUNTS = {"3di_pb_in166k": 166_000, "3di_pb_oi1m": 1_000_000, "3di_ft1m": 1_000_000}
# Rows of full-size stages: whole samples of up to 2,048 positions packed into 4,096, as many rows per step as hold
# LLaVA's number of samples on average (docs/training.md). With steps 0, a stage is one pass of its sources.
PACKED = {"batch_size": 0, "samples": 0, "length": 4096, "max_length": 2048, "images": 6, "image_size": 336,
          "packing": "pack", "resize": "pad", "window": 1024, "max_broken": 100}
EXTRA = {"3di_ft1m": SPATIAL, "3di_pb_oi1m": PROBING, "3di_pb_in166k": PROBING}


def get_config(arg: str = "align_in166k") -> ConfigDict:
    """The config of `ROW` or `ROW,SIZE`."""
    row, _, size = arg.partition(",")
    size = size or "full"
    if row not in ROWS and not (row == CLIP and size == "tiny"):
        raise UserError(f"--config: unknown row {row!r}; choose one of {', '.join(ROWS)}")
    if size not in ("full", "tiny"):
        raise UserError(f"--config.size={size}: choose full or tiny")
    return _full(row) if size == "full" else _tiny(row)


def _full(row: str) -> ConfigDict:
    model, _, stage0, align, tune = ROWS[row]
    vicuna = model in ("llava15", "clip_mae", "clip_dinov2")
    template = "vicuna_v1" if vicuna else "llama3"
    config = ConfigDict({
        "row": row, "size": "full", "seed": 0,
        "model": {"preset": model, "text_tower": "clip_l_336", "fit_vocabulary": False, "dtype": "bfloat16",
                  "remat": "full", "attention": "auto", "unroll": 1},
        # Model folders made by `python -m convert.from_hf`.
        "weights": {"vision/clip": "weights/clip-vit-large-patch14-336",
                    "llm": "weights/vicuna-7b-v1.5" if vicuna else "weights/llama-3-8b-instruct"},
        "tokenizer": "weights/vicuna-7b-v1.5" if vicuna else "weights/llama-3-8b-instruct",
        "features": "", "mesh": {"data": 1, "fsdp": -1, "context": 1, "tensor": 1},
        "stages": ConfigDict(sort_keys=False)})
    if model == "clip_mae":
        config.weights["vision/mae"] = "weights/vit-mae-large"
    elif model != "llava15":
        config.weights["vision/dinov2"] = "weights/dinov2-large"
    if stage0:
        contrastive = stage0 == "contrastive"
        # The paper gives no LoRA settings; these are VILA's and SpatialRGPT's (docs/recipes.md), on CLIP alone.
        config.stages.stage0 = {
            "objective": stage0, "trainable": ".*lora_" if contrastive else "vision/clip/.*lora_|connector",
            "steps": 1_000_000 // 1024,
            "lora": {"rank": 64, "alpha": 16.0, "dropout": 0.05, "targets": CLIP_LINEARS},
            "rows": {"batch_size": 1024, "length": 77 if contrastive else 1024, "images": 1, "image_size": 336,
                     "packing": False},
            "optimizer": {"learning_rate": 1e-4, "b2": 0.98, "eps": 1e-6},
            "template": template, "system": "" if contrastive else None, **FROZEN,
            "sources": {"3di_pb_oi1m": _source("data/3di_pb_oi1m", PROBING, 1.0,
                                               "contrastive" if contrastive else "dialogue")}}
    if stage0 == "contrastive":
        clip = "weights/clip-vit-large-patch14-336"
        # The text tower reads its own words; 128 of the 1,024 rows of logits at a time.
        config.stages.stage0.update({"tokenizer": clip, "contrast_chunk": 128})
        for tower in ("text", "vision_projection", "text_projection", "logit_scale"):
            config.weights[tower] = clip
    config.stages.align = {
        "objective": "next_token", "trainable": "connector", "steps": 0,
        "rows": {**PACKED, "samples": 256, "resize": "square"},
        "optimizer": {"learning_rate": 1e-3, "schedule": "cosine", "warmup": 0.03, "moment_dtype": "float32"},
        "accumulate": 1, "template": template, **FROZEN,
        # Captions use LLaVA's `plain` form; probing questions keep their question (docs/design.md).
        "sources": {"cc558k": _llava("data/cc558k/blip_laion_cc_sbu_558k.json", 558_128, "plain")}}
    if align:
        config.stages.align.sources[align] = _extra(align)
    config.stages.tune = {
        "objective": "next_token", "trainable": "connector|llm", "steps": 0,
        "rows": {**PACKED, "samples": 128, "resize": "pad"},
        "optimizer": {"learning_rate": 2e-5, "schedule": "cosine", "warmup": 0.03, "moment_dtype": "float32"},
        "accumulate": 1, "template": template, **FROZEN,
        "sources": {"mix665k": _llava("data/mix665k/llava_v1_5_mix665k.json", 665_298, "dialogue")}}
    if tune:
        config.stages.tune.sources[tune] = _extra(tune)
    return config


def _llava(path: str, count: int, form: str) -> dict:
    """A LLaVA JSON file, pictures beside it; every sample once per pass."""
    return {"path": path, "images": "", "types": {}, "count": count, "form": form}


def _extra(name: str) -> dict:
    """3D-informed data: one question per sample for probing, four turns of a conversation for 3DI-Ft."""
    source = {**_source(f"data/{name}", EXTRA[name], 1.0, "dialogue", 4 if name == "3di_ft1m" else 1),
              "count": COUNTS[name]}
    del source["weight"]
    return source


def _tiny(row: str) -> ConfigDict:
    _, model, stage0, align, tune = ROWS.get(row, ("", "tiny", "", "", ""))
    data = "runs/quickstart/data"
    config = ConfigDict({
        "row": row, "size": "tiny", "seed": 0,
        "model": {"preset": model, "text_tower": "tiny", "fit_vocabulary": True, "dtype": "float32",
                  "remat": "none", "attention": "xla", "unroll": 4},
        "weights": {}, "tokenizer": "", "features": "runs/quickstart/features",
        "mesh": {"data": -1, "fsdp": 1, "context": 1, "tensor": 1}, "stages": ConfigDict(sort_keys=False)})
    if row == CLIP:
        config.stages.clip = {
            "objective": "contrastive", "trainable": ".*", "steps": 150,
            "rows": {"batch_size": 64, "length": 48, "images": 1, "image_size": 168, "packing": False},
            "optimizer": {"learning_rate": 1e-3, "b2": 0.98, "eps": 1e-6, "weight_decay": 0.1},
            "template": "compact", "sources": {"captions": _source(data, CAPTIONS, 1.0, "contrastive")},
            "log_every": 10}
        return config
    config.weights["vision/clip"] = "runs/quickstart/clip/clip/model"
    if model in ("tiny", "tiny_vicuna"):
        config.weights["vision/dinov2"] = "runs/quickstart/weights/dinov2-vit-s14"
    rows = {"batch_size": 8, "length": 120, "images": 1, "image_size": 168, "packing": False}
    # No pretrained language model is this small, so the random one trains from stage 1 on.
    common = {"objective": "next_token", "trainable": "connector|llm", "rows": rows, "template": "compact",
              "system": "", "stored_features": True, "patch_weight": 1.0, "loss_chunk": 32,
              "log_every": 20}
    rate = {"b2": 0.98, "weight_decay": 0.05, "clip": 1.0, "schedule": "hold_linear"}
    if stage0:
        contrastive = stage0 == "contrastive"
        config.stages.stage0 = {
            "objective": stage0, "trainable": ".*lora_" if contrastive else "vision/clip/.*lora_|connector|llm",
            "steps": 100, "lora": {"rank": 8, "alpha": 16.0, "targets": CLIP_LINEARS},
            "rows": {**rows, "batch_size": 32, "length": 64 if contrastive else 160},
            "optimizer": {"learning_rate": 5e-4, "b2": 0.98}, "template": "compact", "system": "",
            "sources": {"probing": _source(data, PROBING, 1.0, "contrastive" if contrastive else "branches", 4)}}
    words = {stage: SOLID_WORDS if extra else FLAT_WORDS for stage, extra in (("align", align), ("tune", tune))}
    config.stages.patches = {
        **common, "objective": "patch_words", "trainable": "connector|llm/(embedding|norm)", "steps": 1000,
        "rows": {**rows, "batch_size": 16, "length": 64},
        "optimizer": {"learning_rate": 2e-3, "warmup": 0.04, **rate},
        "sources": {"boxes": {**_source(data, {}, 1.0, "patches"), "patch_words": words["align"]}}}
    config.stages.align = {
        **common, "steps": 600, "optimizer": {"learning_rate": 1.2e-3, "warmup": 0.04, "hold": 1.0, **rate},
        "sources": {"captions": _source(data, TINY_GENERAL, 1.0, "branches", 12)}}
    config.stages.tune = {
        **common, "steps": 2200, "optimizer": {"learning_rate": 1.2e-3, "warmup": 0.02, **rate},
        "sources": {"general": _source(data, TINY_GENERAL, 1.0, "branches", 12)}}
    if align:
        probing = TINY_PROBING_OF.get(align, SPATIAL)
        config.stages.align.sources.captions.weight = 0.4
        config.stages.align.sources[align] = _source(data, probing, 0.6, "branches", 12)
    if tune:
        config.stages.tune.sources.general.weight = 0.3
        config.stages.tune.sources[tune] = _source(data, TINY_FT, 0.7, "branches", 12)
    for stage, shown in words.items():
        for source in config.stages[stage].sources.values():
            source.patch_words = shown
    return config


def _source(path: str, types: dict[str, float], weight: float, form: str, questions: int = 1) -> dict:
    return {"path": path, "types": types, "weight": weight, "form": form, "questions": questions,
            "split": "train"}
