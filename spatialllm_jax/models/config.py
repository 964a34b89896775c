"""What a model is: frozen dataclasses, from a single encoder to the whole. Presets are in `models.presets`."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Literal

from spatialllm_jax.errors import UserError

VisionKind = Literal["clip", "dinov2", "mae"]
Mix = Literal["concat", "interleave", "sum"]
QUANTIZE = ("none", "int8", "int4")

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank updates (Hu et al., 2021): W + (alpha / rank) A B, on the linears whose path matches.

    Attributes:
        rank: inner size r of A `[in, r]` and B `[r, out]`.
        alpha: the update is scaled by alpha / rank.
        dropout: on the input of A, only while training.
        targets: regular expression searched in the linear's path, e.g. "vision/clip/blocks/attention/query"
            or "llm/layers/mlp/down"; the default takes every linear of every block.
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: str = r"attention/(query|key|value|out)$|mlp/(gate|up|down)$"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"lora.rank is {self.rank}; give a rank of at least 1 (or no LoRA at all)")
        try:
            re.compile(self.targets)
        except re.error as error:
            raise UserError(f"lora.targets {self.targets!r} is not a regular expression ({error})") from None

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank


@dataclass(frozen=True)
class VisionConfig:
    """One vision encoder. One ViT serves the three kinds; they differ in what is stated here.

    Attributes:
        name: key of the encoder under params["vision"].
        kind: "clip" (norm before the blocks, patch convolution without bias), "dinov2" (LayerScale,
            registers), "mae" (fixed sin-cos positions).
        image_size: side of the square input in pixels; images of another size are resized to it.
        patch_size: side of a patch in pixels.
        mlp_dim: hidden width of the MLP.
        num_registers: register tokens between CLS and patches (DINOv2 with registers).
        activation: "gelu" (exact), "gelu_tanh" or "quick_gelu" (x sigmoid(1.702 x), OpenAI's CLIP).
        feature_layer: which hidden state the language model sees, counted as in transformers'
            `hidden_states` (0 = embeddings, -1 = after the last block, before the final norm).
        feature_norm: apply the encoder's final norm to that state.
        pretrain_grid: side of the stored position grid; interpolated when it is not `grid`.
        antialias: whether shrinking the position grid is antialiased (DINOv2 with registers).
        mean, std: normalisation of pixels in [0, 1], per channel.
    """

    name: str
    kind: VisionKind
    image_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    num_registers: int = 0
    swiglu: bool = False
    activation: str = "gelu"
    norm_eps: float = 1e-6
    feature_layer: int = -2
    feature_norm: bool = False
    pretrain_grid: int | None = None
    antialias: bool = False
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.kind not in ("clip", "dinov2", "mae"):
            raise UserError(f"vision encoder {self.name!r}: kind {self.kind!r} is not clip, dinov2 or mae")
        if self.image_size % self.patch_size:
            raise UserError(f"vision encoder {self.name!r}: image_size {self.image_size} is not a multiple of "
                            f"patch_size {self.patch_size}")
        if self.width % self.num_heads:
            raise UserError(f"vision encoder {self.name!r}: width {self.width} is not a multiple of "
                            f"num_heads {self.num_heads}")
        if not 0 <= self.feature_blocks <= self.depth:
            raise UserError(f"vision encoder {self.name!r}: feature_layer {self.feature_layer} does not exist; "
                            f"{self.depth} blocks have hidden states {-self.depth - 1} to {self.depth}")

    @property
    def grid(self) -> int:
        """Patches per side at `image_size`."""
        return self.image_size // self.patch_size

    @property
    def position_grid(self) -> int:
        """Side of the stored position grid."""
        return self.pretrain_grid or self.grid

    @property
    def num_prefix(self) -> int:
        """Tokens before the patches: CLS and registers."""
        return 1 + self.num_registers

    @property
    def feature_blocks(self) -> int:
        """How many blocks must run to reach `feature_layer`."""
        return self.feature_layer if self.feature_layer >= 0 else self.depth + 1 + self.feature_layer


@dataclass(frozen=True)
class TextTowerConfig:
    """CLIP's text encoder: causal, pooled at the end-of-text token."""

    vocab_size: int = 49408
    context: int = 77
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    activation: str = "quick_gelu"
    norm_eps: float = 1e-5


@dataclass(frozen=True)
class ClipConfig:
    """Both towers of CLIP, for stage 0's contrastive objective.

    Attributes:
        projection_dim: width of the shared embedding space.
        logit_scale_init: initial log of the inverse temperature, ln(1 / 0.07) as in OpenCLIP.
        vision_lora: LoRA on the vision tower, the only part that stage 0 trains in the paper.
    """

    vision: VisionConfig
    text: TextTowerConfig
    projection_dim: int = 768
    logit_scale_init: float = 2.6592600369327783
    dtype: str = "float32"
    remat: str = "none"
    attention: str = "xla"
    vision_lora: LoRAConfig | None = None


@dataclass(frozen=True)
class ConnectorConfig:
    """How the encoders' features become the language model's visual tokens.

    Attributes:
        mix: "concat" (channels side by side, one MLP), "interleave" (an MLP per encoder, tokens taken in
            turn: CLIP, DINO, CLIP, ...) or "sum" (an MLP per encoder, outputs added).
        grid: side every encoder's feature map is resampled to, bilinearly, when it differs.
        merge: merge x merge neighbouring patches become one token of merge^2 times the channels.
        layers: linears in the MLP, with exact GELU between them.
        hidden: width between them; None = the language model's.
        num_encoders: how many encoders are interleaved; used by `mix="interleave"` alone.
        norm: "none" (LLaVA), or "layer": every patch's features to mean 0 and variance 1, encoder by encoder.
            Hidden states have a few very large channels; without them a connector learns several times faster.
    """

    mix: Mix = "concat"
    grid: int = 24
    merge: int = 1
    layers: int = 2
    hidden: int | None = None
    num_encoders: int = 2
    norm: Literal["none", "layer"] = "none"

    def __post_init__(self) -> None:
        if self.norm not in ("none", "layer"):
            raise UserError(f"connector.norm {self.norm!r} is not none or layer")
        if self.mix not in ("concat", "interleave", "sum"):
            raise UserError(f"connector.mix {self.mix!r} is not concat, interleave or sum")
        if self.merge < 1 or self.grid % self.merge:
            raise UserError(f"connector.merge {self.merge} does not divide connector.grid {self.grid}")
        if self.layers < 1:
            raise UserError(f"connector.layers is {self.layers}; give at least 1")

    @property
    def num_tokens(self) -> int:
        """Visual tokens per image."""
        return (self.grid // self.merge) ** 2 * (self.num_encoders if self.mix == "interleave" else 1)


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's stretching of the low rotary frequencies (transformers' rope type "llama3")."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


@dataclass(frozen=True)
class LlamaConfig:
    """A Llama decoder: RMSNorm, grouped-query attention, rotary positions, SwiGLU.

    Attributes:
        embedding_init: standard deviation of random embeddings; larger for small models trained from
            scratch, so that words outweigh the first layers' noise.
        attention_init: how random attention starts: "random", or "match": keys as copies of the queries and the
            output as the transpose of the values, so that a token begins by looking for its like and copying
            what is there (mimetic initialisation: Trockman and Kolter 2023). Small models trained from
            scratch bind words to visual tokens sooner.
    """

    vocab_size: int
    width: int
    depth: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    embedding_init: float = 0.02
    attention_init: str = "random"

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise UserError(f"llm.num_heads {self.num_heads} is not a multiple of llm.num_kv_heads "
                            f"{self.num_kv_heads}")
        if self.head_dim % 2:
            raise UserError(f"llm.head_dim {self.head_dim} is odd; rotary positions need an even one")
        if self.attention_init not in ("random", "match"):
            raise UserError(f"llm.attention_init {self.attention_init!r} is unknown; choose random or match")


@dataclass(frozen=True)
class Tiling:
    """LLaVA-NeXT's any resolution: a picture is seen whole and, finer, in tiles (see `data.tiling`).

    Attributes:
        pinpoints: (height, width) in pixels of the canvases a picture may be laid on; each is cut into tiles
            of the encoders' `image_size`.
    """

    pinpoints: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if not self.pinpoints or any(len(pinpoint) != 2 or min(pinpoint) < 1 for pinpoint in self.pinpoints):
            raise UserError(f"tiling.pinpoints is {self.pinpoints}; give (height, width) pairs in pixels")


@dataclass(frozen=True)
class ModelConfig:
    """The whole: vision encoders, connector, language model, and how they are computed.

    Attributes:
        dtype: compute type of activations; parameters keep the type they come in.
        remat: what the backward pass keeps and what it makes again; see `models.stack.policy`.
        attention: back end of every attention: "auto", by platform, or a key of `models.attention.BACKENDS`.
        vision_lora, llm_lora: low-rank updates on every vision encoder, on the language model.
        llm_quantize: how the kernels of the language model's layers are stored: "none", "int8" or "int4"
            (`models.quantize`). Only while a stage trains beside them; model folders are never quantised.
        unroll: language-model layers per step of the scan; more trades compile time for speed on CPUs.
        tiling: how pictures are cut into several images for the encoders; None shows each as one square. For
            inference: training shows one square.
    """

    vision: tuple[VisionConfig, ...]
    connector: ConnectorConfig
    llm: LlamaConfig
    dtype: str = "float32"
    remat: str = "none"
    attention: str = "xla"
    vision_lora: LoRAConfig | None = None
    llm_lora: LoRAConfig | None = None
    llm_quantize: str = "none"
    unroll: int = 1
    tiling: Tiling | None = None

    def __post_init__(self) -> None:
        if self.llm_quantize not in QUANTIZE:
            raise UserError(f"llm_quantize {self.llm_quantize!r} is not {', '.join(QUANTIZE)}; choose one of them")
        names = [encoder.name for encoder in self.vision]
        if not names or len(set(names)) != len(names):
            raise UserError(f"model.vision needs encoders of different names, got {names}")
        if self.connector.mix == "interleave" and self.connector.num_encoders != len(names):
            raise UserError(f"connector.num_encoders is {self.connector.num_encoders} but model.vision has "
                            f"{len(names)} encoders; set it to {len(names)}")
        if self.tiling is not None:
            if self.connector.mix == "interleave":
                raise UserError("connector.mix interleave does not leave visual tokens in rows; with tiling choose "
                                "concat or sum")
            size = self.vision[0].image_size
            for height, width in self.tiling.pinpoints:
                if height % size or width % size:
                    raise UserError(f"tiling.pinpoints has {height} x {width}, which is not a multiple of the vision "
                                    f"encoder's image_size {size}")

    @property
    def num_slots(self) -> int:
        """Images that one picture may take: 1, or with tiling the whole picture and the most tiles."""
        if self.tiling is None:
            return 1
        size = self.vision[0].image_size
        return 1 + max((height // size) * (width // size) for height, width in self.tiling.pinpoints)

    @property
    def feature_channels(self) -> int:
        """C of `encode_images`: the encoders' widths added up."""
        return sum(encoder.width for encoder in self.vision)

    @property
    def num_patches(self) -> int:
        """P of `encode_images`."""
        return self.connector.grid ** 2

    def replace(self, **changes: object) -> ModelConfig:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]
