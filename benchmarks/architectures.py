"""Every architecture transformers offers, at a configuration small enough to compile in seconds.

Sizes shrink by the name of the field, the same for all architectures; what an architecture asks
for beyond that stands in `OVERRIDES`.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto import modeling_auto

# The task whose head makes the most of the model prunable comes first: the outputs of a bare
# backbone block its width.
TASKS = (
    "CAUSAL_LM SEQ_TO_SEQ_CAUSAL_LM MASKED_LM IMAGE_CLASSIFICATION SEQUENCE_CLASSIFICATION CTC "
    "AUDIO_CLASSIFICATION VIDEO_CLASSIFICATION SPEECH_SEQ_2_SEQ SEMANTIC_SEGMENTATION "
    "OBJECT_DETECTION DEPTH_ESTIMATION IMAGE_TEXT_TO_TEXT ZERO_SHOT_IMAGE_CLASSIFICATION "
    "QUESTION_ANSWERING TOKEN_CLASSIFICATION TIME_SERIES_PREDICTION IMAGE_TO_IMAGE "
    "UNIVERSAL_SEGMENTATION MASKED_IMAGE_MODELING KEYPOINT_DETECTION PRETRAINING"
).split()

WIDTH, HEADS, KV_HEADS, HEAD_DIM, HIDDEN, LAYERS, VOCABULARY = 64, 4, 2, 16, 96, 2, 128

SIZES: dict[str, int] = {}


def _size(value: int, names: str) -> None:
    SIZES.update(dict.fromkeys(names.split(), value))


_size(
    WIDTH,
    "hidden_size d_model n_embd dim embed_dim embedding_size hidden_dim projection_dim "
    "encoder_hidden_size decoder_hidden_size emb_dim word_embed_proj_dim output_dim "
    "text_embed_dim vision_embed_dim out_hidden_size width model_dim attention_hidden_size "
    "classifier_proj_size reduced_embedding_size text_dim image_dim token_embedding_dim "
    "fusion_hidden_size feature_size dense_dim mask_feature_size encoder_width projector_dim "
    "input_hidden_size hidden_channels neck_hidden_size n_embed embedding_dim proj_dim "
    "depth_hidden_size mm_hidden_size shared_expert_hidden channels_dim decoder_embed_dim",
)
_size(
    HIDDEN,
    "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff n_inner mlp_dim "
    "ffn_hidden_size moe_intermediate_size feed_forward_hidden_size d_inner "
    "shared_expert_intermediate_size dim_feedforward inner_dim feedforward_dim "
    "moe_ffn_hidden_size expert_intermediate_size decoder_intermediate_size "
    "shared_intermediate_size dense_intermediate_size mlp_hidden_size",
)
_size(
    HEADS,
    "num_attention_heads n_head num_heads encoder_attention_heads decoder_attention_heads "
    "n_heads attention_heads num_encoder_attention_heads decoder_num_attention_heads "
    "encoder_num_attention_heads decoder_n_head heads num_decoder_attention_heads "
    "linear_num_value_heads text_num_heads predictor_num_heads",
)
_size(KV_HEADS, "num_key_value_heads num_kv_heads encoder_num_key_value_heads linear_num_key_heads")
_size(
    HEAD_DIM,
    "head_dim attention_head_dim d_kv v_head_dim qk_nope_head_dim attention_head_size "
    "linear_key_head_dim linear_value_head_dim global_head_dim kv_channels d_head",
)
_size(HEAD_DIM, "qk_rope_head_dim")
_size(8, "rotary_dim")
_size(16, "q_lora_rank kv_lora_rank index_head_dim time_step_rank codebook_dim")
_size(
    LAYERS,
    "num_hidden_layers n_layer num_layers encoder_layers decoder_layers n_layers "
    "num_encoder_layers num_decoder_layers depth decoder_num_hidden_layers "
    "encoder_num_hidden_layers text_num_hidden_layers "
    "decoder_depth vision_layers fusion_layers predictor_num_hidden_layers",
)
_size(
    VOCABULARY,
    "vocab_size encoder_vocab_size decoder_vocab_size src_vocab_size tgt_vocab_size "
    "text_vocab_size audio_vocab_size codebook_size vocab_size_per_layer_input "
    "semantic_vocab_size entity_vocab_size input_vocab_size "
    "output_vocab_size",
)
_size(64, "max_position_embeddings n_positions n_ctx max_target_positions max_sequence_length")
_size(64, "max_source_positions seq_length")
_size(4, "num_experts num_local_experts n_routed_experts moe_num_experts n_experts")
_size(2, "num_experts_per_tok num_experts_per_token moe_topk moe_k experts_per_token")
_size(1, "n_group topk_group n_shared_experts first_k_dense_replace")
_size(8, "mamba_d_state d_state state_size ssm_state_size num_queries")
_size(64, "image_size img_size spec_size")


# Fields with one number a stage.
STAGES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(
        "hidden_sizes embed_dims encoder_hidden_sizes neck_hidden_sizes widths stage_widths "
        "dims embed_dim hidden_channels channels stage_dims".split(),
        (16, 32, 48, 64),
    ),
    **dict.fromkeys(
        "depths encoder_depths num_blocks stage_depths layer_depths".split(), (1, 2, 1, 1)
    ),
    **dict.fromkeys("num_heads num_attention_heads heads".split(), (2, 2, 4, 4)),
}


def architectures() -> list[str]:
    """The model types that have an `AutoModel` of some kind, sorted."""
    types = {t for task in ("", *(f"FOR_{t}_" for t in TASKS)) for t in _mapping(task)}
    return sorted(types)


def _mapping(task: str) -> dict[str, Any]:
    return getattr(modeling_auto, f"MODEL_{task}MAPPING_NAMES", {})


def model_class(model_type: str) -> type[nn.Module]:
    """The class of an architecture that has the most prunable head.

    Raises LookupError when transformers names none that can be imported.
    """
    for task in (*(f"FOR_{t}_" for t in TASKS), ""):
        names = _mapping(task).get(model_type, ())
        for name in (names,) if isinstance(names, str) else names:
            found = getattr(transformers, name, None)
            if found is not None and getattr(found, "config_class", None) is not None:
                return found
    raise LookupError(f"no class for {model_type}")


def shrunk(config: Any, given: dict[str, Any]) -> Any:
    """A configuration of the same class, small, with what is `given` (nested for its parts).

    It is built anew, so that what the class derives from its sizes is derived again.
    """
    changed: dict[str, Any] = {}
    for name, value in vars(config).items():
        if isinstance(value, transformers.PreTrainedConfig):
            changed[name] = shrunk(value, given.get(name, {}))
        elif name not in given and not name.startswith("_"):
            small = _small(name, value)
            if small is not value:
                changed[name] = small
    own = {n: v for n, v in given.items() if n not in changed}
    try:
        return type(config)(**changed, **own)
    except TypeError:  # parts are asked for as dictionaries
        parts = {
            n: v.to_dict() if isinstance(v, transformers.PreTrainedConfig) else v
            for n, v in changed.items()
        }
        return type(config)(**parts, **own)


def shrunk_in_place(config: Any, given: dict[str, Any]) -> Any:
    """The same by setting fields, for classes whose checks hold for their own defaults only."""
    for name, value in list(vars(config).items()):
        if isinstance(value, transformers.PreTrainedConfig):
            shrunk_in_place(value, given.get(name, {}))
        else:
            small = given[name] if name in given else _small(name, value)
            if small is not value:
                with contextlib.suppress(Exception):  # a property without a setter
                    setattr(config, name, small)
    return config


def _small(name: str, value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        if name.endswith(("_token_id", "_token_index", "_token_ids")):
            return value if value < VOCABULARY else 20 + zlib.crc32(name.encode()) % 90
        return min(value, SIZES[name]) if value > 0 and name in SIZES else value
    if isinstance(value, dict):
        sections = value.get("mrope_section")
        return {**value, "mrope_section": _sections(sections)} if sections else value
    if isinstance(value, (list, tuple)) and value and all(type(v) is int for v in value):
        stages = STAGES.get(name)
        if stages is not None:
            return type(value)(stages[min(i, len(stages) - 1)] for i in range(len(value)))
        if name in SIZES:
            return type(value)(min(v, SIZES[name]) for v in value)
    return value


def _sections(sections: list[int]) -> list[int]:
    """Parts of a rotary half, for a head of 16 where there were 128."""
    rest = [max(1, s // 8) for s in sections[1:]]
    return [sum(sections) // 8 - sum(rest), *rest]


def _rotary(*sections: int, **more: Any) -> dict[str, Any]:
    """Rotary parts for (time, height, width) of multimodal models; they sum to half a head."""
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections), **more}


_MLA: dict[str, Any] = {
    "num_key_value_heads": HEADS
}  # latent attention has a key head for each query head
_VISION_ROPE = {"text_config": {"rope_parameters": _rotary(2, 3, 3)}}
_STAGES4 = {"out_features": ["stage1", "stage2", "stage3", "stage4"], "num_hidden_layers": 4}


def _alike(names: str, given: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return dict.fromkeys(names.split(), given)


OVERRIDES: dict[str, dict[str, Any]] = {
    **_alike(
        "axk1 axk2 deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa minicpm3 "
        "mistral4 youtu hy_v4 mistral_large4_text dots3_note_text",
        _MLA,
    ),
    **_alike("kimi_k25 mistral_large4 dots3_note", {"text_config": _MLA}),
    **_alike("qwen2_vl qwen2_5_vl paddleocr_vl glm_ocr", _VISION_ROPE),
    **_alike("qwen2_vl_text qwen2_5_vl_text", {"rope_parameters": _rotary(2, 3, 3)}),
    **_alike("glm4v_text glm_ocr_text glm_image_text", {"rope_parameters": _rotary(2, 3, 3)}),
    **_alike("glm4v glm46v glm_image", _VISION_ROPE),
    "glm4v_moe_text": {"rope_parameters": _rotary(2, 1, 1, partial_rotary_factor=0.5)},
    "glm4v_moe": {"text_config": {"rope_parameters": _rotary(2, 1, 1, partial_rotary_factor=0.5)}},
    **_alike("swin donut-swin", {"image_size": 128, "window_size": 4, "embed_dim": 16}),
    "resnet": {"embedding_size": 16, "hidden_sizes": [16, 24, 32, 48], "depths": [1, 2, 1, 1]},
    "bit": {"embedding_size": 32, "hidden_sizes": [128, 128, 256, 256], "depths": [1, 1, 1, 1]},
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320},
    "esm": {
        "vocab_size": 33,
        "mask_token_id": 32,
        "pad_token_id": 1,
        "position_embedding_type": "rotary",
    },
    "encodec": {"hidden_size": 128, "codebook_dim": 128},
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"],
        "mamba_n_heads": 8,
        "mamba_d_head": 16,
    },
    **_alike(
        "hunyuan_v1_dense hunyuan_v1_moe ministral hunyuan_vl_text nemotron",
        {"head_dim": HEAD_DIM},
    ),
    "layoutlmv3": {"coordinate_size": 11, "shape_size": 10, "input_size": 32},
    "lilt": {"channel_shrink_ratio": 4, "hidden_size": 48},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 16},
    "moonshine": {"encoder_num_key_value_heads": HEADS, "decoder_num_key_value_heads": HEADS},
    "reformer": {
        "is_decoder": True,
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [32, 32],
        "attn_layers": ["local", "lsh"],
        "num_buckets": 4,
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "attention_head_size": 16,
    },
    "textnet": {"stem_out_channels": 16, "hidden_sizes": [16, 16, 32, 32, 32]},
    "wav2vec2-bert": {"vocab_size": VOCABULARY},
    "wav2vec2-conformer": {"vocab_size": VOCABULARY},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "mamba_dt_rank": 8,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "n_mamba_heads": 2,
        "layers_block_type": ["mamba", "hybrid"],
    },
    "zamba2": {
        "mamba_ngroups": 1,
        "n_mamba_heads": 8,
        "mamba_headdim": 16,
        "attention_head_dim": 32,
        "layers_block_type": ["mamba", "hybrid"],
        "num_mem_blocks": 1,
    },
    "longcat_flash": {
        "ffn_hidden_size": 96,
        "expert_ffn_hidden_size": 48,
        "zero_expert_num": 2,
        "num_key_value_heads": 4,
    },
    "perceiver": {
        "d_latents": 32,
        "num_latents": 8,
        "d_model": 32,
        "num_self_attends_per_block": 2,
        "num_cross_attention_heads": 2,
        "num_self_attention_heads": 2,
    },
    "zoedepth": {
        "backbone_config": {
            "model_type": "beit",
            **_STAGES4,
            "hidden_size": 32,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "image_size": 64,
            "reshape_hidden_states": False,
        },
        "neck_hidden_sizes": [16, 24, 32, 48],
        "fusion_hidden_size": 32,
        "bottleneck_features": 32,
    },
    "depth_anything": {
        "backbone_config": {
            "model_type": "dinov2",
            **_STAGES4,
            "hidden_size": 32,
            "num_attention_heads": 4,
            "image_size": 56,
            "patch_size": 14,
            "apply_layernorm": True,
            "reshape_hidden_states": False,
        },
        "neck_hidden_sizes": [16, 24, 32, 48],
        "fusion_hidden_size": 16,
        "reassemble_hidden_size": 32,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
}


def tiny_models(model_type: str) -> Iterator[nn.Module]:
    """The architecture at tiny configurations, random weights, in eval mode, on the CPU; the
    first that runs is the one to take. Raises what its class raises."""
    cls = model_class(model_type)
    failure: Exception | None = None
    for make in (shrunk, shrunk_in_place):
        try:
            config = make(
                transformers.AutoConfig.for_model(model_type), OVERRIDES.get(model_type, {})
            )
            expected = getattr(cls, "config_class", None)
            if expected is not None and not isinstance(config, expected):
                config = getattr(config, "text_config", config)
            torch.manual_seed(0)
            yield cls(config).eval()
        except Exception as error:
            failure = failure or error
    if failure is not None:
        raise failure
