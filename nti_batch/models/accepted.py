"""Fields of a model's JSON files that change what is computed, with the values that the job implements.

Any other field has no effect: diffusers and transformers ignore it, or only other samplers read it, such as
`use_karras_sigmas`. `weights.check_new_fields` looks for fields that a newer diffusers has.
"""

from nti_batch.models.rules import Rule, Rules, either, integer, list_of, number, one_of

SUPPORTED = "nti_batch supports the text-to-image models of Stable Diffusion 1.x, 2.x and XL"

_MAX_BLOCKS = 8
_NONE = one_of(None)
_OFF = one_of(False, None)
_ON = one_of(True, None)
_SWITCH = one_of(True, False, None)
_SILU = one_of("silu", "swish")
_CHANNELS = integer(1, 16384)
_EPSILON = number(0, 1)


def _per_block(rule: Rule) -> Rule:
    return list_of(rule, 1, _MAX_BLOCKS)


def _one_or_per_block(rule: Rule) -> Rule:
    return either(rule, _per_block(rule))


def _class(name: str) -> Rule:
    """A class of diffusers; its JAX counterpart has the same fields."""
    return one_of(name, f"Flax{name}")


def _null_unless(kind: str) -> Rule:
    """No value, which another kind of model has."""
    return Rule(f"null (otherwise it is {kind})", _NONE.accepts)


_LAYERS = integer(1, 8)
_TRANSFORMERS = integer(0, 32)
_TRANSFORMERS_PER_BLOCK = _one_or_per_block(either(_TRANSFORMERS, list_of(_TRANSFORMERS, 1, 9)))

UNET: Rules = {
    "_class_name": _class("UNet2DConditionModel"),
    "act_fn": _SILU,
    "addition_embed_type": one_of(None, "text_time"),
    "addition_embed_type_num_heads": integer(1, 1024),
    "addition_time_embed_dim": either(_NONE, integer(1, 16384)),
    "attention_head_dim": _one_or_per_block(integer(1, 1024)),
    "attention_type": one_of("default"),
    "block_out_channels": _per_block(_CHANNELS),
    "center_input_sample": _OFF,
    "class_embed_type": _null_unless("also conditioned on a class or an image, as unCLIP is"),
    "class_embeddings_concat": _OFF,
    "conv_in_kernel": one_of(3),
    "conv_out_kernel": one_of(3),
    "cross_attention_dim": _one_or_per_block(_CHANNELS),
    "cross_attention_norm": _NONE,
    "down_block_types": _per_block(one_of("CrossAttnDownBlock2D", "DownBlock2D")),
    "downsample_padding": one_of(1),
    "dropout": either(one_of(0), _EPSILON),
    "dual_cross_attention": _OFF,
    "encoder_hid_dim": _null_unless("made for another text or image encoder"),
    "encoder_hid_dim_type": _null_unless("made for another text or image encoder"),
    "flip_sin_to_cos": one_of(True),
    "freq_shift": one_of(0),
    "in_channels": integer(1, 64),
    "layers_per_block": _one_or_per_block(_LAYERS),
    "mid_block_only_cross_attention": _OFF,
    "mid_block_scale_factor": one_of(1),
    "mid_block_type": one_of("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None),
    "norm_eps": _EPSILON,
    "norm_num_groups": integer(1, 1024),
    "num_attention_heads": _NONE,
    "num_class_embeds": _null_unless("also conditioned on a class"),
    "only_cross_attention": _one_or_per_block(_OFF),
    "out_channels": integer(1, 64),
    "projection_class_embeddings_input_dim": either(_NONE, integer(1, 1 << 17)),
    "quantization_config": _null_unless("quantized"),
    "resnet_out_scale_factor": one_of(1),
    "resnet_skip_time_act": _OFF,
    "resnet_time_scale_shift": one_of("default"),
    "reverse_transformer_layers_per_block": either(_NONE, _TRANSFORMERS_PER_BLOCK),
    "sample_size": either(_NONE, integer(1, 1024), list_of(integer(1, 1024), 2, 2)),
    "time_cond_proj_dim": _null_unless("a latent consistency model"),
    "time_embedding_act_fn": _NONE,
    "time_embedding_dim": _NONE,
    "time_embedding_type": one_of("positional"),
    "timestep_post_act": _NONE,
    "transformer_layers_per_block": _TRANSFORMERS_PER_BLOCK,
    "up_block_types": _per_block(one_of("CrossAttnUpBlock2D", "UpBlock2D")),
    "upcast_attention": _SWITCH,
    "use_linear_projection": _SWITCH,
}

VAE: Rules = {
    "_class_name": _class("AutoencoderKL"),
    "act_fn": _SILU,
    "block_out_channels": _per_block(_CHANNELS),
    "down_block_types": _per_block(one_of("DownEncoderBlock2D")),
    "force_upcast": _SWITCH,
    "in_channels": one_of(3),
    "latent_channels": integer(1, 64),
    "latents_mean": _null_unless("a model that shifts its latents, as Playground 2.5 does"),
    "latents_std": _null_unless("a model that scales each channel of its latents"),
    "layers_per_block": _LAYERS,
    "mid_block_add_attention": one_of(True, False),
    "norm_num_groups": integer(1, 1024),
    "out_channels": one_of(3),
    "quantization_config": _null_unless("quantized"),
    "sample_size": either(integer(1, 1 << 14), list_of(integer(1, 1 << 14), 2, 2)),
    "scaling_factor": number(0, 1000),
    "shift_factor": either(_NONE, one_of(0)),
    "up_block_types": _per_block(one_of("UpDecoderBlock2D")),
    "use_post_quant_conv": one_of(True, False),
    "use_quant_conv": one_of(True, False),
}

TEXT_ENCODER: Rules = {
    "eos_token_id": either(_NONE, integer(0, 1 << 20)),
    "hidden_act": one_of("quick_gelu", "gelu"),
    "hidden_size": _CHANNELS,
    "intermediate_size": integer(1, 1 << 16),
    "layer_norm_eps": _EPSILON,
    "max_position_embeddings": integer(3, 4096),
    "model_type": one_of("clip_text_model"),
    "num_attention_heads": integer(1, 1024),
    "num_hidden_layers": integer(1, 128),
    "projection_dim": either(_NONE, _CHANNELS),
    "quantization_config": _null_unless("quantized"),
    "return_dict": _ON,
    "torchscript": _OFF,
    "vocab_size": integer(3, 1 << 20),
}

_DDPM_SCHEDULERS = (
    "DDIMInverse",
    "DDIMParallel",
    "DDIM",
    "DDPMParallel",
    "DDPM",
    "DEISMultistep",
    "DPMSolverMultistepInverse",
    "DPMSolverMultistep",
    "DPMSolverSDE",
    "DPMSolverSinglestep",
    "EulerAncestralDiscrete",
    "EulerDiscrete",
    "HeunDiscrete",
    "KDPM2AncestralDiscrete",
    "KDPM2Discrete",
    "LMSDiscrete",
    "PNDM",
    "SASolver",
    "UniPCMultistep",
)

SCHEDULER: Rules = {
    "_class_name": Rule(
        "a scheduler that adds noise as DDPM does, such as 'DDIMScheduler' (models of flow matching, EDM and "
        "consistency models are sampled in other ways)",
        lambda name: isinstance(name, str) and name.removeprefix("Flax").removesuffix("Scheduler") in _DDPM_SCHEDULERS,
    ),
    "beta_end": number(0, 0.999),
    "beta_schedule": one_of("linear", "scaled_linear", "squaredcos_cap_v2"),
    "beta_start": number(0, 0.999),
    "num_train_timesteps": integer(2, 10_000),
    "predict_epsilon": _ON,
    "prediction_type": one_of("epsilon", "v_prediction"),
    "rescale_betas_zero_snr": _SWITCH,
    "set_alpha_to_one": _SWITCH,
    "thresholding": _OFF,
    "timestep_spacing": one_of("leading", "linspace", "trailing"),
    "timestep_type": one_of("discrete"),
    "trained_betas": either(_NONE, list_of(number(0, 0.999), 2, 10_000)),
    "use_flow_sigmas": _OFF,
}

MODEL_INDEX: Rules = {"force_zeros_for_empty_prompt": _SWITCH, "requires_aesthetics_score": _SWITCH}
