"""The pose head: tokens of a frozen encoder's crop in, an object's angles and a confidence out.

Two outputs (`PoseConfig.output`). "bins", the default, gives each angle a distribution over bins with soft circular
targets, as ImageNet3D's own baselines classify angles: it stays sharp, and where an object looks alike from two sides
it says so instead of meeting in the middle. "rotation" regresses a rotation in six numbers (Zhou et al. 2019) with an
expected error: no bins to choose and no seam, but one answer only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from spatialllm_jax.errors import UserError
from spatialllm_jax.models.config import VisionConfig
from spatialllm_jax.models.linear import Linear, Params
from spatialllm_jax.models.vit import layer_norm

ANGLES = ("azimuth", "elevation", "theta")
CLOSE = 30.0    # degrees (pi / 6): what confidence speaks of
_PEAK = 15.0    # degrees around the fullest bin whose mean is the answer


@dataclass(frozen=True)
class PoseConfig:
    """What a pose estimator is.

    Attributes:
        encoder: frozen; crops are squares of its `image_size`.
        layers: hidden states that are read (0 = embeddings, negative from the last), channels side by side.
        grid: side of the map that patch tokens are resampled to.
        width: channels that every token is brought to.
        hidden: width of the layer that sees all tokens side by side.
        input_dropout, dropout: shares of the features and of the hidden layer that training hides.
        output: "bins" or "rotation".
        bin_size: degrees per bin; divides 180.
        target_spread: degrees, deviation of the soft targets around the true angle.
        context: side of a crop over the longer side of the 2D box.
        cls: whether the encoder's CLS token is read beside the map.
    """

    encoder: VisionConfig
    layers: tuple[int, ...] = (-1,)
    grid: int = 6
    width: int = 128
    hidden: int = 1024
    input_dropout: float = 0.5
    dropout: float = 0.5
    output: Literal["bins", "rotation"] = "bins"
    bin_size: float = 5.0
    target_spread: float = 12.0
    context: float = 1.2
    cls: bool = True

    def __post_init__(self) -> None:
        if self.output not in ("bins", "rotation"):
            raise UserError(f"pose.output {self.output!r} is not bins or rotation; choose one")
        if self.bin_size <= 0 or (180 / self.bin_size) % 1:
            raise UserError(f"pose.bin_size {self.bin_size} does not divide 180 degrees; choose 5 or 10")
        if min(self.grid, self.width, self.hidden) < 1:
            raise UserError(f"pose.grid {self.grid}, pose.width {self.width} and pose.hidden {self.hidden} must be "
                            "positive")
        if not (0 <= self.input_dropout < 1 and 0 <= self.dropout < 1):
            raise UserError(f"pose.input_dropout {self.input_dropout} and pose.dropout {self.dropout} must be in [0, 1)"
                            "; lower them")
        if self.target_spread <= 0 or self.context <= 0:
            raise UserError(f"pose.target_spread {self.target_spread} and pose.context {self.context} must be positive")
        depth = self.encoder.depth
        if not self.layers or any(not -depth - 1 <= layer <= depth for layer in self.layers):
            raise UserError(f"pose.layers {self.layers}: {self.encoder.name} has hidden states 0 to {depth}; name some")

    @property
    def blocks(self) -> tuple[int, ...]:
        """`layers` as numbers of blocks that have run."""
        return tuple(layer if layer >= 0 else self.encoder.depth + 1 + layer for layer in self.layers)

    @property
    def num_tokens(self) -> int:
        """N of the features: CLS, if read, and the map."""
        return self.grid ** 2 + self.cls

    @property
    def channels(self) -> int:
        """C of the features."""
        return self.encoder.width * len(self.layers)

    @property
    def bin_counts(self) -> tuple[int, int, int]:
        """Bins of azimuth and theta (a circle each) and of elevation (half of one)."""
        circle = round(360 / self.bin_size)
        return circle, circle // 2, circle

    @property
    def num_outputs(self) -> int:
        """Numbers per crop that the head gives."""
        return sum(self.bin_counts) if self.output == "bins" else 7


class Estimate(NamedTuple):
    """What a head says of a batch.

    Attributes:
        angles: [B, 3], degrees: azimuth in [0, 360), elevation in [-90, 90], theta in [-180, 180).
        confidence: [B] in [0, 1]: the head's own estimate of the chance that it is less than 30 degrees off.
    """

    angles: Array
    confidence: Array


class PoseHead(nn.Module):
    """Every token is narrowed, all are laid side by side, and a hidden layer gives the output.

    Side by side, a token's place in the crop is the place of its weights. Attention over tokens, with places as learned
    vectors, fitted the training objects better and unseen ones worse (docs/pose.md).
    """

    config: PoseConfig

    @nn.compact
    def __call__(self, features: Float[Array, "B N C"], deterministic: bool = True) -> Float[Array, "B O"]:
        """Logits of all bins, azimuth first, or six numbers of a rotation and the log of the expected error."""
        c = self.config
        if features.shape[1:] != (c.num_tokens, c.channels):
            raise ValueError(f"features have shape {features.shape[1:]}, the head expects {(c.num_tokens, c.channels)}")
        x = nn.Dropout(c.input_dropout)(features.astype(jnp.float32), deterministic=deterministic)
        x = Linear(c.width, name="embed")(x)
        x = layer_norm(1e-6, jnp.float32, "norm")(x.reshape(x.shape[0], -1))
        x = jax.nn.gelu(Linear(c.hidden, name="hidden")(x), approximate=False)
        x = nn.Dropout(c.dropout)(x, deterministic=deterministic)
        return Linear(c.num_outputs, init_scale=0.01, name="output")(x)


def apply_head(config: PoseConfig, params: Params, features: Float[Array, "B N C"], dropout: Array | None = None,
               ) -> Float[Array, "B O"]:
    """The head's output for parameters of the head alone; `dropout` is the key of a training step."""
    rngs = None if dropout is None else {"dropout": dropout}
    outputs: Any = PoseHead(config).apply({"params": params}, features, dropout is None, rngs=rngs)
    return outputs


def bin_centres(config: PoseConfig) -> list[Float[Array, " bins"]]:
    """Degrees in the middle of each bin: azimuth from 0, elevation from -90, theta from -180."""
    return [(jnp.arange(count) + 0.5) * config.bin_size + low
            for count, low in zip(config.bin_counts, (0.0, -90.0, -180.0), strict=True)]


def _difference(a: Array, b: Array) -> Array:
    """a - b in degrees, in [-180, 180); `scene.pose.circular_difference` inside jit."""
    return (a - b + 180.0) % 360.0 - 180.0


def _apart(a: Array, b: Array) -> Array:
    """Degrees between angles on a circle, [0, 180]."""
    return jnp.abs(_difference(a, b))


def split_bins(outputs: Float[Array, "B O"], config: PoseConfig) -> tuple[Array, Array, Array]:
    """Logits of azimuth, elevation and theta."""
    first, second, _ = config.bin_counts
    return outputs[:, :first], outputs[:, first:first + second], outputs[:, first + second:]


def soft_targets(angles: Float[Array, "B 3"], config: PoseConfig) -> list[Float[Array, "B bins"]]:
    """A distribution over bins per angle: normal with `target_spread`, wrapped where the angle is."""
    return [jax.nn.softmax(-0.5 * jnp.square(_apart(angles[:, k:k + 1], centres) / config.target_spread), axis=-1)
            for k, centres in enumerate(bin_centres(config))]


def _rotation_of(six: Float[Array, "B 6"]) -> Float[Array, "B 3 3"]:
    """Gram-Schmidt on two columns; the third completes a right-handed frame."""
    def unit(v: Array) -> Array:
        return v * jax.lax.rsqrt(jnp.square(v).sum(-1, keepdims=True) + 1e-12)

    x = unit(six[:, :3])
    y = unit(six[:, 3:] - (x * six[:, 3:]).sum(-1, keepdims=True) * x)
    return jnp.stack([x, y, jnp.cross(x, y)], axis=-1)


def estimate(outputs: Float[Array, "B O"], config: PoseConfig) -> Estimate:
    """Angles and confidence. Pure, for use inside jit.

    Of bins: the mean of the mass around the fullest bin; confidence is the product, over the angles, of the mass within
    30 degrees of the answer. Of rotations: errors are taken as exponential with the expected error as their mean.
    """
    if config.output == "rotation":
        r = _rotation_of(outputs[:, :6])
        found = [jnp.arctan2(-r[:, 2, 2], -r[:, 2, 0]), jnp.arcsin(jnp.clip(r[:, 2, 1], -1.0, 1.0)),
                 jnp.arctan2(r[:, 0, 1], r[:, 1, 1])]   # `scene.pose.angles_from_rotations` in closed form
        angles = [jnp.degrees(angle) for angle in found]
        confidence = 1 - jnp.exp(-jnp.radians(CLOSE) * jnp.exp(-_log_error(outputs)))
    else:
        angles, confidence = [], jnp.ones(outputs.shape[0])
        for logits, centres in zip(split_bins(outputs, config), bin_centres(config), strict=True):
            mass = jax.nn.softmax(logits, axis=-1)
            peak = centres[mass.argmax(-1)][:, None]
            offset = _difference(centres, peak)
            near = jnp.where(jnp.abs(offset) <= _PEAK, mass, 0.0)
            angle = peak + (near * offset).sum(-1, keepdims=True) / near.sum(-1, keepdims=True)
            confidence *= jnp.where(_apart(centres, angle) <= CLOSE, mass, 0.0).sum(-1)
            angles.append(angle[:, 0])
    azimuth, elevation, theta = angles
    return Estimate(jnp.stack([azimuth % 360.0, jnp.clip(elevation, -90.0, 90.0), (theta + 180.0) % 360.0 - 180.0], -1),
                    confidence)


def _log_error(outputs: Float[Array, "B O"]) -> Float[Array, " B"]:
    """Log of the expected error in radians; bounded, so that one lucky crop cannot rule the loss."""
    return jnp.clip(outputs[:, 6], -4.0, 1.0)


def losses(outputs: Float[Array, "B O"], angles: Float[Array, "B 3"], config: PoseConfig,
           ) -> tuple[Float[Array, "B S"], Float[Array, "B S"]]:
    """(loss, whether within 30 degrees) per crop and part (`parts`)."""
    if config.output == "rotation":
        difference = _rotation_of(outputs[:, :6]) - rotations(angles)
        chord = jnp.sqrt(jnp.square(difference).sum((-2, -1)) + 1e-8)
        error = 2 * jnp.arcsin(jnp.clip(chord / jnp.sqrt(8.0), 0.0, 1 - 1e-6))
        # The negative log-likelihood of exponential errors teaches the rotation and its expected error at once.
        expected = _log_error(outputs)
        likelihood, right = error * jnp.exp(-expected) + expected, error < jnp.radians(CLOSE)
        return likelihood[:, None], right[:, None].astype(jnp.float32)
    loss = [-(target * jax.nn.log_softmax(logits)).sum(-1) for logits, target in
            zip(split_bins(outputs, config), soft_targets(angles, config), strict=True)]
    found = estimate(outputs, config).angles
    return jnp.stack(loss, -1), (_apart(found, angles) < CLOSE).astype(jnp.float32)


def rotations(angles: Float[Array, "B 3"]) -> Float[Array, "B 3 3"]:
    """Allocentric rotations, as `scene.pose.rotations_from_angles` makes them, inside jit."""
    a, e, t = jnp.moveaxis(jnp.radians(angles), -1, 0)
    sin, cos, zero = jnp.sin, jnp.cos, jnp.zeros_like(a)
    right = jnp.stack([-sin(a), zero, cos(a)], -1)
    forward = -jnp.stack([cos(e) * cos(a), -sin(e), cos(e) * sin(a)], -1)
    down = jnp.cross(forward, right)
    c, s = cos(t)[:, None], sin(t)[:, None]
    return jnp.stack([c * right + s * down, c * down - s * right, forward], axis=1)


def parts(config: PoseConfig) -> tuple[str, ...]:
    """Names of S in `losses`."""
    return ANGLES if config.output == "bins" else ("rotation",)
