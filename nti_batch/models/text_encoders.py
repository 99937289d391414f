"""Encodes prompts: the frozen CLIP text encoders of Stable Diffusion.

1.x and 2.x have one encoder, whose last hidden state is the embedding. XL has two. Its embedding joins their
penultimate hidden states side by side. The projection of the second encoder is one more row
(`diffusion.pooled_embedding`).
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nti_batch.diffusion.alignment import TokenizedPrompt
from nti_batch.diffusion.host import upload
from nti_batch.diffusion.pooled_embedding import join_pooled

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer


class TextEncoder(nn.Module):
    """The text encoder of Stable Diffusion 1.x and 2.x."""

    pooled_dim = 0
    """Width of the pooled embedding, which is the last row of every embedding; 0 if there is none."""

    def __init__(self, tokenizer: "CLIPTokenizer", encoder: "CLIPTextModel") -> None:
        """Take the tokenizer, and the encoder in float32."""
        super().__init__()
        self.tokenizer, self.encoder = tokenizer, encoder

    def embed_prompts(self, prompts: list[str]) -> Tensor:
        """Encode prompts, padded and truncated, to last hidden states, [prompts, tokens, dim]."""
        embeddings: Tensor = self.encoder(upload(_ids(self.tokenizer, prompts), self.encoder.device)).last_hidden_state
        return embeddings

    def truncates(self, prompt: str) -> bool:
        """Whether the encoder reads only the beginning of a prompt."""
        return len(self.tokenizer(prompt, verbose=False).input_ids) > self.tokenizer.model_max_length

    def tokenize(self, prompt: str) -> TokenizedPrompt:
        """Find the words of a prompt among its tokens."""
        tokens = self.tokenizer(prompt, padding="max_length", truncation=True, return_offsets_mapping=True)
        return TokenizedPrompt.of(prompt, tokens.offset_mapping)


class TextEncoderPair(TextEncoder):
    """The two text encoders of Stable Diffusion XL; their tokens differ only in the padding."""

    def __init__(
        self,
        tokenizer: "CLIPTokenizer",
        encoder: "CLIPTextModel",
        tokenizer_2: "CLIPTokenizer",
        encoder_2: "CLIPTextModelWithProjection",
        zeros_for_empty_prompt: bool,
    ) -> None:
        """Take the tokenizers, and the encoders in float32.

        Args:
            tokenizer: Tokenizer of the first encoder.
            encoder: The first encoder.
            tokenizer_2: Tokenizer of the second encoder.
            encoder_2: The second encoder, whose projection is the pooled embedding.
            zeros_for_empty_prompt: Whether the embedding of "" is zero, as it was in the model's training.
        """
        super().__init__(tokenizer, encoder)
        self.tokenizer_2, self.encoder_2 = tokenizer_2, encoder_2
        self.zeros_for_empty_prompt = zeros_for_empty_prompt
        self.pooled_dim = encoder_2.config.projection_dim

    def embed_prompts(self, prompts: list[str]) -> Tensor:
        """Encode prompts to penultimate hidden states side by side and the pooled row, [prompts, tokens + 1, dim]."""
        pairs = ((self.tokenizer, self.encoder), (self.tokenizer_2, self.encoder_2))
        first, second = (
            encoder(upload(_ids(tokenizer, prompts), encoder.device), output_hidden_states=True)
            for tokenizer, encoder in pairs
        )
        tokens = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        embeddings = join_pooled(tokens, second.text_embeds)
        if self.zeros_for_empty_prompt:
            kept = torch.tensor([prompt != "" for prompt in prompts], device=embeddings.device)
            embeddings = embeddings * kept[:, None, None]
        return embeddings


def _ids(tokenizer: "CLIPTokenizer", prompts: list[str]) -> Tensor:
    """Token numbers, [prompts, tokens] int64."""
    ids: Tensor = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return ids
