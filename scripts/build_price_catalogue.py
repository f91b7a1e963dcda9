#!/usr/bin/env python3
"""Rebuild the embedded price catalogue from two public price data sets.

Needs Python 3.11 and two PyPI packages, which are read as data (litellm is never imported):

    pip install --no-deps litellm
    pip install genai-prices

Usage:

    scripts/build_price_catalogue.py --date 2026-11-24   # write the files, dated
    scripts/build_price_catalogue.py --check             # compare; exit 1 if they differ

Writes src/price/catalog.json (embedded in the binary) and src/price/catalog-notes.md (what the
sources disagree on, for people). The output depends on the package versions, the tables below
and the date alone. Exit codes: 0 done or equal, 1 different, 3 a package is missing or of
another version than the one that the committed catalogue was built from.

Rules
 1. genai-prices is taken where it lists a figure: it is kept vendor by vendor with dates.
 2. LiteLLM fills what genai-prices lacks: models, units, and whole service tiers.
 3. Where both list a figure and differ, genai-prices is taken unless CORRECTIONS says
    otherwise; the difference is noted.
 4. A name is listed only if a source spells it out. Patterns are not expanded: what a strict
    date or -latest suffix may stand for is decided at run time.
 5. A service tier belongs to the price of the day on which it was checked; the sources do not
    tell when it began.
"""

import argparse
import hashlib
import importlib.metadata
import json
import re
import sys
from decimal import Context, Decimal
from fractions import Fraction
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CATALOGUE = ROOT / "src/price/catalog.json"
NOTES = ROOT / "src/price/catalog-notes.md"
PRICE_FILE = "litellm/model_prices_and_context_window_backup.json"

# Our provider: its id in genai-prices, its ids in LiteLLM, the prefixes that LiteLLM puts before
# its model names, and the providers whose prices it charges for models of theirs.
PROVIDERS = {
    "anthropic": (["anthropic"], ["anthropic"], [], []),
    "azure": (["azure"], ["azure"], ["azure/"], ["openai", "anthropic", "deepseek", "xai"]),
    "bedrock": ([], ["bedrock", "bedrock_converse"], [], []),
    "cerebras": (["cerebras"], ["cerebras"], ["cerebras/"], []),
    "cohere": (["cohere"], ["cohere", "cohere_chat"], ["cohere/"], []),
    "deepgram": ([], ["deepgram"], ["deepgram/"], []),
    "deepinfra": ([], ["deepinfra"], ["deepinfra/"], []),
    "deepseek": (["deepseek"], ["deepseek"], ["deepseek/"], []),
    "elevenlabs": (["elevenlabs"], ["elevenlabs"], ["elevenlabs/"], []),
    "fal": ([], ["fal_ai"], ["fal_ai/"], []),
    "fireworks": (
        ["fireworks"],
        ["fireworks_ai", "fireworks_ai-embedding-models"],
        ["fireworks_ai/"],
        [],
    ),
    "gemini": (["google"], ["gemini"], ["gemini/"], []),
    "groq": (["groq"], ["groq"], ["groq/"], []),
    "mistral": (["mistral"], ["mistral"], ["mistral/"], []),
    "moonshot": (["moonshotai"], ["moonshot"], ["moonshot/"], []),
    "novita": (["novita"], ["novita"], ["novita/"], []),
    "openai": (
        ["openai"],
        ["openai", "text-completion-openai"],
        ["openai/", "text-completion-openai/"],
        [],
    ),
    "openrouter": (["openrouter"], [], [], []),
    "perplexity": (["perplexity"], ["perplexity"], ["perplexity/"], []),
    "replicate": ([], ["replicate"], ["replicate/"], []),
    "runway": ([], ["runwayml"], ["runwayml/"], []),
    "stability": ([], ["stability"], ["stability/"], []),
    "together": (["together"], ["together_ai"], ["together_ai/"], []),
    "vertex": (
        ["google"],
        [
            "vertex_ai-ai21_models",
            "vertex_ai-anthropic_models",
            "vertex_ai-language-models",
            "vertex_ai-llama_models",
            "vertex_ai-mistral_models",
        ],
        ["vertex_ai/"],
        ["gemini", "anthropic"],
    ),
    "voyage": (["voyageai"], ["voyage"], ["voyage/"], []),
    "xai": (["x-ai"], ["xai"], ["xai/"], []),
    "zai": (["zai"], ["zai"], ["zai/"], []),
}

# Figures that no rule settles: (provider, model) -> field -> (value, why). A value of None
# removes the figure.
NEWER_THAN_LITELLM = "newer than LiteLLM's list; every Claude since Opus 4.6 has the factor"
HALF_IN_BATCHES = "LiteLLM omits it; Anthropic halves every token rate in batches"
CORRECTIONS = {
    ("anthropic", "claude-fable-5-2"): {"regions": ({"us": "1.1"}, NEWER_THAN_LITELLM)},
    ("anthropic", "claude-mythos-5-2"): {"regions": ({"us": "1.1"}, NEWER_THAN_LITELLM)},
    ("anthropic", "claude-mythos-5"): {"tiers.batch.cache_write_1h": ("10", HALF_IN_BATCHES)},
    ("anthropic", "claude-mythos-5-1"): {"tiers.batch.cache_write_1h": ("10", HALF_IN_BATCHES)},
    ("openai", "chatgpt-image-latest"): {
        "tiers.batch.output_image": ("16", "LiteLLM omits it; half, as for gpt-image-1.5"),
    },
    ("openai", "ft:gpt-4o"): {
        "tiers.batch": (None, "the listed rates are not the documented half of standard"),
    },
    ("openai", "ft:babbage-002"): {
        "tiers.batch.output": ("0.8", "LiteLLM's 0.9 is not the documented half of standard"),
    },
    ("openai", "sora-2-pro"): {
        "variants": (
            {
                "1024x1792": {"video_second": "0.5"},
                "1792x1024": {"video_second": "0.5"},
            },
            "LiteLLM lists the high resolution as a model of its own, sora-2-pro-high-res",
        ),
    },
}

# Models that both sources have dropped and old callers may still name: published list prices.
ADDITIONS = {
    ("openai", "dall-e-2"): {
        "1024x1024": {"image": "0.02"},
        "512x512": {"image": "0.018"},
        "256x256": {"image": "0.016"},
    },
    ("openai", "dall-e-3"): {
        "1024x1024": {"image": "0.04"},
        "1024x1024/standard": {"image": "0.04"},
        "1024x1024/hd": {"image": "0.08"},
        "1024x1792": {"image": "0.08"},
        "1024x1792/standard": {"image": "0.08"},
        "1024x1792/hd": {"image": "0.12"},
        "1792x1024": {"image": "0.08"},
        "1792x1024/standard": {"image": "0.08"},
        "1792x1024/hd": {"image": "0.12"},
    },
}

# Replicate's hardware by its SKU, in dollars a second (https://replicate.com/pricing). The API
# tells neither what hardware costs nor what a model runs on.
HARDWARE = "hardware, by Replicate's pricing page"
REPLICATE_HARDWARE = {
    "cpu": "0.0001",
    "gpu-t4": "0.000225",
    "gpu-a40-small": "0.000575",
    "gpu-a40-large": "0.000725",
    "gpu-a40-large-2x": "0.00145",
    "gpu-a40-large-4x": "0.0029",
    "gpu-a40-large-8x": "0.0058",
    "gpu-l40s": "0.000975",
    "gpu-2x-l40s": "0.00195",
    "gpu-4x-l40s": "0.0039",
    "gpu-8x-l40s": "0.0078",
    "gpu-a100-large": "0.0014",
    "gpu-a100-large-2x": "0.0028",
    "gpu-a100-large-4x": "0.0056",
    "gpu-a100-large-8x": "0.0112",
    "gpu-h100": "0.001525",
    "gpu-h100-2x": "0.00305",
    "gpu-h100-4x": "0.0061",
    "gpu-h100-8x": "0.0122",
}

# What models of the public run on that are billed by the second, as the page of each said that
# day. Their owners may move them; a user's file says which hardware any other model costs the same
# as. Only models that cannot be trained: a training may run on something else.
REPLICATE_RUNS_ON = {
    "allenhooo/lama": ("gpu-t4", "2026-07-30"),
    "genmoai/mochi-1": ("gpu-h100", "2025-07-18"),
    "lightricks/ltx-video": ("gpu-l40s", "2026-09-24"),
    "openai/whisper": ("gpu-t4", "2025"),
    "sczhou/codeformer": ("gpu-l40s", "2026-07-22"),
    "tmappdev/lang-segment-anything": ("gpu-a100-large", "2026-07-30"),
    "vaibhavs10/incredibly-fast-whisper": ("gpu-l40s", "2026"),
}

# Prices that no source lists and that depend on what is asked for, with where they are published.
PUBLISHED_WHEN = {
    ("replicate", "lightricks/ltx-2.5-fast"): (
        [
            {"resolution": "720p", "video_second": "0.03"},
            {"resolution": "1080p", "video_second": "0.06"},
            {"resolution": "2k", "video_second": "0.12"},
            {"resolution": "4k", "video_second": "0.24"},
        ],
        "the model's page of 2026-09-25",
    ),
    ("replicate", "minimax/hailuo-2.3"): (
        [
            {"resolution": "768p", "seconds": 6, "billable_unit": "0.28"},
            {"resolution": "768p", "seconds": 10, "billable_unit": "0.56"},
            {"resolution": "1080p", "seconds": 6, "billable_unit": "0.49"},
        ],
        "the model's page of 2026-09-24, by the video",
    ),
    ("replicate", "wan-video/wan-2.5-i2v-fast"): (
        [
            {"resolution": "720p", "video_second": "0.068"},
            {"resolution": "1080p", "video_second": "0.102"},
        ],
        "the model's page of 2026-09-24",
    ),
}

# Prices that no source lists: (provider, model) -> rates by unit, and where they are published.
PUBLISHED = {
    ("replicate", "black-forest-labs/flux-schnell"): ({"image": "0.003"}, "the model's page"),
    ("replicate", "black-forest-labs/flux-pro"): ({"image": "0.055"}, "the model's page"),
    **{
        ("replicate", sku): ({"compute_second": rate}, HARDWARE)
        for sku, rate in REPLICATE_HARDWARE.items()
    },
}

# What the vendor calls a model that a source lists under another name.
ALSO_NAMED = {
    ("replicate", "meta/llama-3-8b"): ["meta/meta-llama-3-8b"],
    ("replicate", "meta/llama-3-8b-instruct"): ["meta/meta-llama-3-8b-instruct"],
    ("replicate", "meta/llama-3-70b"): ["meta/meta-llama-3-70b"],
    ("replicate", "meta/llama-3-70b-instruct"): ["meta/meta-llama-3-70b-instruct"],
}

# Models whose genai-prices entry is out of date, so that LiteLLM's is taken whole.
LITELLM_IS_NEWER = {
    ("deepseek", "deepseek-chat"): "prices of 2025-09 without off-peak hours",
    ("deepseek", "deepseek-reasoner"): "prices of 2025-09 without off-peak hours",
}

# Names that genai-prices lists under a model whose price is not theirs: OpenAI's preview search
# costs 25 for a thousand calls, not 10.
NOT_THE_SAME = {
    ("openai", "gpt-4o-mini-search-preview"),
    ("openai", "gpt-4o-mini-search-preview-2025-03-11"),
}

# Names that are no models of the vendor's API.
SKIPPED = {
    ("openai", "container"),
    ("openai", "sora-2-pro-high-res"),
    ("openai", "moderation"),
}

GENAI_UNITS = {
    "input_mtok": "input",
    "output_mtok": "output",
    "cache_read_mtok": "cache_read",
    "cache_write_mtok": "cache_write",
    "cache_write_5m_mtok": "cache_write_5m",
    "cache_write_1h_mtok": "cache_write_1h",
    "output_reasoning_mtok": "reasoning",
    "input_audio_mtok": "input_audio",
    "output_audio_mtok": "output_audio",
    "input_image_mtok": "input_image",
    "output_image_mtok": "output_image",
    "input_mchars": "character",
}
GENAI_PER_THOUSAND = {
    "web_searches_kcount": "search",
    "requests_kcount": "request",
    "input_document_kpages": "page",
}
GENAI_PER_HOUR = {"audio_hours": "audio_second"}
# Units that we have no name for, or that another one repeats.
GENAI_IGNORED = {
    "storage_searches_kcount",
    "input_audio_hours",
    "input_annotated_document_kpages",
    "input_video_mtok",
    "output_video_mtok",
    "input_text_messages_kcount",
    "output_citation_mtok",
    "cache_audio_read_mtok",
    "cache_image_read_mtok",
}
CACHE_READ_OF_A_KIND = ("cache_audio_read_mtok", "cache_image_read_mtok")

LITELLM_TOKENS = {
    "input_cost_per_token": "input",
    "output_cost_per_token": "output",
    "cache_read_input_token_cost": "cache_read",
    "cache_creation_input_token_cost": "cache_write",
    "cache_creation_input_token_cost_above_1hr": "cache_write_1h",
    "output_cost_per_reasoning_token": "reasoning",
    "input_cost_per_audio_token": "input_audio",
    "output_cost_per_audio_token": "output_audio",
    "input_cost_per_image_token": "input_image",
    "output_cost_per_image_token": "output_image",
    "input_cost_per_character": "character",
}
LITELLM_TIERS = {
    "batches": "batch",
    "flex": "flex",
    "priority": "priority",
    "ultrafast": "ultrafast",
}
LITELLM_KEY = re.compile(
    r"^(?P<base>.*?)(?:_above_(?P<limit>\d+)k_tokens)?(?:_(?P<tier>%s))?$"
    % "|".join(LITELLM_TIERS)
)

UNIT_ORDER = [
    "input", "cache_read", "cache_write_5m", "cache_write_1h", "cache_write", "output",
    "reasoning", "input_audio", "output_audio", "input_image", "output_image", "image",
    "megapixel", "video_second", "audio_second", "compute_second", "character", "page", "search",
    "request", "billable_unit",
]  # fmt: skip

DATE_SUFFIX = re.compile(r"[-@]20\d\d-?(0[1-9]|1[0-2])-?(0[1-9]|[12]\d|3[01])$")
NAME = re.compile(r"^[A-Za-z0-9~][A-Za-z0-9._:/@+~-]*[A-Za-z0-9]$")
SIZE = re.compile(r"^(?:(?P<quality>[a-z]+)/)?(?P<w>\d+)-x-(?P<h>\d+)/(?P<name>.+)$")


class MissingSource(Exception):
    """A package is not installed, or not in the version that was asked for."""


def text(value):
    """A decimal in plain notation without trailing zeros."""
    value = format(value, "f")
    return value.rstrip("0").rstrip(".") if "." in value else value


def per(value, count):
    """A rate for one unit from a price for so many: exact, as a fraction where need be."""
    rest = Fraction(value) / count
    rest = rest.denominator
    for factor in (2, 5):
        while rest % factor == 0:
            rest //= factor
    return text(Decimal(value) / count) if rest == 1 else f"{text(Decimal(value))}/{count}"


def number(rate):
    """A rate as a number, to the twelve digits that a float in a source can be trusted for."""
    amount, _, count = rate.partition("/")
    return Context(prec=12).divide(Decimal(amount), Decimal(count or 1)).normalize()


def million(amount):
    """A price a token as one a million; LiteLLM's floats carry noise in the sixteenth digit."""
    return text(Context(prec=12).multiply(Decimal(amount), 1_000_000))


class Rates:
    """Rates by unit, with those that hold above a context length."""

    def __init__(self):
        self.base = {}
        self.above = {}

    def put(self, unit, rate, limit=None):
        target = self.base if limit is None else self.above.setdefault(limit, {})
        target[unit] = rate

    def __bool__(self):
        return bool(self.base or self.above)

    def figures(self, prefix=""):
        """Every figure by its dotted name."""
        for unit, rate in self.base.items():
            yield prefix + unit, rate
        for limit, rates in self.above.items():
            for unit, rate in rates.items():
                yield f"{prefix}above.{limit}.{unit}", rate

    def units(self):
        return set(self.base).union(*self.above.values()) if self.above else set(self.base)

    def drop(self, unit):
        self.base.pop(unit, None)
        for rates in self.above.values():
            rates.pop(unit, None)
        self.above = {limit: rates for limit, rates in self.above.items() if rates}

    def rename(self, old, new):
        for rates in [self.base, *self.above.values()]:
            if old in rates and new not in rates:
                rates[new] = rates.pop(old)

    def tidy(self):
        """Leaves out what says nothing: rates equal to the one that stands in for them."""
        for rates, fallback in [(self.base, {})] + [(r, self.base) for r in self.above.values()]:
            if rates.get("reasoning") and rates["reasoning"] == rates.get(
                "output", fallback.get("output")
            ):
                del rates["reasoning"]
        image = self.base.get("input_image")
        if image is not None and image == self.base.get("input"):
            self.drop("input_image")
        self.above = {
            limit: {u: r for u, r in rates.items() if self.base.get(u) != r}
            for limit, rates in self.above.items()
        }
        self.above = {limit: rates for limit, rates in self.above.items() if rates}

    def out(self):
        shown = {unit: self.base[unit] for unit in UNIT_ORDER if unit in self.base}
        if self.above:
            shown["above"] = [
                {"tokens": limit, **{u: rates[u] for u in UNIT_ORDER if u in rates}}
                for limit, rates in sorted(self.above.items())
            ]
        return shown


class Price:
    """What a model costs while its condition holds."""

    def __init__(self, start=None, hours=None):
        self.start = start
        self.hours = hours
        self.rates = Rates()
        self.tiers = {}
        self.variants = {}
        self.when = []
        self.regions = {}
        self.estimate = []
        self.billable_unit_is = None

    def figures(self):
        yield from self.rates.figures()
        for tier, rates in self.tiers.items():
            yield from rates.figures(f"tiers.{tier}.")

    def out(self):
        shown = {}
        if self.start:
            shown["from"] = self.start
        if self.hours:
            shown["hours"] = self.hours
        shown.update(self.rates.out())
        if self.variants:
            shown["variants"] = {k: self.variants[k] for k in sorted(self.variants)}
        if self.when:
            shown["when"] = self.when
        if self.tiers:
            shown["tiers"] = {name: self.tiers[name].out() for name in sorted(self.tiers)}
        if self.regions:
            shown["regions"] = {k: self.regions[k] for k in sorted(self.regions)}
        if self.estimate:
            shown["estimate"] = sorted(self.estimate)
        if self.billable_unit_is:
            shown["billable_unit_is"] = self.billable_unit_is
        return shown


class Model:
    """A model of one provider: its names, its prices by date, and where they come from."""

    def __init__(self, name, aliases, prices, source):
        self.name = name
        self.aliases = aliases
        self.prices = prices
        self.source = source

    def at(self, date):
        """The price of that day that holds at every hour."""
        daily = [price for price in self.prices if not price.hours]
        return next((p for p in reversed(daily) if (p.start or "") <= date), daily[0])

    def out(self):
        prices = [price.out() for price in self.prices]
        prices[-1]["source"] = self.source
        return prices[0] if len(prices) == 1 else prices


# ---- genai-prices ---------------------------------------------------------------------------


def clause_names(clause):
    """The names that a match clause spells out in full; the parts of an "and" are none."""
    for part in getattr(clause, "or_", ()):
        yield from clause_names(part)
    if hasattr(clause, "equals"):
        yield clause.equals
    if hasattr(clause, "starts_with"):
        yield clause.starts_with


def is_name(name):
    return bool(NAME.match(name)) and not re.search(r"(-20\d\d|-0)$", name)


def genai_rates(prices, provider, name, price=None):
    rates = Rates()
    for key, value in sorted(vars(prices).items()):
        if value is None or key in GENAI_IGNORED:
            continue
        if key in GENAI_PER_THOUSAND:
            rates.put(GENAI_PER_THOUSAND[key], per(value, 1000))
        elif key in GENAI_PER_HOUR:
            rates.put(GENAI_PER_HOUR[key], per(value, 3600))
        elif key in GENAI_UNITS:
            unit = GENAI_UNITS[key]
            if hasattr(value, "base"):
                rates.put(unit, text(value.base))
                for tier in value.tiers:
                    rates.put(unit, text(tier.price), tier.start)
            else:
                rates.put(unit, text(value))
        else:
            raise SystemExit(f"{provider} {name}: unknown price key {key}")
    cached = getattr(prices, "cache_read_mtok", None)
    kinds = [getattr(prices, key, None) for key in CACHE_READ_OF_A_KIND]
    if price is not None and any(kind is not None and kind != cached for kind in kinds):
        price.estimate.append("cache_read")
    settle_cache_writes(rates, name)
    rates.tidy()
    return rates


def settle_cache_writes(rates, name):
    """Claude's unqualified write price is the five-minute one, wherever Claude is sold."""
    if "claude" in name or "cache_write_1h" in rates.units():
        rates.rename("cache_write", "cache_write_5m")


def genai_models(providers, ids, ours, date):
    for provider in providers:
        if provider.id not in ids:
            continue
        for info in provider.models:
            if provider.id == "google" and (ours == "vertex") != info.id.startswith("claude"):
                continue
            names = [info.id] + sorted(set(clause_names(info.match)))
            names = [
                name
                for name in dict.fromkeys(names)
                if is_name(name) and (ours, name) not in NOT_THE_SAME
            ]
            if not names or (ours, names[0]) in SKIPPED:
                continue
            yield genai_model(info, names, ours, date)


def genai_model(info, names, ours, date):
    conditions = info.prices if isinstance(info.prices, list) else [None]
    prices = []
    for condition in conditions:
        constraint = condition.constraint if condition else None
        start = getattr(constraint, "start_date", None)
        hours = None
        if hasattr(constraint, "start_time"):
            hours = f"{constraint.start_time:%H:%M}-{constraint.end_time:%H:%M}"
        price = Price(start and start.isoformat(), hours)
        price.rates = genai_rates(
            condition.prices if condition else info.prices, ours, names[0], price
        )
        prices.append(price)
    if not any(price.rates for price in prices):
        if not names[0].endswith(":free"):
            return None
        prices[-1].rates.base = {"input": "0", "output": "0"}
    model = Model(names[0], names[1:], prices, "g")
    for variant in info.price_variants or []:
        tier = (
            variant.when.get("service_tier")
            or variant.when.get("speed")
            or variant.when.get("processing")
        )
        if len(variant.when) == 1 and tier and tier not in ("default", "standard"):
            start = getattr(variant.constraint, "start_date", None)
            price = model.at(start.isoformat() if start else date)
            price.tiers.setdefault(tier, genai_rates(variant.prices, ours, names[0]))
    return model


# ---- LiteLLM --------------------------------------------------------------------------------


def litellm_models(entries, ids, prefixes, ours):
    """Models by name; names with a size and a quality become variants of their model."""
    models = {}
    variants = {}
    for key, entry in entries.items():
        if entry.get("litellm_provider") not in ids:
            continue
        name = key
        for prefix in prefixes:
            name = name.removeprefix(prefix)
        sized = SIZE.match(name)
        if sized:
            amount = entry.get("output_cost_per_image", entry.get("input_cost_per_image"))
            if amount is not None and sized["quality"] != "standard":
                variant = f"{sized['w']}x{sized['h']}"
                if sized["quality"]:
                    variant += f"/{sized['quality']}"
                target = variants.setdefault(sized["name"].removeprefix("openai/"), {})
                target[variant] = {"image": text(Decimal(amount))}
            continue
        if ours == "bedrock" and "/" in name or ours == "azure" and "/" in name:
            continue
        if (ours, name) in SKIPPED or not NAME.match(name):
            continue
        price = litellm_price(entry, ours, name)
        if price.rates or price.variants:
            # Names with and without prefix repeat each other; the first is the plain one.
            models.setdefault(name, Model(name, [], [price], "l"))
    if ours == "fal":
        for name, listed in variants.items():
            model = models.setdefault(
                f"openai/{name}", Model(f"openai/{name}", [], [Price()], "l")
            )
            model.prices[0].variants.update(listed)
            model.prices[0].rates = Rates()
            model.prices[0].estimate = []
            model.prices[0].billable_unit_is = None
    return models


def litellm_price(entry, ours, name):
    price = Price()
    mode = entry.get("mode")
    for key, value in sorted(entry.items()):
        if not isinstance(value, (int, Decimal)) or isinstance(value, bool):
            continue
        match = LITELLM_KEY.match(key)
        unit = LITELLM_TOKENS.get(match["base"])
        if unit is None:
            continue
        limit = int(match["limit"]) * 1000 if match["limit"] else None
        tier = LITELLM_TIERS.get(match["tier"])
        rates = price.tiers.setdefault(tier, Rates()) if tier else price.rates
        rates.put(unit, million(value), limit)
    if mode in ("embedding", "rerank") and price.rates.base.get("output") == "0":
        for rates in [price.rates, *price.tiers.values()]:
            rates.drop("output")
    for rates in [price.rates, *price.tiers.values()]:
        # A write that costs nothing is how LiteLLM says that writing has no price of its own.
        if rates.base.get("cache_write") == "0":
            rates.drop("cache_write")
        settle_cache_writes(rates, name)
        rates.tidy()
    price.tiers = {tier: rates for tier, rates in price.tiers.items() if rates}
    plain = price.rates.base
    media = {"output_image", "input_audio", "output_audio"} & set(plain)

    def listed(*keys):
        return next((Decimal(entry[k]) for k in keys if isinstance(entry.get(k), (int, Decimal))), None)

    searches = entry.get("search_context_cost_per_query")
    if isinstance(searches, dict) and searches.get("search_context_size_medium") is not None:
        amounts = {Decimal(amount) for amount in searches.values()}
        plain["search"] = text(Decimal(searches["search_context_size_medium"]))
        if len(amounts) > 1:
            price.estimate.append("search")
    if mode == "rerank" and (amount := listed("input_cost_per_query")):
        plain["search"] = text(amount)
    if mode in ("audio_transcription", "realtime") and not media and "input" not in plain:
        if amount := listed("input_cost_per_second", "output_cost_per_second"):
            plain["audio_second"] = seconds(amount)
    if mode == "video_generation":
        if amount := listed("output_cost_per_video_per_second", "output_cost_per_second"):
            plain["video_second"] = text(amount)
        for key, value in sorted(entry.items()):
            if match := re.match(r"^output_cost_per_second_(\d+p|\dk)$", key):
                price.variants[match[1]] = {"video_second": text(Decimal(value))}
    if mode == "image_generation" and not media and "output" not in plain:
        if pixel := listed("output_cost_per_pixel", "input_cost_per_pixel"):
            # fal's megapixel is 1024 × 1024 pixels: LiteLLM's figure is 0.025 divided by that.
            plain["megapixel"] = text(pixel * 1024 * 1024) if ours == "fal" else million(pixel)
        elif amount := listed("output_cost_per_image", "input_cost_per_image"):
            plain["image"] = text(amount)
    if mode == "ocr" and (amount := listed("ocr_cost_per_page")):
        plain["page"] = text(amount)
    if ours == "fal" and not price.variants:
        # fal bills its own units times this price. What LiteLLM calls the unit only stands in
        # where an answer states none.
        for unit in ("megapixel", "image", "video_second"):
            if unit in plain:
                plain["billable_unit"] = plain.pop(unit)
                price.billable_unit_is = unit
                price.estimate.append("billable_unit")
    for region in ("us", "eu"):
        factor = listed(f"regional_processing_uplift_multiplier_{region}")
        if factor and factor != 1:
            price.regions[region] = text(factor)
    extra = entry.get("provider_specific_entry") or {}
    if isinstance(extra.get("us"), (int, Decimal)):
        price.regions["us"] = text(Decimal(extra["us"]))
    return price


def seconds(amount):
    """LiteLLM rounds prices an hour to prices a second; the hour is the published figure."""
    for count in (60, 3600):
        total = (amount * count).quantize(Decimal("0.0001"))
        if abs(total / count - amount) < Decimal("1e-11"):
            return per(total.normalize(), count)
    return text(amount)


# ---- Merging --------------------------------------------------------------------------------


def stripped(name):
    return DATE_SUFFIX.sub("", name).removesuffix("-latest")


def merge(ours, genai, litellm, notes, date):
    """One list of models from both sources, by the rules at the top."""
    genai = [
        model
        for model in genai
        if (ours, model.name) not in LITELLM_IS_NEWER or model.name not in litellm
    ]
    owner = {}
    for model in genai:
        owner[model.name] = model
    for model in genai:
        model.aliases = [name for name in model.aliases if owner.setdefault(name, model) is model]
    merged = list(genai)
    for model in genai:
        names = [model.name, *model.aliases]
        twins = [litellm[name] for name in names if name in litellm]
        if not twins:
            # A dated name in LiteLLM speaks for the model that it is a snapshot of.
            twins = [t for name, t in litellm.items() if DATE_SUFFIX.sub("", name) == model.name]
        if twins:
            join(ours, model, twins[0], notes, date)
    for name, twin in litellm.items():
        if name in owner:
            continue
        base = owner.get(stripped(name)) or litellm.get(stripped(name))
        if base is not None and base is not twin:
            have, theirs = dict(base.at(date).figures()), dict(twin.at(date).figures())
            differing = sorted(
                figure for figure in have if figure in theirs
                and number(have[figure]) != number(theirs[figure])
            )  # fmt: skip
            # A snapshot that costs the same needs no row. One that LiteLLM alone knows to cost
            # something else keeps its own, and so does a -latest name, which moves.
            if not differing:
                continue
            if base.source != "l" and not name.endswith("-latest"):
                notes += [(ours, name, figure, have[figure], theirs[figure]) for figure in differing]
                continue
        merged.append(twin)
    return merged


def join(ours, model, twin, notes, date):
    """Fills a genai-prices model from its LiteLLM twin and notes where the two differ."""
    price, other = model.at(date), twin.at(date)
    hourly = any(price.hours for price in model.prices)
    have, theirs = dict(price.figures()), dict(other.figures())
    differing = []
    for figure, rate in sorted(theirs.items()):
        if hourly:
            # LiteLLM's figure is the one of the peak hours.
            break
        if figure in have and number(have[figure]) != number(rate):
            differing.append(figure)
            notes.append((ours, model.name, figure, have[figure], rate))
        elif ".above." in f".{figure}" and figure not in have:
            unit = figure.rsplit(".", 1)[1]
            stem = figure.split("above.")[0]
            flat = stem + unit
            tiered = any(f.startswith(f"{stem}above.") and f.endswith(f".{unit}") for f in have)
            if flat in have and not tiered:
                differing.append(figure)
                notes.append((ours, model.name, figure, f"{have[flat]} (flat)", rate))
    filled = []
    if not hourly:
        media = {"output_image", "input_audio", "output_audio"} & price.rates.units()
        for unit, rate in other.rates.base.items():
            if unit == "search" and "request" in price.rates.units():
                # The fee of a request and the fee of its searches are one fee.
                price.estimate += ["request" for u in other.estimate if u == unit]
                continue
            counted = unit in ("audio_second", "image", "megapixel")
            if unit not in price.rates.units() and not (counted and media):
                price.rates.put(unit, rate)
                filled.append(unit)
                if unit == "output_image" and price.rates.base.get("output") == rate:
                    # genai-prices lists the rate of image tokens as the output rate.
                    for rates in price.tiers.values():
                        if "output" in rates.base:
                            rates.put(unit, rates.base["output"])
                for limit, rates in other.rates.above.items():
                    if unit in rates:
                        price.rates.put(unit, rates[unit], limit)
                if unit == "search":
                    price.estimate += [u for u in other.estimate if u == "search"]
        # A tier is of use only beside the standard rates that it was listed with.
        alike = not {"input", "output"} & set(differing)
        for tier, rates in other.tiers.items():
            if alike and tier not in price.tiers:
                price.tiers[tier] = rates
                filled.append(f"tiers.{tier}")
    if other.regions:
        price.regions = other.regions
        filled.append("regions")
    price.rates.tidy()
    if differing:
        model.source += "!l:" + ",".join(differing)
    elif set(have) & set(theirs):
        model.source += "=l"
    if filled:
        model.source += "+l:" + ",".join(sorted(filled))


def correct(ours, model, applied, date):
    for field, (value, why) in CORRECTIONS.get((ours, model.name), {}).items():
        price = model.at(date)
        match field.split("."):
            case ["variants" | "regions"]:
                setattr(price, field, value)
            case ["tiers", tier] if value is None:
                del price.tiers[tier]
            case ["tiers", tier, unit]:
                price.tiers[tier].put(unit, value)
            case _:
                raise SystemExit(f"{ours} {model.name}: no such field {field}")
        model.source += f"+o:{field}"
        applied.append((ours, model.name, field, why))


def check(ours, model, dropped):
    """Leaves out what cannot be right, and says so."""
    for price in model.prices:
        rates = price.rates.base
        if "cache_read" in rates and "input" in rates:
            if number(rates["cache_read"]) > number(rates["input"]):
                dropped.append((ours, model.name, "cache_read", "dearer than the input rate"))
                price.rates.drop("cache_read")
                for tier in price.tiers.values():
                    tier.drop("cache_read")
        if any(number(rate) < 0 for _, rate in price.figures()):
            dropped.append((ours, model.name, "everything", "a negative rate"))
            return False
    return any(price.rates or price.variants or price.when for price in model.prices)


# ---- Files ----------------------------------------------------------------------------------


def load_sources(wanted):
    versions = {}
    for package in ("genai-prices", "litellm"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            raise MissingSource(f"{package} is not installed: pip install {package}") from None
        if wanted and wanted.get(package) != versions[package]:
            raise MissingSource(
                f"{package} is {versions[package]}, the catalogue was built from {wanted.get(package)}"
            )
    from genai_prices.data import providers

    path = importlib.metadata.distribution("litellm").locate_file(PRICE_FILE)
    entries = json.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
    return versions, providers, entries


def build(date, versions, providers, entries):
    notes, applied, dropped, lines, counts = [], [], [], [], {}
    for ours, (genai_ids, litellm_ids, prefixes, fallbacks) in sorted(PROVIDERS.items()):
        genai = [m for m in genai_models(providers, genai_ids, ours, date) if m is not None]
        litellm = litellm_models(entries, litellm_ids, prefixes, ours)
        models = merge(ours, genai, litellm, notes, date)
        for (provider, name), variants in ADDITIONS.items():
            if provider == ours and all(model.name != name for model in models):
                models.append(Model(name, [], [Price()], "o"))
                models[-1].prices[0].variants = variants
                applied.append((ours, name, "variants", "the published list price"))
        for (provider, name), (rates, why) in PUBLISHED.items():
            if provider == ours and all(model.name != name for model in models):
                models.append(Model(name, [], [Price()], "o"))
                models[-1].prices[0].rates.base = dict(rates)
                applied.append((ours, name, ", ".join(rates), why))
        for (provider, name), (when, why) in PUBLISHED_WHEN.items():
            if provider == ours and all(model.name != name for model in models):
                models.append(Model(name, [], [Price()], "o"))
                models[-1].prices[0].when = when
                applied.append((ours, name, "when", why))
        for model in models:
            model.aliases += ALSO_NAMED.get((ours, model.name), [])
            for name, (hardware, page) in REPLICATE_RUNS_ON.items():
                if ours == "replicate" and model.name == hardware:
                    model.aliases.append(name)
                    why = f"runs on {hardware}, by its page of {page}"
                    applied.append((ours, name, "compute_second", why))
        listed, rows = set(), []
        for model in sorted(models, key=lambda model: model.name):
            correct(ours, model, applied, date)
            if not check(ours, model, dropped):
                continue
            rows.append((model.name, model.out()))
            listed.add(model.name)
        for model in models:
            if model.name in listed:
                for alias in model.aliases:
                    # What a strict suffix already stands for needs no row.
                    if alias not in listed and stripped(alias) != model.name:
                        rows.append((alias, model.name))
                        listed.add(alias)
        rows.sort(key=lambda row: row[0])
        counts[ours] = (sum(not isinstance(row[1], str) for row in rows), len(rows))
        body = ",\n".join(f"{compact(name)}:{compact(entry)}" for name, entry in rows)
        falls = f'"falls_back_to":{compact(fallbacks)},' if fallbacks else ""
        lines.append(f'{compact(ours)}:{{{falls}"models":{{\n{body}\n}}}}')
    body = ",\n".join(lines)
    digest = hashlib.sha256(body.encode()).hexdigest()[:8]
    sources = compact({"g": f"genai-prices {versions['genai-prices']}",
                       "l": f"litellm {versions['litellm']}",
                       "o": "corrections in scripts/build_price_catalogue.py"})  # fmt: skip
    catalogue = (
        f'{{"version":"{date}-{digest}",\n"sources":{sources},\n"providers":{{\n{body}\n}}}}\n'
    )
    return catalogue, render_notes(date, versions, counts, notes, applied, dropped)


def compact(value):
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def table(head, rows):
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(str(cell) for cell in row) + " |"
    yield ""


def render_notes(date, versions, counts, notes, applied, dropped):
    for (provider, name), why in sorted(LITELLM_IS_NEWER.items()):
        applied.append((provider, name, "everything", f"LiteLLM is newer: {why}"))
    lines = [
        "# Notes on the price catalogue",
        "",
        "Generated by `scripts/build_price_catalogue.py`; do not edit.",
        "",
        f"Catalogue of {date}, from genai-prices {versions['genai-prices']} and "
        f"LiteLLM {versions['litellm']} (both MIT).",
        "",
        "The `source` of an entry in `catalog.json` tells where each figure comes from: `g` and "
        "`l` are the source of the entry, `=l` says that LiteLLM agrees on every figure that both "
        "list, `!l:…` names the figures that it lists differently (genai-prices was taken), "
        "`+l:…` names those that only it has, and `+o:…` those that a correction in the script "
        "decides.",
        "",
        "## Models and names",
        "",
        *table(["provider", "models", "names"], [(p, *c) for p, c in sorted(counts.items())]),
        "## Corrections",
        "",
        *table(["provider", "model", "field", "why"], sorted(applied)),
        "## Left out",
        "",
        *table(["provider", "model", "figure", "why"], dropped),
        "## Disagreements",
        "",
        "Token rates in USD per million. The first is taken.",
        "",
        *table(["provider", "model", "figure", "genai-prices", "LiteLLM"], sorted(notes)),
    ]
    return "\n".join(lines).rstrip("\n") + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--date", help="the catalogue's date; default: keep the committed one")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    options = parser.parse_args()
    committed = json.loads(CATALOGUE.read_text("utf-8")) if CATALOGUE.exists() else {}
    date = options.date or committed.get("version", "")[:10]
    if not re.fullmatch(r"20\d\d-\d\d-\d\d", date):
        parser.error("--date YYYY-MM-DD is needed for the first build")
    wanted = None
    if options.check:
        listed = committed.get("sources", {}).values()
        wanted = dict(source.split(" ", 1) for source in listed)
    try:
        catalogue, notes = build(date, *load_sources(wanted))
    except MissingSource as missing:
        print(missing, file=sys.stderr)
        return 3
    files = {CATALOGUE: catalogue, NOTES: notes}
    if options.check:
        stale = [p.name for p, t in files.items() if not p.exists() or p.read_text("utf-8") != t]
        if stale:
            print(f"not what the script builds: {', '.join(stale)}", file=sys.stderr)
        return 1 if stale else 0
    for path, content in files.items():
        path.write_text(content, "utf-8")
        print(f"{path.relative_to(ROOT)}: {len(content):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
