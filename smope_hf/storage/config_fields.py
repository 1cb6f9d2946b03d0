"""Which fields of a config.json are taken: those that say what the model is. How it runs is for its user to say.

Every field is in one of the tables below. One that is in none of them, as of a later version, is not taken, with a
warning that names it: a name that nobody has looked at could name code to run.
"""

from transformers.utils import logging

from ..base.printable import printable
from .safe_json import shown

logger = logging.get_logger(__name__)

# ---------------------------------------------------------------------- taken

SHARED = (  # of models and backbones
    "model_type", "architectures", "transformers_version", "dtype", "torch_dtype", "id2label", "label2id",
    "num_labels",
)  # fmt: skip
_INCREMENTAL = (
    "backbone_config", "base_model_name_or_path", "base_model_revision", "base_model_fingerprint", "prompt_layers",
    "pooling", "tasks", "auto_map",
)  # fmt: skip
MODELS = {  # model type -> its own fields
    "smope": (
        *_INCREMENTAL, "num_experts", "top_k", "num_experts_per_tok", "noise_epsilon", "router_loss_coef",
        "prototype_loss_coef", "routing", "output_router_scores",
    ),
    "smope_prompted": (*_INCREMENTAL, "method", "settings"),
}  # fmt: skip

_TRANSFORMER = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps", "image_size",
    "patch_size", "num_channels",
)  # fmt: skip
_VIT = (
    *_TRANSFORMER, "intermediate_size", "hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range",
    "qkv_bias",
)  # fmt: skip
_POOLER = ("pooler_output_size", "pooler_act")
_DINOV2 = (
    *_TRANSFORMER, "mlp_ratio", "hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "qkv_bias",
    "layerscale_value", "drop_path_rate", "use_swiglu_ffn", "apply_layernorm", "reshape_hidden_states",
)  # fmt: skip
BACKBONES = {  # model type -> its own fields
    "vit": (*_VIT, *_POOLER, "encoder_stride"),
    "deit": (*_VIT, *_POOLER, "encoder_stride"),
    "vit_msn": _VIT,
    "ijepa": (*_VIT, *_POOLER),
    "beit": (
        *(name for name in _VIT if name != "qkv_bias"), "vocab_size", "use_mask_token",
        "use_absolute_position_embeddings", "use_relative_position_bias", "use_shared_relative_position_bias",
        "layer_scale_init_value", "drop_path_rate", "use_mean_pooling", "pool_scales", "use_auxiliary_head",
        "auxiliary_loss_weight", "auxiliary_channels", "auxiliary_num_convs", "auxiliary_concat_input",
        "semantic_loss_ignore_index", "add_fpn", "reshape_hidden_states",
    ),
    "dinov2": (*_DINOV2, "use_mask_token"),
    "dinov2_with_registers": (*_DINOV2, "num_register_tokens"),
    "dinov3_vit": (
        *_TRANSFORMER, "intermediate_size", "attention_dropout", "initializer_range", "rope_theta", "query_bias",
        "key_bias", "value_bias", "proj_bias", "mlp_bias", "layerscale_value", "drop_path_rate", "use_gated_mlp",
        "num_register_tokens", "pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale", "apply_layernorm",
        "reshape_hidden_states",
    ),
    "clip_vision_model": (
        *_TRANSFORMER, "intermediate_size", "projection_dim", "attention_dropout", "initializer_range",
        "initializer_factor",
    ),
    "siglip_vision_model": (*_TRANSFORMER, "intermediate_size", "attention_dropout", "vision_use_head"),
}  # fmt: skip
HALVES = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}  # model of two -> family of its image half

# ---------------------------------------------------------------------- not taken

REFUSED = {  # no model that carries these is read
    "transformers_weights": "it would name another file to read weights from",
    "quantization_config": "SMoPE runs on weights that are not quantised",
}
NEVER = (  # with a warning: they would choose code to run, or how and where the model runs
    "attn_implementation", "_attn_implementation", "_attn_implementation_internal", "experts_implementation",
    "_experts_implementation", "_experts_implementation_internal", "auto_map", "attribute_map", "per_layer_config",
    "configuration_files", "gradient_checkpointing", "distributed_config", "fusion_config", "kernel_config",
    "base_model_tp_plan", "base_model_pp_plan", "base_model_ep_plan", "base_model_fsdp_plan", "custom_pipelines",
)  # fmt: skip
WITHOUT_A_WORD = frozenset((  # of transformers' older files, or of other kinds of models; nothing here reads them
    "_name_or_path", "name_or_path", "_commit_hash", "_attn_implementation_autoset", "_out_features", "_out_indices",
    "out_features", "out_indices", "stage_names", "segmentation_indices", "problem_type", "chunk_size_feed_forward",
    "is_encoder_decoder", "is_decoder", "add_cross_attention", "cross_attention_hidden_size", "tie_encoder_decoder",
    "tie_word_embeddings", "tie_last_hidden_states", "torchscript", "use_bfloat16", "tf_legacy_loss", "pruned_heads",
    "finetuning_task", "task_specific_params", "tokenizer_class", "prefix", "bos_token_id", "pad_token_id",
    "eos_token_id", "sep_token_id", "decoder_start_token_id", "max_length", "min_length", "do_sample", "use_cache",
    "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p",
    "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
    "bad_words_ids", "num_return_sequences", "output_scores", "return_dict_in_generate", "forced_bos_token_id",
    "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens",
    "begin_suppress_tokens",
))  # fmt: skip
AS_USUAL = {"output_hidden_states": False, "output_attentions": False, "return_dict": True}  # what a pass gives back
CODE = {  # model type -> the one `auto_map` that is taken: the code that is pushed along on request, by Auto class
    "smope": {
        "AutoConfig": "configuration_smope.SMoPEConfig",
        "AutoModelForImageClassification": "modeling_smope.SMoPEForImageClassification",
    },
    "smope_prompted": {
        "AutoConfig": "configuration_prompted.PromptedConfig",
        "AutoModelForImageClassification": "modeling_prompted.PromptedForImageClassification",
    },
}


def model_fields(content: dict, model_type: str, source: str) -> dict:
    """The fields of a SMoPE model's config.json that are taken, those of its backbone included; a warning on others.

    Args:
        content: of the file.
        model_type: the config class's own.
        source: the file, for the warning.
    """
    taken, others = _sorted(content, MODELS[model_type])
    if taken.get("auto_map", CODE[model_type]) != CODE[model_type]:
        others["auto_map"] = taken.pop("auto_map")
    _warn(source, others)
    backbone = taken.get("backbone_config")
    if isinstance(backbone, dict):
        taken["backbone_config"] = backbone_fields(backbone, f"{source}: backbone_config")
    return taken


def backbone_fields(content: dict, source: str) -> dict:
    """The fields of a backbone's config that are taken; a family that is not supported is left to be refused.

    Args:
        content: of a base model's config.json, or of `backbone_config`.
        source: the file, for the warning.
    """
    own = _family_fields(content)
    if own is None:
        return content
    taken, others = _sorted(content, own)
    _warn(source, others)
    return taken


def image_half(content: dict) -> dict:
    """Of the config of a model with an image and a text half the image half; any other as it is."""
    kind, half = content.get("model_type"), content.get("vision_config")
    if isinstance(kind, str) and kind in HALVES:
        parts = [half, content.get("vision_config_dict")]  # early files of CLIP have both, and the second one counts
        fields = {name: value for part in parts if isinstance(part, dict) for name, value in part.items()}
        return {**fields, "model_type": HALVES[kind]}
    other = _family_fields(content) is None and isinstance(half, dict) and _family_fields(half) is not None
    return half if other else content


def shareable(content: dict, model_type: str) -> dict:
    """The content of a config.json without what would choose anything but the model, where somebody else loads it."""
    _, others = _sorted(content, MODELS[model_type])
    kept = {name: value for name, value in content.items() if name not in others}
    if kept.get("auto_map", CODE[model_type]) != CODE[model_type]:
        del kept["auto_map"]
    backbone = kept.get("backbone_config")
    own = _family_fields(backbone) if isinstance(backbone, dict) else None
    if own is not None:
        _, others = _sorted(backbone, own)
        kept["backbone_config"] = {name: value for name, value in backbone.items() if name not in others}
    return kept


def _family_fields(content: dict) -> tuple[str, ...] | None:
    family = content.get("model_type")
    return BACKBONES.get(family) if isinstance(family, str) else None


def _sorted(content: dict, own: tuple[str, ...]) -> tuple[dict, dict]:
    """The fields that are taken, and those that are not and say something."""
    known = {*SHARED, *own}
    others = {name: value for name, value in content.items() if name not in known}
    saying = {name: value for name, value in others.items() if not _says_nothing(name, value)}
    return {name: value for name, value in content.items() if name in known}, saying


def _says_nothing(name: str, value) -> bool:
    return value is None or name in WITHOUT_A_WORD or (name in AS_USUAL and value is AS_USUAL[name])


def _warn(source: str, others: dict):
    if others:
        first = ", ".join(f"{shown(name)}: {shown(value)}" for name, value in list(others.items())[:5])
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        advice = (
            "A file says what the model is; attention, precision and whatever else its run needs are given by who "
            "loads it, as in from_pretrained(..., attn_implementation='sdpa')."
        )
        logger.warning_once(printable(f"{source} has fields that are not taken from a file: {first}{more}. {advice}"))
