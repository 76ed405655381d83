"""Weights of a GGUF file in the reference engine (mlx-lm on the CPU), everything in f32."""

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
FFN_NORM = {"llama": "post_attention_layernorm", "gemma3": "pre_feedforward_layernorm"}
GLOBAL_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


class Metadata:
    """Scalars of a GGUF file, architecture prefix left out."""

    def __init__(self, reader):
        self.fields = reader.fields
        self.arch = self.get("general.architecture", prefix=False)

    def get(self, key, default=None, prefix=True):
        field = self.fields.get(f"{self.arch}.{key}" if prefix else key)
        if field is None:
            return default
        value = field.parts[field.data[0]]
        return bytes(value).decode() if field.types[0].name == "STRING" else value[0].item()


def unpermute(weight, n_heads):
    """GGUF llama files pair neighbouring rows for rope, Hugging Face's pair halves of a head."""
    dim = weight.shape[0] // n_heads
    return weight.reshape(n_heads, dim // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def convert(reader, meta):
    weights = {}
    for tensor in reader.tensors:
        shape = tuple(int(n) for n in reversed(tensor.shape))
        weight = dequantize(tensor.data, tensor.tensor_type).reshape(shape).astype(np.float32)
        parts = tensor.name.split(".")
        if meta.arch == "gemma3" and "norm" in tensor.name:
            weight = weight - 1  # the file has the +1 of gemma's norms folded in
        if parts[0] != "blk":
            weights[GLOBAL_NAMES[parts[0]] + ".weight"] = weight
            continue
        if meta.arch == "llama" and parts[2] == "attn_q":
            weight = unpermute(weight, meta.get("attention.head_count"))
        if meta.arch == "llama" and parts[2] == "attn_k":
            weight = unpermute(weight, meta.get("attention.head_count_kv"))
        name = FFN_NORM[meta.arch] if parts[2] == "ffn_norm" else LAYER_NAMES[parts[2]]
        weights[f"model.layers.{parts[1]}.{name}.weight"] = weight
    return weights


def load(path):
    """The model as an mlx-lm module; call it with mx.array([tokens])."""
    import mlx.core as mx

    reader = GGUFReader(path)
    meta = Metadata(reader)
    weights = convert(reader, meta)
    n_head = int(meta.get("attention.head_count"))
    common = {
        "hidden_size": int(meta.get("embedding_length")),
        "num_hidden_layers": int(meta.get("block_count")),
        "intermediate_size": int(meta.get("feed_forward_length")),
        "num_attention_heads": n_head,
        "num_key_value_heads": int(meta.get("attention.head_count_kv")),
        "rms_norm_eps": float(meta.get("attention.layer_norm_rms_epsilon")),
        "vocab_size": weights["model.embed_tokens.weight"].shape[0],
        "head_dim": int(meta.get("attention.key_length") or meta.get("embedding_length") // n_head),
    }
    if meta.arch == "llama":
        from mlx_lm.models.llama import Model, ModelArgs

        args = ModelArgs(
            model_type="llama",
            rope_theta=float(meta.get("rope.freq_base", 10000.0)),
            rope_traditional=False,
            tie_word_embeddings="lm_head.weight" not in weights,
            **common,
        )
    elif meta.arch == "gemma3":
        from mlx_lm.models.gemma3_text import Model, ModelArgs

        args = ModelArgs(
            model_type="gemma3_text",
            rope_theta=float(meta.get("rope.freq_base", 1000000.0)),
            rope_local_base_freq=10000.0,
            query_pre_attn_scalar=common["head_dim"],
            sliding_window=int(meta.get("attention.sliding_window")),
            sliding_window_pattern=6,
            **common,
        )
    else:
        raise ValueError(f"{path}: no reference for architecture {meta.arch}")
    model = Model(args)
    arrays = {name: mx.array(weight) for name, weight in weights.items()}
    if hasattr(model, "sanitize"):
        arrays = model.sanitize(arrays)
    model.load_weights(list(arrays.items()), strict=True)
    return model


def hidden_states(model, tokens):
    """The last hidden state of each token, an mlx array [1][n_tokens][n_embd]."""
    import mlx.core as mx

    ids = mx.array(np.asarray(tokens, dtype=np.int32))[None]
    if not hasattr(model.model, "sliding_window_pattern"):
        return model.model(ids)
    # mlx-lm rounds gemma's factor sqrt(n_embd) to bf16 whatever the type of the weights. Here everything is f32.
    factor = model.args.hidden_size**0.5
    rounded = mx.array(factor, mx.bfloat16).astype(mx.float32)
    return model.model(ids, input_embeddings=model.model.embed_tokens(ids) * (factor / rounded))


def to_8_bits(x, n_block):
    """What ggml makes of the input of a quantized matrix: 8 bits for each value, one scale for a block (f16 for blocks of 32, which
    older types of weights have; f32 for the blocks of 256 of the K types)."""
    import mlx.core as mx

    blocks = x.reshape(-1, n_block)
    scale = mx.abs(blocks).max(axis=1, keepdims=True) / 127
    whole = mx.where(scale > 0, mx.round(blocks / mx.where(scale > 0, scale, 1)), 0)
    if n_block == 32:
        scale = scale.astype(mx.float16).astype(mx.float32)
    return (whole * scale).reshape(x.shape)


def quantize_activations(model, path):
    """From now on every matrix that the file has quantized sees inputs of 8 bits. Returns a function that does it to the head's."""
    import mlx.nn as nn

    types = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(path).tensors}

    def n_block(name):
        kind = types[name]
        return None if kind in ("F32", "F16", "BF16") else 256 if kind.endswith("_K") else 32

    class Rounded(nn.Module):
        def __init__(self, inner, size):
            super().__init__()
            self.inner, self.size = inner, size

        def __call__(self, x):
            return self.inner(to_8_bits(x, self.size))

    for index, layer in enumerate(model.model.layers):
        for short, long in LAYER_NAMES.items():
            name = f"blk.{index}.{short}.weight"
            if "proj" in long and n_block(name):
                group, attribute = long.split(".")
                parent = getattr(layer, group)
                setattr(parent, attribute, Rounded(getattr(parent, attribute), n_block(name)))
    head = n_block("output.weight" if "output.weight" in types else "token_embd.weight")
    return (lambda x: to_8_bits(x, head)) if head else (lambda x: x)


def logits_in_parts(model, tokens, n_part=256, before_head=lambda x: x):
    """Yields (index of the first token, f32 [at most n_part][n_vocab]); all of them at once can be gigabytes."""
    import mlx.core as mx

    hidden = before_head(hidden_states(model, tokens))
    mx.eval(hidden)
    head = model.lm_head if hasattr(model, "lm_head") else model.model.embed_tokens.as_linear
    for first in range(0, len(tokens), n_part):
        yield first, np.array(head(hidden[0, first:first + n_part])).astype(np.float32)


def logits(model, tokens):
    """f32 [n_tokens][n_vocab]."""
    return np.concatenate([part for _, part in logits_in_parts(model, tokens)])
