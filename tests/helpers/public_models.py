"""The fields of the JSON files of public models, as they were published."""

from typing import Any

UNET_FILE, VAE_FILE, SCHEDULER_FILE = "unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"
TOKENIZER_FILE = "tokenizer/tokenizer_config.json"

CROSS_DOWN, CROSS_UP = ["CrossAttnDownBlock2D"] * 3, ["CrossAttnUpBlock2D"] * 3
OLD_UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": [*CROSS_DOWN, "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", *CROSS_UP],
}
UNET_2: dict[str, Any] = OLD_UNET | {
    "_diffusers_version": "0.10.0.dev0",
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "use_linear_projection": True,
}
XL_UNET: dict[str, Any] = UNET_2 | {
    "_diffusers_version": "0.24.0.dev0",
    "addition_embed_type": "text_time",
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "attention_type": "default",
    "block_out_channels": [320, 640, 1280],
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_dim": 2048,
    "cross_attention_norm": None,
    "down_block_types": ["DownBlock2D", *CROSS_DOWN[:2]],
    "dropout": 0.0,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_only_cross_attention": None,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_attention_heads": None,
    "projection_class_embeddings_input_dim": 2816,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None,
    "sample_size": 128,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": [*CROSS_UP[:2], "UpBlock2D"],
    "upcast_attention": None,
}
PUBLIC_VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
XL_VAE = PUBLIC_VAE | {
    "force_upcast": True,
    "latents_mean": None,
    "latents_std": None,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
}
CLIP_L: dict[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "torch_dtype": "float32",
    "vocab_size": 49408,
}
OPEN_CLIP_H = CLIP_L | {
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "projection_dim": 512,
}
OPEN_CLIP_G = OPEN_CLIP_H | {
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}
PNDM: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
EULER = PNDM | {
    "_class_name": "EulerDiscreteScheduler",
    "clip_sample": False,
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "timestep_type": "discrete",
    "use_karras_sigmas": False,
}
XL_FILES = {UNET_FILE: XL_UNET, VAE_FILE: XL_VAE, SCHEDULER_FILE: EULER, "text_encoder_2/config.json": OPEN_CLIP_G}
FILES_2 = {UNET_FILE: UNET_2, VAE_FILE: PUBLIC_VAE, SCHEDULER_FILE: PNDM, "text_encoder/config.json": OPEN_CLIP_H}
PUBLIC: dict[str, tuple[dict[str, dict[str, Any]], tuple[int, int], tuple[int, int]]] = {
    "1.4": ({}, (512, 512), (77, 768)),
    "1.5, whose first release says 32": (
        {UNET_FILE: OLD_UNET | {"_diffusers_version": "0.6.0", "sample_size": 32}},
        (512, 512),
        (77, 768),
    ),
    "2.1 base": (FILES_2, (512, 512), (77, 1024)),
    "2.1": (
        FILES_2
        | {
            UNET_FILE: UNET_2 | {"sample_size": 96, "upcast_attention": True},
            SCHEDULER_FILE: PNDM | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
        },
        (768, 768),
        (77, 1024),
    ),
    "XL": (XL_FILES, (1024, 1024), (78, 2048)),
    "XL without a middle block": (XL_FILES | {UNET_FILE: XL_UNET | {"mid_block_type": None}}, (1024, 1024), (78, 2048)),
    "a distilled XL": (
        XL_FILES
        | {
            UNET_FILE: XL_UNET
            | {
                "transformer_layers_per_block": [0, [2, 2], [4, 4]],
                "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
            }
        },
        (1024, 1024),
        (78, 2048),
    ),
}
OLD_FILES: dict[str, dict[str, Any]] = {
    UNET_FILE: OLD_UNET,
    VAE_FILE: PUBLIC_VAE,
    SCHEDULER_FILE: PNDM,
    "text_encoder/config.json": CLIP_L,
    TOKENIZER_FILE: {"model_max_length": 77},
    "tokenizer_2/tokenizer_config.json": {"model_max_length": 77},
    "model_index.json": {"force_zeros_for_empty_prompt": True},
}
