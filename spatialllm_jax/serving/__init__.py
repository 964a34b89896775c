"""Models behind HTTP: OpenAI's chat format, a page to draw on, one engine for all who ask (docs/serving.md)."""
