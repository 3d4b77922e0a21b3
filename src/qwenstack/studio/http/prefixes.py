"""Where each vendor's API begins."""

from __future__ import annotations

from typing import Final

# Model Studio serves the same OpenAI surface under the second prefix. The third is for clients
# whose base URL was given without a version.
OPENAI_PREFIXES: Final = ("/v1", "/compatible-mode/v1", "")
# Model Studio's base URL for Anthropic's clients is the second.
ANTHROPIC_PREFIXES: Final = ("/v1", "/apps/anthropic/v1")
DASHSCOPE_PREFIX: Final = "/api/v1/services"
