"""The five fine-tuning strategies of Zhao et al. (2024, arXiv 2402.12168), each with the paper's settings.

Appendix B prints learning rates 2e-5 or 2e-3 "by strategy", LoRA rank 8 and dropout 0.1, 4 or 5 virtual tokens,
encoder hidden size 64 or 128; alpha 16 is from the released code. Warm-up and the rest live in `tune`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

from peft import (
    LoraConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    PromptTuningInit,
    TaskType,
)
from pydantic import BeforeValidator, Field

from foretaste.errors import PlanError
from foretaste.spec import Registry, all_of, build, spec, values_of
from foretaste.victim.family import family_of

__all__ = ["STRATEGIES", "Full", "Lora", "PTuningV1", "PTuningV2", "PromptTuning", "Strategy", "changed"]

T = TypeVar("T")


@runtime_checkable
class Strategy(Protocol):
    """Which parameters are trained, and how fast by default."""

    name: ClassVar[str]

    @property
    def learning_rate(self) -> float:
        """AdamW's peak learning rate."""

    def peft_config(self, model_config: Any) -> PeftConfig | None:
        """Return the adapter's PEFT configuration for a model, or None when all its weights are trained."""


def _names(value: Any) -> Any:
    # `--set target_modules=query,value`
    return tuple(value.split(",")) if isinstance(value, str) else value


@spec
class Full:
    """Full-parameter fine-tuning."""

    name: ClassVar[str] = "full"
    learning_rate: float = Field(default=2e-5, gt=0.0)

    def peft_config(self, model_config: Any) -> None:
        return None


@spec
class Lora:
    """LoRA (Hu et al. 2021, arXiv 2106.09685).

    `layers` attention means the projections PEFT chooses for the family (queries and values); feed_forward, all that
    comes after the values; all, every linear layer. `target_modules` names layers instead.
    """

    name: ClassVar[str] = "lora"
    learning_rate: float = Field(default=2e-3, gt=0.0)
    rank: int = Field(default=8, gt=0)
    alpha: int = Field(default=16, gt=0)
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    layers: Literal["attention", "feed_forward", "all"] = "attention"
    target_modules: Annotated[tuple[str, ...] | None, BeforeValidator(_names)] = None

    def peft_config(self, model_config: Any) -> PeftConfig:
        names = self.target_modules
        if names is None and self.layers != "attention":
            family = family_of(model_config.model_type)
            names = family.feed_forward if self.layers == "feed_forward" else family.projections + family.feed_forward
        return LoraConfig(
            task_type=TaskType.SEQ_CLS,
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=list(names) if names else None,
            fan_in_fan_out=model_config.model_type == "gpt2",  # its projections are stored transposed
        )


@spec
class PromptTuning:
    """Prompt tuning (Lester et al. 2021, arXiv 2104.08691): free embeddings before the text.

    They start as `random` numbers (PEFT's default), many times longer than those of words, which alone can leave a
    model undecided, or as those of random words of the `vocabulary` (section 3.1 of the paper).
    """

    name: ClassVar[str] = "prompt_tuning"
    learning_rate: float = Field(default=2e-3, gt=0.0)
    virtual_tokens: int = Field(default=5, gt=0)
    start: Literal["random", "vocabulary"] = "random"

    def peft_config(self, model_config: Any) -> PeftConfig:
        kind = PromptTuningInit.SAMPLE_VOCAB if self.start == "vocabulary" else PromptTuningInit.RANDOM
        return _soft_prompt(
            PromptTuningConfig, model_config, num_virtual_tokens=self.virtual_tokens, prompt_tuning_init=kind
        )


@spec
class PTuningV1:
    """P-tuning (Liu et al. 2021, arXiv 2103.10385): a small encoder makes the embeddings before the text."""

    name: ClassVar[str] = "p_tuning_v1"
    learning_rate: float = Field(default=2e-3, gt=0.0)
    virtual_tokens: int = Field(default=5, gt=0)
    encoder_hidden_size: int = Field(default=128, gt=0)

    def peft_config(self, model_config: Any) -> PeftConfig:
        return _soft_prompt(
            PromptEncoderConfig,
            model_config,
            num_virtual_tokens=self.virtual_tokens,
            encoder_hidden_size=self.encoder_hidden_size,
        )


@spec
class PTuningV2:
    """P-tuning v2 (Liu et al. 2021, arXiv 2110.07602): a prefix of keys and values in every layer.

    PEFT uses the hidden size only with `projection`; without it the paper's "encoder hidden size" has no effect.
    """

    name: ClassVar[str] = "p_tuning_v2"
    learning_rate: float = Field(default=2e-3, gt=0.0)
    virtual_tokens: int = Field(default=5, gt=0)
    encoder_hidden_size: int = Field(default=128, gt=0)
    projection: bool = False

    def peft_config(self, model_config: Any) -> PeftConfig:
        return _soft_prompt(
            PrefixTuningConfig,
            model_config,
            num_virtual_tokens=self.virtual_tokens,
            encoder_hidden_size=self.encoder_hidden_size,
            prefix_projection=self.projection,
        )


def _soft_prompt(kind: Any, model_config: Any, **settings: Any) -> PeftConfig:
    if model_config.model_type == "mpt":  # PEFT looks for other families' field names and gives up
        settings |= {
            "num_layers": model_config.n_layers,
            "num_attention_heads": model_config.n_heads,
            "token_dim": model_config.d_model,
        }
    config: PeftConfig = kind(task_type=TaskType.SEQ_CLS, num_transformer_submodules=1, **settings)
    return config


STRATEGIES: Registry[type[Strategy]] = Registry(
    "strategy", {kind.name: kind for kind in (Full, Lora, PromptTuning, PTuningV1, PTuningV2)}
)


def changed(start: T, fields: Mapping[str, Any], strategy: str | None = None) -> T:
    """Return a spec with these fields, and with this strategy; a strategy's own fields are written `strategy.rank`.

    Raises:
        PlanError: unknown field or strategy, or no strategy to choose.
    """
    own = {name: value for name, value in fields.items() if not name.startswith("strategy.")}
    inner = {name.removeprefix("strategy."): value for name, value in fields.items() if name.startswith("strategy.")}
    known = values_of(start)
    if strategy is not None or inner:
        usual: Any = known.get("strategy")
        if usual is None:
            raise PlanError(f"{type(start).__name__} has no strategy to choose: it trains all weights.")
        kind: Any = STRATEGIES[strategy or usual.name]
        theirs = (values_of(usual) if type(usual) is kind else {}) | inner
        made, _ = all_of(partial(build, kind, theirs), partial(build, type(start), known | own))
        own["strategy"] = made
    return build(type(start), known | own)
