"""Both sides run, layer by layer: `python -m convert.verify SOURCE [--model MODEL]`.

SOURCE is a transformers folder, run by transformers and torch; MODEL a folder converted from it (default: SOURCE
itself, read directly). Prints the largest differences of every hidden state on random and on real input, and ends
with exit code 1 when one is past the tolerance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from convert.files import read_json
from convert.folders import open_weights
from launch import cli
from spatialllm_jax.data import images, tiling
from spatialllm_jax.data import tokenizer as tokenizers
from spatialllm_jax.errors import UserError
from spatialllm_jax.models import store
from spatialllm_jax.models.attention import self_mask
from spatialllm_jax.models.clip_text import CLIP, TextTower
from spatialllm_jax.models.config import ClipConfig, LlamaConfig, ModelConfig, VisionConfig
from spatialllm_jax.models.linear import Params
from spatialllm_jax.models.llama import Llama
from spatialllm_jax.models.spatialllm import SpatialLLM
from spatialllm_jax.models.vit import ViT, normalize
from spatialllm_jax.training.partition import unflatten

TEXT = "Which object is closer to the camera, the car or the dog? The capital of France is Paris."
Pair = tuple[str, np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far one state is from the oracle's.

    Attributes:
        name: input and state.
        largest: of the absolute differences.
        relative: `largest` over the root mean square of the oracle's state.
        passed: |difference| <= tolerance (1 + |oracle|) everywhere.
    """

    name: str
    largest: float
    relative: float
    passed: bool


def verify(source: Path, weights: store.Weights | None = None, *, image: Path | None = None, tolerance: float = 1e-4,
           seed: int = 0) -> list[Difference]:
    """Runs the model of both folders in float32 and compares.

    Args:
        source: transformers folder.
        weights: of the model folder made of it, or that it was made of; None = `source`, read directly.
        image: a picture to run on besides noise.

    Raises:
        UserError: torch is missing, or the folders do not hold models of one kind.
    """
    own = open_weights(source)
    weights = weights or own
    config = weights.config
    if type(config) is not type(own.config):
        raise UserError(f"{weights.where} holds a {type(config).__name__}, {source} a {type(own.config).__name__}; "
                        "they are not the same model")
    if isinstance(config, ModelConfig | ClipConfig):
        config = dataclasses.replace(config, dtype="float32")
    oracle = _oracle(source)
    flat = weights.load(dtypes=dict.fromkeys(weights.shapes, jnp.float32))
    params = unflatten(flat)
    size = _image_size(config)
    pictures = {} if size is None else {"noise": np.random.default_rng(seed).integers(
        0, 256, (1, size, size, 3), dtype=np.uint8)}
    if image is not None and size is not None:
        try:
            encoded = image.read_bytes()
        except OSError as error:
            raise UserError(f"--image {image} cannot be read: {error.strerror}") from None
        pictures[image.name] = images.load(encoded, size, resize="square", name=str(image))[None]
    texts = {"random ids": np.random.default_rng(seed).integers(3, _vocabulary(config), (1, 24))}
    if (source / tokenizers.FILE).is_file():
        texts["a sentence"] = np.array([tokenizers.load(source).encode(TEXT)])
    return [_difference(name, ours, theirs, tolerance)
            for name, ours, theirs in _pairs(oracle, config, params, pictures, texts)]


def _oracle(source: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise UserError("comparing needs torch: pip install 'spatialllm-jax[torch]'") from None
    import transformers

    kind = read_json(source / "config.json").get("model_type")
    auto = {"llama": "AutoModelForCausalLM", "llava": "AutoModelForImageTextToText",
            "llava_next": "AutoModelForImageTextToText"}.get(str(kind), "AutoModel")
    if kind == "spatialllm":  # our own module, not whatever code lies in the folder
        from convert.torch_module.modeling_spatialllm import SpatialLLMForCausalLM
        loader: Any = SpatialLLMForCausalLM
    else:
        loader = getattr(transformers, auto)
    try:
        model = loader.from_pretrained(source, dtype=torch.float32, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"transformers cannot load {source} ({str(error).splitlines()[0]})") from None
    return model.eval()


def _image_size(config: Any) -> int | None:
    if isinstance(config, VisionConfig):
        return config.image_size
    if isinstance(config, ClipConfig):
        return config.vision.image_size
    return config.vision[0].image_size if isinstance(config, ModelConfig) else None


def _vocabulary(config: Any) -> int:
    if isinstance(config, ClipConfig):
        return config.text.vocab_size
    llm = config.llm if isinstance(config, ModelConfig) else config
    return llm.vocab_size if isinstance(llm, LlamaConfig) else 4


def _pairs(oracle: Any, config: Any, params: Params, pictures: Mapping[str, np.ndarray],
           texts: Mapping[str, np.ndarray]) -> Iterator[Pair]:
    """(what, ours, theirs) of every state and output."""
    if isinstance(config, VisionConfig):
        for name, pixels in pictures.items():
            yield from _vision(name, oracle, config, params["vision"][config.name], pixels)
    elif isinstance(config, LlamaConfig):
        for name, tokens in texts.items():
            yield from _llama(name, oracle, config, params["llm"], tokens)
    elif isinstance(config, ClipConfig):
        for name, pixels in pictures.items():
            yield from _vision(name, oracle.vision_model, config.vision, params["vision"][config.vision.name], pixels)
            yield from _contrastive(name, oracle, config, params, pixels, next(iter(texts.values())))
    else:
        for name, pixels in pictures.items():
            yield from _whole(name, oracle, config, params, pixels, next(iter(texts.values())))


def _vision(name: str, oracle: Any, config: VisionConfig, params: Params, pixels: np.ndarray) -> Iterator[Pair]:
    import torch

    x = normalize(jnp.asarray(pixels), config)
    ours = jax.jit(lambda p, x: ViT(config).apply({"params": p}, x, "states"))(params, x)
    extra = {}
    if config.kind == "mae":  # MAE shuffles patches by `noise`; a rising one keeps their order
        extra["noise"] = torch.arange(config.grid**2, dtype=torch.float32)[None]
        oracle.config.mask_ratio = 0.0
    with torch.no_grad():
        theirs = oracle(torch.tensor(np.asarray(x).transpose(0, 3, 1, 2).copy()), output_hidden_states=True, **extra)
    for layer, (a, b) in enumerate(zip(np.asarray(ours), theirs.hidden_states, strict=True)):
        yield f"{name}: state {layer}", a, b.numpy()


def _llama(name: str, oracle: Any, config: LlamaConfig, params: Params, tokens: np.ndarray) -> Iterator[Pair]:
    import torch

    positions, mask = jnp.arange(tokens.shape[1])[None], self_mask(jnp.ones(tokens.shape, jnp.int32))

    def states(llm: Llama, tokens: jax.Array) -> jax.Array:
        return llm(llm.embed(tokens), positions, mask, states=True)[0]

    def logits(llm: Llama, tokens: jax.Array) -> jax.Array:
        return llm.logits(llm(llm.embed(tokens), positions, mask)[0])

    inner, last = (jax.jit(lambda p, t, m=method: Llama(config).apply({"params": p}, t, method=m))(params, tokens)
                   for method in (states, logits))
    with torch.no_grad():
        theirs = oracle(torch.tensor(tokens), output_hidden_states=True)
    # transformers' last hidden state is the normed one, which the logits cover.
    for layer, (a, b) in enumerate(zip(np.asarray(inner)[:-1], theirs.hidden_states[:-1], strict=True)):
        yield f"{name}: state {layer}", a, b.numpy()
    yield f"{name}: logits", np.asarray(last), theirs.logits.numpy()


def _contrastive(name: str, oracle: Any, config: ClipConfig, params: Params, pixels: np.ndarray,
                 tokens: np.ndarray) -> Iterator[Pair]:
    import torch

    tokens = tokens[:, :config.text.context].copy()
    # CLIP pools at the end-of-text token, which is the highest id.
    tokens[tokens == config.text.vocab_size - 1] = 3
    tokens[:, -1] = config.text.vocab_size - 1
    end = np.array([tokens.shape[1] - 1])
    text = jax.jit(lambda p: TextTower(config.text).apply({"params": p}, tokens, end, True))(params["text"])
    image, words, scale = jax.jit(CLIP(config).apply)({"params": params}, pixels, tokens, end)
    x = np.asarray(normalize(jnp.asarray(pixels), config.vision)).transpose(0, 3, 1, 2).copy()
    with torch.no_grad():
        states = oracle.text_model(torch.tensor(tokens), output_hidden_states=True).hidden_states
        out = oracle(input_ids=torch.tensor(tokens), pixel_values=torch.tensor(x))
    for layer, (a, b) in enumerate(zip(np.asarray(text), states, strict=True)):
        yield f"text: state {layer}", a, b.numpy()
    yield f"{name}: logits", np.asarray(scale * image @ words.T), out.logits_per_image.numpy()


def _whole(name: str, oracle: Any, config: ModelConfig, params: Params, pixels: np.ndarray,
           tokens: np.ndarray) -> Iterator[Pair]:
    import torch

    image, encoder = oracle.config.image_token_id, config.vision[0]
    seen, layout, sizes = pixels, np.arange(config.connector.num_tokens), {}
    if config.tiling is not None:
        height, width = pixels.shape[1:3]
        seen = tiling.tiles(pixels[0], config.tiling.pinpoints, encoder.image_size)
        layout = tiling.layout(height, width, config.tiling.pinpoints, encoder.image_size,
                               config.connector.grid // config.connector.merge)
        sizes = {"image_sizes": torch.tensor([[height, width]])}
    # The line break stands behind the tokens of all slots, used or not.
    slots = np.concatenate([seen, np.zeros((config.num_slots - len(seen), *seen.shape[1:]), np.uint8)])
    tokens = np.where(tokens == image, 3, tokens)
    tokens = np.concatenate([tokens[:, :2], np.full((1, len(layout)), image), tokens[:, 2:]], axis=1)
    index = np.full(tokens.shape, -1)
    index[0, 2:2 + len(layout)] = layout
    ids, one, positions = jnp.asarray(tokens), jnp.ones(tokens.shape, jnp.int32), jnp.arange(tokens.shape[1])[None]

    def logits(model: SpatialLLM) -> jax.Array:
        hidden = model(ids, positions, one, 0 * one, jnp.asarray(index), images=jnp.asarray(slots[None]))
        return model.logits(hidden)

    ours = jax.jit(lambda p: SpatialLLM(config).apply({"params": p}, method=logits))(params)
    # Our own module normalises by itself, encoder by encoder.
    own = oracle.config.model_type == "spatialllm"
    x = torch.tensor((seen if own else np.asarray(normalize(jnp.asarray(seen), encoder))).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        theirs = oracle(input_ids=torch.tensor(tokens), pixel_values=x[None] if sizes else x, **sizes).logits
    yield f"{name}: logits", np.asarray(ours), theirs.numpy()


def _difference(name: str, ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> Difference:
    if ours.shape != theirs.shape:
        raise UserError(f"{name} has shape {ours.shape} here and {theirs.shape} there; they are not the same model")
    gap = np.abs(ours - theirs)
    scale = float(np.sqrt(np.mean(np.square(theirs)))) or 1.0
    # `<=` is false for NaN on either side.
    return Difference(name, float(gap.max()), float(gap.max()) / scale,
                      bool((gap <= tolerance * (1 + np.abs(theirs))).all()))


def table(differences: Sequence[Difference]) -> str:
    """The differences as text, one line each."""
    width = max(len(d.name) for d in differences)
    lines = [f"{'':{width}}   largest  relative"]
    lines += [f"{d.name:{width}}  {d.largest:8.1e}  {d.relative:8.1e}{'' if d.passed else '  PAST TOLERANCE'}"
              for d in differences]
    return "\n".join(lines)


def report(differences: Sequence[Difference]) -> dict[str, Any]:
    """Prints the table; the summary that `--json` prints. Exit code 1 when a state is past the tolerance."""
    print(table(differences))
    failed = [d.name for d in differences if not d.passed]
    if failed:
        print(f"{len(failed)} of {len(differences)} states are past the tolerance, first {failed[0]}")
        raise SystemExit(1)
    return {"states": len(differences), "largest": max(d.largest for d in differences),
            "relative": max(d.relative for d in differences)}


def main(argv: list[str]) -> dict[str, Any]:
    """See the module's docstring."""
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="transformers folder")
    parser.add_argument("--model", type=Path, help="model folder converted from it (default: SOURCE, read directly)")
    parser.add_argument("--image", type=Path, help="a picture to run on besides noise")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="|difference| <= tolerance (1 + |oracle|)")
    args = parser.parse_args(argv)
    weights = None if args.model is None else open_weights(args.model)
    return report(verify(args.source, weights, image=args.image, tolerance=args.tolerance))


if __name__ == "__main__":
    cli.run(main)
