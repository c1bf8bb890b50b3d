"""config.json, generation_config.json and the class that the manifest names: what transformers
would import, fetch, open or build at the word of a configuration."""

# ruff: noqa: E501  (tables of attacks)
from __future__ import annotations

from typing import Any

import pytest
from hostile.attack import ANY, HARMLESS, RAN, REFUSED, Attack, Forgery, Range

EVIL = """
prunec_canary()
import transformers
class Evil(transformers.LlamaForCausalLM): pass
class EvilConfig(transformers.LlamaConfig): pass
"""
REMOTE = {name: "evil.Evil" for name in ("AutoConfig", "AutoModel", "AutoModelForCausalLM")}
BACKBONE = {"backbone": "resnet18", "use_pretrained_backbone": True, "use_timm_backbone": True}


def config(**changes: Any):
    """Keys of config.json; the directory also holds the code that they may name."""

    def change(forgery: Forgery) -> None:
        (forgery.place / "evil.py").write_text(EVIL)
        forgery.edit("config.json", **changes)

    return change


def manifest(**changes: Any):
    return lambda forgery: forgery.edit("prunec.json", **changes)


def both(name: str, **changes: Any):
    """Another class, and a configuration for it."""

    def change(forgery: Forgery) -> None:
        forgery.edit("prunec.json", **{"class": name})
        config(**changes)(forgery)

    return change


def timm(**arguments: Any):
    path = "transformers.models.timm_wrapper.modeling_timm_wrapper.TimmWrapperForImageClassification"
    name = {"architecture": "resnet18", "model_type": "timm_wrapper"}
    return both(path, **name, model_args=arguments)


def timm_file(forgery: Forgery) -> None:
    timm(checkpoint_path=str(forgery.outside / "weights.safetensors"), pretrained=True)(forgery)


def class_attack(name: str, may: tuple[str, ...] = REFUSED) -> Attack:
    return Attack(f"class {name}", manifest(**{"class": name}), may)


# What names code or a place elsewhere is refused, or never asked about.
CODE = [
    Attack("auto_map", config(auto_map=REMOTE), HARMLESS),
    Attack("auto_map with a repository", config(auto_map={"AutoModel": "evil/x--evil.Evil"}), HARMLESS),
    Attack("auto_map in a part", config(text_config={"auto_map": REMOTE, "model_type": "llama"}), HARMLESS),
    Attack("auto_map deep inside", config(a={"b": [{"auto_map": REMOTE}]}), HARMLESS),
    Attack("_name_or_path", config(_name_or_path="evil/x", auto_map=REMOTE), HARMLESS),
    Attack("_name_or_path outside", config(_name_or_path="../outside"), HARMLESS),
    Attack("architectures", config(architectures=["evil.Evil", "os.system"]), HARMLESS),
    Attack("model_type", config(model_type="evil"), HARMLESS),
    Attack("another model_type", config(model_type="bert"), HARMLESS),
    Attack("kernels from the hub", config(_attn_implementation="evil/kernels"), HARMLESS),
    Attack("kernels by the public key", config(attn_implementation="evil/kernels:f"), HARMLESS),
    Attack("flash attention", config(_attn_implementation="flash_attention_2"), HARMLESS),
    Attack("experts", config(_experts_implementation="evil/kernels"), HARMLESS),
    Attack("quantised by a library", config(quantization_config={"quant_method": "bitsandbytes"}), HARMLESS),
    Attack("quantised by names", config(quantization_config={"quant_method": "evil", "modules_to_not_convert": [RAN]}), HARMLESS),
    Attack("activation", config(hidden_act="prunec_canary()")),
    Attack("activation of other kind", config(hidden_act={"x": 1})),
    Attack("dtype", config(torch_dtype="os.system"), HARMLESS),
    Attack("dtype by the new name", config(dtype="load"), HARMLESS),
    Attack("rope", config(rope_parameters={"rope_type": "prunec_canary()"})),
    Attack("rope of other kind", config(rope_parameters=[1])),
    Attack("pruned heads", config(pruned_heads={"0": [0, 99]}), HARMLESS),
    Attack("peft", config(_hf_peft_config_loaded=True, peft={"base": "evil/x"}), HARMLESS),
    Attack("version", config(transformers_version="prunec_canary()"), HARMLESS),
    Attack("commit", config(_commit_hash="../../x"), HARMLESS),
]  # fmt: skip
# Attributes that every configuration has for its own work.
ATTRIBUTES = [
    Attack(f"config.{name}", config(**{name: value}), HARMLESS)
    for name, value in {
        "__class__": "x",
        "__dict__": {"x": 1},
        "__init__": 1,
        "__module__": "os",
        "__setattr__": 1,
        "to_dict": 1,
        "from_dict": "x",
        "get_text_config": 1,
        "attribute_map": {"hidden_size": "vocab_size"},
        "sub_configs": {"text_config": "evil.EvilConfig"},
        "base_config_key": "x",
        "keys_to_ignore_at_inference": 3,
        "_attn_implementation_internal": "evil/kernels",
        "base_model_tp_plan": {"*": "evil"},
        "base_model_pp_plan": {"x": 1},
        "is_composition": True,
        "num_hidden_layers ": 3,
        "": 1,
        "a.b": 1,
        "prunec_canary()": 1,
    }.items()
]
CLASSES = [
    class_attack(name)
    for name in (
        "transformers.pipeline",
        "transformers.Trainer",
        "transformers.PreTrainedModel",
        "transformers.PreTrainedConfig",
        "transformers.AutoModel",
        "transformers.models.auto.modeling_auto.AutoModelForCausalLM",
        "transformers.LlamaTokenizerFast",
        "transformers.utils.hub.cached_file",
        "transformers.dynamic_module_utils.get_class_from_dynamic_module",
        "transformers.modeling_utils.torch.hub.load",
        "transformers.modeling_utils.nn.Linear",
        "transformers.models.llama.modeling_llama.LlamaAttention",
        "transformers.models.llama.modeling_llama.LlamaRMSNorm",
        "transformers.models.llama.modeling_llama.LlamaForCausalLM.__init__",
        "transformers.models.llama.modeling_llama.LlamaForCausalLM.__class__",
        "transformers.models.llama.modeling_llama.nn",
        "transformers.models.llama.modeling_llama.__builtins__",
        "transformers.models.llama.modeling_llama.",
        "transformers..models",
        "transformers.models.llama..modeling_llama.LlamaForCausalLM",
        "transformers.models.llama.configuration_llama.LlamaConfig",
        "transformers.models.nowhere.modeling_nowhere.Evil",
        "transformers.models.bert.modeling_bert.BertModel",
        "transformers.models.timm_wrapper.modeling_timm_wrapper.TimmWrapperModel",
        "transformers.models.llava.modeling_llava.LlavaForConditionalGeneration",
        "transformers.models.rag.modeling_rag.RagModel",
        "transformers.models.mixtral.modeling_mixtral.MixtralForCausalLM",
        "transformers." + "x" * 10_000,
        "transformers.models.\x00.Evil",
        "transformers.models.llama.modeling_ﬂlama.LlamaForCausalLM",
    )
]  # fmt: skip
# Elsewhere than in transformers nothing is imported: the graph is loaded, which is as good.
OTHER_CLASSES = [
    class_attack(name, ANY)
    for name in (
        "evil.Evil",
        "antigravity.Net",
        "os.system",
        "builtins.eval",
        "transformers_modules.evil.Evil",
        "torch.nn.modules.module.Module",
        "fuzz_subjects.Evil",
        "tests.conftest.Evil",
        "../outside",
        "",
    )
]
OTHER_CLASSES += [
    Attack(f"class {value!r}", manifest(**{"class": value}), ANY)
    for value in (None, 7, [], {}, ["transformers.x"])
]
LIBRARIES = [
    Attack("timm by name", timm(), subject="bert"),
    Attack("timm from the hub", timm(pretrained=True), subject="bert"),
    Attack("timm from a file", timm_file, subject="bert"),
    Attack("timm with an overlay", timm(pretrained_cfg_overlay={"file": "/etc/passwd"}), subject="bert"),
    Attack("a remote backbone", both("transformers.models.detr.modeling_detr.DetrForObjectDetection", model_type="detr", **BACKBONE), subject="bert"),
    Attack("a backbone by configuration", both("transformers.models.detr.modeling_detr.DetrForObjectDetection", model_type="detr", backbone_config={"model_type": "timm_backbone", **BACKBONE}), subject="bert"),
    Attack("a remote part", both("transformers.models.vision_encoder_decoder.modeling_vision_encoder_decoder.VisionEncoderDecoderModel", encoder={"model_type": "evil", "auto_map": REMOTE}, decoder={"model_type": "bert"}), subject="bert"),
    Attack("a remote speech part", both("transformers.models.speech_encoder_decoder.modeling_speech_encoder_decoder.SpeechEncoderDecoderModel", encoder={"_name_or_path": "evil/x"}), subject="bert"),
    Attack("a detector's backbone", both("transformers.models.dpt.modeling_dpt.DPTForDepthEstimation", model_type="dpt", is_hybrid=True, **BACKBONE), subject="bert"),
]  # fmt: skip
SIZES = [
    Attack(f"{key} = {str(value)[:20]}", config(**{key: value}), ANY, subject)
    for subject, key, value in (
        ("llama", "vocab_size", 100_000_000),
        ("llama", "vocab_size", 10**18),
        ("llama", "vocab_size", -1),
        ("llama", "vocab_size", 99.5),
        ("llama", "hidden_size", 10**9),
        ("llama", "hidden_size", 0),
        ("llama", "num_hidden_layers", 10**9),
        ("llama", "num_hidden_layers", 10**5),
        ("llama", "num_hidden_layers", -3),
        ("llama", "num_hidden_layers", "2"),
        ("llama", "num_attention_heads", 0),
        ("llama", "num_attention_heads", 10**9),
        ("llama", "num_key_value_heads", 0),
        ("llama", "num_key_value_heads", 3),
        ("llama", "head_dim", 10**12),
        ("llama", "head_dim", 0),
        ("llama", "intermediate_size", 10**12),
        ("llama", "max_position_embeddings", 10**18),
        ("llama", "rms_norm_eps", "x"),
        ("llama", "rms_norm_eps", None),
        ("llama", "num_labels", 10**9),
        ("llama", "id2label", {"x": "y"}),
        ("llama", "id2label", [1]),
        ("llama", "pad_token_id", 10**12),
        ("llama", "rope_parameters", {"rope_type": "dynamic", "factor": 1e308, "rope_theta": 0}),
        ("llama", "rope_parameters", {"rope_type": "default", "rope_theta": -1.0}),
        ("llama", "rope_parameters", {"rope_type": "longrope", "short_factor": [1] * 3, "rope_theta": 1.0}),
        ("llama", "layer_types", ["full_attention"] * 9),
        ("llama", "mlp_bias", True),
        ("llama", "attention_dropout", "x"),
        ("llama", "output_attentions", True),
        ("llama", "return_dict", False),
        ("llama", "use_cache", "x"),
        ("bert", "max_position_embeddings", 10**10),
        ("bert", "type_vocab_size", 10**10),
        ("bert", "num_hidden_layers", 10**8),
        ("bert", "num_attention_heads", 0),
        ("bert", "num_labels", 10**9),
        ("bert", "num_labels", -1),
        ("bert", "layer_norm_eps", "x"),
        ("bert", "hidden_dropout_prob", 7),
        ("bert", "is_decoder", True),
        ("bert", "add_cross_attention", True),
        ("bert", "problem_type", "x"),
        ("bert", "chunk_size_feed_forward", 10**9),
        ("bert", "chunk_size_feed_forward", 3),
    )
]  # fmt: skip


def generation(**changes: Any):
    return lambda forgery: forgery.edit("generation_config.json", **changes)


GENERATION = [
    Attack(f"generation {name}", generation(**{name: value}), HARMLESS)
    for name, value in {
        "auto_map": REMOTE,
        "_name_or_path": "evil/x",
        "__class__": "x",
        "custom_generate": "evil/x",
        "cache_implementation": "evil",
        "cache_config": {"backend": "evil"},
        "watermarking_config": {"x": 1},
        "watermarking_config ": "x",
        "compile_config": {"backend": "evil"},
        "assistant_model": "evil/x",
        "max_length": 10**12,
        "max_new_tokens": "x",
        "temperature": -1,
        "eos_token_id": "x",
        "from_pretrained": 1,
        "to_dict": 1,
        "validate": 1,
        "transformers_version": "../x",
    }.items()
]
TOPICS = {
    "code": CODE,
    "attributes": ATTRIBUTES,
    "classes": CLASSES,
    "other classes": OTHER_CLASSES,
    "libraries": LIBRARIES,
    "sizes": SIZES,
    "generation": GENERATION,
}


@pytest.mark.parametrize("topic", TOPICS)
def test_a_forged_configuration_runs_fetches_and_builds_nothing(
    attacks: Range, topic: str
) -> None:
    attacks.expect_all(TOPICS[topic])
