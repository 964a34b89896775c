"""LoRA updates as an adapter folder of the package peft."""

from __future__ import annotations

from typing import Any

import numpy as np

from convert.engine import rules_of
from convert.export import LORA, Stored, Tensor
from spatialllm_jax.errors import UserError
from spatialllm_jax.models.config import LoRAConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model"
_PREFIX = "base_model.model."


def adapter_tensors(stored: Stored, family: str, config: Any) -> list[Tensor]:
    """Every pair as peft names it: lora_A `[rank, in]` and lora_B `[out, rank]`, layer by layer.

    CLIP's are written under both of the names that transformers 4 and 5 give its modules, since peft looks for the
    loaded model's own and passes over the others.

    Raises:
        UserError: there is none, or the family's modules are so named that peft would not find them.
    """
    if family not in ("llama", "clip"):
        raise UserError(f"--lora adapter is for the language model and CLIP, not for a {family} encoder, whose modules "
                        "transformers 4 and 5 build differently; use --lora merge")
    rules = {rule.target: rule for rule in rules_of(family, config)[0]}
    result = []
    for path in stored.shapes:
        owner, _, kind = path.rpartition("/")
        if kind not in LORA:
            continue
        rule, leaf = rules[f"{owner}/kernel"], stored.shapes[path]
        assert rule.depth is not None, "LoRA lies on the layers' linears"
        for i in range(rule.depth):
            for source in rule.sources:
                module = source.format(i=i).removesuffix(".weight")
                result.append(Tensor(f"{_PREFIX}{module}.lora_{kind[-1].upper()}.weight",
                                     (leaf.shape[2], leaf.shape[1]), np.dtype(leaf.dtype),
                                     lambda path=path, i=i: stored.read(path)[i].T))  # type: ignore[misc]
    if not result:
        raise UserError("--lora adapter: this part has no LoRA updates; leave the flag out")
    return result


def adapter_config(written: list[Tensor], lora: LoRAConfig, family: str, base: str | None) -> dict[str, Any]:
    """adapter_config.json; only linears that are in `written` are adapted.

    Args:
        base: name or folder of the model that the adapter belongs to.
    """
    modules = sorted({tensor.name.split(".")[-3] for tensor in written})
    return {"peft_type": "LORA", "task_type": "CAUSAL_LM" if family == "llama" else None,
            "base_model_name_or_path": base, "r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout,
            "target_modules": modules, "bias": "none", "fan_in_fan_out": False, "inference_mode": True,
            "init_lora_weights": True, "modules_to_save": None, "use_rslora": False, "use_dora": False}
