"""transformers' Qwen2ForCausalLM with the weights of a Qwen-1 checkpoint: the same maths, written by others."""

import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.model.tiny import Tiny


def oracle_logits(tiny: Tiny, ids: Tensor) -> Tensor:
    """fp32 logits `[n, vocab]` of ids `[n]`, in one pass without a cache."""
    with torch.inference_mode():
        logits: Tensor = _qwen2(tiny)(ids.unsqueeze(0), use_cache=False).logits[0]
    return logits


def _qwen2(tiny: Tiny) -> Qwen2ForCausalLM:
    heads = tiny.hidden // tiny.head_dim
    config = Qwen2Config(
        vocab_size=tiny.vocab_size,
        hidden_size=tiny.hidden,
        intermediate_size=tiny.mlp,
        num_hidden_layers=tiny.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=tiny.context,
        rms_norm_eps=tiny.norm_eps,
        rope_theta=tiny.rope_base,
        tie_word_embeddings=False,
        attention_dropout=0.0,
        use_sliding_window=False,
    )
    model = Qwen2ForCausalLM(config).eval()
    for layer in model.model.layers:
        # Biases that Qwen2 does not have but an AutoGPTQ file may store.
        for linear in (layer.self_attn.o_proj, layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj):
            linear.bias = torch.nn.Parameter(torch.zeros(linear.out_features))
    model.load_state_dict(_mapped(tiny))
    return model


def _mapped(tiny: Tiny) -> dict[str, Tensor]:
    source = tiny.dense
    weights = {
        "model.embed_tokens.weight": source["transformer.wte.weight"],
        "model.norm.weight": source["transformer.ln_f.weight"],
        "lm_head.weight": source["lm_head.weight"],
    }
    kinds = {
        "attn.c_proj": "self_attn.o_proj",
        "mlp.w2": "mlp.gate_proj",
        "mlp.w1": "mlp.up_proj",
        "mlp.c_proj": "mlp.down_proj",
    }
    for layer in range(tiny.layers):
        ours, theirs = f"transformer.h.{layer}", f"model.layers.{layer}"
        weights[f"{theirs}.input_layernorm.weight"] = source[f"{ours}.ln_1.weight"]
        weights[f"{theirs}.post_attention_layernorm.weight"] = source[f"{ours}.ln_2.weight"]
        for part in ("weight", "bias"):
            thirds = source[f"{ours}.attn.c_attn.{part}"].split(tiny.hidden)
            for name, third in zip("qkv", thirds, strict=True):
                weights[f"{theirs}.self_attn.{name}_proj.{part}"] = third
        for our_kind, their_kind in kinds.items():
            weight = source[f"{ours}.{our_kind}.weight"]
            weights[f"{theirs}.{their_kind}.weight"] = weight
            weights[f"{theirs}.{their_kind}.bias"] = source.get(
                f"{ours}.{our_kind}.bias", torch.zeros(len(weight))
            )
    return weights
