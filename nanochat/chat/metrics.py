"""The server's metrics for Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class ServerMetrics:
    """One server's counters, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.first_token = Histogram(
            "nanochat_time_to_first_token_seconds", "From the request to its first token", buckets=SECONDS, registry=self.registry
        )
        self.failures = Counter("nanochat_engine_failures_total", "Steps that failed", registry=self.registry)
        self.requests = Counter("nanochat_requests_total", "Answered requests", ["path", "status"], registry=self.registry)
        self._token = Histogram(
            "nanochat_time_per_token_seconds",
            "One step of the batch: a token for each running answer",
            buckets=TOKEN_SECONDS,
            registry=self.registry,
        )
        self._prompt_tokens = Counter("nanochat_prompt_tokens_total", "Tokens of prompts", registry=self.registry)
        self._reused_tokens = Counter("nanochat_prompt_tokens_reused_total", "Of these, found in the cache", registry=self.registry)
        self._generated = Counter("nanochat_generated_tokens_total", "Tokens of answers", registry=self.registry)

    def watch(self, waiting: Callable[[], int], running: Callable[[], int], slots: Callable[[], int]) -> None:
        """Where the numbers of the moment are read."""
        for name, what, read in (
            ("nanochat_requests_waiting", "Answers in the queue", waiting),
            ("nanochat_requests_running", "Answers in a slot", running),
            ("nanochat_slots", "Answers that can run at once", slots),
        ):
            Gauge(name, what, registry=self.registry).set_function(read)

    def prompt(self, tokens: int, reused: int) -> None:
        """Count a prompt and what of it was in the cache."""
        self._prompt_tokens.inc(tokens)
        self._reused_tokens.inc(reused)

    def step(self, tokens: int, seconds: float) -> None:
        """Count a step of the batch."""
        self._generated.inc(tokens)
        self._token.observe(seconds)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)
