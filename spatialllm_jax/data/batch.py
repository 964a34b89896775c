"""`Batch`: the one pytree that crosses from the input pipeline to the device."""

from __future__ import annotations

import flax.struct
from jaxtyping import Array, Bool, Float, Int, UInt8


@flax.struct.dataclass
class Batch:
    """B rows of T positions; every row holds one or more packed samples. All shapes are static.

    Attributes:
        tokens: token ids; 0 where `image_index` >= 0 or the row is padded.
        positions: rotary position of every token within its sample. Branches (below) restart at the
            end of their trunk, so that a branch sees exactly the positions it would have on its own.
        segment_ids: sample within the row, from 1; 0 marks padding. Attention never crosses segments.
        branch_ids: 0 for the shared trunk (image, system text) and plain dialogue; k > 0 marks the k-th
            independent question on the trunk. A token sees keys of its own branch and of the trunk.
        targets: next-token ids, aligned with `tokens` (position t predicts `targets[t]`).
        loss_weights: weight of the prediction at t; 0 where nothing is supervised.
        source_ids: data source of the prediction at t, for per-source losses.
        images: pixels as they come from disk, resized; encoders normalise them inside jit.
        image_mask: which of the N image slots are real.
        image_index: patch that fills the position, counted over the row's N x P visual tokens; -1 for text.
        patch_targets: token ids of the words that describe each visual token, -1 for none (`data.patch_words`).
        features: instead of `images`, precomputed outputs of the frozen vision encoders; see `data.features`.
    """

    tokens: Int[Array, "B T"]
    positions: Int[Array, "B T"]
    segment_ids: Int[Array, "B T"]
    branch_ids: Int[Array, "B T"]
    targets: Int[Array, "B T"]
    loss_weights: Float[Array, "B T"]
    source_ids: Int[Array, "B T"]
    image_index: Int[Array, "B T"]
    images: UInt8[Array, "B N H W 3"] | None = None
    image_mask: Bool[Array, "B N"] | None = None
    features: Float[Array, "B N P C"] | None = None
    patch_targets: Int[Array, "B N_tokens W"] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(B, T)."""
        return self.tokens.shape[0], self.tokens.shape[1]
