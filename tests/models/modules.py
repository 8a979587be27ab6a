"""The torch modules behind the exported models; imported late, because torch takes seconds to load."""

# mypy: disallow-subclassing-any=False, warn-return-any=False
# torch and transformers are untyped to mypy here.
from __future__ import annotations

import torch
from torch import nn


class SentenceEncoder(nn.Module):
    """all-MiniLM-L6-v2 as its users call it: encoder, mean over real tokens, unit length."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> torch.Tensor:
        """int64[batch, sequence] three times -> float32[batch, 384], rows of length one.

        Source: the package's modules.json and 1_Pooling/config.json (mean pooling, then normalisation).
        """
        hidden = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weights).sum(1) / weights.sum(1)
        return nn.functional.normalize(mean, dim=1)


class NextTokenScores(nn.Module):
    """A causal language model without its key-value cache."""

    def __init__(self, language_model: nn.Module) -> None:
        super().__init__()
        self.language_model = language_model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """int64[batch, sequence] twice -> logits float32[batch, sequence, vocabulary]."""
        return self.language_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
