"""Rows of the roadmap whose stage 2 trains LoRA instead of the whole language model: LLaVA-v1.5's recipe for it.

    python -m launch.train --config=configs/lora.py:align_in166k
    python -m launch.train --config=configs/lora.py:align_in166k --config.stages.tune.quantize=int4   # one 24 GB card
    python -m launch.train --config=configs/lora.py:align_in166k --config.stages.tune.keep_lora=true  # for an adapter

Rank 128, alpha 256 and dropout 0.05 on all linears of the decoder's layers, learning rate 2e-4, and 2e-5 for the
connector (haotian-liu/LLaVA, scripts/v1_5/finetune_lora.sh). The paper trains the whole language model.
"""

from ml_collections import ConfigDict

from configs import roadmap


def get_config(arg: str = "align_in166k") -> ConfigDict:
    """The config of `ROW` or `ROW,SIZE`; see `configs/roadmap.py`."""
    config = roadmap.get_config(arg)
    config.stages.tune.update({
        "trainable": "connector|llm/.*lora_", "llm_lora": {"rank": 128, "alpha": 256.0, "dropout": 0.05},
        "quantize": "none", "keep_lora": False})
    config.stages.tune.optimizer.update({"learning_rate": 2e-4, "scales": {"connector": 0.1}})
    return config
