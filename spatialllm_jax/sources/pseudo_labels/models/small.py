"""Small random models of the real classes, saved as the hub saves them.

They know nothing; they go through the same loading and the same calls as the real weights, which tests, benchmarks
and the floor of the error table need.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spatialllm_jax.sources.pseudo_labels.config import ModelNames
from spatialllm_jax.sources.pseudo_labels.models.weights import torch_module

_WORD_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",")
_SIDE = 64
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def write_small_models(folder: Path, words: Sequence[str], seed: int = 0) -> ModelNames:
    """Writes one model per interface into `folder`; `words` are all that the texts may hold."""
    torch_module().manual_seed(seed)
    names = {part: str(folder / part) for part in ("detector", "segmenter", "depth", "orientation", "tagger")}
    detector(Path(names["detector"]), words)
    sam2(Path(names["segmenter"]))
    depth_pro(Path(names["depth"]))
    orient_anything(Path(names["orientation"]))
    clip(Path(names["tagger"]), words)
    return ModelNames(**names, device="cpu")


def detector(folder: Path, words: Sequence[str]) -> None:
    """Grounding DINO with 20 queries."""
    hf = _transformers()

    folder.mkdir(parents=True, exist_ok=True)
    pieces = [*_WORD_PIECES, *sorted({part for word in words for part in word.lower().split()})]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    config = hf.GroundingDinoConfig(
        backbone_config=hf.SwinConfig(
            image_size=_SIDE, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
            out_features=["stage2", "stage3", "stage4"], out_indices=[2, 3, 4]),
        text_config=hf.BertConfig(vocab_size=len(pieces), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                               intermediate_size=32, max_position_embeddings=256),
        num_queries=20, d_model=32, encoder_layers=1, encoder_ffn_dim=32, encoder_attention_heads=2, decoder_layers=2,
        decoder_ffn_dim=32, decoder_attention_heads=2, disable_custom_kernels=True)  # fmt: skip
    tokenizer = hf.BertTokenizer(str(folder / "vocab.txt"))
    images = _images("GroundingDinoImageProcessor")(size={"shortest_edge": 2 * _SIDE, "longest_edge": 4 * _SIDE})
    hf.GroundingDinoForObjectDetection(config).save_pretrained(folder)
    hf.GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)


def sam(folder: Path) -> None:
    """SAM with one block."""
    hf = _transformers()

    decoder = hf.SamMaskDecoderConfig(hidden_size=16, mlp_dim=16, num_hidden_layers=1, num_attention_heads=2,
                                   iou_head_hidden_dim=16)
    config = hf.SamConfig(
        vision_config=hf.SamVisionConfig(
            image_size=_SIDE, patch_size=16, hidden_size=32, output_channels=16, num_hidden_layers=1, mlp_dim=32,
            num_attention_heads=2, window_size=2, num_pos_feats=8, global_attn_indexes=[0]),
        prompt_encoder_config=hf.SamPromptEncoderConfig(
            hidden_size=16, image_size=_SIDE, patch_size=16, mask_input_channels=4),
        mask_decoder_config=decoder)
    hf.SamModel(config).save_pretrained(folder)
    _preprocessor(folder, {"image_processor_type": "SamImageProcessor", "size": {"longest_edge": _SIDE},
                           "pad_size": {"height": _SIDE, "width": _SIDE}, **_IMAGENET})


def sam2(folder: Path) -> None:
    """SAM 2 with five blocks."""
    hf = _transformers()

    backbone = hf.Sam2HieraDetConfig(
        hidden_size=8, image_size=[_SIDE, _SIDE], blocks_per_stage=[1, 1, 2, 1], embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2], window_size_per_stage=[4, 4, 4, 2], global_attention_blocks=[3],
        window_positional_embedding_background_size=[4, 4])
    config = hf.Sam2Config(
        vision_config=hf.Sam2VisionConfig(
            backbone_config=backbone, backbone_channel_list=[64, 32, 16, 8], fpn_hidden_size=32,
            backbone_feature_sizes=[[_SIDE // 4] * 2, [_SIDE // 8] * 2, [_SIDE // 16] * 2]),
        prompt_encoder_config=hf.Sam2PromptEncoderConfig(
            hidden_size=32, image_size=_SIDE, patch_size=16, mask_input_channels=4),
        mask_decoder_config=hf.Sam2MaskDecoderConfig(
            hidden_size=32, mlp_dim=32, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=32))
    hf.Sam2Model(config).save_pretrained(folder)
    _preprocessor(folder, {"image_processor_type": "Sam2ImageProcessor",
                           "size": {"height": _SIDE, "width": _SIDE}, **_IMAGENET})


def depth_pro(folder: Path) -> None:
    """Depth Pro with its field-of-view head, three encoders of one or two blocks."""
    import torch
    hf = _transformers()

    encoder: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2,
                               "image_size": _SIDE // 4, "patch_size": 4}
    config = hf.DepthProConfig(
        image_model_config=hf.Dinov2Config(**encoder).to_dict(),
        patch_model_config=hf.Dinov2Config(**encoder).to_dict(),
        fov_model_config=hf.Dinov2Config(**encoder).to_dict(), patch_size=_SIDE // 4, fusion_hidden_size=16,
        intermediate_hook_ids=[1, 0], intermediate_feature_dims=[16, 16], scaled_images_feature_dims=[16, 16, 16],
        scaled_images_ratios=[0.25, 0.5, 1], scaled_images_overlap_ratios=[0.0, 0.5, 0.25], merge_padding_value=1,
        use_fov_model=True, num_fov_head_layers=2)
    model = hf.DepthProForDepthEstimation(config)
    with torch.no_grad():   # about 55 degrees and a few metres, so that what follows has something to work on
        model.fov_model.head.layers[-1].bias.fill_(55.0)
        model.head.layers[-2].weight.mul_(0.001)
        model.head.layers[-2].bias.fill_(0.3)
    model.save_pretrained(folder)
    _preprocessor(folder, {"image_processor_type": "DepthProImageProcessor", "size": {"height": _SIDE, "width": _SIDE},
                           "image_mean": [0.5] * 3, "image_std": [0.5] * 3})


def depth_anything(folder: Path, metric: bool = True) -> None:
    """Depth Anything V2 with a metric head of 20 m (or a relative one)."""
    hf = _transformers()

    backbone = hf.Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=2, image_size=56, patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False, apply_layernorm=True)
    config = hf.DepthAnythingConfig(
        backbone_config=backbone, patch_size=14, reassemble_hidden_size=16, reassemble_factors=[4, 2, 1, 0.5],
        neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, head_in_index=-1, head_hidden_size=8,
        depth_estimation_type="metric" if metric else "relative", max_depth=20 if metric else 1)
    hf.DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    _images("DPTImageProcessor")(size={"height": 56, "width": 56}, keep_aspect_ratio=True, ensure_multiple_of=14,
                         **_IMAGENET).save_pretrained(folder)


def orient_anything(folder: Path) -> None:
    """A DINOv2 backbone with Orient-Anything's head, in that project's format: a `.pt` of one state dict."""
    import torch
    from safetensors.torch import load_file
    hf = _transformers()

    from spatialllm_jax.sources.pseudo_labels.models.orient_anything import Head

    config = hf.Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2, image_size=56,
                          patch_size=14)
    hf.Dinov2Model(config).save_pretrained(folder)
    backbone = load_file(folder / "model.safetensors")      # under the hub's names, as Orient-Anything saved them
    (folder / "model.safetensors").unlink()
    head = Head(16, 360 + 180 + 360 + 2)
    torch.save({**{f"dinov2.{name}": value for name, value in backbone.items()},
                **{f"down_sampler.{name}": value for name, value in head.state_dict().items()}},
               folder / "dino_weight.pt")


def clip(folder: Path, words: Sequence[str]) -> None:
    """CLIP with one block per tower, and a tokenizer that knows bytes alone."""
    hf = _transformers()

    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted({letter for word in words for letter in word.lower()} | set("aphotof"))
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({piece: k for k, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    text = hf.CLIPTextConfig(vocab_size=len(pieces), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                          num_attention_heads=2, max_position_embeddings=77, bos_token_id=len(pieces) - 2,
                          eos_token_id=len(pieces) - 1)
    vision = hf.CLIPVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                              image_size=32, patch_size=16)
    hf.CLIPModel(hf.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
              ).save_pretrained(folder)
    hf.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    _images("CLIPImageProcessor")(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
                                  ).save_pretrained(folder)


def _transformers() -> Any:
    """Untyped: its classes take what its own type hints do not know of."""
    return importlib.import_module("transformers")


def _images(name: str) -> Any:
    """A processor that needs no torchvision: in transformers 5 it has a name of its own."""
    hf = _transformers()
    return getattr(hf, f"{name}Pil", None) or getattr(hf, name)


def _preprocessor(folder: Path, settings: dict[str, Any]) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps({"rescale_factor": 1 / 255, "resample": 2, **settings}))
