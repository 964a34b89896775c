"""Loss, gradients and one AdamW step against transformers' LLaVA on the same batch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch", reason="parity with transformers needs torch: pip install torch")
transformers = pytest.importorskip("transformers")

from convert.engine import family_of, to_jax  # noqa: E402
from convert.folders import config_from_hf  # noqa: E402
from spatialllm_jax.data.batch import Batch  # noqa: E402
from spatialllm_jax.models.spatialllm import SpatialLLM  # noqa: E402
from spatialllm_jax.models.vit import normalize  # noqa: E402
from spatialllm_jax.training.objectives import NextToken  # noqa: E402
from spatialllm_jax.training.partition import flatten, split  # noqa: E402
from spatialllm_jax.training.step import init_state, make_step  # noqa: E402
from tests.training.recorder import recorded  # noqa: E402

ROWS, LENGTH, PATCHES, IMAGE, IGNORED = 4, 60, 36, 63, -100


@pytest.fixture(scope="module")
def llava():
    vision = transformers.CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=3,
                                           num_attention_heads=4, image_size=24, patch_size=4)
    text = transformers.LlamaConfig(
        vocab_size=64, hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, attn_implementation="eager")
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model.train()


@pytest.fixture(scope="module")
def rows():
    """(tokens, labels in transformers' sense, pictures): answers of uneven length, padding on the right."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 60, (ROWS, LENGTH))
    tokens[:, 2:2 + PATCHES] = IMAGE
    labels = np.full((ROWS, LENGTH), IGNORED)
    lengths = rng.integers(45, LENGTH + 1, ROWS)
    for row, length in enumerate(lengths):
        start = length - int(rng.integers(2, 7))
        labels[row, start:length] = tokens[row, start:length]
        tokens[row, length:] = 0
    return tokens, labels, lengths, rng.integers(0, 256, (ROWS, 24, 24, 3), dtype=np.uint8)


def ours(rows):
    """The same rows as a `Batch`: position t predicts token t + 1."""
    tokens, labels, lengths, pictures = rows
    real = np.arange(LENGTH) < lengths[:, None]
    targets = np.roll(tokens, -1, axis=1)
    weights = np.roll(labels, -1, axis=1) != IGNORED
    weights[:, -1] = False
    index = np.where(tokens == IMAGE, np.arange(LENGTH) - 2, -1)
    return Batch(
        tokens=jnp.asarray(np.where(index >= 0, 0, tokens)), targets=jnp.asarray(targets),
        positions=jnp.broadcast_to(jnp.arange(LENGTH), (ROWS, LENGTH)), segment_ids=jnp.asarray(real.astype(np.int32)),
        branch_ids=jnp.zeros((ROWS, LENGTH), jnp.int32), loss_weights=jnp.asarray(weights, jnp.float32),
        source_ids=jnp.zeros((ROWS, LENGTH), jnp.int32), image_index=jnp.asarray(index),
        images=jnp.asarray(pictures[:, None]), image_mask=jnp.ones((ROWS, 1), bool))


def theirs(model, rows, config):
    """transformers' loss and its gradients, in our names."""
    tokens, labels, lengths, pictures = rows
    pixels = np.asarray(normalize(jnp.asarray(pictures), config.vision[0])).transpose(0, 3, 1, 2).copy()
    model.zero_grad()
    loss = model(input_ids=torch.tensor(tokens), pixel_values=torch.tensor(pixels), labels=torch.tensor(labels),
                 attention_mask=torch.tensor((np.arange(LENGTH) < lengths[:, None]).astype(np.int64))).loss
    loss.backward()
    gradients = {name: np.zeros(p.shape, np.float32) if p.grad is None else p.grad.numpy()
                 for name, p in model.named_parameters()}
    return float(loss.detach()), gradients


def in_our_names(model, tensors, config):
    """Names and layouts of parameters go through the converter; gradients have the same ones."""
    state = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    return flatten(to_jax({**state, **tensors}, family_of(config), config))


def test_loss_gradients_and_update(llava, rows):
    """One step of AdamW on both sides, whole and in micro-batches."""
    config = config_from_hf(llava.config.to_dict())
    params = in_our_names(llava, {}, config)
    loss, raw = theirs(llava, rows, config)
    expected = in_our_names(llava, raw, config)
    assert loss > 1.0
    trainable, frozen = split({path: jnp.asarray(leaf) for path, leaf in params.items()}, "connector|llm")
    objective = NextToken(SpatialLLM(config), chunk=16)
    batch, tx = ours(rows), recorded(optax.adamw(1e-3, weight_decay=0.0))
    trains = [p for name, p in llava.named_parameters() if "vision_tower" not in name]
    torch.optim.AdamW(trains, lr=1e-3, weight_decay=0.0).step()
    after = in_our_names(llava, {}, config)
    for accumulate in (1, 2):
        start = init_state(trainable, frozen, tx, jax.random.key(0))
        state, metrics = jax.jit(make_step(objective, tx, accumulate))(start, batch)
        assert float(metrics["loss"]) == pytest.approx(loss, abs=1e-5)
        assert state.opt_state[0].keys() == trainable.keys()
        for path, leaf in state.opt_state[0].items():
            assert np.abs(expected[path]).max() > 1e-4, f"{path}: a gradient of nothing proves nothing"
            np.testing.assert_allclose(leaf, expected[path], atol=1e-5, rtol=1e-4, err_msg=path)
        for path, leaf in state.trainable.items():
            # Adam divides by the gradient's own size: entries that are rounding noise say nothing of the step.
            clear = np.abs(expected[path]) > 1e-5
            np.testing.assert_allclose(np.asarray(leaf)[clear], after[path][clear], atol=2e-5, err_msg=path)
            assert clear.mean() > 0.3
        for path, leaf in state.frozen.items():
            assert (np.asarray(leaf) == params[path]).all()
